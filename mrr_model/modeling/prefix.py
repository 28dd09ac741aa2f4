"""The query span that several pairs share: in a causal model it sees nothing of a passage, so its states, keys and
values are computed once for all of them (exact).

Letters: Q tokens of the query span, D hidden size, K key/value heads, d head size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class KeyValue:
    """One layer's keys and values of a shared span, (1, K, Q, d) each; empty until a block fills them in."""

    key: Tensor | None = None
    value: Tensor | None = None

    def before(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the pairs' own tokens (B, heads, S, d) with the span in front, (B, heads, Q + S, d).

        The span's queries are zeros: their attention is thrown away, and the attention stays square, so that the
        fused causal kernels serve it.
        """
        assert self.key is not None
        assert self.value is not None
        batch, heads, _, size = query.shape
        queries = query.new_zeros(batch, heads, self.key.shape[2], size)
        return (
            torch.cat([queries, query], 2),
            torch.cat([self.key.expand(batch, -1, -1, -1), key], 2),
            torch.cat([self.value.expand(batch, -1, -1, -1), value], 2),
        )


@dataclass
class Prefix:
    """A query span on its way through the layers: ``hidden`` (1, Q, D) is its state after ``len(seen)`` of them.

    It fills as the pairs' layers run, and serves every batch of the same query under the same adapters.
    """

    input_ids: Tensor
    """int64 (Q,)."""
    hidden: Tensor | None = None
    rotary: tuple[Tensor, Tensor] | None = None
    seen: list[KeyValue] = field(default_factory=list)
    bands: dict[int, Tensor] = field(default_factory=dict)
    """The span's own sliding-window masks, by their window."""

    @property
    def size(self) -> int:
        """Q."""
        return len(self.input_ids)
