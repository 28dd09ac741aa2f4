"""What the layer loop needs of an architecture: the interface that decoder.py and encoder.py fill.

Letters: B pairs, T tokens (of the current width), D hidden size, L layers.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mrr_model.modeling.attention import ReadingRow
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import Prefix


@dataclass(frozen=True)
class Stage:
    """One width of a batch: what all layers between two merges share.

    ``reading`` int64 (B,): the reading tokens' places. ``valid`` bool (B, T), or None where every row is full.
    ``block_inputs``: the keyword arguments that a stock block takes besides its hidden states. ``prefix``: the query
    span, where the batch's pairs share one and hold the tokens behind it only; ``valid`` counts it in, as (B, Q + T).
    """

    reading: Tensor
    valid: Tensor | None
    block_inputs: dict[str, Any]
    prefix: Prefix | None = None

    def row(self) -> ReadingRow:
        """What asks a block for the reading tokens' attention."""
        return ReadingRow(self.reading + self.prefix.size if self.prefix else self.reading, self.valid)

    def take(self, hidden: Tensor) -> Tensor:
        """The reading tokens' states: (B, T, D) to (B, D)."""
        return hidden[torch.arange(len(hidden), device=hidden.device), self.reading]


@dataclass(frozen=True)
class Reading:
    """What the last block leaves to do once per pair and not once per token: the reading tokens' attention before its
    output projection, ``attended`` (B, H · d), and their states before the block, ``states`` (B, D).
    """

    attended: Tensor
    states: Tensor


class Backbone(ABC):
    """A stock transformers model, walked layer by layer. Layers are counted from 1. Holds no weights of its own."""

    causal: bool

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The blocks, in order."""

    @abstractmethod
    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        """Token ids (B, T) to the states before the first block, (B, T, D)."""

    @abstractmethod
    def stage(self, hidden: Tensor, spans: Spans, prefix: Prefix | None = None) -> Stage:
        """The shared inputs of all blocks at one width. ``hidden`` (B, T, D) gives dtype, device and T.

        With ``prefix`` the rows go on behind a query span that they share; only causal models take one.
        """

    @abstractmethod
    def read(self, layer: int, hidden: Tensor, stage: Stage) -> Reading:
        """Run the attention of block ``layer`` for the reading tokens alone; ``hidden`` (B, T, D).

        Keys and values are computed for all tokens, the query for one token of each pair.
        """

    @abstractmethod
    def finish(self, layer: int, reading: Reading) -> Tensor:
        """The rest of block ``layer``, output projection and MLP, for the reading tokens: (B, D). Pairs of several
        batches can be finished at once.
        """

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last norm, applied before every head (the identity where the architecture has none)."""

    @abstractmethod
    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        """The modules of block ``layer`` that every token needs even at the last exit."""

    @property
    @abstractmethod
    def attention_size(self) -> int:
        """Heads times head size."""

    @property
    def max_tokens(self) -> int | None:
        """How many positions the model has, where it cannot go beyond them."""
        return None

    def block(self, layer: int, hidden: Tensor, stage: Stage, reading_row: ReadingRow | None = None) -> Tensor:
        """Run block ``layer`` whole: (B, T, D) to (B, T, D). Fills ``reading_row`` where one is given."""
        output = self.layers[layer - 1](hidden, **stage.block_inputs, reading_row=reading_row)
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    def valid_places(self, spans: Spans, hidden: Tensor, before: int = 0) -> Tensor | None:
        """Which places of ``hidden`` (B, T, D) hold tokens, bool (B, T); None where every row is full. ``before``
        tokens stand in front of every row, and are counted in.
        """
        total, size = spans.total + before, hidden.shape[1] + before
        if int(total.min()) == size:
            return None
        return (torch.arange(size, device="cpu")[None, :] < total[:, None]).to(hidden.device)
