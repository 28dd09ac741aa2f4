"""One pass, exit by exit: at each exit all pairs are scored, some stop, and the others continue from their states.

    pairs ─► layers ─► exit ─► wait ─► drop ─► layers ─► exit ─► wait ─► drop ─► … ─► last exit

An exit where pairs wait is read from the pooled tokens alone; the rest of its layer runs for those that continue.
Batches are formed again after it, from all requests' survivors. Waiting takes time, so an exit at which hardly any
pair is expected to stop is read in passing: the pairs that stop there have then run further than they had to. A
deadline ends the pass between two batches, with what is known by then.

Shapes: R rows.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.cancelling import check
from mrr_model.inference.candidates import Candidates
from mrr_model.inference.layers import (
    SCORED_TOGETHER,
    LayerRun,
    Part,
    PooledScores,
    Source,
    StateSource,
    TokenSource,
)
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch, PooledBatch

WORTH_WAITING = 0.1
"""Pairs wait at an exit if at least this share of them is expected to stop there, by their logits at the one before."""

FIRST_TOKENS = 512
"""Tokens of the first batch under a deadline, before it is known how long a batch takes."""

Encoded = Iterable[tuple[Sequence[int], Sequence[EncodedPair]]]
"""Rows and their encoded pairs, portion by portion."""


class TimeUp(Exception):  # noqa: N818  # not an error: nobody sees it
    """Ends a pass whose deadline has passed."""


class Deadline:
    """When a pass has to end, and how many tokens a batch may hold to be done by then.

    Args:
        at: On the clock of `time.monotonic`.
    """

    def __init__(self, at: float) -> None:
        self.at = at
        self._seconds_per_token: float | None = None  # of one layer

    def check(self) -> None:
        """Raise `TimeUp` if the deadline has passed."""
        if time.monotonic() >= self.at:
            raise TimeUp

    def took(self, seconds: float, tokens: int, layers: int) -> None:
        """Learn from a batch."""
        self._seconds_per_token = seconds / (tokens * layers)

    def tokens(self, layers: int) -> int:
        """How many tokens can run through `layers` layers before the deadline, at the pace of the last batch."""
        if self._seconds_per_token is None:
            return FIRST_TOKENS
        left = (self.at - time.monotonic()) / max(self._seconds_per_token * layers, 1e-9)
        return max(1, int(min(left, sys.maxsize)))


@dataclass
class _Group:
    """The rows that may share batches: those with one shared query span, or with none.

    Attributes:
        prefix: That span.
        parts: The states of those that wait.
        lost: Those that wait without states, since there was no space for them.
    """

    prefix: SharedPrefix | None
    parts: list[Part] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)


class StagedPass:
    """The pass of one call's pairs under one Plan, exit by exit. Run it once.

    Args:
        model: The model, in evaluation mode, with the plan's adapters applied.
        plan: The setting, with one exit.
        exits: The exits to read before it, ascending.
        candidates: Decides which rows continue, and keeps what each exit says.
        budget: Tokens that a batch may hold, and that may wait at an exit.
        deadline: When to end; None to run to the end. With it, rows run in the given order up to the first exit, and
            the most promising first after that.
        progress: Called with the number of rows that have stopped since the last call.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        plan: Plan,
        exits: Sequence[int],
        candidates: Candidates,
        budget: BatchBudget,
        *,
        deadline: Deadline | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.model, self.plan, self.candidates, self.budget = model, plan, candidates, budget
        self.stages = (*exits, plan.last_layer)
        self.deadline, self.progress = deadline, progress
        self._pairs: dict[int, EncodedPair] = {}
        self._groups: dict[tuple[int, ...], _Group] = {}
        self._waiting = 0  # tokens, padding counted

    def run(self, encoded: Encoded) -> bool:
        """Run the pass.

        Args:
            encoded: The pairs; the first stage takes them from the iterator as it needs them.

        Returns:
            Whether it ran to the end; False if the deadline passed before.

        Raises:
            Cancelled: Before the next batch, if the caller has stopped waiting (`mrr_model.inference.cancelling`).
            RuntimeError: If a single pair does not fit in memory.
        """
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            with suppress(TimeUp):
                sources, exits, before = self._sources(encoded), self.stages, 0
                while exits:
                    passed = self._passed(exits) if before else ()
                    exit_layer = exits[len(passed)]
                    self._run_stage(passed, exit_layer, exit_layer - before, sources)
                    sources, exits, before = self._continued(), exits[len(passed) + 1 :], exit_layer
            self.candidates.settle()
        return self.candidates.complete(self.plan.last_layer)

    def _check(self) -> None:
        check()
        if self.deadline is not None:
            self.deadline.check()

    def _sources(self, encoded: Encoded) -> Iterator[tuple[_Group, Source]]:
        """All pairs, before the first layer."""
        portions = iter(encoded)
        while True:
            self._check()
            portion = next(portions, None)
            if portion is None:
                return
            rows, pairs = portion
            self._pairs.update(zip(rows, pairs, strict=True))
            for found in self.budget.groups(pairs):
                group = self._groups.get(found.shared_ids)
                if group is None:
                    ids = found.shared_ids
                    group = _Group(SharedPrefix(torch.tensor(ids, device="cpu")) if ids else None)
                    self._groups[ids] = group
                own = [rows[index] for index in found.indices]
                sort, unpad = self.deadline is None, self.budget.unpads
                yield group, TokenSource(self.model, self._pairs, own, group.prefix, sort=sort, unpad=unpad)

    def _continued(self) -> Iterator[tuple[_Group, Source]]:
        """The rows that continue after an exit."""
        alive = self.candidates.alive()
        for group in self._groups.values():
            parts, lost = group.parts, [row for row in group.lost if alive[row]]
            group.parts, group.lost = [], []
            self._waiting -= sum(part.tokens for part in parts)
            rows = [row for part in parts for row in part.rows if alive[row]]
            if rows:
                ordered = rows if self.deadline is None else self.candidates.promise(rows)
                source = StateSource(parts, ordered)
                del parts  # the source drops each as soon as its rows have continued
                yield group, source
            if lost:
                yield group, TokenSource(self.model, self._pairs, lost, group.prefix, unpad=self.budget.unpads)

    def _passed(self, exits: Sequence[int]) -> Sequence[int]:
        """The first of some exits that are not worth waiting at; the last of them is."""
        if self.deadline is not None:
            return ()
        worth = (at for at, each in enumerate(exits[:-1]) if self.candidates.expected_share(each) >= WORTH_WAITING)
        return exits[: next(worth, len(exits) - 1)]

    def _run_stage(
        self, passed: Sequence[int], exit_layer: int, layers: int, sources: Iterator[tuple[_Group, Source]]
    ) -> None:
        """Run all rows through `layers` layers to an exit, and drop those that stop there or at an exit passed."""
        running = self.candidates.alive()
        plan = Plan((*passed, self.plan.last_layer), self.plan.merges, self.plan.adapters)
        scores = PooledScores(self.model, exit_layer, partial(self._read, [*passed, exit_layer]), SCORED_TOGETHER)
        pace = None if self.deadline is None else partial(self.deadline.tokens, layers)
        run = LayerRun(self.model, plan, self.budget, exit_layer - 1, self._finish(exit_layer), check=self._check)
        begin = time.monotonic()
        try:
            for group, source in sources:
                for rows, (pooled, hidden) in run.batches(source, pace):
                    scores.add(rows, pooled)
                    if hidden is not None:
                        # The layers' inputs, masks among them, can be larger than the states: they are made again.
                        group.parts.append(Part(rows, replace(hidden, inputs=None, logits=[])))
                        self._waiting += group.parts[-1].tokens
                    del pooled, hidden  # they hold large blocks of memory until then
                    if self.deadline is not None:
                        scores.read()
                        begin, began = time.monotonic(), begin
                        self.deadline.took(begin - began, sum(len(self._pairs[row].input_ids) for row in rows), layers)
                    if self._waiting > self.budget.waiting:
                        scores.read()
                        self._make_space(self.candidates.alive() if passed else self.candidates.running(exit_layer))
        except TimeUp:
            scores.read()  # what there was time for counts
            raise
        scores.read()
        for each in (*passed, exit_layer):
            self.candidates.drop(each)
        if self.progress is not None:
            left = 0 if exit_layer == self.plan.last_layer else int(self.candidates.alive().sum())
            self.progress(int(running.sum()) - left)

    def _finish(self, exit_layer: int) -> Callable[[HiddenBatch], tuple[PooledBatch, HiddenBatch | None]]:
        """What is left of a batch at an exit: pooled tokens to score, and before the last exit what continues."""

        def read(hidden: HiddenBatch) -> tuple[PooledBatch, HiddenBatch | None]:
            if exit_layer == self.plan.last_layer:
                return self.model.pool_last_exit(hidden, self.plan), None
            pooled, after = self.model.read_exit(hidden, self.plan, exit_layer)
            return replace(pooled, logits=hidden.logits), after

        return read

    def _read(self, exits: Sequence[int], rows: list[int], logits: Tensor) -> None:
        """Take the logits (pairs, E) of exits."""
        for exit_layer, column in zip(exits, logits.T.tolist(), strict=True):
            self.candidates.read(exit_layer, rows, column)

    def _make_space(self, running: NDArray[np.bool_]) -> None:
        """Forget the states of rows that will not continue, then the newest ones, if too many tokens wait."""
        groups = self._groups.values()
        for group in groups:
            group.parts = [
                Part([part.rows[at] for at in kept], part.hidden.select(kept))
                for part in group.parts
                if (kept := [at for at, row in enumerate(part.rows) if running[row]])
            ]
        self._waiting = sum(part.tokens for group in groups for part in group.parts)
        for group in reversed(groups):
            while self._waiting > self.budget.waiting and group.parts:
                part = group.parts.pop()
                group.lost += part.rows
                self._waiting -= part.tokens
                self.budget.warn_of_waiting()
