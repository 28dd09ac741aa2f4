"""Batches of pairs run through layers: formed within a token budget, joined after merges, smaller if memory runs out.

A batch starts with as many pairs of similar length as the token budget allows. A merge makes it small, and small
products are slow, so it waits there until enough batches can be joined:

    source ─► batch ─► layers ─► merge ─► join ─► layers ─► … ─► finish

Wherever memory runs out, the budget is halved and the same work is done in smaller batches.

Shapes: N pairs, E exits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.cancelling import check
from mrr_model.inference.device import out_of_memory
from mrr_model.inference.metering import count_batch
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch, PooledBatch

SCORED_TOGETHER = 256
"""How many pooled tokens are collected before they run through an exit's MLP and head together."""

MAX_SPREAD = 2
"""An unpadded batch would take at most so many times the token budget if it were padded. Its pooled tokens' attention
pads the keys.
"""

MAX_JOINED_PADDING = 9 / 8
"""Batches are joined after a merge if padding them to one width adds at most an eighth to their tokens."""

MAX_PADDING, SMALL_TOKENS = 9 / 8, 4096
"""A padded batch ends before padding adds more than an eighth to its tokens, unless it holds few tokens, padding
counted: small batches do not fill an accelerator. (On a CPU batches are smaller than that by default.)
"""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """Pairs that wait between two layers.

    Attributes:
        rows: The numbers by which the call knows them.
        hidden: Their states, in the same order.
    """

    rows: list[int]
    hidden: HiddenBatch

    @property
    def tokens(self) -> int:
        """Tokens, padding counted."""
        return self.hidden.tokens


@dataclass(frozen=True)
class PendingBatch:
    """A batch that is about to run.

    Attributes:
        rows: Its pairs.
        layer: The layers that they have run.
        hidden: Makes their states.
        tokens: Padding counted.
    """

    rows: list[int]
    layer: int
    hidden: Callable[[], HiddenBatch]
    tokens: int


class Source(ABC):
    """Pairs in the order in which they form batches.

    Args:
        rows: The pairs.
        lengths: Tokens of each.
        unpadded: Whether batches have no padding.
    """

    def __init__(self, rows: Sequence[int], lengths: Sequence[int], unpadded: bool = False) -> None:
        self._rows, self._lengths, self._next, self._unpadded = rows, lengths, 0, unpadded

    def batch(self, tokens: int, pairs: int | None = None) -> PendingBatch | None:
        """The next batch; None if no pairs are left.

        Args:
            tokens: What it may hold, padding counted; a single pair may hold more.
            pairs: How many pairs it may hold; None for no limit.
        """
        if self._next == len(self._rows):
            return None
        longest, total, held, stop = 0, 0, 0, self._next
        while stop < len(self._rows):
            longest, count = max(longest, self._lengths[stop]), stop - self._next + 1
            total += self._lengths[stop]
            fits = _fits(total, count * longest, tokens, self._unpadded)
            if count > 1 and (not fits or (pairs is not None and count > pairs)):
                break
            if not self._unpadded and held >= SMALL_TOKENS and count * longest > MAX_PADDING * total:
                break
            held = total if self._unpadded else count * longest
            stop += 1
        return self._batch(list(self._rows[self._next : stop]), held)

    def done(self, batch: PendingBatch) -> None:
        """Move on to the pairs after the batch."""
        self._next += len(batch.rows)

    @abstractmethod
    def _batch(self, rows: list[int], tokens: int) -> PendingBatch: ...


