"""Encoded pairs to logits: one forward pass over many pairs, in batches that fit in memory.

A batch starts with as many pairs of similar length as the token budget allows, and runs its layers up to the first
merge. A merge makes it small, and small products are slow, so it waits there until enough batches can be joined. At the
last exit the pooled tokens, one of each pair, are collected from all batches and scored together:

    pairs ─► batch ─► layers ─► merge ─► join ─► layers ─► … ─► pool ─► collect ─► score ─► logits

Wherever memory runs out, the budget is halved and the same work is done in smaller batches.

Shapes: N pairs, E exits.
"""

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget, QueryGroup, length_sorted_batches, query_groups
from mrr_model.inference.cancelling import check
from mrr_model.inference.device import out_of_memory
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch, PooledBatch

SCORED_TOGETHER = 256
"""How many pooled tokens are collected before they run through the last exit's MLP and head together."""

MAX_JOINED_PADDING = 9 / 8
"""Batches are joined after a merge if padding them to one width adds at most an eighth to their tokens."""

Made = TypeVar("Made")


class ForwardPass:
    """The forward pass of one call's pairs under one Plan. Run it once.

    Args:
        model: The model, in evaluation mode, with the plan's adapters applied.
        plan: What to run.
        pairs: The encoded pairs.
        budget: Tokens that a batch may hold. It is halved when memory runs out.
        batch_size: Pairs that a batch may hold; None for no limit.
        progress: Called with the number of pairs that have been pooled since the last call.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        plan: Plan,
        pairs: Sequence[EncodedPair],
        budget: BatchBudget,
        *,
        batch_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.model, self.plan, self.pairs, self.budget = model, plan, pairs, budget
        self.batch_size, self.progress = batch_size, progress
        self._waiting: dict[int, list[_MergedBatch]] = {layer: [] for layer in sorted(plan.merges)}
        self._collected = _PooledBuffer(min(SCORED_TOGETHER, len(pairs)))
        self._logits = torch.empty(len(pairs), len(plan.exits), dtype=torch.float32, device="cpu")

    def logits(self) -> Tensor:
        """Run the pass.

        Returns:
            Float32 (N, E) on the CPU, in the order of the pairs.

        Raises:
            Cancelled: Before the next batch, if the caller has stopped waiting (`mrr_model.inference.cancelling`).
            RuntimeError: If a single pair does not fit in memory.
        """
        # A caller's autocast would move scores: they are computed in the weights' own dtype.
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            for group in query_groups(self.pairs, share=self.model.backbone.shares_prefix):
                self._run_group(group)
            self._score_collected()
        return self._logits

    def _run_group(self, group: QueryGroup) -> None:
        """Run all pairs of a group until they are pooled."""
        prefix = SharedPrefix(torch.tensor(group.shared_ids, device="cpu")) if group.shared_ids else None
        left = group.indices
        while left:
            left = self._run_new_batches(left, prefix)
        self._run_waiting(no_more=True)

    def _run_new_batches(self, indices: list[int], prefix: SharedPrefix | None) -> list[int]:
        """Run pairs in batches, longest first, until the budget shrinks. Returns the pairs that are left."""
        prefix_length = 0 if prefix is None else prefix.length
        lengths = [len(self.pairs[index].input_ids) - prefix_length for index in indices]
        budget, done = self.budget.tokens, set[int]()
        for batch in length_sorted_batches(lengths, budget, self.batch_size):
            check()
            rows = [indices[position] for position in batch]
            if not self._run_layers(rows, 0, partial(self._embed, rows, prefix)):
                self.budget.halve(min(budget, len(rows) * max(lengths[position] for position in batch)))
                break
            done.update(rows)
            self._run_waiting()
            if self.budget.tokens < budget:
                break
        return [index for index in indices if index not in done]

    def _embed(self, rows: list[int], prefix: SharedPrefix | None) -> HiddenBatch:
        batch = collate(
            [self.pairs[row] for row in rows],
            self.model.config.pad_token_id or 0,
            rounded=True,
            max_tokens=self.model.backbone.max_tokens,
            prefix_length=0 if prefix is None else prefix.length,
        )
        return self.model.embed(batch.to(self.model.device), prefix)

    def _run_layers(self, rows: list[int], layer: int, hidden: Callable[[], HiddenBatch]) -> bool:
        """Run a batch that has passed `layer` to its next merge, where it waits, or to the last exit's pooled tokens.

        Returns whether it fitted in memory.
        """
        if any(merge > layer for merge in self.plan.merges):
            merged = _unless_out_of_memory(
                lambda: self.model.run_layers(hidden(), self.plan, self.plan.last_layer - 1), len(rows)
            )
            if merged is not None:
                self._waiting[merged.layer].append(_MergedBatch(rows, merged))
            return merged is not None
        pooled = _unless_out_of_memory(lambda: self._pool(hidden()), len(rows))
        if pooled is not None:
            self._collect(rows, pooled)
        return pooled is not None

    def _pool(self, hidden: HiddenBatch) -> PooledBatch:
        hidden = self.model.run_layers(hidden, self.plan, self.plan.last_layer - 1)
        return self.model.pool_last_exit(hidden, self.plan)

    def _run_waiting(self, no_more: bool = False) -> None:
        """Join the batches that wait at each merge, and run those that cannot be joined with more of them.

        With `no_more` to come, run them all.
        """
        for waiting in self._waiting.values():
            while waiting and (no_more or not self._can_join(waiting)):
                batches = self._joined(self._taken(waiting))
                while batches:
                    self._run_joined(batches.pop(0))  # nothing else keeps its states alive

    def _taken(self, waiting: "list[_MergedBatch]") -> "list[_MergedBatch]":
        """Take the first batches that can be joined out of a list."""
        count = 1
        while count < len(waiting) and self._can_join(waiting[: count + 1]):
            count += 1
        taken = waiting[:count]
        del waiting[:count]
        return taken

    def _can_join(self, batches: "Sequence[_MergedBatch]") -> bool:
        """Whether batches fit the budget together, without much padding."""
        pairs = sum(len(each.rows) for each in batches)
        tokens = pairs * max(each.hidden.width for each in batches)
        return (
            pairs <= (self.batch_size or pairs)
            and tokens <= self.budget.tokens
            and tokens <= MAX_JOINED_PADDING * sum(each.tokens for each in batches)
        )

    def _joined(self, batches: "list[_MergedBatch]") -> "list[_MergedBatch]":
        """One batch of several; the same batches if memory runs out."""
        joined = _unless_out_of_memory(lambda: HiddenBatch.joined([each.hidden for each in batches]), len(batches))
        if joined is None:
            self.budget.halve(sum(each.tokens for each in batches))
            return batches
        return [_MergedBatch([row for each in batches for row in each.rows], joined)]

    def _run_joined(self, batch: "_MergedBatch") -> None:
        """Run a batch from the merge where it waited; if memory runs out, half of its pairs at a time."""
        check()
        if self._run_layers(batch.rows, batch.hidden.layer, lambda: batch.hidden):
            return
        self.budget.halve(batch.tokens)
        for half in _halves(batch.rows):
            self._run_joined(_MergedBatch(batch.rows[half], batch.hidden.part(half)))

    def _collect(self, rows: list[int], pooled: PooledBatch) -> None:
        """Collect the pooled tokens of a batch; if there is no space, score those collected before first."""
        if not self._collected.fits(rows):
            self._score_collected()
        self._collected.add(rows, pooled)
        if self.progress is not None:
            self.progress(len(rows))

    def _score_collected(self) -> None:
        """Write the logits of the pooled tokens that were collected, and empty the buffer."""
        if self._collected.rows:
            self._logits[self._collected.rows] = self._score(self._collected.batch()).to("cpu", torch.float32)
            self._collected.clear()

    def _score(self, pooled: PooledBatch) -> Tensor:
        """Logits of pooled tokens, (pairs, E); if memory runs out, half of the pairs at a time."""
        logits = _unless_out_of_memory(lambda: self.model.score_pooled(pooled, self.plan.last_layer), len(pooled))
        if logits is not None:
            return logits
        return torch.cat([self._score(pooled.part(half)) for half in _halves(pooled)])


@dataclass(frozen=True)
class _MergedBatch:
    """A batch that waits after a merge: its pairs' rows in the logits, and their states."""

    rows: list[int]
    hidden: HiddenBatch

    @property
    def tokens(self) -> int:
        """Tokens, padding counted."""
        return len(self.rows) * self.hidden.width


