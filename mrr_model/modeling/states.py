"""A batch inside the model: with all its tokens, then with what the last exit reads of each pair.

Shapes: B pairs, T tokens (at the current width), D hidden size, H heads, d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrr_model.modeling.backbone import LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix


@dataclass(frozen=True)
class HiddenBatch:
    """A batch after some of the layers.

    Attributes:
        layer: How many layers have run.
        states: Hidden states, (B, T, D): the tokens that `spans` counts, then padding.
        spans: Lengths in tokens at the current width.
        logits: Of the exits so far, float32 (B,) each.
        rounded: Whether widths are rounded up, as in `Batch`.
        prefix: The query span that the pairs share; the batch then holds the tokens after it.
        counts: How many tokens each state stands for, int64 (B, T), 0 for padding; None before the first merge, and for
            models that never need it.
        inputs: What the layers at this width share, once one of them has needed it.
    """

    layer: int
    states: Tensor
    spans: Spans
    logits: list[Tensor]
    rounded: bool = False
    prefix: SharedPrefix | None = None
    counts: Tensor | None = None
    inputs: LayerInputs | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def width(self) -> int:
        """T."""
        return self.states.shape[1]

    def part(self, pairs: slice) -> "HiddenBatch":
        """Some of the pairs. States are views."""
        spans = Spans(self.spans.query[pairs], self.spans.passage[pairs], self.spans.prompt[pairs])
        logits = [column[pairs] for column in self.logits]
        counts = None if self.counts is None else self.counts[pairs]
        return replace(self, states=self.states[pairs], spans=spans, logits=logits, counts=counts, inputs=None)

    @classmethod
    def joined(cls, parts: "Sequence[HiddenBatch]") -> "HiddenBatch":
        """The pairs of several batches, in order.

        All must have run through the same layers and have the same prefix, or none.
        """
        if len(parts) == 1:
            return parts[0]
        width = max(part.width for part in parts)
        spans = [part.spans for part in parts]
        counts = [pad(part.counts, (0, width - part.width)) for part in parts if part.counts is not None]
        return replace(
            parts[0],
            states=torch.cat([pad(part.states, (0, 0, 0, width - part.width)) for part in parts]),
            spans=Spans(
                torch.cat([each.query for each in spans]),
                torch.cat([each.passage for each in spans]),
                torch.cat([each.prompt for each in spans]),
            ),
            logits=[torch.cat(columns) for columns in zip(*(part.logits for part in parts), strict=True)],
            counts=torch.cat(counts) if counts else None,
            inputs=None,
        )


@dataclass(frozen=True)
class PooledBatch:
    """What the last exit reads of a batch.

    Attributes:
        logits: Of the exits before the last, float32 (B,) each.
        state: The pooled tokens in the middle of the last exit's layer: what is left runs for them alone. If the mean
            over tokens is pooled, the whole layer has run, and this is the mean of the normed states, float32 (B, D).
        means: The mean states that a similarity head compares, (B, 2, D); None for other heads.
    """

    logits: list[Tensor]
    state: PooledState | Tensor
    means: Tensor | None = None

    def __len__(self) -> int:
        return len(self.state if isinstance(self.state, Tensor) else self.state.residual)

    def part(self, pairs: slice) -> "PooledBatch":
        """Some of the pairs. Tensors are views."""
        return self._each(lambda values: values[pairs])

    def new_empty(self, pairs: int) -> "PooledBatch":
        """Uninitialised tensors for `pairs` pairs of the same plan."""
        return self._each(lambda values: values.new_empty(pairs, *values.shape[1:]))

    def copy_(self, other: "PooledBatch") -> None:
        """Copy the values of `other`, a batch of equal size and of the same plan, into this one's tensors."""
        for own, values in zip(self._tensors(), other._tensors(), strict=True):
            own.copy_(values)

    def _tensors(self) -> list[Tensor]:
        state = [self.state] if isinstance(self.state, Tensor) else [self.state.attended, self.state.residual]
        return [*self.logits, *state, *([] if self.means is None else [self.means])]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "PooledBatch":
        state: PooledState | Tensor
        if isinstance(self.state, Tensor):
            state = change(self.state)
        else:
            state = PooledState(change(self.state.attended), change(self.state.residual))
        means = None if self.means is None else change(self.means)
        return PooledBatch([change(column) for column in self.logits], state, means)
