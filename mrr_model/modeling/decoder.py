"""Causal language models: Mistral, Llama, Qwen2, Qwen3, Gemma 2, Granite. A new family is one entry in ``FAMILIES``.

Rows are right-padded: a causal model's real tokens never see what stands behind them, so no mask is needed. The
reading token is the last real one. Letters: B pairs, T tokens, D hidden size, H heads, K key/value heads, d head size.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

from mrr_model.modeling.attention import ReadingRow, row_attention
from mrr_model.modeling.backbone import Backbone, Reading, Stage
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import KeyValue, Prefix


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

    def stage(self, hidden: Tensor, spans: Spans, prefix: Prefix | None = None) -> Stage:
        """Positions are renumbered 0 … T'−1 at every width (arXiv 2501.16302, width compression)."""
        before = 0
        if prefix is not None:
            before = prefix.size
            if prefix.hidden is None:
                ids = prefix.input_ids.to(hidden.device)
                states = self.embed(ids[None], spans)
                # Set when all of it is there: if memory runs out before, the next batch starts the prefix again.
                prefix.rotary, prefix.hidden = self._rotary(states, 0)[1], states
        positions, rotary = self._rotary(hidden, before)
        reading = (spans.total - 1).to(hidden.device)
        valid = self.valid_places(spans, hidden, before)
        inputs: dict[str, Any] = {
            "attention_mask": None,
            "position_ids": positions,
            "position_embeddings": rotary,
            "bands": {},
        }
        return Stage(reading, valid, inputs, prefix)

    def block(self, layer: int, hidden: Tensor, stage: Stage, reading_row: ReadingRow | None = None) -> Tensor:
        if stage.prefix is None:
            return super().block(layer, hidden, stage, reading_row)
        self._advance(stage.prefix, layer)
        inputs = {**stage.block_inputs, "shared": stage.prefix.seen[layer - 1]}
        return super().block(layer, hidden, replace(stage, block_inputs=inputs, prefix=None), reading_row)

    def _advance(self, prefix: Prefix, layer: int) -> None:
        """Run the blocks up to ``layer`` for a shared span, as far as that has not been done."""
        while len(prefix.seen) < layer:
            assert prefix.hidden is not None
            keys = KeyValue()
            inputs = {
                "attention_mask": None, "position_embeddings": prefix.rotary, "shared": keys, "bands": prefix.bands
            }  # fmt: skip
            output = self.layers[len(prefix.seen)](prefix.hidden, **inputs)
            prefix.seen.append(keys)  # with the states that belong to it: nothing that can fail comes in between
            prefix.hidden = output[0] if isinstance(output, tuple) else output

    def _rotary(self, hidden: Tensor, first: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Positions from ``first`` on, (1, T), and their rotary angles."""
        positions = torch.arange(first, first + hidden.shape[1], device=hidden.device)[None, :]
        return positions, cast(nn.Module, self.model.rotary_emb)(hidden, position_ids=positions)

    def read(self, layer: int, hidden: Tensor, stage: Stage) -> Reading:
        block = cast(Any, self.layers[layer - 1])
        attention = block.self_attn
        residual = stage.take(hidden)  # (B, D)

        rotary = stage.block_inputs["position_embeddings"]
        normed = block.input_layernorm(hidden)
        query = attention.q_proj(stage.take(normed)).unflatten(-1, (-1, 1, attention.head_dim))  # (B, H, 1, d)
        if self.family.query_key_norm:
            query = attention.q_norm(query)
        cos, sin = (part.expand(len(hidden), -1, -1) for part in rotary)  # (B, T, d)
        query = _rotated(query, stage.take(cos)[:, None], stage.take(sin)[:, None])
        key, value = self._keys_and_values(attention, normed, rotary)  # (B, K, T, d)
        if stage.prefix is not None:
            self._advance(stage.prefix, layer - 1)
            shared = self._keys_and_values(
                attention, block.input_layernorm(stage.prefix.hidden), cast(tuple[Tensor, Tensor], stage.prefix.rotary)
            )
            key, value = (
                torch.cat([span.expand(len(hidden), -1, -1, -1), own], 2)
                for span, own in zip(shared, (key, value), strict=True)
            )

        softcap = attention.attn_logit_softcapping if self.family.soft_capped else None
        window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
        attended = row_attention(query, key, value, stage.row(), attention.scaling, softcap, window)
        return Reading(attended, residual)

    def finish(self, layer: int, reading: Reading) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        return self._residual_branches(block, reading.states, block.self_attn.o_proj(reading.attended))

    def _keys_and_values(self, attention: Any, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """One layer's keys, rotated, and values: (B, T, D) to (B, K, T, d) each."""
        heads = (*normed.shape[:-1], -1, attention.head_dim)
        key, value = (part(normed).view(heads).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        if self.family.query_key_norm:
            key = attention.k_norm(key)
        return _rotated(key, *rotary), value

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