class _PooledBuffer:
    """Pooled tokens of the pairs in `rows`: as many as `capacity`, or one larger batch.

    They are copied to one buffer. Left where they were made they would, small as they are, keep the allocator from
    using the large blocks around them again, and memory would grow with every batch.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: list[int] = []
        self._buffer: PooledBatch | None = None

    def fits(self, rows: list[int]) -> bool:
        """Whether there is space for more rows."""
        return len(self.rows) + len(rows) <= self.capacity

    def add(self, rows: list[int], pooled: PooledBatch) -> None:
        """Copy pooled tokens to the buffer. They fit, or it is empty."""
        if self._buffer is None or len(rows) > self.capacity:
            self.capacity = max(self.capacity, len(rows))
            self._buffer = pooled.new_empty(self.capacity)
        self._buffer.part(slice(len(self.rows), len(self.rows) + len(rows))).copy_(pooled)
        self.rows += rows

    def clear(self) -> None:
        """Forget all rows; the memory is used again."""
        self.rows = []

    def batch(self) -> PooledBatch:
        """All that was added: a view of the buffer."""
        assert self._buffer is not None
        return self._buffer.part(slice(len(self.rows)))


def _unless_out_of_memory(step: Callable[[], Made], parts: int) -> Made | None:
    """The result of a step; None if memory runs out and the step can be done in several parts.

    The error is gone by then, and with it what it held in memory.
    """
    try:
        return step()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or parts == 1:
            raise
    return None


def _halves(pairs: Sized) -> tuple[slice, slice]:
    half = len(pairs) // 2
    return slice(half), slice(half, None)
