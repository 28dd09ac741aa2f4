"""What goes into the model: pairs as token ids, one by one and padded to a batch.

Shapes: B pairs, T tokens, N tokens of all pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from mrr_model.modeling.merging import Spans, padded_length
from mrr_model.modeling.transfer import to_device


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of one pair: its query, passage and prompt spans, in that order.

    Attributes:
        input_ids: Token ids.
        query_length: Tokens of the query span.
        passage_length: Tokens of the passage span.
        prompt_length: Tokens of the prompt span.
        query_cut: Whether the query was cut below its `query_max_length` to leave space for the passage.
        passage_cut: Whether the passage was cut.
    """

    input_ids: list[int]
    query_length: int
    passage_length: int
    prompt_length: int
    query_cut: bool = field(default=False, compare=False)
    passage_cut: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Batch:
    """Pairs padded on the right, or one after the other.

    Attributes:
        input_ids: Int64 (B, T), on the model's device.
        spans: Lengths in tokens.
        rounded: Whether widths are rounded up (`padded_length`), so that few shapes occur.
        unpadded: Whether there is no padding: `input_ids` is one row, (1, N), with one pair after the other.
    """

    input_ids: Tensor
    spans: Spans
    rounded: bool = False
    unpadded: bool = False

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its ids on `device`, and its lengths there too."""
        if self.input_ids.device.type == device.type:
            return self
        ids, lengths = to_device([self.input_ids, self.spans.lengths()], device)
        return replace(self, input_ids=ids, spans=replace(self.spans, device_lengths=lengths))


def collate(
    pairs: Sequence[EncodedPair],
    pad_id: int,
    *,
    rounded: bool = False,
    max_tokens: int | None = None,
    prefix_length: int = 0,
    unpadded: bool = False,
) -> Batch:
    """Pad pairs on the right to the longest of them.

    Args:
        pairs: At least one pair.
        pad_id: The padding token's id.
        rounded: Round the width up to its `padded_length`, here and after every merge.
        max_tokens: The positions that the model has: no width is rounded above it.
        prefix_length: Leave out that many tokens at the start of every query span: pass them to the model beside the
            batch, as a `SharedPrefix`.
        unpadded: Do not pad: put one pair after the other.

    Returns:
        The batch, on the CPU.

    Example:
        >>> batch = collate([EncodedPair([7, 8, 9], 1, 2, 0), EncodedPair([7, 8], 1, 1, 0)], pad_id=0)
        >>> batch.input_ids.tolist(), batch.spans.passage.tolist()
        ([[7, 8, 9], [7, 8, 0]], [2, 1])
    """
    rows = [pair.input_ids[prefix_length:] for pair in pairs]
    longest = max(map(len, rows))
    if rounded and not unpadded:
        longest = max(longest, min(padded_length(longest), max_tokens or padded_length(longest)))
    spans = Spans(
        torch.tensor([pair.query_length - prefix_length for pair in pairs], device="cpu"),
        torch.tensor([pair.passage_length for pair in pairs], device="cpu"),
        torch.tensor([pair.prompt_length for pair in pairs], device="cpu"),
    )
    if unpadded:
        ids = np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows)))[None]
        return Batch(torch.from_numpy(ids), spans, unpadded=True)
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)  # numpy reads lists several times as fast as torch
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return Batch(torch.from_numpy(ids), spans, rounded)
