"""Encoded pairs to logits, in batches that fit in memory and are joined again where they have become small.

Letters: E exits.
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.batching import length_sorted_batches
from mrr_model.inference.cancelling import check
from mrr_model.inference.device import out_of_memory
from mrr_model.modeling.batch import EncodedPair, collate, sharing_groups
from mrr_model.modeling.model import BatchReading, BatchState, MatryoshkaModel
from mrr_model.modeling.prefix import Prefix

FINISHED_TOGETHER = 256
"""Batches wait until they have so many pairs, whose reading tokens then go through the last layer's MLP together."""

JOINED_PADDING = 9 / 8
"""Batches that have merged are joined where the padding that this takes adds at most an eighth to their tokens."""

Made = TypeVar("Made")
Part = tuple[list[int], BatchState | BatchReading]
"""Pairs by their places, and how far they are."""


@dataclass
class Scoring:
    """One call's pairs at one Plan.

    ``batch_tokens`` says how many tokens a batch may hold, ``halve`` is told of a batch of so many that did not fit in
    memory, ``progress`` of pairs done. ``batch_size``: at most that many pairs in a batch.
    """

    model: MatryoshkaModel
    plan: Plan
    encoded: Sequence[EncodedPair]
    batch_tokens: Callable[[], int]
    halve: Callable[[int], None]
    progress: Callable[[int], object]
    batch_size: int | None = None

    def logits(self) -> Tensor:
        """Float32 (pairs, E) on the CPU, in the pairs' order. Stops before the next batch if nobody waits for them
        (:mod:`~mrr_model.inference.cancelling`).
        """
        groups = sharing_groups(self.encoded) if self.model.backbone.causal else [(None, [*range(len(self.encoded))])]
        logits = torch.empty(len(self.encoded), len(self.plan.exits), dtype=torch.float32, device="cpu")
        waiting = _Waiting(min(FINISHED_TOGETHER, len(self.encoded)))
        # A caller's autocast would move scores: they are computed in the weights' own format.
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            for places, reading in chain.from_iterable(self._read(prefix, group) for prefix, group in groups):
                assert isinstance(reading, BatchReading)
                if len(waiting.places) + len(places) > waiting.most:
                    self._finish(waiting, logits)
                waiting.add(places, reading)
                del reading  # before the next batch starts
                self.progress(len(places))
            self._finish(waiting, logits)
        return logits

    def _read(self, prefix: Prefix | None, group: list[int]) -> Iterator[Part]:
        """All that is computed for every token of pairs that share a prefix, or none."""
        parts = self._started(prefix, group)
        for _ in self.plan.merges:
            parts = self._advanced(parts)
        return parts

    def _started(self, prefix: Prefix | None, group: list[int]) -> Iterator[Part]:
        """The pairs behind their first merge, or read where the plan has none, batch by batch, longest first. Where
        memory runs out, here or later, batches are halved.
        """
        before = 0 if prefix is None else prefix.size
        while group:
            lengths = [len(self.encoded[place].input_ids) - before for place in group]
            done: set[int] = set()
            budget = self.batch_tokens()
            for batch in length_sorted_batches(lengths, budget, self.batch_size):
                check()
                places = [group[index] for index in batch]
                part = _unless_out_of_memory(partial(self._start, prefix, places), len(batch))
                if part is None:
                    self.halve(min(budget, len(batch) * max(lengths[index] for index in batch)))
                    break
                done.update(places)
                yield places, part
                del part  # before the next batch starts
                if self.batch_tokens() < budget:
                    break
            group = [place for place in group if place not in done]

    def _start(self, prefix: Prefix | None, places: list[int]) -> BatchState | BatchReading:
        rows = [self.encoded[place] for place in places]
        pad_id, limit = self.model.config.pad_token_id or 0, self.model.backbone.max_tokens
        batch = collate(rows, pad_id, rounded=True, max_tokens=limit, prefix=prefix)
        return self.model.advance(self.model.start(batch.to(self.model.device)), self.plan)

    def _advanced(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The pairs behind their next merge, or read. Neighbours that have become small go on as one batch: large
        products take less time a token.
        """
        waiting: list[tuple[list[int], BatchState]] = []
        for places, state in parts:
            assert isinstance(state, BatchState)
            if waiting and not self._fit([*(other for _, other in waiting), state]):
                yield from self._together(waiting)
            waiting.append((places, state))
        yield from self._together(waiting)

    def _fit(self, states: Sequence[BatchState]) -> bool:
        pairs = sum(map(len, states))
        tokens = pairs * max(state.width for state in states)
        return (
            pairs <= (self.batch_size or pairs)
            and tokens <= self.batch_tokens()
            and tokens <= JOINED_PADDING * sum(len(state) * state.width for state in states)
        )

    def _together(self, waiting: list[tuple[list[int], BatchState]]) -> Iterator[Part]:
        """Join what waits and let it go on; where memory runs out, apart. Leaves ``waiting`` empty, so that nothing
        keeps what was joined alive.
        """
        one = _unless_out_of_memory(lambda: BatchState.joined([state for _, state in waiting]), len(waiting))
        if one is None:
            self.halve(sum(len(state) * state.width for _, state in waiting))
        else:
            waiting[:] = [([place for places, _ in waiting for place in places], one)]
        del one
        while waiting:
            yield from self._advance(*waiting.pop(0))

    def _advance(self, places: list[int], state: BatchState) -> Iterator[Part]:
        """One batch behind its next merge, or read; where memory runs out, half of its pairs at a time."""
        check()
        part = _unless_out_of_memory(lambda: self.model.advance(state, self.plan), len(state))
        if part is not None:
            del state
            yield places, part
            return
        self.halve(len(state) * state.width)
        for half in _halves(state):
            yield from self._advance(places[half], state.part(half))

    def _finish(self, waiting: "_Waiting", logits: Tensor) -> None:
        """Write the logits of what waits to their places in ``logits``; nothing waits then."""
        if waiting.places:
            logits[waiting.places] = self._finished(waiting.reading()).to("cpu", torch.float32)
            waiting.places = []

    def _finished(self, reading: BatchReading) -> Tensor:
        """Logits (pairs, E); where memory runs out, half of the pairs at a time."""
        logits = _unless_out_of_memory(lambda: self.model.finish(reading, self.plan), len(reading))
        if logits is not None:
            return logits
        return torch.cat([self._finished(reading.part(half)) for half in _halves(reading)])


class _Waiting:
    """What is read of pairs at ``places``, until they are finished together: up to ``most`` of them, or one batch.

    It is copied to one room. Where it was made it would, small as it is, keep the allocator from using the large
    blocks around it again, and memory would grow with every batch.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.places: list[int] = []
        self._room: BatchReading | None = None

    def add(self, places: list[int], reading: BatchReading) -> None:
        """``reading`` of the pairs at ``places``, which must fit where some wait already."""
        if self._room is None or len(places) > self.most:
            self.most = max(self.most, len(places))
            self._room = reading.room(self.most)
        self._room.part(slice(len(self.places), len(self.places) + len(places))).copy_(reading)
        self.places += places

    def reading(self) -> BatchReading:
        """That of all places, a view of the room."""
        assert self._room is not None
        return self._room.part(slice(len(self.places)))


def _unless_out_of_memory(run: Callable[[], Made], parts: int) -> Made | None:
    """What ``run`` makes; None where memory runs out and the work has more than one part, so that it can be done in
    smaller ones. The error is gone by then, and with it what it kept in memory.
    """
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or parts == 1:
            raise
    return None


def _halves(pairs: Sized) -> tuple[slice, slice]:
    half = len(pairs) // 2
    return slice(half), slice(half, None)
