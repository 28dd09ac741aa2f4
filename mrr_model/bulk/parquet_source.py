"""Rows from Parquet files, read in batches. The one source that needs pyarrow."""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mrr_model.bulk.columns import LISTS, Columns, described, document_column, missing
from mrr_model.bulk.held import Held
from mrr_model.bulk.inputs import FileSource, InputFile, Kind
from mrr_model.bulk.records import BadRow, Chunk, Partition, partition_rows
from mrr_model.bulk.text_source import CHUNK_LISTS, CHUNK_PAIRS, CONTENT, ended_early
from mrr_model.data.jsonl import NoTextError
from mrr_model.files.damage import reading, short

FLAT = {"buffer_size": 2**20, "pre_buffer": False}
"""How a file is opened, so that memory stays flat: pyarrow's defaults keep the bytes of every row group read."""


class ParquetSource(FileSource):
    """Parquet files, with texts as any of Arrow's string types.

    Args:
        files: The files.
        query: The column of the query.
        document: The column of the document or documents; None for "document", else "documents".
        ranked: Whether neighbouring rows of one query are ranked.
    """

    kind: Kind = "parquet"

    def __init__(self, files: Sequence[InputFile], query: str, document: str | None, ranked: bool) -> None:
        super().__init__(files)
        self._query, self._document = query, document
        with reading(files[0].name, advice=""), pq.ParquetFile(files[0].path) as parquet:
            self._columns = self._columns_of(files[0], parquet.schema_arrow)
        self.lists = self._columns.lists
        self._ranked = ranked and not self.lists
        self._held: Held[Batches] = Held()

    def partitions(self, rows: int | None) -> Iterator[Partition]:
        rows, index = partition_rows(rows, self.lists), 0
        for file in self.files:
            with reading(file.name, advice=""), pq.ParquetFile(file.path, **FLAT) as parquet:
                found = self._columns_of(file, parquet.schema_arrow)
                if found != self._columns:
                    raise ValueError(
                        f"{file.name} has {described(found)}, and files before it have {described(self._columns)}. "
                        "Give files of one set-up"
                    )
                total = parquet.metadata.num_rows
                starts = self._group_starts(parquet, rows) if self._ranked else list(range(0, total, rows))
            for start, end in zip(starts, [*starts[1:], total], strict=False):  # no start if there are no rows
                yield Partition(index, file.path, start, start + 1, end - start)
                index += 1

    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        file = self._by_path[partition.file]
        size = CHUNK_LISTS if self.lists else CHUNK_PAIRS
        position, end = partition.start, partition.start + partition.rows
        with self._held.using(file.path, partial(Batches, size=size)) as batches:
            while position < end:
                with reading(file.name, advice=""):
                    table = batches.read(position, min(size, end - position))
                    if not len(table):
                        raise ended_early(file, end - position)
                    chunk = self._chunk(file, table, position + 1)
                yield chunk
                position += len(table)

    def _columns_of(self, file: InputFile, schema: pa.Schema) -> Columns:
        """The columns of a file. Raises ValueError if it lacks them, or they hold no texts."""
        names = [name for name in schema.names if schema.get_field_index(name) >= 0]  # -1 for a name that comes twice
        document = document_column(names, self._document)
        if document is None or self._query not in names:
            raise missing(file.name, schema.names, self._query, self._document)
        kind = schema.field(document).type
        lists = _is_list(kind) if self._document else document == LISTS
        columns = Columns(self._query, document, lists)
        if not _is_text(schema.field(self._query).type):
            raise _no_texts(file, schema, self._query, "texts")
        if not (_is_list(kind) and _is_item(kind.value_type) if lists else _is_text(kind)):
            raise _no_texts(file, schema, document, "lists of texts" if lists else "texts")
        return columns

    def _group_starts(self, parquet: pq.ParquetFile, rows: int) -> list[int]:
        """The first row of each partition, where partitions end only where the query changes."""
        names = [self._query]
        if any(_may_have_nulls(parquet.metadata.row_group(at), self._columns.document) for at in _row_groups(parquet)):
            names.append(self._columns.document)  # a row without a document belongs to the group before it
        starts: list[int] = []
        group, row = None, 0
        for batch in parquet.iter_batches(CHUNK_PAIRS, columns=names):
            for query, *document in zip(*map(_values, batch.columns), strict=True):
                good = isinstance(query, str) and query.strip() and document != [None]
                if not starts or (good and query != group and row - starts[-1] >= rows):
                    starts.append(row)
                group = query if good else group
                row += 1
        return starts

    def _chunk(self, file: InputFile, table: pa.Table, number: int) -> Chunk:
        names = (self._columns.query, self._columns.document)
        chunk = Chunk(rows=table, queries=(queries := []), documents=(documents := []))
        bad: list[int] = []
        for at, values in enumerate(zip(*(_values(table.column(name)) for name in names), strict=True)):
            try:
                for name, value in zip(names, values, strict=True):
                    if isinstance(value, UnicodeDecodeError):
                        raise NoTextError(f'"{name}" is not UTF-8 text: {value}')
                query, document = self._columns.texts(dict(zip(names, values, strict=True)))
            except ValueError as error:
                chunk.bad.append(BadRow(f"{file.name}: row {number + at}", str(error), _content(table, at)))
                bad.append(at)
                continue
            queries.append(query)
            documents.append(document)
        chunk.rows = _without(table, bad)
        chunk.keys = queries if self._ranked else None
        return chunk