class TokenSource(Source):
    """Pairs before the first layer.

    Args:
        model: The model.
        pairs: Row -> encoded pair.
        rows: The pairs to run.
        prefix: The query span that they share; None if they share none.
        sort: Whether the longest pairs run first; else they run in the order of `rows`.
        unpad: Whether batches have no padding. With a prefix they have.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        pairs: Mapping[int, EncodedPair] | Sequence[EncodedPair],
        rows: Sequence[int],
        prefix: SharedPrefix | None = None,
        *,
        sort: bool = True,
        unpad: bool = False,
    ) -> None:
        self.model, self.pairs, self.prefix = model, pairs, prefix
        shared = 0 if prefix is None else prefix.length
        lengths = {row: len(pairs[row].input_ids) - shared for row in rows}
        ordered = sorted(rows, key=lambda row: -lengths[row]) if sort else rows
        super().__init__(ordered, [lengths[row] for row in ordered], unpad and prefix is None)

    def _batch(self, rows: list[int], tokens: int) -> PendingBatch:
        return PendingBatch(rows, 0, lambda: self._embedded(rows), tokens)

    def _embedded(self, rows: list[int]) -> HiddenBatch:
        batch = collate(
            [self.pairs[row] for row in rows],
            self.model.config.pad_token_id or 0,
            rounded=True,
            max_tokens=self.model.backbone.max_tokens,
            prefix_length=0 if self.prefix is None else self.prefix.length,
            unpadded=self._unpadded,
        )
        tokens = batch.input_ids.numel()
        count_batch(tokens, tokens - int(batch.spans.total.sum()))
        return self.model.embed(batch.to(self.model.device), self.prefix)


class StateSource(Source):
    """Pairs that wait after some of the layers.

    Args:
        parts: The waiting pairs, all after the same layer and with the same shared query span or none.
        rows: Those to run, in the order in which they form batches.
    """

    def __init__(self, parts: Sequence[Part], rows: Sequence[int]) -> None:
        self._parts: list[Part | None] = list(parts)
        self._where = {row: (index, at) for index, part in enumerate(parts) for at, row in enumerate(part.rows)}
        self._layer = parts[0].hidden.layer if parts else 0
        lengths = [part.hidden.spans.total.tolist() for part in parts]
        self._left = [0] * len(parts)
        for row in rows:
            self._left[self._where[row][0]] += 1
        unpadded = bool(parts) and parts[0].hidden.unpadded
        super().__init__(rows, [lengths[index][at] for index, at in (self._where[row] for row in rows)], unpadded)

    def done(self, batch: PendingBatch) -> None:
        super().done(batch)
        for row in batch.rows:
            index, _ = self._where[row]
            self._left[index] -= 1
            if not self._left[index]:
                self._parts[index] = None  # its states are needed no more

    def _batch(self, rows: list[int], tokens: int) -> PendingBatch:
        by_part: dict[int, list[int]] = {}
        for row in rows:
            by_part.setdefault(self._where[row][0], []).append(row)
        ordered = [row for chosen in by_part.values() for row in chosen]
        return PendingBatch(ordered, self._layer, lambda: self._gathered(by_part), tokens)

    def _gathered(self, by_part: Mapping[int, list[int]]) -> HiddenBatch:
        found = []
        for index, rows in by_part.items():
            part = self._parts[index]
            assert part is not None
            found.append((part.hidden, [self._where[row][1] for row in rows]))
        return HiddenBatch.gathered(found)


class LayerRun(Generic[Made]):
    """Runs batches to a layer. Use it for one source after another.

    Args:
        model: The model, in evaluation mode, with the plan's adapters applied.
        plan: What to run.
        budget: Tokens that a batch may hold. It is halved when memory runs out.
        last: The layer to run to.
        finish: What is made of a batch that has run through layer `last` and the merge after it, if one is planned.
        batch_size: Pairs that a batch may hold; None for no limit.
        check: Called before every batch; what it raises ends the run.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        plan: Plan,
        budget: BatchBudget,
        last: int,
        finish: Callable[[HiddenBatch], Made],
        *,
        batch_size: int | None = None,
        check: Callable[[], object] = check,
    ) -> None:
        self.model, self.plan, self.budget, self.last, self.finish = model, plan, budget, last, finish
        self.batch_size, self._check = batch_size, check
        self._waiting: dict[int, list[Part]] = {layer: [] for layer in sorted(plan.merges) if layer <= last}
        self._finished: list[tuple[list[int], Made]] = []

    def batches(self, source: Source, tokens: Callable[[], int] | None = None) -> Iterator[tuple[list[int], Made]]:
        """Run all pairs of a source.

        Args:
            source: The pairs.
            tokens: What a batch may hold, asked before each one; None for the budget's own.

        Yields:
            The rows of each batch, and what `finish` made of it.

        Raises:
            Cancelled: Before the next batch, if the caller has stopped waiting (`mrr_model.inference.cancelling`).
            RuntimeError: If a single pair does not fit in memory.
        """
        while True:
            self._check()
            limit = self.budget.tokens if tokens is None else min(tokens(), self.budget.tokens)
            batch = source.batch(limit, self.batch_size)
            if batch is None:
                break
            if not self._run_layers(batch.rows, batch.layer, batch.hidden):
                self.budget.halve(min(self.budget.tokens, batch.tokens))
                continue
            source.done(batch)
            yield from self._run_waiting()
        yield from self._run_waiting(no_more=True)

    def _run_layers(self, rows: list[int], layer: int, hidden: Callable[[], HiddenBatch]) -> bool:
        """Run a batch that has passed `layer` to its next merge, where it waits, or to the end.

        Returns whether it fitted in memory.
        """
        if any(merge > layer for merge in self._waiting):
            merged = unless_out_of_memory(lambda: self.model.run_layers(hidden(), self.plan, self.last), len(rows))
            if merged is not None:
                self._waiting[merged.layer].append(Part(rows, merged))
            return merged is not None
        made = unless_out_of_memory(
            lambda: self.finish(self.model.run_layers(hidden(), self.plan, self.last)), len(rows)
        )
        if made is not None:
            self._finished.append((rows, made))
        return made is not None

    def _run_waiting(self, no_more: bool = False) -> Iterator[tuple[list[int], Made]]:
        """Join the batches that wait at each merge, and run those that cannot be joined with more of them.

        With `no_more` to come, run them all.
        """
        yield from self._drained()
        for waiting in self._waiting.values():
            while waiting and (no_more or not self._can_join(waiting)):
                parts = self._joined(self._taken(waiting))
                while parts:
                    self._run_joined(parts.pop(0))  # nothing else keeps its states alive
                    yield from self._drained()

    def _drained(self) -> Iterator[tuple[list[int], Made]]:
        while self._finished:
            yield self._finished.pop(0)

    def _taken(self, waiting: list[Part]) -> list[Part]:
        """Take the first batches that can be joined out of a list."""
        count = 1
        while count < len(waiting) and self._can_join(waiting[: count + 1]):
            count += 1
        taken = waiting[:count]
        del waiting[:count]
        return taken

    def _can_join(self, parts: Sequence[Part]) -> bool:
        """Whether batches fit the budget together, without much padding."""
        pairs = sum(len(each.rows) for each in parts)
        tokens, padded = sum(each.tokens for each in parts), pairs * max(each.hidden.width for each in parts)
        unpadded = parts[0].hidden.unpadded
        return (
            pairs <= (self.batch_size or pairs)
            and _fits(tokens, padded, self.budget.tokens, unpadded)
            and (unpadded or padded <= MAX_JOINED_PADDING * tokens)
        )

    def _joined(self, parts: list[Part]) -> list[Part]:
        """One batch of several; the same batches if memory runs out."""
        joined = unless_out_of_memory(lambda: HiddenBatch.joined([each.hidden for each in parts]), len(parts))
        if joined is None:
            self.budget.halve(sum(each.tokens for each in parts))
            return parts
        return [Part([row for each in parts for row in each.rows], joined)]

    def _run_joined(self, part: Part) -> None:
        """Run a batch from the merge where it waited; if memory runs out, half of its pairs at a time."""
        self._check()
        if self._run_layers(part.rows, part.hidden.layer, lambda: part.hidden):
            return
        self.budget.halve(part.tokens)
        for half in halves(part.rows):
            self._run_joined(Part(part.rows[half], part.hidden.part(half)))


