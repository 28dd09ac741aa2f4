"""Pairs to batches: by the query that they share, by length, and within a token budget that fits in memory."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mrr_model.inference.device import default_batch_tokens
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.unpadded import has_kernel

logger = logging.getLogger(__name__)

WAITING_BYTES = 1 << 30
"""Bytes of the states that wait at the exits of a cascade, at most, with their keys and values."""

MIN_SHARING_PAIRS = 4
"""Fewer pairs of one query are not worth batches of their own."""

LEAST_SHARED = 0.25
"""The share of its pairs' tokens that a query needs to be shared where batches could run unpadded. Batches that share
keys need a mask, and so a slower kernel: with a query of 2% of the tokens, two decoders ran at 0.77 times the speed of
CrossEncoder's padded batches on an H200 (benchmarks/results/gpu.json)."""


class BatchBudget:
    """How many tokens a batch may hold, padding counted. It shrinks when a batch does not fit in memory.

    Args:
        model: The model. Its device, size and dtype give the default.
        limit: Tokens; None for the default.

    Attributes:
        unpad: Whether batches run without padding, if the model can; None: if a fused kernel computes their attention.
    """

    def __init__(self, model: MatryoshkaModel, limit: int | None = None) -> None:
        self.model, self.limit = model, limit
        self.unpad: bool | None = None
        self._warned = self._warned_of_waiting = False

    @property
    def waiting(self) -> int:
        """How many tokens may wait at the exits of a cascade, padding counted."""
        hidden_size: int = self.model.config.hidden_size
        return max(1, WAITING_BYTES // (3 * hidden_size * self.model.model.dtype.itemsize))

    @property
    def tokens(self) -> int:
        """The budget at this moment."""
        return self.limit or default_batch_tokens(
            self.model.device, self.model.config.hidden_size, self.model.model.dtype
        )

    @property
    def unpads(self) -> bool:
        """Whether batches run without padding."""
        if not self.model.can_unpad:
            return False
        if self.unpad is not None:
            return self.unpad
        head_size = self.model.backbone.attention_size // int(self.model.config.num_attention_heads)
        return has_kernel(self.model.device, self.model.model.dtype, head_size)

    def groups(self, pairs: Sequence[EncodedPair]) -> "list[QueryGroup]":
        """Group pairs by the query span that the model computes once for all of them."""
        least = LEAST_SHARED if self.unpads else 0.0
        return query_groups(pairs, share=self.model.backbone.shares_prefix, least=least)

    def halve(self, tokens: int) -> None:
        """Allow at most half of the `tokens` of a batch that did not fit in memory; warn of the first one."""
        half = max(1, tokens // 2)
        self.limit = half if self.limit is None else min(self.limit, half)  # another thread may have halved it further
        if not self._warned:
            self._warned = True
            logger.warning(
                "Out of memory with a batch of %d tokens: batches hold at most %d from now on. Set batch_tokens to "
                "choose it.",
                tokens,
                self.limit,
            )
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def warn_of_waiting(self) -> None:
        """Log, once, that more tokens wait at a cascade's exit than may."""
        if not self._warned_of_waiting:
            self._warned_of_waiting = True
            logger.warning(
                "More than %d tokens wait at an exit of a cascade: documents whose states were forgotten are computed "
                "again if they continue. Rank fewer documents at a time.",
                self.waiting,
            )


@dataclass(frozen=True)
class QueryGroup:
    """Pairs that may run in one batch.

    Attributes:
        indices: The pairs' indices.
        shared_ids: The token ids of the query span that all of them share; empty if they share none.
    """

    indices: list[int]
    shared_ids: tuple[int, ...] = ()


def query_groups(pairs: Sequence[EncodedPair], *, share: bool, least: float = 0.0) -> list[QueryGroup]:
    """Group pairs by the query span that is worth computing once for all of them.

    That is one that `MIN_SHARING_PAIRS` pairs or more have, each with tokens after it. All other pairs form the last
    group.

    Args:
        pairs: Encoded pairs.
        share: Whether the model can share query spans. If not, all pairs form one group.
        least: The share of its pairs' tokens that a span needs.

    Example:
        >>> pairs = [EncodedPair([query, 9], 1, 1, 0) for query in (7, 7, 8, 7, 7)]
        >>> [(group.shared_ids, group.indices) for group in query_groups(pairs, share=True)]
        [((7,), [0, 1, 3, 4]), ((), [2])]
    """
    by_query: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs if share else ()):
        if pair.query_length and pair.passage_length + pair.prompt_length:
            by_query.setdefault(tuple(pair.input_ids[: pair.query_length]), []).append(index)
    groups = [
        QueryGroup(indices, ids)
        for ids, indices in by_query.items()
        if len(indices) >= MIN_SHARING_PAIRS
        and len(ids) * len(indices) >= least * sum(len(pairs[index].input_ids) for index in indices)
    ]
    shared = {index for group in groups for index in group.indices}
    rest = [index for index in range(len(pairs)) if index not in shared]
    return [*groups, QueryGroup(rest)] if rest else groups


def length_sorted_batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Split pairs into batches by length, longest first.

    Args:
        lengths: Tokens of each pair.
        batch_tokens: Tokens that a batch may hold, padding counted; a batch of one pair may hold more.
        batch_size: Pairs that a batch may hold; None for no limit.

    Returns:
        The indices of each batch's pairs.

    Example:
        >>> list(length_sorted_batches([3, 9, 4, 8], 16))
        [[1], [3, 2], [0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > batch_tokens or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
