"""Bidirectional encoders of BERT's block: BERT (MiniLM), XLM-RoBERTa.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from typing import Any, cast

from torch import Tensor, nn

from mrr_model.modeling.attention import row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix


class Encoder(Backbone):
    """Runs a stock encoder layer by layer: the base model without its pooler, which the heads replace."""

    causal = False

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, cast(Any, self.model.encoder).layer)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        token_types = self.token_type_ids(input_ids, spans)
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids, token_type_ids=token_types))

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        if prefix is not None:
            raise ValueError("an encoder takes no prefix: its query sees the passage, so pairs cannot share it.")
        valid = self.valid_positions(spans, hidden)
        mask = None if valid is None else valid[:, None, None, :]  # (B, 1, 1, T)
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, {"attention_mask": mask})

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> PooledState:
        attention = cast(Any, self.layers[layer - 1]).attention.self
        residual = inputs.pooled(hidden)  # (B, D), a copy: a view would keep all tokens' states alive

        heads = (*hidden.shape[:-1], attention.num_attention_heads, attention.attention_head_size)
        query = attention.query(residual).view(len(hidden), attention.num_attention_heads, 1, -1)  # (B, H, 1, d)
        key = attention.key(hidden).view(heads).transpose(1, 2)  # (B, H, T, d)
        value = attention.value(hidden).view(heads).transpose(1, 2)
        attended = row_attention(query, key, value, inputs.attention_row(), attention.scaling)  # (B, D)
        return PooledState(attended, residual)

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        return cast(Tensor, block.feed_forward_chunk(block.attention.output(pooled.attended, pooled.residual)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def attention_size(self) -> int:
        return cast(int, cast(Any, self.layers[0]).attention.self.all_head_size)

    @property
    def max_tokens(self) -> int | None:
        """XLM-RoBERTa's positions start after its padding id."""
        config = self.model.config
        offset = config.pad_token_id + 1 if config.model_type == "xlm-roberta" else 0
        return int(config.max_position_embeddings) - offset

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        attention = cast(Any, self.layers[layer - 1]).attention.self
        return attention.key, attention.value
