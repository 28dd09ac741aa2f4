"""The query span that several pairs share.

In a causal model it sees nothing of a passage, so its states, keys and values are computed once for all of these pairs.
This is exact.

Shapes: B pairs, Q tokens of the query span, T other tokens of a pair, D hidden size, H heads, K key/value heads, d head
size.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mrr_model.modeling.angles import Angles


@dataclass
class KeyValue:
    """One layer's keys and values of a shared span, (1, K, Q, d) each; None until the attention fills them in."""

    key: Tensor | None = None
    value: Tensor | None = None

    def prepended(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put the span before the pairs' own tokens.

        The span's queries are zeros, and their attention is thrown away: the attention stays square, so that the fused
        causal kernels serve it.

        Args:
            query: (B, H, T, d).
            key: (B, K, T, d).
            value: (B, K, T, d).

        Returns:
            The three with Q + T tokens each.
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
class SharedPrefix:
    """A query span and what is known of it so far. Pass one object with every batch of the pairs that share it.

    The layers of the first batch fill it in; later batches use it. It holds for one set of active adapters.

    Attributes:
        input_ids: The span's token ids, int64 (Q,).
        hidden: Its states after `len(layers)` layers, (1, Q, D).
        rotary: Its rotary angles, by type of layer.
        layers: The keys and values of the layers so far.
        bands: Its own sliding-window masks, by window.
    """

    input_ids: Tensor
    hidden: Tensor | None = None
    rotary: dict[str, Angles] = field(default_factory=dict)
    layers: list[KeyValue] = field(default_factory=list)
    bands: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Q."""
        return len(self.input_ids)
