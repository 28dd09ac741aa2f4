"""What each kind of source gives before candidates are chosen: queries, judgements, texts and perhaps a run.

Each kind of source has one reader, which returns a `CollectionSource`; `mrr_model.evaluation.collection` makes a
collection of it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Literal, TypeAlias

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""

FirstStage: TypeAlias = Literal["given", "bm25", "auto"]
"""Where candidates come from: the source's own run, BM25 over its corpus, or its own run if it has one, else BM25."""


@dataclass(frozen=True)
class CollectionSource:
    """A collection without candidates. Large parts are read on demand."""

    name: str
    """The collection's name in tables."""
    queries: Mapping[str, str]
    """Query id -> text; it may hold queries without judgements."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance."""
    texts: Callable[[set[str] | None], Mapping[str, str]]
    """Reads the corpus, document id -> text; it may leave out ids that are not in the given set. None asks for all."""
    run: Callable[[set[str]], Run] | None = None
    """Reads the source's own run; it may leave out queries that are not in the given set. None: the source has no run.
    """


class StoredTexts(Mapping[str, str]):
    """A corpus that a library stores on disk.

    Args:
        text: Looks up the text of one id.
        stream: Iterates over all (id, text) pairs.
        count: Counts the documents.
    """

    def __init__(
        self,
        text: Callable[[str], str],
        stream: Callable[[], Iterable[tuple[str, str]]],
        count: Callable[[], int],
    ) -> None:
        self._text = text
        self._stream = stream
        self._count = count

    def __getitem__(self, identifier: str) -> str:
        return self._text(identifier)

    def __iter__(self) -> Iterator[str]:
        return (identifier for identifier, _ in self._stream())

    def __len__(self) -> int:
        return self._count()

    def items(self) -> ItemsView[str, str]:
        """Return a view that streams all documents instead of looking each one up."""
        return _Streamed(self)

    def stream(self) -> Iterator[tuple[str, str]]:
        """Iterate over all (id, text) pairs."""
        return iter(self._stream())


class _Streamed(ItemsView[str, str]):
    _mapping: StoredTexts

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self._mapping.stream()


def chosen_split(name: str, splits: Sequence[str], given: str) -> str:
    """Return the given split; without one, the only split or `test`.

    Args:
        name: The source, for the message.
        splits: The splits that have judgements.
        given: A split, or an empty string.

    Raises:
        ValueError: If the split does not exist, or none was given and there are several.

    Example:
        >>> chosen_split("scifact", ["test", "train"], given="")
        'test'
    """
    found = ", ".join(splits) or "none"
    if given:
        if given not in splits:
            raise ValueError(f"{name} has no split {given!r} with judgements; its splits: {found}")
        return given
    if len(splits) == 1:
        return splits[0]
    if "test" in splits:
        return "test"
    raise ValueError(f"{name}: name the split, as in {name}#SPLIT; splits with judgements: {found}")


@contextmanager
def only_in_a_terminal() -> Iterator[None]:
    """Drop what a library writes to stderr, such as progress bars, unless stderr is a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield
