"""Decoders: Mistral, Llama, Qwen2, Qwen3, Gemma 1 to 3, Granite, Phi-3, and a Llama without causality.

A new family is one entry in `FAMILIES`. Rows are right-padded: a causal model's real tokens never see the padding after
them, so no mask is needed. The pooled token is the last real one.

Shapes: B pairs, T tokens, D hidden size, H heads, K key/value heads, d head size.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mrr_model.modeling.angles import Angles, Rotary, rotated
from mrr_model.modeling.attention import AttentionRow, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import KeyValue, SharedPrefix


@dataclass(frozen=True)
class DecoderFamily:
    """How a family's block differs from Llama's.

    Attributes:
        query_key_norm: Norms on each head's query and key (Qwen3, Gemma 3).
        sandwich_norm: Norms after attention and MLP too (Gemma 2 and 3).
        multipliers: Scaled embeddings and residual branches (Granite).
        soft_capped: Capped attention logits (Gemma 2).
        fused: One projection for query, key and value (Phi-3).
        layer_types: Rotary angles of their own for local and global layers (Gemma 3).
    """

    query_key_norm: bool = False
    sandwich_norm: bool = False
    multipliers: bool = False
    soft_capped: bool = False
    fused: bool = False
    layer_types: bool = False


FAMILIES = {
    "mistral": DecoderFamily(),
    "llama": DecoderFamily(),
    "llama_bidirec": DecoderFamily(),
    "qwen2": DecoderFamily(),
    "qwen3": DecoderFamily(query_key_norm=True),
    "gemma": DecoderFamily(),
    "gemma2": DecoderFamily(sandwich_norm=True, soft_capped=True),
    "gemma3_text": DecoderFamily(query_key_norm=True, sandwich_norm=True, layer_types=True),
    "granite": DecoderFamily(multipliers=True),
    "phi3": DecoderFamily(fused=True),
}
"""Decoder families by their `model_type`."""


class Decoder(Backbone):
    """Runs a stock causal model layer by layer: the base model without its language-model head.

    After a merge tokens are renumbered, as the published decoders are trained, unless `merged_positions` is `middle`.
    The middle positions suit models that know no merging better. On random models of eight layers, four per family,
    merged after the second, the logits' Spearman correlation with those at full width was, at half and a quarter of
    the width: Llama 0.95 and 0.89 (renumbered 0.90 and 0.85), Qwen3 0.97 and 0.94 (0.96 and 0.92), Gemma 3 with a
    window shorter than the inputs 0.88 and 0.79 (0.86 and 0.78). A window counts states, merged or not.

    Raises:
        ValueError: If the configuration asks for attention in both directions.
    """

    causal = True

    def __init__(
        self, model: PreTrainedModel, pooling: Pooling, token_types: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(model, pooling, token_types)
        config = model.config
        self.family = FAMILIES[config.model_type]
        if getattr(config, "use_bidirectional_attention", False):
            raise ValueError(
                f"config.json: use_bidirectional_attention must be false for a {config.model_type} re-ranker, got "
                f"{config.use_bidirectional_attention!r}: this package runs {config.model_type} as a causal model."
            )
        self.rotary = Rotary(cast(Any, model).rotary_emb, config.layer_types if self.family.layer_types else None)

    @property
    def shares_prefix(self) -> bool:
        """Not if a query's rotary angles depend on the length of the whole input."""
        return super().shares_prefix and self.rotary.fixed_length is None

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.layers)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        hidden = cast(Tensor, self.model.get_input_embeddings()(input_ids))
        return hidden * cast(float, self.model.embedding_multiplier) if self.family.multipliers else hidden

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        """What all blocks at a width share; see `Backbone`.

        Renumbered positions, 0 … T'−1, are the published ones (arXiv 2501.16302, width compression).
        """
        before = 0
        if prefix is not None:
            before = prefix.length
            if prefix.hidden is None:
                ids = prefix.input_ids.to(hidden.device)
                states = self.embed(ids[None], spans)
                # Set when all of it is there: if memory runs out before, the next batch starts the prefix again.
                prefix.rotary, prefix.hidden = (
                    self.rotary.angles(states, self.token_positions(states), torch.tensor([before])),
                    states,
                )
        lengths = spans.total + before
        if positions is not None and self.rotary.fixed_length is not None:
            lengths = positions.amax(1).cpu() + 1 + before
        position_ids = self.token_positions(hidden, positions) + before
        angles = self.rotary.angles(hidden, position_ids, lengths)
        valid = self.valid_positions(spans, hidden, before)
        inputs: dict[str, Any] = {
            "attention_mask": None,
            "position_ids": position_ids,
            "position_embeddings": angles,
            "bands": {},
        }
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, inputs, prefix)

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        angles = self.rotary.of_layer(layer, inputs.block_inputs["position_embeddings"])
        block_inputs = {**inputs.block_inputs, "position_embeddings": angles}
        if inputs.prefix is not None:
            self._run_prefix(inputs.prefix, layer)
            block_inputs["prefix"] = inputs.prefix.layers[layer - 1]
        return super().block(layer, hidden, replace(inputs, block_inputs=block_inputs, prefix=None), attention_row)

    def _run_prefix(self, prefix: SharedPrefix, layer: int) -> None:
        """Run a shared prefix through the blocks up to `layer` that it has not been through yet."""
        while (done := len(prefix.layers)) < layer:
            assert prefix.hidden is not None
            filled = KeyValue()
            inputs = {
                "attention_mask": None,
                "position_embeddings": self.rotary.of_layer(done + 1, prefix.rotary),
                "prefix": filled,
                "bands": prefix.bands,
            }
            output = self.layers[done](prefix.hidden, **inputs)
            prefix.layers.append(filled)  # with the states that belong to it: nothing that can fail comes in between
            prefix.hidden = output[0] if isinstance(output, tuple) else output

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> PooledState:
        block = cast(Any, self.layers[layer - 1])
        attention = block.self_attn
        residual = inputs.pooled(hidden)  # (B, D)

        angles = self.rotary.of_layer(layer, inputs.block_inputs["position_embeddings"])
        normed = block.input_layernorm(hidden)
        query, key, value = self._pooled_query_keys_values(attention, normed, angles, inputs)
        if inputs.prefix is not None:
            self._run_prefix(inputs.prefix, layer - 1)
            shared = self._keys_and_values(
                attention,
                block.input_layernorm(inputs.prefix.hidden),
                self.rotary.of_layer(layer, inputs.prefix.rotary),
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

    def _pooled_query_keys_values(
        self, attention: Any, normed: Tensor, angles: Angles, inputs: LayerInputs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The pooled tokens' queries, (B, H, 1, d), and all tokens' keys and values, (B, K, T, d), rotated."""
        if self.family.fused:
            fused = attention.qkv_proj(normed)  # the whole product: its weight may be quantized or under a LoRA
            query = inputs.pooled(fused)[..., : self.attention_size]
            key, value = self._fused_keys_and_values(attention, fused, angles)
        else:
            query = attention.q_proj(inputs.pooled(normed))
            key, value = self._keys_and_values(attention, normed, angles)
        query = query.view(len(normed), -1, 1, attention.head_dim)
        if self.family.query_key_norm:
            query = attention.q_norm(query)
        cos, sin = (inputs.pooled(part.expand(len(normed), -1, -1))[:, None] for part in angles)  # (B, 1, d)
        return rotated(query, cos, sin), key, value

    def _keys_and_values(self, attention: Any, normed: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """One layer's keys, rotated, and values: (B, T, D) to (B, K, T, d) each."""
        if self.family.fused:
            return self._fused_keys_and_values(attention, attention.qkv_proj(normed), angles)
        heads = (*normed.shape[:-1], -1, attention.head_dim)
        key, value = (part(normed).view(heads).transpose(1, 2) for part in (attention.k_proj, attention.v_proj))
        if self.family.query_key_norm:
            key = attention.k_norm(key)
        return rotated(key, *angles), value

    def _fused_keys_and_values(self, attention: Any, fused: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """The keys, rotated, and values in a fused projection's output: (B, T, (H + 2K) d) to (B, K, T, d) each."""
        heads = (*fused.shape[:-1], -1, attention.head_dim)
        parts = fused[..., self.attention_size :].chunk(2, -1)
        key, value = (part.reshape(heads).transpose(1, 2) for part in parts)
        return rotated(key, *angles), value

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
        return cast(int, cast(Any, self.layers[0]).self_attn.o_proj.in_features)

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        attention = cast(Any, self.layers[layer - 1]).self_attn
        return (attention.qkv_proj,) if self.family.fused else (attention.k_proj, attention.v_proj)
