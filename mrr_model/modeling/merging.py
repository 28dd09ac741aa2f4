"""Token merging (width): groups of neighbouring passage tokens become one state each. Pure tensor functions.

No function gives `torch.where` a Python number: on CUDA it would copy it to the device and wait.

Shapes: B pairs, T tokens before a merge, T' tokens after it, D hidden size. Rows are right-padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mrr_model.modeling.transfer import to_device

BAG_DEVICES = ("cpu", "cuda")
"""Devices on which torch sums weighted bags in every version that this package supports."""


@dataclass(frozen=True)
class Spans:
    """The lengths in tokens of each pair's spans: three int64 tensors (B,), on the CPU.

    Sizes are read from them, so that the host never waits for the device; what tensors on the device need, masks and
    destinations, is made there, from `on`.

    Attributes:
        query: Tokens of the query spans.
        passage: Tokens of the passage spans.
        prompt: Tokens of the prompt spans.
        device_lengths: The same lengths on the model's device, int64 (3, B); None if it is the CPU.
    """

    query: Tensor
    passage: Tensor
    prompt: Tensor
    device_lengths: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """Tokens per pair, (B,)."""
        return self.query + self.passage + self.prompt

    def merged(self, step: Fraction) -> "Spans":
        """The lengths after one merge: passages shrink to their `group_count`, the other spans stay."""
        merged = replace(self, passage=group_count(self.passage, step))
        if self.device_lengths is None:
            return merged
        query, passage, prompt = self.device_lengths
        return replace(merged, device_lengths=torch.stack([query, group_count(passage, step), prompt]))

    def lengths(self) -> Tensor:
        """The lengths as one tensor, int64 (3, B), on the CPU."""
        return torch.stack([self.query, self.passage, self.prompt])

    def on(self, device: torch.device) -> "Spans":
        """Spans whose three tensors are on `device`, to compute with tensors there."""
        if self.device_lengths is not None:
            return Spans(*self.device_lengths)
        return Spans(*to_device([self.query, self.passage, self.prompt], device))

    def part(self, pairs: slice) -> "Spans":
        """Those of some of the pairs."""
        known = self.device_lengths
        own = self.query[pairs], self.passage[pairs], self.prompt[pairs]
        return Spans(*own, None if known is None else known[:, pairs])

    @classmethod
    def gathered(cls, parts: "Sequence[Spans]", rows: Sequence[Tensor], on_device: Sequence[Tensor]) -> "Spans":
        """Those of some pairs of several batches, in order; `rows`: int64, on the CPU and on the parts' device."""
        own = torch.cat([part.lengths()[:, index] for part, index in zip(parts, rows, strict=True)], 1)
        query, passage, prompt = own
        known = [
            part.device_lengths[:, index]
            for part, index in zip(parts, on_device, strict=True)
            if part.device_lengths is not None
        ]
        return cls(query, passage, prompt, torch.cat(known, 1) if known else None)


def group_count(length: Tensor, step: Fraction) -> Tensor:
    """How many groups spans fall into: floor((length − 1) · step) + 1, and 0 for 0 tokens.

    Args:
        length: Tokens of each span, int64 of any shape.
        step: The merge's step ratio.

    Returns:
        Int64 of the same shape.

    Example:
        >>> group_count(torch.tensor([0, 1, 4, 5]), Fraction(1, 2)).tolist()
        [0, 1, 2, 3]
    """
    groups = (length - 1).clamp(min=0) * step.numerator // step.denominator + 1
    return groups.masked_fill(length <= 0, 0)


def span_means(hidden: Tensor, spans: Spans) -> Tensor:
    """The mean states of each pair's query, without its first token, and of its passage.

    An encoder's first token, made for classifiers, belongs to neither text. The mean of an empty span is 0.

    Args:
        hidden: States, (B, T, D).
        spans: Lengths in tokens.

    Returns:
        Float32 (B, 2, D), the query's mean first.

    Example:
        >>> one = torch.tensor
        >>> states = one([[[9.0], [1.0], [3.0], [5.0], [7.0]]])
        >>> span_means(states, Spans(one([3]), one([2]), one([0]))).tolist()
        [[[2.0], [6.0]]]
    """
    spans = spans.on(hidden.device)
    position = torch.arange(hidden.shape[1], device=hidden.device)[None]  # (1, T)
    query, end = spans.query[:, None], (spans.query + spans.passage)[:, None]  # (B, 1)
    chosen = torch.stack([(position > 0) & (position < query), (position >= query) & (position < end)], 1)  # (B, 2, T)
    counts = chosen.sum(2, keepdim=True).clamp(min=1).float()
    return torch.bmm(chosen.to(hidden.dtype), hidden).float() / counts


def token_mean(states: Tensor, counts: Tensor) -> Tensor:
    """The mean over a row's tokens, of which each state stands for some.

    Args:
        states: (B, T, D).
        counts: How many tokens each state stands for, (B, T); 0 for padding.

    Returns:
        Float32 (B, D).

    Example:
        >>> token_mean(torch.tensor([[[1.0], [4.0], [9.0]]]), torch.tensor([[2, 1, 0]])).tolist()
        [[2.0]]
    """
    share = counts.float() / counts.sum(1, keepdim=True)  # (B, T)
    with torch.autocast(states.device.type, enabled=False):
        return torch.bmm(share[:, None], states.float())[:, 0]


def merged_counts(counts: Tensor, target: Tensor, size: int) -> Tensor:
    """How many tokens each state stands for after a merge.

    Args:
        counts: The same before the merge, int64 (B, T).
        target: Destinations, int64 (B, T); −1 for padding, whose counts are 0.
        size: T'.

    Returns:
        Int64 (B, T').

    Example:
        >>> merged_counts(torch.tensor([[1, 2, 2, 0]]), torch.tensor([[0, 1, 1, -1]]), 2).tolist()
        [[1, 4]]
    """
    return counts.new_zeros(len(counts), size).scatter_add(1, target.clamp(min=0), counts)


