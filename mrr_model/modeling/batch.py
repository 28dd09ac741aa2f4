"""What goes into the model: pairs as token ids, one by one and padded to a batch.

Letters: B pairs, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from mrr_model.modeling.merging import Spans, padded_length
from mrr_model.modeling.prefix import Prefix

SHARING_LEAST = 4
"""Fewer pairs of one query are not worth batches of their own."""


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of one pair, and how many of them belong to the query, the passage and the prompt span, in that
    order.
    """

    input_ids: list[int]
    query_length: int
    passage_length: int
    prompt_length: int
    query_cut: bool = field(default=False, compare=False)
    """Whether the query was cut further than its ``query_max_length``, to leave room for the passage."""


@dataclass(frozen=True)
class Batch:
    """Pairs padded on the right: ``input_ids`` int64 (B, T) on the model's device, ``spans`` three (B,) on the CPU."""

    input_ids: Tensor
    spans: Spans
    rounded: bool = False
    """Whether widths are rounded up, so that few shapes come up."""
    prefix: Prefix | None = None
    """The query span of all pairs, which ``input_ids`` and ``spans`` then leave out."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its ids on ``device``."""
        return replace(self, input_ids=self.input_ids.to(device, non_blocking=True))


def collate(
    pairs: Sequence[EncodedPair],
    pad_id: int,
    *,
    rounded: bool = False,
    max_tokens: int | None = None,
    prefix: Prefix | None = None,
) -> Batch:
    """Pad pairs on the right to the longest of them.

    ``rounded`` pads on to its :func:`~mrr_model.modeling.merging.padded_length`, to ``max_tokens`` at most where a
    model has no more positions, and asks the same of every merged width. ``prefix``: the query span of all of them,
    which is left out of the rows.
    """
    before = 0 if prefix is None else prefix.size
    rows = [pair.input_ids[before:] for pair in pairs]
    longest = max(map(len, rows))
    if rounded:
        longest = max(longest, min(padded_length(longest), max_tokens or padded_length(longest)))
    spans = Spans(
        torch.tensor([pair.query_length - before for pair in pairs], device="cpu"),
        torch.tensor([pair.passage_length for pair in pairs], device="cpu"),
        torch.tensor([pair.prompt_length for pair in pairs], device="cpu"),
    )
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)  # numpy reads lists several times as fast as torch
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return Batch(torch.from_numpy(ids), spans, rounded, prefix)


def sharing_groups(pairs: Sequence[EncodedPair]) -> list[tuple[Prefix | None, list[int]]]:
    """The pairs' indices by query span, with the span where it is worth computing apart: where ``SHARING_LEAST`` pairs
    or more have it, each with tokens behind it. All others come last, in one group.
    """
    by_query: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        if pair.query_length and pair.passage_length + pair.prompt_length:
            by_query.setdefault(tuple(pair.input_ids[: pair.query_length]), []).append(index)
    shared = {ids: indices for ids, indices in by_query.items() if len(indices) >= SHARING_LEAST}
    taken = {index for indices in shared.values() for index in indices}
    groups: list[tuple[Prefix | None, list[int]]] = [
        (Prefix(torch.tensor(ids, device="cpu")), indices) for ids, indices in shared.items()
    ]
    rest = [index for index in range(len(pairs)) if index not in taken]
    return [*groups, (None, rest)] if rest else groups
