"""What sources, engines and writers exchange."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import pyarrow as pa

Rows: TypeAlias = "list[dict[str, Any]] | pa.Table"
"""Dictionaries, or a table for Parquet."""

PAIR_ROWS, LIST_ROWS = 10_000, 100
"""Rows per partition by default: of single documents, and of lists of documents."""


@dataclass(frozen=True)
class Partition:
    """Consecutive rows of one input file: the unit of work, of output and of resuming.

    Attributes:
        index: Its number in the job, from 0.
        file: The input file's absolute path.
        start: Where it starts: bytes into the unzipped text of a text file, rows into a Parquet file.
        first: The number of its first line or row, from 1.
        rows: How many rows it has, bad ones included. Blank lines of a text file do not count.
    """

    index: int
    file: str
    start: int
    first: int
    rows: int


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be scored.

    Attributes:
        location: `FILE:LINE`, or `FILE: row N` in a Parquet file; both from 1.
        fault: What is wrong with it, without the location.
        content: The line or lines, or a dictionary of a Parquet row's values; text if JSON cannot hold them or they are
            long, and then it is shortened.
    """

    location: str
    fault: str
    content: Any = None

    def __str__(self) -> str:
        return f"{self.location}: {self.fault}"


@dataclass
class Chunk:
    """Some consecutive rows of a partition.

    Attributes:
        rows: The rows that can be scored.
        queries: The query of each.
        documents: The document of each, or the list of its documents.
        keys: What the rows of one query share, if single documents are ranked; else None.
        bad: The rows that cannot be scored.
    """

    rows: Rows
    queries: list[str]
    documents: list[str] | list[list[str]]
    keys: list[str] | None = None
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """The counts of a window, a partition or a whole job.

    Attributes:
        rows: Rows that were written with their scores.
        pairs: (query, document) pairs that were scored.
        skipped: Rows that were left out.
    """

    rows: int = 0
    pairs: int = 0
    skipped: int = 0

    def __add__(self, other: "Report") -> "Report":
        return Report(self.rows + other.rows, self.pairs + other.pairs, self.skipped + other.skipped)


class BadRowError(ValueError):
    """A row that cannot be scored, where none may be left out."""


class Source(Protocol):
    """Input files of one kind. It pickles."""

    @property
    def kind(self) -> Literal["parquet", "jsonl", "csv", "run"]:
        """What the files are."""

    @property
    def paths(self) -> Sequence[Path]:
        """All files that the rows and their texts come from."""

    @property
    def lists(self) -> bool:
        """Whether each row has a list of documents."""

    def prepare(self) -> None:
        """Make what reading needs besides the files, such as an index of texts, if it is missing."""

    def partitions(self, rows: int | None) -> Iterator[Partition]:
        """Divide all files, in their order, into partitions of `rows` rows; None for the kind's own number.

        Rows of one query stay together if single documents are ranked, and so may make a partition longer.

        Raises:
            ValueError: If a file cannot be read, or lacks the columns; the message names it.
        """

    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        """Read a partition's rows in order. Partitions of one file are read fastest in their order."""


def partition_rows(rows: int | None, lists: bool) -> int:
    """Rows per partition, if `rows` leaves that open."""
    return rows or (LIST_ROWS if lists else PAIR_ROWS)
