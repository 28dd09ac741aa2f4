"""Encoded pairs to logits: one forward pass over many pairs, in batches that fit in memory.

At the last exit the pooled tokens, one of each pair, are collected from all batches and scored together:

    pairs ─► batches ─► layers ─► pool ─► collect ─► score ─► logits

Shapes: N pairs, E exits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.layers import SCORED_TOGETHER, LayerRun, PooledScores, TokenSource
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix


class PendingLogits:
    """Logits of a pass that has been queued; an accelerator may still compute them.

    Args:
        logits: Where they are written.
        scores: What writes them.
    """

    def __init__(self, logits: Tensor, scores: PooledScores) -> None:
        self._logits, self._scores = logits, scores

    def read(self) -> Tensor:
        """Wait for them.

        Returns:
            Float32 (N, E) on the CPU, in the order of the pairs.
        """
        with torch.inference_mode():
            self._scores.read()
        return self._logits


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

    def logits(self) -> Tensor:
        """Run the pass, and wait for it.

        Returns:
            Float32 (N, E) on the CPU, in the order of the pairs.

        Raises:
            Cancelled: See `launch`.
            RuntimeError: See `launch`.
        """
        return self.launch().read()

    def launch(self) -> PendingLogits:
        """Run the pass. On an accelerator this queues the work; the host never waits for the device here.

        `torch.cuda.set_sync_debug_mode("error")` may be on around this call.

        Returns:
            The logits, to read when they are needed.

        Raises:
            Cancelled: Before the next batch, if the caller has stopped waiting (`mrr_model.inference.cancelling`).
            RuntimeError: If a single pair does not fit in memory.
        """
        logits = torch.empty(len(self.pairs), len(self.plan.exits), dtype=torch.float32, device="cpu")
        last = self.plan.last_layer
        scores = PooledScores(self.model, last, logits.__setitem__, min(SCORED_TOGETHER, len(self.pairs)))
        # A caller's autocast would move scores: they are computed in the weights' own dtype.
        with torch.inference_mode(), torch.autocast(self.model.device.type, enabled=False):
            for group in self.budget.groups(self.pairs):
                prefix = SharedPrefix(torch.tensor(group.shared_ids, device="cpu")) if group.shared_ids else None
                run = LayerRun(
                    self.model,
                    self.plan,
                    self.budget,
                    last - 1,
                    lambda hidden: self.model.pool_last_exit(hidden, self.plan),
                    batch_size=self.batch_size,
                )
                unpad = prefix is None and self.budget.unpads
                source = TokenSource(self.model, self.pairs, group.indices, prefix, unpad=unpad)
                for rows, pooled in run.batches(source):
                    scores.add(rows, pooled)
                    del pooled  # it holds large blocks of memory until then
                    if self.progress is not None:
                        self.progress(len(rows))
            scores.finish()
        return PendingLogits(logits, scores)
