"""Bidirectional encoders of BERT's block: BERT (MiniLM), ELECTRA, RoBERTa, XLM-RoBERTa, CamemBERT.

A new family of this block is one entry in `families.FAMILIES`. Positions are added at the embeddings, so a merged token
carries those of its tokens, averaged like the rest of its state.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from typing import Any, cast

from torch import Tensor, nn

from mrr_model.modeling.attention import AttentionRow, KeysValues, attention, pooled_bias, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.unpadded import Layout


class Encoder(Backbone):
    """Runs a stock encoder layer by layer: the base model without its pooler, which the heads replace."""

    causal = False

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, cast(Any, self.model.encoder).layer)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        return self._embedded(input_ids, self.token_type_ids(input_ids, spans))

    def _embedded(self, input_ids: Tensor, token_types: Tensor, position_ids: Tensor | None = None) -> Tensor:
        hidden = cast(nn.Module, self.model.embeddings)(
            input_ids=input_ids, token_type_ids=token_types, position_ids=position_ids
        )
        project = getattr(self.model, "embeddings_project", None)  # of ELECTRA models with narrow embeddings
        return cast(Tensor, hidden if project is None else project(hidden))

    @property
    def can_unpad(self) -> bool:
        return self.pooling != "mean" and not self.keeps_positions and not self.model.config.chunk_size_feed_forward

    def embed_unpadded(self, input_ids: Tensor, spans: Spans, layout: Layout) -> Tensor:
        token_types = self.token_type_ids(input_ids, spans, layout)
        return self._embedded(input_ids, token_types, layout.positions[None] + self._first_position)

    @property
    def _first_position(self) -> int:
        """RoBERTa and its kin count positions from after the padding id, which their embeddings keep."""
        return int(getattr(self.model.embeddings, "padding_idx", -1)) + 1

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        valid = self.valid_positions(spans, hidden)
        mask = None if valid is None else valid[:, None, None, :]  # (B, 1, 1, T)
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, {"attention_mask": mask})

    def self_attention(self, layer: int) -> nn.Module:
        """The module of block `layer` that holds its projections."""
        return cast(nn.Module, cast(Any, self.layers[layer - 1]).attention.self)

    def projections(self, layer: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The modules of block `layer` that make queries, keys and values: (…, D) to (…, H · d)."""
        own = cast(Any, self.self_attention(layer))
        return own.query, own.key, own.value

    def _heads(self, states: Tensor) -> Tensor:
        """(B, T, H · d) to (B, H, T, d)."""
        return states.view(*states.shape[:2], self.model.config.num_attention_heads, -1).transpose(1, 2)

    def keys_values(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> KeysValues:
        _, to_key, to_value = self.projections(layer)
        return KeysValues(self._heads(to_key(hidden)), self._heads(to_value(hidden)))

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs, keys_values: KeysValues) -> PooledState:
        residual = inputs.pooled(hidden)  # (B, D), a copy: a view would keep all tokens' states alive
        query = self._heads(self.projections(layer)[0](residual[:, None]))  # (B, H, 1, d)
        row = inputs.attention_row()
        bias = pooled_bias(inputs.block_inputs["attention_mask"], row)  # (B, H, T)
        attended = row_attention(query, keys_values.key, keys_values.value, row, scaling=None, bias=bias)  # (B, H · d)
        return PooledState(attended, residual)

    def attended(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        own, mask = self.self_attention(layer), inputs.block_inputs["attention_mask"]
        query = self._heads(self.projections(layer)[0](hidden))  # (B, H, T, d)
        out, _ = attention(
            own, query, keys_values.key, keys_values.value, mask, attention_row=attention_row, layout=inputs.layout
        )
        return out.flatten(2)

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        return cast(Tensor, block.feed_forward_chunk(block.attention.output(pooled.attended, pooled.residual)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def attention_size(self) -> int:
        return cast(int, cast(Any, self.projections(1)[0]).out_features)

    @property
    def max_tokens(self) -> int | None:
        return int(self.model.config.max_position_embeddings) - self._first_position

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        return self.projections(layer)[1:]
