"""Rows in lines of UTF-8 text, plain or gzipped: how they are divided, and read in any order."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from mrr_model.bulk.held import Held
from mrr_model.bulk.inputs import FileSource, InputFile, Kind
from mrr_model.bulk.records import BadRow, Chunk, Partition, partition_rows
from mrr_model.data.jsonl import BOM, open_bytes
from mrr_model.files.damage import reading

CHUNK_PAIRS, CHUNK_LISTS = 1000, 50
"""Rows per chunk."""
CONTENT = 10_000
"""Characters of a bad row that are kept."""
FIRST_ROWS = 1000
"""Rows of a file that are searched for one that shows its columns."""


class RawRow(NamedTuple):
    """A row as it is in the file: where it starts, in bytes and lines, and its content as the kind reads it."""

    offset: int
    line: int
    content: Any


KeyOf = Callable[[InputFile, RawRow], str | None]
"""The key of the group that a row belongs to; None if the row is bad."""
Parse = Callable[[InputFile, RawRow], tuple[dict[str, Any], str, Any]]
"""A row as a dictionary, its query, and its document or documents. Raises ValueError for a bad row."""


class TextSource(FileSource, ABC):
    """Base of the sources that read text files."""

    kind: Kind
    lists = False

    def __init__(self, files: Sequence[InputFile]) -> None:
        super().__init__(files)
        self._held: Held[IO[bytes]] = Held()

    def partitions(self, rows: int | None) -> Iterator[Partition]:
        rows, index, key_of = partition_rows(rows, self.lists), 0, self._keys()
        for file in self.files:
            for partition in self._divide(file, rows, index, key_of):
                yield partition
                index += 1

    @abstractmethod
    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        """As in `Source`."""

    @abstractmethod
    def _keys(self) -> KeyOf | None:
        """What gives the key of each row, in order; None if rows have none."""

    def _read(self, partition: Partition) -> Iterator[list[RawRow]]:
        """Read the rows of each chunk."""
        file, left = self._by_path[partition.file], partition.rows
        size = CHUNK_LISTS if self.lists else CHUNK_PAIRS
        with self._held.using(file.path, _open) as stream:
            with reading(file.name, advice=""):
                stream.seek(partition.start)
            rows = self._rows(file, stream, partition.start, partition.first)
            while left:
                with reading(file.name, advice=""):
                    taken = list(islice(rows, min(left, size)))
                left -= len(taken)
                if left and len(taken) < size:
                    raise ended_early(file, left)
                yield taken

    def _divide(self, file: InputFile, rows: int, index: int, key_of: KeyOf | None) -> list[Partition]:
        """Divide a file. If rows have keys, a partition ends only where the key of the good rows changes."""
        starts: list[tuple[int, int]] = []
        sizes: list[int] = []
        count, group = 0, None
        with reading(file.name, advice=""), _open(file.path) as stream:
            for row in self._rows(file, stream, *self._start(file, stream)):
                key = key_of(file, row) if key_of else ""
                if not starts or (count >= rows and (key_of is None or (key is not None and key != group))):
                    starts.append((row.offset, row.line))
                    sizes.append(count)
                    count = 0
                count += 1
                group = group if key is None else key
        ends = [*sizes[1:], count]
        return [
            Partition(index + at, file.path, offset, line, size)
            for at, ((offset, line), size) in enumerate(zip(starts, ends, strict=False))
        ]

    def _start(self, file: InputFile, stream: IO[bytes]) -> tuple[int, int]:
        """Go to the first row; return its offset and line."""
        start = len(BOM) if stream.read(len(BOM)) == BOM else 0
        stream.seek(start)
        return start, 1

    def _chunk(self, partition: Partition, rows: Sequence[RawRow], parse: Parse) -> Chunk:
        file = self._by_path[partition.file]
        chunk = Chunk(rows=(good := []), queries=(queries := []), documents=(documents := []))
        for row in rows:
            try:
                parsed, query, document = parse(file, row)
            except ValueError as error:
                chunk.bad.append(BadRow(f"{file.name}:{row.line}", str(error), self._content(row)[:CONTENT]))
                continue
            good.append(parsed)
            queries.append(query)
            documents.append(document)
        return chunk

    def _rows(self, file: InputFile, stream: IO[bytes], offset: int, line: int) -> Iterator[RawRow]:
        """Read rows from the stream's position on, which is the given offset and line."""
        return line_rows(stream, offset, line)

    def _content(self, row: RawRow) -> str:
        """The text of a bad row."""
        content: bytes = row.content
        return content.decode("utf-8", "replace").rstrip("\r\n")


class ColumnSource(TextSource):
    """Base of the sources whose rows have a query and a document or documents.

    Args:
        files: The files.
        ranked: Whether neighbouring rows of one query are ranked.
    """

    def __init__(self, files: Sequence[InputFile], ranked: bool) -> None:
        super().__init__(files)
        self._ranked = ranked

    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        for rows in self._read(partition):
            chunk = self._chunk(partition, rows, self._parse)
            chunk.keys = chunk.queries if self._ranked else None
            yield chunk

    def _keys(self) -> KeyOf | None:
        return self._query_of if self._ranked else None

    def _query_of(self, file: InputFile, row: RawRow) -> str | None:
        try:
            return self._parse(file, row)[1]
        except ValueError:
            return None

    @abstractmethod
    def _parse(self, file: InputFile, row: RawRow) -> tuple[dict[str, Any], str, Any]:
        """What `Parse` does."""


def line_rows(stream: IO[bytes], offset: int, line: int) -> Iterator[RawRow]:
    """The lines that are not blank, as rows."""
    for content in stream:
        if not content.isspace():
            yield RawRow(offset, line, content)
        offset += len(content)
        line += 1


def decoded(content: bytes) -> str:
    """A line's text without its end. Bytes that are not UTF-8 become surrogates, which `valid_text` refuses."""
    return content.decode("utf-8", "surrogateescape").rstrip("\r\n")


def ended_early(file: InputFile, rows: int) -> ValueError:
    """The error of a file that has become shorter."""
    return ValueError(
        f"{file.name} is shorter than when the job was planned, by {rows} row{'s' if rows > 1 else ''}. Restore it, or "
        "start again with --overwrite"
    )


def _open(path: str) -> IO[bytes]:
    return open_bytes(Path(path))
