"""What goes into the model: pairs as token ids, one by one, as arrays, and padded to a batch.

Shapes: B pairs, T tokens, N tokens of all pairs, S pieces of a pair.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

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


@dataclass(frozen=True, eq=False)
class EncodedPairs(Sequence[EncodedPair]):
    """Many encoded pairs as arrays. A pair's ids are pieces of one block, put together where they are needed.

    An item is an `EncodedPair`, a slice the pairs in it. Two are equal if all of their pairs are.

    Attributes:
        block: Token ids, int64 of any length.
        starts: Where in the block each piece of each pair begins, int64 (B, S).
        sizes: The tokens of each piece, int64 (B, S).
        query_length: Tokens of the query spans, int64 (B,).
        passage_length: Tokens of the passage spans, int64 (B,).
        prompt_length: Tokens of the prompt spans, int64 (B,).
        query_cut: See `EncodedPair`; bool (B,).
        passage_cut: See `EncodedPair`; bool (B,).

    Example:
        >>> pairs = EncodedPairs.of([EncodedPair([7, 8, 9], 1, 2, 0), EncodedPair([7, 8], 1, 1, 0)])
        >>> pairs.lengths.tolist(), pairs[1].input_ids
        ([3, 2], [7, 8])
    """

    block: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    query_length: NDArray[np.int64]
    passage_length: NDArray[np.int64]
    prompt_length: NDArray[np.int64]
    query_cut: NDArray[np.bool_]
    passage_cut: NDArray[np.bool_]

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair]) -> "EncodedPairs":
        """The same pairs; themselves if they are arrays already."""
        if isinstance(pairs, EncodedPairs):
            return pairs
        sizes = np.array([len(pair.input_ids) for pair in pairs], dtype=np.int64)
        block = np.fromiter(chain.from_iterable(pair.input_ids for pair in pairs), np.int64, int(sizes.sum()))
        spans = np.array([(pair.query_length, pair.passage_length, pair.prompt_length) for pair in pairs], np.int64)
        cut = np.array([(pair.query_cut, pair.passage_cut) for pair in pairs], np.bool_)
        starts = (sizes.cumsum() - sizes)[:, None]
        return cls(block, starts, sizes[:, None], *spans.reshape(-1, 3).T, *cut.reshape(-1, 2).T)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each pair, (B,)."""
        lengths: NDArray[np.int64] = self.sizes.sum(1)
        return lengths

    def take(self, rows: Sequence[int] | slice | NDArray[np.int64]) -> Self:
        """Some of the pairs, in order."""
        return replace(
            self,
            starts=self.starts[rows],
            sizes=self.sizes[rows],
            query_length=self.query_length[rows],
            passage_length=self.passage_length[rows],
            prompt_length=self.prompt_length[rows],
            query_cut=self.query_cut[rows],
            passage_cut=self.passage_cut[rows],
        )

    def ids(self, skipped: int = 0) -> NDArray[np.int64]:
        """The ids of all pairs, one after the other, without the first `skipped` tokens of each: (N,)."""
        starts, sizes = self.starts, self.sizes
        if skipped:
            left_out = (skipped - sizes.cumsum(1) + sizes).clip(0, sizes)
            starts, sizes = starts + left_out, sizes - left_out
        return gathered_pieces(self.block, starts.ravel(), sizes.ravel())

    def query_ids(self) -> list[tuple[int, ...]]:
        """The ids of each pair's query span. Those of pairs with the same pieces are put together once."""
        sizes = (self.query_length[:, None] - self.sizes.cumsum(1) + self.sizes).clip(0, self.sizes)
        pieces = np.concatenate([np.where(sizes > 0, self.starts, 0), sizes], 1)
        distinct, numbers = np.unique(pieces, axis=0, return_inverse=True)
        starts, sizes = np.split(distinct, 2, 1)
        ids = tuple(gathered_pieces(self.block, starts.ravel(), sizes.ravel()).tolist())
        bounds = accumulate(sizes.sum(1).tolist(), initial=0)
        spans = [ids[start:stop] for start, stop in pairwise(bounds)]
        return [spans[number] for number in numbers.ravel().tolist()]

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> EncodedPair | Self:
        if isinstance(index, slice):
            return self.take(index)
        [pair] = self.take([index])
        return pair

    def __iter__(self) -> Iterator[EncodedPair]:
        ids, bounds = self.ids().tolist(), accumulate(self.lengths.tolist(), initial=0)
        columns = (self.query_length, self.passage_length, self.prompt_length, self.query_cut, self.passage_cut)
        rows = zip(pairwise(bounds), *(column.tolist() for column in columns), strict=True)
        for (start, stop), query, passage, prompt, query_cut, passage_cut in rows:
            yield EncodedPair(ids[start:stop], query, passage, prompt, query_cut=query_cut, passage_cut=passage_cut)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]


def gathered_pieces(block: NDArray[np.int64], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pieces of a block, one after the other.

    Example:
        >>> gathered_pieces(np.array([5, 6, 7, 8]), np.array([2, 0, 1]), np.array([2, 0, 1])).tolist()
        [7, 8, 6]
    """
    ends = sizes.cumsum()
    index = np.repeat(starts - ends + sizes, sizes)
    index += np.arange(len(index))
    ids: NDArray[np.int64] = block[index]
    return ids


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
    pairs = EncodedPairs.of(pairs)
    lengths, ids = pairs.lengths - prefix_length, pairs.ids(prefix_length)
    spans = Spans(
        torch.from_numpy(pairs.query_length - prefix_length),
        torch.from_numpy(pairs.passage_length.copy()),
        torch.from_numpy(pairs.prompt_length.copy()),
    )
    if unpadded:
        return Batch(torch.from_numpy(ids[None]), spans, unpadded=True)
    longest = int(lengths.max())
    if rounded:
        longest = max(longest, min(padded_length(longest), max_tokens or padded_length(longest)))
    padded = np.full((len(lengths), longest), pad_id, dtype=np.int64)
    padded[np.arange(longest) < lengths[:, None]] = ids
    return Batch(torch.from_numpy(padded), spans, rounded)