def middle_positions(counts: Tensor) -> Tensor:
    """The position that each state's tokens have on average, rounded down. They are neighbours.

    Args:
        counts: How many tokens each state stands for, int64 (B, T); 0 for padding.

    Returns:
        Int64 (B, T), counted from the row's first token; for padding the last token's.

    Example:
        >>> middle_positions(torch.tensor([[1, 4, 1, 0]])).tolist()
        [[0, 2, 5, 5]]
    """
    return (counts.cumsum(1) - counts + (counts - 1).div(2, rounding_mode="floor")).clamp(min=0)


def padded_length(longest: int) -> int:
    """Round a width up to a multiple of 4, above 64 tokens of 8, above 128 of 32.

    Matrix kernels are compiled and cached per shape. With a shape for every length, a process that scores mixed texts
    grows by gigabytes, and compiling takes longer than computing the added padding.

    Args:
        longest: Tokens of the longest row.

    Returns:
        The width in tokens.

    Example:
        >>> padded_length(40), padded_length(41), padded_length(65), padded_length(130)
        (40, 44, 72, 160)
    """
    step = 4 if longest <= 64 else 8 if longest <= 128 else 32
    return -(-longest // step) * step


def destinations(spans: Spans, step: Fraction, size: int | None = None) -> Tensor:
    """The position that each token takes in one merge (arXiv 2501.16302, width compression).

    Passage token j goes to group floor(j · step), here for any rational step. Query and prompt tokens keep a position
    of their own.

    Args:
        spans: Lengths in tokens before the merge, on the device of the result (`Spans.on`).
        step: The merge's step ratio.
        size: T; None for the longest row, which waits for the device.

    Returns:
        Int64 (B, T), ascending in each row, then −1 for padding.

    Example:
        >>> one = torch.tensor
        >>> destinations(Spans(one([2]), one([5]), one([1])), Fraction(1, 2)).tolist()
        [[0, 1, 2, 2, 3, 3, 4, 5]]
    """
    total = spans.total
    position = torch.arange(size or int(total.max()), device=total.device)[None, :]  # (1, T)
    start, end = spans.query[:, None], (spans.query + spans.passage)[:, None]  # (B, 1)
    group = start + (position - start) * step.numerator // step.denominator
    after = position - (spans.passage - group_count(spans.passage, step))[:, None]
    target = torch.where(position < start, position, torch.where(position < end, group, after))  # (B, T)
    return target.masked_fill(position >= total[:, None], -1)


def merge_tokens(hidden: Tensor, target: Tensor, size: int, weights: Tensor | None) -> Tensor:
    """Average the states that have the same destination.

    `h'_g = Σ_{j∈g} w_j h_j / Σ_{j∈g} w_j` (arXiv 2501.16302, width compression), w the pooled token's attention. A
    group whose weights are all zero, because its attention underflowed, gets its plain mean. Shares are computed in
    float32 and rounded to the dtype of the states; sums run in float32.

    Args:
        hidden: States, (B, T, D).
        target: Destinations, int64 (B, T): ascending in each row, then −1 for padding.
        size: T'.
        weights: Not negative, (B, T); None for plain means.

    Returns:
        (B, T', D) in the dtype of `hidden`. Positions that no token goes to are zero.

    Example:
        >>> h = torch.tensor([[[0.0], [4.0], [9.0]]])
        >>> merge_tokens(h, torch.tensor([[0, 0, 1]]), 2, torch.tensor([[0.75, 0.25, 0.1]])).flatten().tolist()
        [1.0, 9.0]
    """
    batch, _, dim = hidden.shape
    real = target >= 0
    target = target.masked_fill(~real, size - 1)  # padding joins the last position with a share of 0
    share = _group_shares(weights, real, target, size).to(hidden.dtype)  # (B, T)

    index = (torch.arange(batch, device=hidden.device)[:, None] * size + target).flatten()  # (B · T), ascending
    sums = _bag_sums if hidden.device.type in BAG_DEVICES else _index_sums
    return sums(hidden.reshape(-1, dim), share.flatten(), index, batch * size).view(batch, size, dim)


def _bag_sums(states: Tensor, share: Tensor, index: Tensor, count: int) -> Tensor:
    """Shares times states (N, D), summed by ascending index: (count, D).

    The states of one index are neighbours, a bag, so that one pass over the states is enough.
    """
    starts = torch.searchsorted(index, torch.arange(count, device=states.device))
    rows = torch.arange(len(states), device=states.device)
    return embedding_bag(rows, states, starts, mode="sum", per_sample_weights=share)


def _index_sums(states: Tensor, share: Tensor, index: Tensor, count: int) -> Tensor:
    """The same for devices whose torch may lack weighted bags (MPS)."""
    sums = torch.zeros(count, states.shape[1], dtype=torch.float32, device=states.device)
    return sums.index_add(0, index, states.float() * share.float()[:, None]).to(states.dtype)


def _group_shares(weights: Tensor | None, real: Tensor, target: Tensor, size: int) -> Tensor:
    """Each token's share in its group, float32 (B, T): 1 for a token alone in its group, 0 for padding."""

    def group_sum(values: Tensor) -> Tensor:
        return values.new_zeros(len(values), size).scatter_add(1, target, values).gather(1, target)

    count = real.float()
    mean = count / group_sum(count).clamp(min=1.0)
    if weights is None:
        return mean
    weights = weights.float() * count
    total = group_sum(weights)
    return torch.where(total > 0, weights / total.masked_fill(total <= 0, 1.0), mean)
