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

from mrr_model.modeling import packed
from mrr_model.modeling.angles import Angles, Rotary, rotated
from mrr_model.modeling.attention import AttentionRow, KeysValues, attention, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.transfer import to_device
from mrr_model.modeling.unpadded import Layout


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
                [ids] = to_device([prefix.input_ids], hidden.device)
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

    @property
    def can_unpad(self) -> bool:
        """Not if products are capped, or if positions depend on lengths or merges."""
        plain = all(self._attention_options(layer)["softcap"] is None for layer in range(1, len(self.layers) + 1))
        return plain and self.pooling != "mean" and not self.keeps_positions and self.rotary.fixed_length is None

    def unpadded_inputs(self, hidden: Tensor, spans: Spans, layout: Layout) -> LayerInputs:
        inputs, positions = super().unpadded_inputs(hidden, spans, layout), layout.positions[None]
        angles = {
            "position_ids": positions,
            "position_embeddings": self.rotary.angles(hidden, positions, layout.lengths),
            "bands": {},
        }
        return replace(inputs, block_inputs={**inputs.block_inputs, **angles})

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        block_inputs = {**inputs.block_inputs, "position_embeddings": self._angles(layer, inputs)}
        if inputs.prefix is not None:
            block_inputs["prefix"] = self._prefix_keys_values(inputs.prefix, layer)
        return super().block(layer, hidden, replace(inputs, block_inputs=block_inputs, prefix=None), attention_row)

    def _prefix_keys_values(self, prefix: SharedPrefix, layer: int) -> KeysValues:
        """A shared prefix's keys and values in block `layer`, after the blocks before it that have yet to run."""
        inputs = {"attention_mask": None, "position_embeddings": prefix.rotary, "bands": prefix.bands}
        shared = LayerInputs(None, None, inputs)
        while (done := len(prefix.layers)) < layer:
            assert prefix.hidden is not None
            hidden = prefix.hidden
            if prefix.layers:
                hidden = self.finish_block(done, hidden, shared, prefix.layers[-1])
            keys_values = self.keys_values(done + 1, hidden, shared)
            # Both at once, with nothing that can fail in between: a batch that ran out of memory can run again.
            prefix.layers.append(keys_values)
            prefix.hidden = hidden
        return prefix.layers[layer - 1]

    def keys_values(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> KeysValues:
        block = cast(Any, self.layers[layer - 1])
        own, normed = block.self_attn, block.input_layernorm(hidden)
        query = None
        if self.family.fused:
            key, value, query = packed.keys_values(own.qkv_proj, normed, self.attention_size)
        else:
            key, value = own.k_proj(normed), own.v_proj(normed)
        key, value, query = self._heads(key), self._heads(value), None if query is None else self._heads(query)
        if self.family.query_key_norm:
            key = own.k_norm(key)
        return KeysValues(rotated(key, *self._angles(layer, inputs)), value, query)

    def _queries(self, layer: int, hidden: Tensor, angles: Angles, known: Tensor | None) -> Tensor:
        """Rotated queries, (B, T, D) to (B, H, T, d).

        `known`: the same before their norm and rotation, if they are known.
        """
        block = cast(Any, self.layers[layer - 1])
        own = block.self_attn
        if known is None:
            normed = block.input_layernorm(hidden)
            fused = self.family.fused
            known = packed.queries(own.qkv_proj, normed, self.attention_size) if fused else own.q_proj(normed)
            known = self._heads(known)
        return rotated(own.q_norm(known) if self.family.query_key_norm else known, *angles)

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs, keys_values: KeysValues) -> PooledState:
        residual, known = inputs.pooled(hidden), inputs.pooled_query(keys_values)  # (B, D)
        angles = inputs.pooled_angles(self._angles(layer, inputs))
        query = self._queries(layer, residual[:, None], angles, known)  # (B, H, 1, d)
        if inputs.prefix is not None:
            keys_values = keys_values.after(self._prefix_keys_values(inputs.prefix, layer))
        row = inputs.attention_row()
        attended = row_attention(query, keys_values.key, keys_values.value, row, **self._attention_options(layer))
        return PooledState(attended, residual)

    def attended(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        out, _ = attention(
            cast(Any, self.layers[layer - 1]).self_attn,
            self._queries(layer, hidden, self._angles(layer, inputs), keys_values.query),
            keys_values.key,
            keys_values.value,
            inputs.block_inputs["attention_mask"],
            **self._attention_options(layer),
            attention_row=attention_row,
            prefix=None if inputs.prefix is None else self._prefix_keys_values(inputs.prefix, layer),
            bands=inputs.block_inputs["bands"],
            layout=inputs.layout,
        )
        return out.flatten(2)

    def _angles(self, layer: int, inputs: LayerInputs) -> Angles:
        """The rotary angles of a layer, (1 or B, T, d) each."""
        return self.rotary.of_layer(layer, inputs.block_inputs["position_embeddings"])

    def _heads(self, states: Tensor) -> Tensor:
        """Queries, keys or values, (B, T, heads · d) to (B, heads, T, d)."""
        return states.view(*states.shape[:2], -1, cast(Any, self.layers[0]).self_attn.head_dim).transpose(1, 2)

    def _attention_options(self, layer: int) -> dict[str, Any]:
        """How the attention of a block scales, caps and limits its products."""
        own = cast(Any, self.layers[layer - 1]).self_attn
        return {
            "scaling": own.scaling,
            "softcap": own.attn_logit_softcapping if self.family.soft_capped else None,
            "sliding_window": getattr(own, "sliding_window", getattr(own.config, "sliding_window", None)),
        }

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        return self._residual_branches(block, pooled.residual, block.self_attn.o_proj(pooled.attended))

    def _residual_branches(self, block: Any, residual: Tensor, attended: Tensor) -> Tensor:
        """The part of a block after its attention, (…, D) to (…, D)."""
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

    def key_value_share(self, layer: int) -> float:
        [first, *_] = self.key_value_projections(layer)
        split = self.family.fused and packed.has_parts(first)
        return 1 - self.attention_size / cast(int, first.out_features) if split else 1.0
