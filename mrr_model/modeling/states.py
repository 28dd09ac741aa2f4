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
from mrr_model.modeling.gathering import gathered_rows
from mrr_model.modeling.merging import Spans, padded_length
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.transfer import to_device


@dataclass(frozen=True)
class HiddenBatch:
    """A batch after some of the layers.

    Attributes:
        layer: How many layers have run.
        states: Hidden states, (B, T, D): the tokens that `spans` counts, then padding. Of an unpadded batch (1, N, D).
        spans: Lengths in tokens at the current width.
        logits: Of the exits so far, float32 (B,) each.
        rounded: Whether widths are rounded up, as in `Batch`.
        prefix: The query span that the pairs share; the batch then holds the tokens after it.
        counts: How many tokens each state stands for, int64 (B, T), 0 for padding; None before the first merge, and for
            models that never need it.
        inputs: What the layers at this width share, once one of them has needed it.
        keys_values: Those of layer `layer` + 1, if the exit after it has been read from these states; else None.
        unpadded: Whether there is no padding, as in `Batch`.
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
    unpadded: bool = False

    def __len__(self) -> int:
        return len(self.spans.query)

    @property
    def width(self) -> int:
        """T: of an unpadded batch the tokens of its longest pair."""
        return int(self.spans.total.max()) if self.unpadded else self.states.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens of all pairs, padding counted."""
        rows, width, _ = self.states.shape
        return rows * width

    def part(self, pairs: slice) -> "HiddenBatch":
        """Some of the pairs. States are views."""
        known = self.keys_values
        if self.unpadded:
            bounds = [0, *self.spans.total.cumsum(0).tolist()]
            start, stop, _ = pairs.indices(len(self))
            tokens = slice(bounds[start], bounds[stop])
            return replace(
                self,
                states=self.states[:, tokens],
                spans=self.spans.part(pairs),
                logits=[column[pairs] for column in self.logits],
                inputs=None,
                keys_values=None if known is None else known.each(lambda each: each[:, :, tokens]),
            )
        return replace(
            self,
            states=self.states[pairs],
            spans=self.spans.part(pairs),
            logits=[column[pairs] for column in self.logits],
            counts=None if self.counts is None else self.counts[pairs],
            inputs=None,
            keys_values=None if known is None else known.each(lambda each: each[pairs]),
        )

    def select(self, rows: Sequence[int]) -> "HiddenBatch":
        """Some of the pairs, at least one, in the order of `rows`: copies, as wide as the longest of them.

        All of them in their order are this batch itself.
        """
        return self.gathered([(self, rows)])

    @classmethod
    def joined(cls, parts: "Sequence[HiddenBatch]") -> "HiddenBatch":
        """The pairs of several batches, in order, as wide as the widest; see `gathered`."""
        if len(parts) == 1:
            return parts[0]
        return cls._gathered([(part, range(len(part))) for part in parts], max(part.width for part in parts))

    @classmethod
    def gathered(cls, chosen: "Sequence[tuple[HiddenBatch, Sequence[int]]]") -> "HiddenBatch":
        """Some pairs of several batches, at least one, in order: copies, as wide as the longest of them.

        All must have run through the same layers and have the same prefix, or none. An exit must have been read from
        all of them, or from none. All pairs of one batch, in their order, are that batch itself.
        """
        (first, rows), *more = chosen
        if not more and list(rows) == list(range(len(first))):
            return first
        longest = max(int(part.spans.total[torch.tensor(rows, device="cpu")].max()) for part, rows in chosen)
        width = max(part.width for part, _ in chosen)
        return cls._gathered(chosen, min(width, padded_length(longest)) if first.rounded else longest)

    @classmethod
    def _gathered(cls, chosen: "Sequence[tuple[HiddenBatch, Sequence[int]]]", width: int) -> "HiddenBatch":
        parts = [part for part, _ in chosen]
        first = parts[0]
        rows = [torch.tensor(rows, dtype=torch.int64, device="cpu") for _, rows in chosen]
        on_device = to_device(rows, first.states.device)

        if first.unpadded:
            return cls._gathered_unpadded(parts, rows, on_device)
        counts = [
            pad(part.counts[index, :width], (0, max(0, width - part.width)))
            for part, index in zip(parts, on_device, strict=True)
            if part.counts is not None
        ]
        known = [part.keys_values for part in parts if part.keys_values is not None]
        return replace(
            first,
            states=gathered_rows([part.states for part in parts], on_device, width),
            spans=Spans.gathered([part.spans for part in parts], rows, on_device),
            logits=[
                torch.cat([column[index] for column, index in zip(columns, on_device, strict=True)])
                for columns in zip(*(part.logits for part in parts), strict=True)
            ],
            counts=torch.cat(counts) if counts else None,
            inputs=None,
            keys_values=KeysValues.gathered(known, on_device, width) if known else None,
        )

    @classmethod
    def _gathered_unpadded(
        cls, parts: "Sequence[HiddenBatch]", rows: Sequence[Tensor], on_device: Sequence[Tensor]
    ) -> "HiddenBatch":
        first = parts[0]
        chosen = [_token_index(part.spans.total, index) for part, index in zip(parts, rows, strict=True)]
        tokens = to_device(chosen, first.states.device)
        known = [
            part.keys_values.tokens(index)
            for part, index in zip(parts, tokens, strict=True)
            if part.keys_values is not None
        ]
        selected = [part.states.index_select(1, index) for part, index in zip(parts, tokens, strict=True)]
        return replace(
            first,
            states=torch.cat(selected, 1),
            spans=Spans.gathered([part.spans for part in parts], rows, on_device),
            logits=[
                torch.cat([column[index] for column, index in zip(columns, on_device, strict=True)])
                for columns in zip(*(part.logits for part in parts), strict=True)
            ],
            inputs=None,
            keys_values=KeysValues.joined(known) if known else None,
        )


def _token_index(lengths: Tensor, rows: Tensor) -> Tensor:
    """The tokens of some pairs of an unpadded batch, int64 (N',), on the CPU; `lengths` (B,): of all its pairs."""
    own = lengths[rows]
    first = (lengths.cumsum(0) - lengths)[rows]
    return torch.arange(int(own.sum()), device="cpu") + (first - (own.cumsum(0) - own)).repeat_interleave(own)


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
