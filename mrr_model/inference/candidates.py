"""The documents of a call's requests, and which of them are still in the running.

A document is one text or several windows of one; each distinct (query, text) pair is a row, which requests may share.
A *candidate* is a row as one request sees it: two requests with the same query drop its documents independently.

Shapes: C candidates, R rows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mrr_model.cascade import Cascade

Requests = Sequence[Sequence[Sequence[int]]]
"""For each request, for each of its documents, the rows of its windows."""


@dataclass(frozen=True)
class Reached:
    """How far a document went.

    Attributes:
        depth: The deepest exit that one of its windows reached; 0 if none was read.
        logit: The highest logit of its windows at that exit.
        window: The window that has it.
    """

    depth: int
    logit: float
    window: int


NOT_READ = Reached(0, 0.0, 0)


class Candidates:
    """Which rows still run, and what each exit has said so far.

    Args:
        requests: The rows of each request's documents; each document has at least one.
        rows: R.
        cascade: Where documents stop; None: nowhere.
        top_n: How many documents each request returns; None for all.
    """

    def __init__(self, requests: Requests, rows: int, cascade: Cascade | None = None, top_n: int | None = None) -> None:
        self.requests, self.cascade, self.top_n = requests, cascade, top_n
        documents = [document for request in requests for document in request]
        windows = [len(document) for document in documents]
        self._row = np.array([row for document in documents for row in document], dtype=np.int64)  # (C,)
        self._document = np.repeat(np.arange(len(documents)), windows)  # (C,), ascending
        starts = np.concatenate([[0], np.cumsum(windows, dtype=np.int64)])
        self._start = starts[:-1]  # each document's first candidate
        bounds = starts[np.concatenate([[0], np.cumsum([len(request) for request in requests], dtype=np.int64)])]
        self._slices = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
        self._alive = np.ones(len(self._row), dtype=bool)
        self._depth = np.zeros(len(self._row), dtype=np.int64)
        self._logit = np.zeros(len(self._row))
        self._row_depth = np.zeros(rows, dtype=np.int64)
        self._row_logit = np.zeros(rows)
        self._read: dict[int, NDArray[np.float64]] = {}  # exit -> (R,)

    def read(self, exit_layer: int, rows: Sequence[int], logits: Sequence[float]) -> None:
        """Take the logits of rows at an exit."""
        if exit_layer not in self._read:
            self._read[exit_layer] = np.zeros(len(self._row_logit))
        self._read[exit_layer][rows] = logits
        self._row_depth[rows] = exit_layer
        self._row_logit[rows] = logits

    def drop(self, exit_layer: int) -> None:
        """Drop the documents that stop at an exit, once all rows that run have been read there."""
        logits = self._read.get(exit_layer)
        if logits is None:  # nothing runs
            return
        self._depth[self._alive] = exit_layer
        self._logit[self._alive] = logits[self._row[self._alive]]
        if self._drops_at(exit_layer):
            self._alive &= self._staying(exit_layer, self._alive, logits)

    def expected_share(self, exit_layer: int) -> float:
        """The share of running candidates that would stop at an exit if it gave them the logits that they have now."""
        if not self._drops_at(exit_layer) or not self._alive.any():
            return 0.0
        return 1.0 - float(self._staying(exit_layer, self._alive, self._row_logit).sum() / self._alive.sum())

    def settle(self) -> None:
        """Store what was read last for the documents that have not stopped."""
        rows = self._row[self._alive]
        self._depth[self._alive], self._logit[self._alive] = self._row_depth[rows], self._row_logit[rows]

    def running(self, exit_layer: int) -> NDArray[np.bool_]:
        """The rows that may continue after an exit, judged by those that have been read there, bool (R,).

        More rows can only raise the bar, so a row that has been read and lies below it will be dropped. Of those at the
        bar, which a count decides by their order, all may continue: another window may still lift their document.
        """
        staying = self._alive.copy()
        if self._drops_at(exit_layer):
            read = self._alive & (self._row_depth[self._row] == exit_layer)
            staying &= ~read | self._staying(exit_layer, read, self._row_logit, final=False)
        return self._rows(staying)

    def alive(self) -> NDArray[np.bool_]:
        """The rows that continue, bool (R,)."""
        return self._rows(self._alive)

    def complete(self, last: int) -> bool:
        """Whether all that have not stopped have been read at exit `last`."""
        return bool((self._depth[self._alive] == last).all())

    def promise(self, rows: Sequence[int]) -> list[int]:
        """Rows sorted by their last logit, highest first."""
        logits = self._row_logit[rows]
        return [rows[index] for index in np.argsort(-logits, kind="stable")]

    def reached(self) -> list[list[Reached]]:
        """How far each document of each request went."""
        if not len(self._row):
            return [[] for _ in self.requests]
        depth = np.maximum.reduceat(self._depth, self._start)  # of each document
        broken = np.isnan(self._logit)
        value = np.where(broken, np.inf, self._logit)  # a window with such a logit decides: it becomes an error
        value = np.where(self._depth == depth[self._document], value, -np.inf)
        best = np.flatnonzero(value == np.maximum.reduceat(value, self._start)[self._document])
        _, first = np.unique(self._document[best], return_index=True)
        best = best[first]
        found = iter(
            [
                Reached(*row) if row[0] else NOT_READ
                for row in zip(depth.tolist(), self._logit[best].tolist(), (best - self._start).tolist(), strict=True)
            ]
        )
        return [[next(found) for _ in request] for request in self.requests]

    def _drops_at(self, exit_layer: int) -> bool:
        return self.cascade is not None and exit_layer in self.cascade.exits

    def _staying(
        self, exit_layer: int, among: NDArray[np.bool_], row_logits: NDArray[np.float64], *, final: bool = True
    ) -> NDArray[np.bool_]:
        """The candidates among some that continue in their request, by logits (R,): bool (C,).

        If more are to be read, and the choice is not `final`, all that reach the bar continue.
        """
        assert self.cascade is not None
        staying = np.zeros(len(self._row), dtype=bool)
        for request in self._slices:
            index = np.flatnonzero(among[request]) + request.start
            if not len(index):
                continue
            logits, documents = row_logits[self._row[index]], self._document[index]
            first = np.flatnonzero(np.diff(documents, prepend=-1))  # of each document
            best = np.maximum.reduceat(logits, first)
            staying[index] = logits >= self.cascade.threshold(exit_layer, best, self.top_n)
            if final:
                survivors = self.cascade.survivors(exit_layer, best, self.top_n)
                staying[index] &= np.repeat(survivors, np.diff(np.append(first, len(index))))
        return staying

    def _rows(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rows = np.zeros(len(self._row_depth), dtype=bool)
        rows[self._row[chosen]] = True
        return rows