class PooledScores:
    """Collects the pooled tokens of an exit from several batches, and scores them together.

    They are copied to one buffer. Left where they were made they would, small as they are, keep the allocator from
    using the large blocks around them again, and memory would grow with every batch.

    On an accelerator the host queues work faster than the device does it: logits stay there until `read`, the one
    place where the host waits.

    Args:
        model: The model.
        exit_layer: The exit.
        write: Called with rows and their logits, float32 (pairs, E) on the CPU.
        capacity: Pairs to collect; one batch may be larger.
    """

    def __init__(
        self, model: MatryoshkaModel, exit_layer: int, write: Callable[[list[int], Tensor], object], capacity: int
    ) -> None:
        self.model, self.exit_layer, self.write, self.capacity = model, exit_layer, write, max(1, capacity)
        self._rows: list[int] = []
        self._buffer: PooledBatch | None = None
        self._unread: list[tuple[list[int], Tensor]] = []

    def add(self, rows: list[int], pooled: PooledBatch) -> None:
        """Collect the pooled tokens of a batch; if there is no space, score those collected before first."""
        if len(self._rows) + len(rows) > self.capacity:
            self.score()
        if self._buffer is None or len(rows) > self.capacity:
            self.capacity = max(self.capacity, len(rows))
            self._buffer = pooled.new_empty(self.capacity)
        self._buffer.part(slice(len(self._rows), len(self._rows) + len(rows))).copy_(pooled)
        self._rows += rows

    def score(self) -> None:
        """Score what was collected, and forget it; its memory is used again."""
        if self._rows:
            assert self._buffer is not None
            rows, self._rows = self._rows, []
            logits = self._logits(self._buffer.part(slice(len(rows))))
            if logits.device.type == "cpu":
                self.write(rows, logits)
            else:
                self._unread.append((rows, logits))

    def finish(self) -> None:
        """Score what was collected, and free the buffer: nothing is added after this."""
        self.score()
        self._buffer = None

    def read(self) -> None:
        """Score what was collected, wait for the device, and write all logits that have not been written yet."""
        self.score()
        unread, self._unread = self._unread, []
        if unread:
            self.write([row for rows, _ in unread for row in rows], torch.cat([each for _, each in unread]).to("cpu"))

    def _logits(self, pooled: PooledBatch) -> Tensor:
        """Logits of pooled tokens, (pairs, E); if memory runs out, half of the pairs at a time."""
        logits = unless_out_of_memory(lambda: self.model.score_pooled(pooled, self.exit_layer), len(pooled))
        if logits is not None:
            return logits
        return torch.cat([self._logits(pooled.part(half)) for half in halves(pooled)])


def unless_out_of_memory(step: Callable[[], Made], parts: int) -> Made | None:
    """The result of a step; None if memory runs out and the step can be done in several parts.

    The error is gone by then, and with it what it held in memory.
    """
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or parts == 1:
            raise
    return None


def _fits(tokens: int, padded: int, budget: int, unpadded: bool) -> bool:
    """Whether a batch fits a budget; `padded`: its tokens, padding counted."""
    return tokens <= budget and padded <= MAX_SPREAD * budget if unpadded else padded <= budget


def halves(pairs: Sized) -> tuple[slice, slice]:
    """The first and the second half of some pairs."""
    half = len(pairs) // 2
    return slice(half), slice(half, None)
