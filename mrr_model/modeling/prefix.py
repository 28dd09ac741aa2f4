"""The query span that several pairs share.

In a causal model it sees nothing of a passage, so its states, keys and values are computed once for all of these pairs.
This is exact.

Shapes: B pairs, Q tokens of the query span, T other tokens of a pair, D hidden size, H heads, K key/value heads, d head
size.
"""

from dataclasses import dataclass, field

from torch import Tensor

from mrr_model.modeling.angles import Angles
from mrr_model.modeling.attention import KeysValues


@dataclass
class SharedPrefix:
    """A query span and what is known of it so far. Pass one object with every batch of the pairs that share it.

    The layers of the first batch fill it in; later batches use it. It holds for one set of active adapters.

    Attributes:
        input_ids: The span's token ids, int64 (Q,).
        hidden: Its states before the last layer in `layers`, (1, Q, D); before the first layer if there is none.
        rotary: Its rotary angles, by type of layer.
        layers: Its keys and values in the layers so far, (1, K, Q, d). The rest of the last one runs when the layer
            after it is needed.
        bands: Its own sliding-window masks, by window.
    """

    input_ids: Tensor
    hidden: Tensor | None = None
    rotary: dict[str, Angles] = field(default_factory=dict)
    layers: list[KeysValues] = field(default_factory=list)
    bands: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Q."""
        return len(self.input_ids)
