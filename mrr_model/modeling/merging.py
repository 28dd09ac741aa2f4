"""Token merging (width): groups of neighbouring passage tokens become one state each. Pure tensor functions.

Letters: B pairs, T tokens before a merge, T' tokens after it, D hidden size. Rows are right-padded.
"""

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

BAG_DEVICES = ("cpu", "cuda")
"""Where torch sums weighted bags in every version that this package takes."""


@dataclass(frozen=True)
class Spans:
    """The lengths in tokens of each pair's query, passage and prompt spans: three int64 tensors (B,), on the CPU."""

    query: Tensor
    passage: Tensor
    prompt: Tensor

    @property
    def total(self) -> Tensor:
        """Tokens per pair, (B,)."""
        return self.query + self.passage + self.prompt

    def merged(self, step: Fraction) -> "Spans":
        """The lengths after one merge: n passage tokens leave ceil(n · step) groups, the other spans stay."""
        return Spans(self.query, group_count(self.passage, step), self.prompt)


def group_count(length: Tensor, step: Fraction) -> Tensor:
    """How many groups ``length`` tokens fall into: floor((length − 1) · step) + 1, and 0 for 0 tokens.

    >>> group_count(torch.tensor([0, 1, 4, 5]), Fraction(1, 2)).tolist()
    [0, 1, 2, 3]
    """
    return torch.where(length > 0, (length - 1).clamp(min=0) * step.numerator // step.denominator + 1, 0)


def span_means(hidden: Tensor, spans: Spans) -> Tensor:
    """The mean states of each pair's query, without its first token, and passage: (B, T, D) to (B, 2, D), in float32.

    An encoder's first token, for classifiers, belongs to neither text. An empty span's mean is 0.
    """
    places = torch.arange(hidden.shape[1], device="cpu")[None]
    query, end = spans.query[:, None], (spans.query + spans.passage)[:, None]
    chosen = torch.stack([(places > 0) & (places < query), (places >= query) & (places < end)], 1)  # (B, 2, T)
    counts = chosen.sum(2, keepdim=True).clamp(min=1).to(hidden.device, torch.float32, non_blocking=True)
    weights = chosen.to(hidden.device, hidden.dtype, non_blocking=True)
    return torch.bmm(weights, hidden).float() / counts


def padded_length(longest: int) -> int:
    """``longest`` rounded up to a multiple of 4, above 64 tokens of 8, above 128 of 32.

    Matrix kernels are compiled and kept per shape: with a shape for every length, a process that scores mixed texts
    grows by gigabytes, and compiling takes longer than computing the added padding.

    >>> padded_length(40), padded_length(41), padded_length(65), padded_length(130)
    (40, 44, 72, 160)
    """
    step = 4 if longest <= 64 else 8 if longest <= 128 else 32
    return -(-longest // step) * step


def destinations(spans: Spans, step: Fraction, size: int | None = None) -> Tensor:
    """Where each token goes in one merge (arXiv 2501.16302, width compression; here for any rational ratio).

    Passage token j of its span goes to group floor(j · step); query and prompt tokens keep a place of their own;
    padding goes to −1. Returns int64 (B, T) with T = ``size``, or the longest row where none is
    given.

    >>> one = torch.tensor
    >>> destinations(Spans(one([2]), one([5]), one([1])), Fraction(1, 2)).tolist()
    [[0, 1, 2, 2, 3, 3, 4, 5]]
    """
    total = spans.total
    place = torch.arange(size or int(total.max()), device="cpu")[None, :]  # (1, T)
    start, end = spans.query[:, None], (spans.query + spans.passage)[:, None]  # (B, 1)
    group = start + (place - start) * step.numerator // step.denominator
    after = place - (spans.passage - group_count(spans.passage, step))[:, None]
    target = torch.where(place < start, place, torch.where(place < end, group, after))  # (B, T)
    return torch.where(place < total[:, None], target, -1)


def merge_tokens(hidden: Tensor, target: Tensor, size: int, weights: Tensor | None) -> Tensor:
    """Average the states that share a destination, each weighted by the reading token's attention to it.

    h'_g = Σ_{j∈g} w_j h_j / Σ_{j∈g} w_j  (arXiv 2501.16302, width compression), or the plain mean where ``weights`` is
    None. A group whose weights are all zero (attention that underflowed) falls back to its plain mean. Shares are
    computed in float32 and rounded to ``hidden``'s dtype; sums run in float32.

    ``hidden`` (B, T, D); ``target`` int64 (B, T), ascending in each row, then −1 for padding; ``size`` T'; ``weights``
    (B, T) >= 0 or None. Returns (B, T', D) in ``hidden``'s dtype; places that no token goes to are zero.

    >>> h = torch.tensor([[[0.0], [4.0], [9.0]]])
    >>> merge_tokens(h, torch.tensor([[0, 0, 1]]), 2, torch.tensor([[0.75, 0.25, 0.1]])).flatten().tolist()
    [1.0, 9.0]
    """
    batch, _, dim = hidden.shape
    real = target >= 0
    target = torch.where(real, target, size - 1)  # padding joins the last place with a share of 0
    share = _group_shares(weights, real, target, size).to(hidden.dtype)  # (B, T)

    place = (torch.arange(batch, device=hidden.device)[:, None] * size + target).flatten()  # (B · T), ascending
    sums = _bag_sums if hidden.device.type in BAG_DEVICES else _index_sums
    return sums(hidden.reshape(-1, dim), share.flatten(), place, batch * size).view(batch, size, dim)


def _bag_sums(states: Tensor, share: Tensor, place: Tensor, count: int) -> Tensor:
    """Shares times states (N, D), summed by ascending place: (count, D). Those of one place stand in a row, a bag of
    neighbours, so that one pass over the states does it.
    """
    starts = torch.searchsorted(place, torch.arange(count, device=states.device))
    rows = torch.arange(len(states), device=states.device)
    return embedding_bag(rows, states, starts, mode="sum", per_sample_weights=share)


def _index_sums(states: Tensor, share: Tensor, place: Tensor, count: int) -> Tensor:
    """The same for devices whose torch may lack weighted bags (MPS)."""
    sums = torch.zeros(count, states.shape[1], dtype=torch.float32, device=states.device)
    return sums.index_add(0, place, states.float() * share.float()[:, None]).to(states.dtype)


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
    return torch.where(total > 0, weights / total.where(total > 0, 1.0), mean)
