"""What the layer loop needs of an architecture: the interface that every family implements.

Shapes: B pairs, T tokens (at the current width), D hidden size, H heads, K key/value heads, d head size, Q tokens of a
shared prefix.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mrr_model.modeling.angles import Angles
from mrr_model.modeling.attention import AttentionRow, KeysValues
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.unpadded import Layout


@dataclass(frozen=True)
class LayerInputs:
    """What all layers between two merges share, besides the hidden states.

    Attributes:
        pooled_index: The pooled tokens' positions, int64 (B,); None if the mean over tokens is pooled.
        valid: Which positions hold tokens, bool (B, T), or (B, Q + T) with a prefix; None if all do.
        block_inputs: The keyword arguments that a stock block takes besides its hidden states.
        prefix: The query span that the batch's pairs share; the batch then holds the tokens after it.
        layout: Where the pairs of an unpadded batch lie; its one row has all their tokens, `pooled_index` counts in
            that row, and `valid` is None. None for padded batches.
    """

    pooled_index: Tensor | None
    valid: Tensor | None
    block_inputs: dict[str, Any]
    prefix: SharedPrefix | None = None
    layout: Layout | None = None

    def attention_row(self, counts: Tensor | None = None) -> AttentionRow:
        """A request for a merge's weights, for a block to fill in.

        `counts` says how many tokens each state stands for, int64 (B, T); None if each stands for one.
        """
        index = self.pooled_index
        if index is not None and self.layout is not None:
            return AttentionRow(index - self.layout.starts[:-1], self.layout.valid, counts, layout=self.layout)
        if index is not None and self.prefix is not None:
            index = index + self.prefix.length
        return AttentionRow(index, self.valid, counts)

    def pooled(self, hidden: Tensor) -> Tensor:
        """The pooled tokens' states, copied: (B, T, D), or (1, N, D) of an unpadded batch, to (B, D)."""
        assert self.pooled_index is not None
        return hidden[torch.arange(len(hidden), device=hidden.device), self.pooled_index]

    def pooled_angles(self, angles: Angles) -> Angles:
        """The pooled tokens' rotary angles: (1 or B, T, d) to (B, 1, d) each."""
        assert self.pooled_index is not None
        cos, sin = (self.pooled(part.expand(len(self.pooled_index), -1, -1))[:, None] for part in angles)
        return cos, sin

    def pooled_query(self, keys_values: KeysValues) -> Tensor | None:
        """The pooled tokens' queries among those made together with the keys: (B, H, 1, d); None if there are none."""
        query = keys_values.query
        return None if query is None else self.pooled(query.transpose(1, 2))[:, :, None]


@dataclass(frozen=True)
class PooledState:
    """The pooled tokens in the middle of a block: what is left runs once per pair and not once per token.

    `Backbone.finish_block` uses it for all tokens: the shapes then have (B, T) for B.

    Attributes:
        attended: Their attention before its output projection, (B, H · d).
        residual: Their states before the block, (B, D).
    """

    attended: Tensor
    residual: Tensor