class Batches:
    """A Parquet file that is read forward, a few rows at a time; it starts again to go back.

    Args:
        path: The file.
        size: Rows that are decoded at a time.
    """

    def __init__(self, path: str, size: int) -> None:
        self._size = size
        self._file = pq.ParquetFile(path, **FLAT)
        self._firsts = [0]
        """The first row of each row group, and the number of rows."""
        for at in _row_groups(self._file):
            self._firsts.append(self._firsts[-1] + self._file.metadata.row_group(at).num_rows)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._rows = self._file.schema_arrow.empty_table()
        """The rows that are read and were not asked for yet."""
        self._position = self._firsts[-1]
        """The first of them."""

    def read(self, row: int, count: int) -> pa.Table:
        """Read `count` rows from a row on; fewer at the end of the file. What was read before makes no difference."""
        group = max(bisect_right(self._firsts, row) - 1, 0)
        if row < self._position or self._position < self._firsts[group]:
            self._batches = self._from(group)
            self._rows, self._position = self._rows.slice(0, 0), self._firsts[group]
        taken, end = list[pa.Table](), row + count
        while row < end:
            piece = self._rows.slice(max(row - self._position, 0), end - row)
            if len(piece):
                taken.append(piece)
                row += len(piece)
                continue
            batch = next(self._batches, None)
            if batch is None:
                break
            self._position += len(self._rows)
            self._rows = pa.Table.from_batches([batch]).replace_schema_metadata(self._file.schema_arrow.metadata)
        self._rows = self._rows.slice(max(row - self._position, 0))
        self._position = max(row, self._position)
        return pa.concat_tables(taken) if taken else self._rows.slice(0, 0)

    def _from(self, group: int) -> Iterator[pa.RecordBatch]:
        """The batches of a row group and of those after it. None crosses two, or it would depend on the first group."""
        for at in range(group, self._file.num_row_groups):
            yield from self._file.iter_batches(self._size, row_groups=[at])

    def close(self) -> None:
        """Close the file."""
        self._batches = iter(())
        self._file.close()


def _row_groups(file: pq.ParquetFile) -> range:
    return range(file.num_row_groups)


def _may_have_nulls(group: Any, column: str) -> bool:
    """Whether a row group may have nulls in a column of strings, by its statistics."""
    chunks = (group.column(at) for at in range(group.num_columns))
    statistics = next((chunk.statistics for chunk in chunks if chunk.path_in_schema == column), None)
    return statistics is None or not statistics.has_null_count or statistics.null_count > 0


def _values(column: Any) -> list[Any]:
    """The values of a column; an error in place of each that is not UTF-8."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_value(column, at) for at in range(len(column))]
    return values


def _value(column: Any, at: int) -> Any:
    try:
        return column.slice(at, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return error


def _content(table: pa.Table, at: int) -> Any:
    """A row's values as JSON can hold them: a dictionary, or text if they are of other types or long."""
    row = {}
    for name, column in zip(table.schema.names, table.columns, strict=True):
        value = _value(column, at)
        row[name] = value.object.decode("utf-8", "replace") if isinstance(value, UnicodeDecodeError) else value
    try:
        text = json.dumps(row, ensure_ascii=False)
    except (TypeError, ValueError):
        return repr(row)[:CONTENT]
    return row if len(text) <= CONTENT else text[:CONTENT]


def _without(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """The table without some rows. Slices are joined: Arrow filters not every type of column."""
    if not rows:
        return table
    starts, ends = [0, *(row + 1 for row in rows)], [*rows, len(table)]
    slices = [table.slice(start, end - start) for start, end in zip(starts, ends, strict=True)]
    return pa.concat_tables(slices)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_item(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_struct(kind))


def _no_texts(file: InputFile, schema: pa.Schema, column: str, expected: str) -> ValueError:
    kind = schema.field(column).type
    advice = f" --document-column {column} takes its lists" if expected == "texts" and _is_list(kind) else ""
    return ValueError(f'{file.name}: column "{column}" must hold {expected}, got {short(kind)}.{advice}')
