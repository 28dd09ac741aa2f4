"""What every kind of source gives before a first stage chooses the candidates: queries, judgements, texts, a run.

One reader for each kind of source makes a :class:`CollectionSource`;
:mod:`mrr_model.evaluation.collection` makes the collection of it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TypeAlias

Run: TypeAlias = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""


@dataclass(frozen=True)
class CollectionSource:
    """A collection without candidates. What is large is read when it is asked for."""

    name: str
    """What tables call the collection."""
    queries: Mapping[str, str]
    """Query id -> text; queries that are not judged may be among them."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance."""
    texts: Callable[[set[str] | None], Mapping[str, str]]
    """The corpus, document id -> text, which may be cut to the given ids; to nothing where they are None."""
    run: Callable[[set[str]], Run] | None = None
    """The source's own first stage, which may be cut to the given queries; None where the source has none."""


class StoredTexts(Mapping[str, str]):
    """A corpus that a library keeps on disk: one text at a time by its id, all of them in a stream."""

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
        """Id and text of every document, without looking each one up."""
        return _Streamed(self)

    def stream(self) -> Iterator[tuple[str, str]]:
        """What :meth:`items` iterates over."""
        return iter(self._stream())


class _Streamed(ItemsView[str, str]):
    _mapping: StoredTexts

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return self._mapping.stream()


def chosen_split(place: str, splits: Sequence[str], asked: str) -> str:
    """The split that was asked for; without one, the only split, or ``test``.

    ``place`` is what the message names. Raises ValueError where that leaves a choice, or the split is not there.

    >>> chosen_split("scifact", ["test", "train"], asked="")
    'test'
    """
    found = ", ".join(splits) or "none"
    if asked:
        if asked not in splits:
            raise ValueError(f"{place} has no split {asked!r} with judgements; its splits: {found}")
        return asked
    if len(splits) == 1:
        return splits[0]
    if "test" in splits:
        return "test"
    raise ValueError(f"{place}: name the split, as in {place}#SPLIT; splits with judgements: {found}")


@contextmanager
def only_in_a_terminal() -> Iterator[None]:
    """Drop what a library writes to stderr, progress bars above all, unless a person sits there."""
    if sys.stderr is not None and sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield
