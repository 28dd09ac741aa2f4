"""A batch inside the model: with all its tokens, and with what an exit reads of each pair.

Shapes: B pairs, T tokens (at the current width), D hidden size, H heads, K key/value heads, d head size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from mrr_model.modeling.attention import KeysValues
from mrr_model.modeling.backbone import LayerInputs, PooledState
from mrr_model.modeling.merging import Spans, padded_length
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
        keys_values: Those of layer `layer` + 1, if the exit after it has been read from these states; else None.
    """

    layer: int
    states: Tensor
    spans: Spans
    logits: list[Tensor]
    rounded: bool = False
    prefix: SharedPrefix | None = None
    counts: Tensor | None = None
    inputs: LayerInputs | None = None
    keys_values: KeysValues | None = None

    def __len__(self) -> int:
        return len(self.states)

    @property
    def width(self) -> int:
        """T."""
        return self.states.shape[1]

    def part(self, pairs: slice) -> "HiddenBatch":
        """Some of the pairs. States are views."""
        return self._rows(pairs, pairs, self.width)

    def select(self, rows: Sequence[int]) -> "HiddenBatch":
        """Some of the pairs, at least one, in the order of `rows`: copies, as wide as the longest of them.

        All of them in their order are this batch itself.
        """
        if list(rows) == list(range(len(self))):
            return self
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        longest = int(self.spans.total[index].max())
        width = min(self.width, padded_length(longest)) if self.rounded else longest
        return self._rows(index, index.to(self.states.device, non_blocking=True), width)

    def _rows(self, pairs: slice | Tensor, on_device: slice | Tensor, width: int) -> "HiddenBatch":
        """Some of the pairs, cut to a width. `on_device`: the same rows, on the device of the states."""
        keys_values = self.keys_values
        return replace(
            self,
            states=self.states[:, :width][on_device],
            spans=Spans(self.spans.query[pairs], self.spans.passage[pairs], self.spans.prompt[pairs]),
            logits=[column[on_device] for column in self.logits],
            counts=None if self.counts is None else self.counts[:, :width][on_device],
            inputs=None,
            keys_values=None if keys_values is None else keys_values.each(lambda each: each[:, :, :width][on_device]),
        )

    @classmethod
    def joined(cls, parts: "Sequence[HiddenBatch]") -> "HiddenBatch":
        """The pairs of several batches, in order.

        All must have run through the same layers and have the same prefix, or none. An exit must have been read from
        all of them, or from none.
        """
        if len(parts) == 1:
            return parts[0]
        width = max(part.width for part in parts)
        spans = [part.spans for part in parts]
        counts = [pad(part.counts, (0, width - part.width)) for part in parts if part.counts is not None]
        known = [part.keys_values for part in parts if part.keys_values is not None]
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
            keys_values=KeysValues.joined(known, width) if known else None,
        )


@dataclass(frozen=True)
class PooledBatch:
    """What an exit reads of a batch.

    Attributes:
        logits: At the last exit, those of the exits before it, float32 (B,) each.
        state: The pooled tokens in the middle of the exit's layer: what is left runs for them alone. If the mean over
            tokens is pooled, the whole layer has run, and this is the mean of the normed states, float32 (B, D).
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