class Backbone(ABC):
    """A stock transformers model, run layer by layer. Layers are counted from 1. It holds no weights of its own.

    Args:
        model: The stock model.
        pooling: What an exit reads.
        token_types: The token type ids of the query, passage and prompt span; None: 0 for all.

    Attributes:
        causal: Whether a token sees only those before it.
        keeps_positions: Whether a merged token keeps the middle position of its tokens; else the tokens are renumbered
            0 … T'−1 at every width.
    """

    causal: bool
    keeps_positions: bool = False

    def __init__(
        self, model: PreTrainedModel, pooling: Pooling, token_types: tuple[int, int, int] | None = None
    ) -> None:
        self.model, self.pooling, self.token_types = model, pooling, token_types

    @property
    def shares_prefix(self) -> bool:
        """Whether pairs can share the states of their query: if it sees nothing of the passage, and is not pooled."""
        return self.causal and self.pooling == "last"

    @property
    @abstractmethod
    def layers(self) -> nn.ModuleList:
        """The blocks, in order."""

    @abstractmethod
    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        """Token ids (B, T) to the states before the first block, (B, T, D)."""

    @property
    def can_unpad(self) -> bool:
        """Whether it runs unpadded batches: `embed_unpadded` and `unpadded_inputs` are its own then."""
        return False

    def embed_unpadded(self, input_ids: Tensor, spans: Spans, layout: Layout) -> Tensor:
        """The same for an unpadded batch, (1, N) to (1, N, D)."""
        return self.embed(input_ids, spans)

    def unpadded_inputs(self, hidden: Tensor, spans: Spans, layout: Layout) -> LayerInputs:
        """What all blocks at a width of an unpadded batch share; `hidden` (1, N, D)."""
        index = self.pooled_index(spans, hidden.device)
        assert index is not None
        inputs = {"attention_mask": None, "layout": layout}
        return LayerInputs(index + layout.starts[:-1], None, inputs, layout=layout)

    @abstractmethod
    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        """What all blocks at the width of `hidden` (B, T, D) share.

        Args:
            hidden: The states, (B, T, D).
            spans: Lengths in tokens.
            prefix: A query span that the rows continue and share; None unless the model shares one (`shares_prefix`).
            positions: For a model that keeps positions, each token's position before any merge, int64 (B, T), counted
                from the row's first token after the prefix; None before the first merge, when they are 0 … T−1.
        """

    @abstractmethod
    def keys_values(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> KeysValues:
        """The keys and values of all tokens in block `layer`; `hidden` (B, T, D).

        `pooled_attention` and `finish_block` run the rest of the block from them.
        """

    @abstractmethod
    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs, keys_values: KeysValues) -> PooledState:
        """Run the attention of block `layer` for the pooled tokens alone; `hidden` (B, T, D).

        The query is computed for one token of each pair.
        """

    @abstractmethod
    def attended(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        """Run the attention of block `layer` for all tokens, before its output projection: (B, T, D) to (B, T, H · d).

        Fills in `attention_row`, if given.
        """

    @abstractmethod
    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        """Run the rest of block `layer`, output projection and MLP, for the pooled tokens: (B, D).

        The pairs may come from several batches. It works token by token, and so for all tokens too: (B, T, D).
        """

    @abstractmethod
    def final_norm(self, hidden: Tensor) -> Tensor:
        """The model's last norm, applied before every head (the identity if the architecture has none).

        Takes float32 states (…, D), whatever the dtype of its weights, and returns float32.
        """

    @abstractmethod
    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        """The modules of block `layer` that every token needs even at the last exit."""

    def key_value_share(self, layer: int) -> float:
        """The share of what `key_value_projections` compute that every token needs: packed ones hold queries too."""
        return 1.0

    def token_modules(self, layer: int) -> Iterable[nn.Module]:
        """The modules of block `layer` that run for tokens; others run for positions, once per batch."""
        return self.layers[layer - 1].modules()

    def relative_flops(self, tokens: int, whole: int, merged: bool) -> float:
        """FLOPs of one layer's products with relative positions.

        Args:
            tokens: The states of a pair.
            whole: Those that have a query: all, or the pooled one.
            merged: Whether a merge came before.

        Returns:
            FLOPs per pair; 0 for families without such products.
        """
        return 0.0

    @property
    @abstractmethod
    def attention_size(self) -> int:
        """Heads times head size."""

    @property
    def max_tokens(self) -> int | None:
        """How many positions the model has; None if it has no limit."""
        return None

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        """Run block `layer` whole: (B, T, D) to (B, T, D). Fills in `attention_row`, if given."""
        output = self.layers[layer - 1](hidden, **inputs.block_inputs, attention_row=attention_row)
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    def finish_block(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        """Run block `layer` whole, in evaluation mode, from keys and values that are known.

        It computes what `block` computes, and calls the block's parts as `pooled_output` does, not the block.

        Args:
            layer: The block.
            hidden: The states before it, (B, T, D).
            inputs: See `layer_inputs`.
            keys_values: What `keys_values` returned for these states.
            attention_row: A request for a merge's weights, to fill in.

        Returns:
            (B, T, D).
        """
        attended = self.attended(layer, hidden, inputs, keys_values, attention_row)
        return self.pooled_output(layer, PooledState(attended, hidden))

    def pooled_index(self, spans: Spans, device: torch.device) -> Tensor | None:
        """The pooled tokens' positions, int64 (B,) on `device`; None if the mean over tokens is pooled."""
        if self.pooling == "mean":
            return None
        own = spans.on(device)
        return {
            "first": torch.zeros_like(own.total),
            "last": own.total - 1,
            "separator": own.query - 1,
        }[self.pooling]

    def token_type_ids(self, input_ids: Tensor, spans: Spans, layout: Layout | None = None) -> Tensor:
        """The token type ids of a batch, int64 (B, T), or (1, N) with the layout of an unpadded one."""
        if self.token_types is None:
            return torch.zeros_like(input_ids)
        query, passage, prompt = self.token_types
        own = spans.on(input_ids.device)
        if layout is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :]
            middle, end = own.query[:, None], (own.query + own.passage)[:, None]  # (B, 1)
        else:
            positions = layout.positions[None]
            middle, end = own.query[layout.rows][None], (own.query + own.passage)[layout.rows][None]  # (1, N)
        types = torch.full_like(input_ids, prompt).masked_fill(positions < end, passage)
        return types.masked_fill(positions < middle, query)

    def token_positions(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """The positions of the tokens of `hidden` (B, T, D): those given, int64 (B, T), else 0 … T−1, (1, T)."""
        return torch.arange(hidden.shape[1], device=hidden.device)[None] if positions is None else positions

    def valid_positions(self, spans: Spans, hidden: Tensor, before: int = 0) -> Tensor | None:
        """Which positions of `hidden` (B, T, D) hold tokens, bool (B, T); None if all do.

        `before` counts tokens before every row: they are valid positions too, and come first.
        """
        size = hidden.shape[1] + before
        if int(spans.total.min()) + before == size:
            return None
        total = spans.on(hidden.device).total + before
        return torch.arange(size, device=hidden.device)[None, :] < total[:, None]
