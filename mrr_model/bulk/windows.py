"""A partition's rows, gathered until enough are together to be scored in full batches."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from mrr_model.bulk.records import BadRow, Chunk, Partition, Source

PAIRS, CHARACTERS = 10_000, 50_000_000
"""A window is full with the chunk that brings its pairs or its characters to one of these."""


@dataclass
class Window:
    """Rows that are scored in one call.

    Attributes:
        partition: The partition that they belong to.
        chunks: The rows, as they were read.
    """

    partition: Partition
    chunks: list[Chunk] = field(default_factory=list)

    @property
    def bad(self) -> list[BadRow]:
        """The rows that cannot be scored."""
        return [row for chunk in self.chunks for row in chunk.bad]

    def requests(self) -> list[tuple[str, list[str]]]:
        """Queries with their documents: a row's list, or the single documents of neighbouring rows with one key."""
        queries = [query for chunk in self.chunks for query in chunk.queries]
        documents = [document for chunk in self.chunks for document in chunk.documents]
        keys = [key for chunk in self.chunks for key in chunk.keys or ()]
        if not keys:
            return [
                (query, document if isinstance(document, list) else [document])
                for query, document in zip(queries, documents, strict=True)
            ]
        groups = [[index for index, _ in group] for _, group in groupby(enumerate(keys), key=lambda each: each[1])]
        return [(queries[group[0]], [str(documents[index]) for index in group]) for group in groups]


def windows(source: Source, partition: Partition) -> Iterator[Window]:
    """Read a partition in windows; in a single one if its single documents are ranked.

    Windows depend on the partition's rows alone. Scores in bfloat16 depend on the batches, and so on the windows.
    """
    window, pairs, characters = Window(partition), 0, 0
    for chunk in source.chunks(partition):
        window.chunks.append(chunk)
        pairs += sum(map(_pairs, chunk.documents))
        characters += sum(map(len, chunk.queries)) + sum(map(_characters, chunk.documents))
        if chunk.keys is None and (pairs >= PAIRS or characters >= CHARACTERS):
            yield window
            window, pairs, characters = Window(partition), 0, 0
    if window.chunks:
        yield window


def _pairs(document: str | list[str]) -> int:
    return len(document) if isinstance(document, list) else 1


def _characters(document: str | list[str]) -> int:
    return sum(map(len, document)) if isinstance(document, list) else len(document)
