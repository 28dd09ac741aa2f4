"""Rows from JSON lines."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mrr_model.bulk.columns import LISTS, PAIRS, Columns, described, document_column, missing
from mrr_model.bulk.inputs import InputFile, Kind
from mrr_model.bulk.records import Partition
from mrr_model.bulk.text_source import FIRST_ROWS, ColumnSource, KeyOf, RawRow, decoded, line_rows
from mrr_model.data.jsonl import json_object, open_bytes
from mrr_model.files.damage import reading


class JsonSource(ColumnSource):
    """JSON lines.

    Args:
        files: The files.
        query: The column of the query.
        document: The column of the document or documents; None for "document", else "documents".
        ranked: Whether neighbouring rows of one query are ranked.
    """

    kind: Kind = "jsonl"

    def __init__(self, files: Sequence[InputFile], query: str, document: str | None, ranked: bool) -> None:
        super().__init__(files, ranked)
        self._query, self._document = query, document
        found = next(filter(None, map(self._columns_of, files)), None)
        self._columns = found or Columns(query, document or PAIRS, lists=False)
        self.lists = self._columns.lists
        self._ranked = ranked and not self.lists  # lists are ranked anyway

    def _columns_of(self, file: InputFile) -> Columns | None:
        """The columns of a file's first good row; None if the file is empty."""
        named: list[str] | None = None
        fault = None
        with reading(file.name, advice=""), open_bytes(Path(file.path)) as stream:
            for row in islice(line_rows(stream, *self._start(file, stream)), FIRST_ROWS):
                try:
                    values = json_object(decoded(row.content))
                except ValueError as error:
                    fault = fault or f"line {row.line}: {error}"
                    continue
                named = named or list(values)
                column = document_column(values, self._document)
                if self._query in values and column is not None:
                    lists = column == LISTS if self._document is None else isinstance(values[column], list)
                    if self._document is None or isinstance(values[column], str | list):
                        return Columns(self._query, column, lists)
        if named is not None:
            if self._query in named and document_column(named, self._document):
                raise ValueError(f'{file.name} has neither a text nor a list under "{self._document}"')
            raise missing(file.name, named, self._query, self._document)
        if fault is not None:
            raise ValueError(f"{file.name} has no JSON object in its first {FIRST_ROWS} rows; {fault}")
        return None

    def _divide(self, file: InputFile, rows: int, index: int, key_of: KeyOf | None) -> list[Partition]:
        found = self._columns_of(file)
        if found is not None and found != self._columns:
            raise ValueError(
                f"{file.name} has {described(found)}, and files before it have {described(self._columns)}. Give files "
                "of one set-up"
            )
        return super()._divide(file, rows, index, key_of)

    def _parse(self, file: InputFile, row: RawRow) -> tuple[dict[str, Any], str, Any]:
        values = json_object(decoded(row.content))
        return values, *self._columns.texts(values)
