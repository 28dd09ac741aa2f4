"""Rows from files with a header: CSV, and tab-separated values."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from mrr_model.bulk.columns import LISTS, Columns, document_column, missing
from mrr_model.bulk.inputs import InputFile, Kind
from mrr_model.bulk.text_source import ColumnSource, RawRow, ended_early
from mrr_model.data.jsonl import open_bytes, valid_text
from mrr_model.files.damage import reading

FIELD_CHARACTERS = 2**24
"""The longest field. A quote that is never closed ends there, and not with the file."""


class Fields(NamedTuple):
    """A row's fields, or what is wrong with it, and its text."""

    fields: list[str]
    fault: str
    text: str


class CsvSource(ColumnSource):
    """CSV, whose fields may be quoted and hold line feeds; or tab-separated values, in which quotes are plain text.

    Args:
        files: The files.
        query: The column of the query.
        document: The column of the document; None for "document".
        ranked: Whether neighbouring rows of one query are ranked.
    """

    kind: Kind = "csv"

    def __init__(self, files: Sequence[InputFile], query: str, document: str | None, ranked: bool) -> None:
        super().__init__(files, ranked)
        self._query, self._document = query, document
        self._headers: dict[str, tuple[list[str], Columns]] = {}
        self._header(self.files[0])

    def _header(self, file: InputFile) -> tuple[list[str], Columns] | None:
        """A file's header and the columns that are scored; None if it is empty."""
        if file.path not in self._headers:
            with reading(file.name, advice=""), open_bytes(Path(file.path)) as stream:
                row = next(self._rows(file, stream, *super()._start(file, stream)), None)
            if row is None:
                return None
            names = _names(file, row)
            document = document_column(names, self._document)
            if self._document is None and document == LISTS:
                raise ValueError(
                    f'{file.name} has "{LISTS}", and CSV holds no lists. Write them as JSON lines or Parquet'
                )
            if document is None or self._query not in names:
                raise missing(file.name, names, self._query, self._document)
            self._headers[file.path] = names, Columns(self._query, document, lists=False)
        return self._headers[file.path]

    def _start(self, file: InputFile, stream: IO[bytes]) -> tuple[int, int]:
        self._header(file)
        lines = _Lines(stream, *super()._start(file, stream))
        next(_parsed(lines, file), None)  # the header
        return lines.offset, lines.line

    def _rows(self, file: InputFile, stream: IO[bytes], offset: int, line: int) -> Iterator[RawRow]:
        return _parsed(_Lines(stream, offset, line), file)

    def _parse(self, file: InputFile, row: RawRow) -> tuple[dict[str, Any], str, Any]:
        fields, fault, text = row.content
        valid_text(text)
        header = self._header(file)
        if header is None:
            raise ended_early(file, 1)
        names, columns = header
        if fault or len(fields) != len(names):
            raise ValueError(fault or f"expected {len(names)} fields as in the header, got {len(fields)}")
        values = dict(zip(names, fields, strict=True))
        return values, *columns.texts(values)

    def _content(self, row: RawRow) -> str:
        fields: Fields = row.content
        return fields.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").rstrip("\r\n")


class _Lines:
    """Lines of a file, and where the next one starts."""

    def __init__(self, stream: IO[bytes], offset: int, line: int) -> None:
        self._stream, self.offset, self.line = stream, offset, line
        self.taken: list[str] = []
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        content = self._stream.readline()
        if not content:
            self.ended = True
            raise StopIteration
        self.offset += len(content)
        self.line += 1
        text = content.decode("utf-8", "surrogateescape")
        self.taken.append(text)
        return text


def _parsed(lines: _Lines, file: InputFile) -> Iterator[RawRow]:
    """The rows that are not blank."""
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARACTERS))
    tabs = file.path.removesuffix(".gz").endswith(".tsv")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    while True:
        start, fault, fields = (lines.offset, lines.line), "", []
        lines.taken.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fault = f"expected a row of CSV, but this is not: {error}"
        if lines.ended:
            fault = "expected a row of CSV, but a quoted field does not end"
        if fault or len(fields) > 1 or any(map(str.strip, fields)):
            yield RawRow(*start, Fields(fields, fault, "".join(lines.taken)))


def _names(file: InputFile, header: RawRow) -> list[str]:
    """The names of the columns. Raises ValueError if the header cannot be read or has a name twice."""
    fields, fault, text = header.content
    try:
        valid_text(text)
    except ValueError as error:
        fault = f"the header {error}"
    twice = [name for name, count in Counter(fields).items() if count > 1]
    if fault or twice:
        raise ValueError(f"{file.name}:{header.line}: {fault or f'the header has the column {twice[0]!r} twice'}")
    names: list[str] = fields
    return names
