"""Bidirectional encoders: BERT (MiniLM) and XLM-RoBERTa. A new family of the same block is one entry in `FAMILIES`.

The pooled token is the first, or the last of the query span.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mrr_model.modeling.attention import row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix

FAMILIES = ("bert", "xlm-roberta")
"""Encoder families by their transformers `model_type`."""


class Encoder(Backbone):
    """Runs a stock encoder layer by layer: the base model without its pooler, which the heads replace.

    Args:
        model: The stock model.
        pools_separator: Whether the pooled token is the separator that ends the query span, not the first token.
    """

    causal = False

    def __init__(self, model: PreTrainedModel, pools_separator: bool = False) -> None:
        super().__init__(model)
        self._pools_separator = pools_separator

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, cast(Any, self.model.encoder).layer)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        """Token type 1 marks the passage and what follows it, if the model knows two types."""
        token_types = torch.zeros_like(input_ids)
        if self.model.config.type_vocab_size > 1:
            positions = torch.arange(input_ids.shape[1], device="cpu")[None, :]
            token_types = (positions >= spans.query[:, None]).long().to(input_ids.device)
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids, token_type_ids=token_types))

    def layer_inputs(self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None) -> LayerInputs:
        if prefix is not None:
            raise ValueError("an encoder takes no prefix: its query sees the passage, so pairs cannot share it.")
        index = (spans.query - 1 if self._pools_separator else torch.zeros_like(spans.query)).to(hidden.device)
        valid = self.valid_positions(spans, hidden)
        mask = None if valid is None else valid[:, None, None, :]  # (B, 1, 1, T)
        return LayerInputs(index, valid, {"attention_mask": mask})

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
