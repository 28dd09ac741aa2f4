"""Causal language models: Mistral, Llama, Qwen2, Qwen3, Gemma 2, Granite. A new family is one entry in `FAMILIES`.

Rows are right-padded: a causal model's real tokens never see the padding after them, so no mask is needed. The pooled
token is the last real one.

Shapes: B pairs, T tokens, D hidden size, H heads, K key/value heads, d head size.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from mrr_model.modeling.attention import AttentionRow, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import KeyValue, SharedPrefix


@dataclass(frozen=True)
class DecoderFamily:
    """How a family's block differs from Llama's.

    Attributes:
        query_key_norm: Norms on each head's query and key (Qwen3).
        sandwich_norm: Norms after attention and MLP too (Gemma 2).
        multipliers: Scaled embeddings and residual branches (Granite).
        soft_capped: Capped attention logits (Gemma 2).
    """

    query_key_norm: bool = False
    sandwich_norm: bool = False
    multipliers: bool = False
    soft_capped: bool = False


FAMILIES = {
    "mistral": DecoderFamily(),
    "llama": DecoderFamily(),
    "qwen2": DecoderFamily(),
    "qwen3": DecoderFamily(query_key_norm=True),
    "gemma2": DecoderFamily(sandwich_norm=True, soft_capped=True),
    "granite": DecoderFamily(multipliers=True),
}
"""Decoder families by their transformers `model_type`."""


class Decoder(Backbone):
    """Runs a stock causal model layer by layer: the base model without its language-model head."""

    causal = True

    def __init__(
        self, model: PreTrainedModel, pooling: Pooling, token_types: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(model, pooling, token_types)
        self.family = FAMILIES[model.config.model_type]

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.layers)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        hidden = cast(Tensor, self.model.get_input_embeddings()(input_ids))
        return hidden * cast(float, self.model.embedding_multiplier) if self.family.multipliers else hidden

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        """Positions are renumbered 0 … T'−1 at every width (arXiv 2501.16302, width compression)."""
        before = 0
        if prefix is not None:
            before = prefix.length
            if prefix.hidden is None:
                ids = prefix.input_ids.to(hidden.device)
                states = self.embed(ids[None], spans)
                # Set when all of it is there: if memory runs out before, the next batch starts the prefix again.
                prefix.rotary, prefix.hidden = self._rotary(states, 0)[1], states
        position_ids, rotary = self._rotary(hidden, before)
        valid = self.valid_positions(spans, hidden, before)
        inputs: dict[str, Any] = {
            "attention_mask": None,
            "position_ids": position_ids,
            "position_embeddings": rotary,
            "bands": {},
        }
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, inputs, prefix)

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        if inputs.prefix is None:
            return super().block(layer, hidden, inputs, attention_row)
        self._run_prefix(inputs.prefix, layer)
        block_inputs = {**inputs.block_inputs, "prefix": inputs.prefix.layers[layer - 1]}
        return super().block(layer, hidden, replace(inputs, block_inputs=block_inputs, prefix=None), attention_row)

    def _run_prefix(self, prefix: SharedPrefix, layer: int) -> None:
        """Run a shared prefix through the blocks up to `layer` that it has not been through yet."""
        while len(prefix.layers) < layer:
            assert prefix.hidden is not None
            filled = KeyValue()
            inputs = {
                "attention_mask": None,
                "position_embeddings": prefix.rotary,
                "prefix": filled,
                "bands": prefix.bands,
            }
            output = self.layers[len(prefix.layers)](prefix.hidden, **inputs)
            prefix.layers.append(filled)  # with the states that belong to it: nothing that can fail comes in between
            prefix.hidden = output[0] if isinstance(output, tuple) else output

    def _rotary(self, hidden: Tensor, first: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Positions from `first` on, (1, T), and their rotary angles."""
        positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None, :]
        return positions, cast(nn.Module, self.model.rotary_emb)(hidden, position_ids=positions)

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> PooledState:
        block = cast(Any, self.layers[layer - 1])
        attention = block.self_attn
        residual = inputs.pooled(hidden)  # (B, D)

        rotary = inputs.block_inputs["position_embeddings"]
        normed = block.input_layernorm(hidden)
        query = attention.q_proj(inputs.pooled(normed)).unflatten(-1, (-1, 1, attention.head_dim))  # (B, H, 1, d)
        if self.family.query_key_norm:
            query = attention.q_norm(query)
        cos, sin = (part.expand(len(hidden), -1, -1) for part in rotary)  # (B, T, d)
        query = _rotated(query, inputs.pooled(cos)[:, None], inputs.pooled(sin)[:, None])
        key, value = self._keys_and_values(attention, normed, rotary)  # (B, K, T, d)
        if inputs.prefix is not None:
            self._run_prefix(inputs.prefix, layer - 1)
            shared = self._keys_and_values(
                attention,
                block.input_layernorm(inputs.prefix.hidden),
                cast(tuple[Tensor, Tensor], inputs.prefix.rotary),
            )
            key, value = (
                torch.cat([span.expand(len(hidden), -1, -1, -1), own], 2)
                for span, own in zip(shared, (key, value), strict=True)
            )

        softcap = attention.attn_logit_softcapping if self.family.soft_capped else None
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        attended = row_attention(query, key, value, inputs.attention_row(), attention.scaling, softcap, window)
        return PooledState(attended, residual)

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        return self._residual_branches(block, pooled.residual, block.self_attn.o_proj(pooled.attended))

    def _keys_and_values(self, attention: Any, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One layer's keys, rotated, and values: (B, T, D) to (B, K, T, d) each."""
        heads = (*normed.shape[:-1], -1, attention.head_dim)
        key, value = (part(normed).view(heads).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        if self.family.query_key_norm:
            key = attention.k_norm(key)
        return _rotated(key, *rotary), value

    def _residual_branches(self, block: Any, residual: Tensor, attended: Tensor) -> Tensor:
        """The part of a block after its attention, (B, D) to (B, D)."""
        if self.family.sandwich_norm:
            hidden = residual + block.post_attention_layernorm(attended)
            branch = block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(hidden)))
            return cast(Tensor, hidden + branch)
        scale = block.residual_multiplier if self.family.multipliers else 1.0
        hidden = residual + attended * scale
        return cast(Tensor, hidden + block.mlp(block.post_attention_layernorm(hidden)) * scale)

    def final_norm(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.model.norm)(hidden))

    @property
    def attention_size(self) -> int:
        return cast(int, cast(Any, self.layers[0]).self_attn.q_proj.out_features)

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        attention = cast(Any, self.layers[layer - 1]).self_attn
        return attention.k_proj, attention.v_proj


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, heads, T, d) by angles (B, T, d)."""
    cos, sin = cos[:, None], sin[:, None]
    return cast(Tensor, states * cos + rotate_half(states) * sin)
