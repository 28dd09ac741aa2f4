"""Causal language models: Mistral, Llama, Qwen2, Qwen3, Gemma 2, Granite. A new family is one entry in ``FAMILIES``.

Rows are right-padded: a causal model's real tokens never see what stands behind them, so no mask is needed. The
reading token is the last real one. Letters: B pairs, T tokens, D hidden size, H heads, K key/value heads, d head size.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from mrr_model.backbones.attention import ReadingRow, row_attention
from mrr_model.backbones.backbone import Backbone, Stage
from mrr_model.merging import Spans


@dataclass(frozen=True)
class DecoderFamily:
    """How a family's block differs from Llama's.

    ``query_key_norm``: norms on each head's query and key (Qwen3). ``sandwich_norm``: norms after attention and MLP
    too (Gemma 2).
    ``multipliers``: scaled embeddings and residual branches (Granite). ``soft_capped``: capped attention logits (Gemma
    2).
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
"""Decoder families by their transformers ``model_type``."""


class Decoder(Backbone):
    """Walks a stock causal model (the base model, without a language-model head)."""

    causal = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.family = FAMILIES[model.config.model_type]

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.layers)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        hidden = cast(Tensor, self.model.get_input_embeddings()(input_ids))
        return hidden * cast(float, self.model.embedding_multiplier) if self.family.multipliers else hidden

    def stage(self, hidden: Tensor, spans: Spans) -> Stage:
        """Positions are renumbered 0 … T'−1 at every width (arXiv 2501.16302, width compression)."""
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None, :]
        rotary = cast(nn.Module, self.model.rotary_emb)(hidden, position_ids=positions)
        reading = (spans.total - 1).to(hidden.device)
        valid = self.valid_places(spans, hidden)
        return Stage(reading, valid, {"attention_mask": None, "position_ids": positions, "position_embeddings": rotary})

    def read(self, layer: int, hidden: Tensor, stage: Stage) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        attention = block.self_attn
        residual = stage.take(hidden)  # (B, D)

        normed = block.input_layernorm(hidden)
        heads = (*hidden.shape[:-1], -1, attention.head_dim)
        query = attention.q_proj(stage.take(normed)).unflatten(-1, (-1, 1, attention.head_dim))  # (B, H, 1, d)
        key = attention.k_proj(normed).view(heads).transpose(1, 2)  # (B, K, T, d)
        value = attention.v_proj(normed).view(heads).transpose(1, 2)
        if self.family.query_key_norm:
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = (part.expand(len(hidden), -1, -1) for part in stage.block_inputs["position_embeddings"])  # (B, T, d)
        query = _rotated(query, stage.take(cos)[:, None], stage.take(sin)[:, None])
        key = _rotated(key, cos, sin)

        softcap = attention.attn_logit_softcapping if self.family.soft_capped else None
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        row = ReadingRow(stage.reading, stage.valid)
        attended = attention.o_proj(row_attention(query, key, value, row, attention.scaling, softcap, window))  # (B, D)
        return self._residual_branches(block, residual, attended)

    def _residual_branches(self, block: Any, residual: Tensor, attended: Tensor) -> Tensor:
        """What a block does after its attention, (B, D) to (B, D)."""
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
