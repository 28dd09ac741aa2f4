"""Encoded pairs to logits, in batches that fit in memory and are joined again where they have become small.

Letters: E exits.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from mrr_model.backbones.prefix import Prefix
from mrr_model.compression import Plan
from mrr_model.device import out_of_memory
from mrr_model.inputs import EncodedPair, collate, length_sorted_batches, sharing_groups
from mrr_model.model import BatchReading, BatchState, MatryoshkaModel

FINISHED_TOGETHER = 256
"""Batches wait until they have so many pairs, whose reading tokens then go through the last layer's MLP together."""

JOINED_TOKENS = 5 / 4
"""Batches that have merged are joined to at most this share of the budget, rounded widths counted."""

JOINED_PADDING = 9 / 8
"""They are joined where the padding that this takes adds at most an eighth to their tokens."""


Part = tuple[list[int], BatchState | BatchReading]
"""Pairs by their places, and how far they are."""


@dataclass
class Scoring:
    """One call's pairs at one Plan.

    ``batch_tokens`` says how many tokens a batch may hold at present, ``halve`` is told of a batch of so many that did
    not fit in memory, ``progress`` of pairs done. ``batch_size``: at most that many pairs in a batch.
    """

    model: MatryoshkaModel
    plan: Plan
    encoded: Sequence[EncodedPair]
    batch_tokens: Callable[[], int]
    halve: Callable[[int], None]
    progress: Callable[[int], object]
    batch_size: int | None = None

    def logits(self) -> Tensor:
        """Float32 (pairs, E) on the CPU, in the pairs' order."""
        groups = sharing_groups(self.encoded) if self.model.backbone.causal else [(None, [*range(len(self.encoded))])]
        logits = torch.empty(len(self.encoded), len(self.plan.exits))
        waiting: list[tuple[list[int], BatchReading]] = []
        with torch.inference_mode():
            for places, reading in chain.from_iterable(self._read(prefix, group) for prefix, group in groups):
                waiting.append((places, reading))
                if sum(len(places) for places, _ in waiting) >= FINISHED_TOGETHER:
                    self._finish(waiting, logits)
                    waiting = []
                self.progress(len(places))
            if waiting:
                self._finish(waiting, logits)
        return logits

    def _read(self, prefix: Prefix | None, group: list[int]) -> Iterator[tuple[list[int], BatchReading]]:
        """All that is computed for every token of pairs that share a prefix, or none."""
        parts = self._started(prefix, group)
        for layer in self.plan.merges:
            if layer < self.plan.last_layer:
                parts = self._advanced(self._joined(parts))
        for places, reading in parts:
            assert isinstance(reading, BatchReading)
            yield places, reading

    def _started(self, prefix: Prefix | None, group: list[int]) -> Iterator[Part]:
        """The pairs behind their first merge, batch by batch, longest first. Where memory runs out, batches are
        halved.
        """
        before = 0 if prefix is None else prefix.size
        pad_id, limit = self.model.config.pad_token_id or 0, self.model.backbone.max_tokens
        while group:
            lengths = [len(self.encoded[place].input_ids) - before for place in group]
            done: set[int] = set()
            budget = self.batch_tokens()
            for batch in length_sorted_batches(lengths, budget, self.batch_size):
                places = [group[index] for index in batch]
                rows = [self.encoded[place] for place in places]
                inputs = collate(rows, pad_id, rounded=True, max_tokens=limit, prefix=prefix).to(self.model.device)
                try:
                    part = self.model.advance(self.model.start(inputs), self.plan)
                except RuntimeError as error:
                    if not out_of_memory(error) or len(batch) == 1:
                        raise
                    self.halve(min(budget, len(batch) * max(lengths[index] for index in batch)))
                    break
                done.update(places)
                yield places, part
            group = [place for place in group if place not in done]

    def _joined(self, parts: Iterator[Part]) -> Iterator[tuple[list[int], BatchState]]:
        """Neighbours that have become small, as one batch: wide enough products take less time a token."""
        waiting: list[tuple[list[int], BatchState]] = []
        for places, state in parts:
            assert isinstance(state, BatchState)
            if waiting and not self._fit([*(other for _, other in waiting), state]):
                yield _as_one(waiting)
                waiting = []
            waiting.append((places, state))
        if waiting:
            yield _as_one(waiting)

    def _fit(self, states: Sequence[BatchState]) -> bool:
        pairs = sum(map(len, states))
        tokens = pairs * max(state.width for state in states)
        return (
            pairs <= (self.batch_size or pairs)
            and tokens <= JOINED_TOKENS * self.batch_tokens()
            and tokens <= JOINED_PADDING * sum(len(state) * state.width for state in states)
        )

    def _advanced(self, parts: Iterator[tuple[list[int], BatchState]]) -> Iterator[Part]:
        for places, state in parts:
            yield from self._advance(places, state)

    def _advance(self, places: list[int], state: BatchState) -> Iterator[Part]:
        """The pairs behind their next merge, or read; where memory runs out, half of them at a time."""
        try:
            part = self.model.advance(state, self.plan)
        except RuntimeError as error:
            if not out_of_memory(error) or len(state) == 1:
                raise
            self.halve(len(state) * state.width)
        else:
            yield places, part
            return
        for half in _halves(state):
            yield from self._advance(places[half], state.part(half))

    def _finish(self, waiting: Sequence[tuple[list[int], BatchReading]], logits: Tensor) -> None:
        """Write what is read of these pairs to ``logits``."""
        found = self._finished(BatchReading.joined([reading for _, reading in waiting]))
        logits[[place for places, _ in waiting for place in places]] = found.to("cpu", torch.float32)

    def _finished(self, reading: BatchReading) -> Tensor:
        """Logits (pairs, E); where memory runs out, half of the pairs at a time."""
        try:
            return self.model.finish(reading, self.plan)
        except RuntimeError as error:
            if not out_of_memory(error) or len(reading) == 1:
                raise
        return torch.cat([self._finished(reading.part(half)) for half in _halves(reading)])


def _as_one(waiting: Sequence[tuple[list[int], BatchState]]) -> tuple[list[int], BatchState]:
    return [place for places, _ in waiting for place in places], BatchState.joined([state for _, state in waiting])


def _halves(pairs: Sized) -> tuple[slice, slice]:
    half = len(pairs) // 2
    return slice(half), slice(half, None)
