"""GTE: an encoder with rotary positions and gated MLPs; and how stock files differ from those on the hub.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from typing import Any, cast

from torch import Tensor, nn

from mrr_model.modeling.attention import row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.rotary import rotated, token_positions


class Gte(Backbone):
    """Runs a stock GTE layer by layer."""

    causal = False
    keeps_positions = True

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.layers)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        token_types = self.token_type_ids(input_ids, spans)
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids, token_type_ids=token_types))

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        if prefix is not None:
            raise ValueError("an encoder takes no prefix: its query sees the passage, so pairs cannot share it.")
        valid = self.valid_positions(spans, hidden)
        inputs = {
            "attention_mask": None if valid is None else valid[:, None, None, :],  # (B, 1, 1, T)
            "position_embeddings": cast(nn.Module, self.model.rotary_emb)(hidden, token_positions(hidden, positions)),
        }
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, inputs)

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> PooledState:
        attention = cast(Any, self.layers[layer - 1]).self_attn
        residual = inputs.pooled(hidden)  # (B, D)

        heads = (*hidden.shape[:-1], -1, attention.head_dim)
        query = attention.q_proj(residual).unflatten(-1, (-1, 1, attention.head_dim))  # (B, H, 1, d)
        key, value = (part(hidden).view(heads).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        cos, sin = inputs.block_inputs["position_embeddings"]  # (1 or B, T, d)
        own = [inputs.pooled(part.expand(len(hidden), -1, -1))[:, None] for part in (cos, sin)]  # (B, 1, d)
        row = inputs.attention_row()
        attended = row_attention(rotated(query, *own), rotated(key, cos, sin), value, row, attention.scaling)
        return PooledState(attended, residual)

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        hidden = block.post_attention_layernorm(pooled.residual + block.self_attn.o_proj(pooled.attended))
        return cast(Tensor, block.post_mlp_layernorm(hidden + block.mlp(hidden)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def attention_size(self) -> int:
        return cast(int, cast(Any, self.layers[0]).self_attn.q_proj.out_features)

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        attention = cast(Any, self.layers[layer - 1]).self_attn
        return attention.k_proj, attention.v_proj
