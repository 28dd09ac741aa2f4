"""ModernBERT: rotary positions, and layers that see all tokens in turn with layers that see a window around each token.

A merged token keeps the middle of its tokens' positions, and windows reach as many original positions as before any
merge: a renumbered window would reach farther into the text than the model was trained for. Measured as for GTE
(`mrr_model.modeling.gte`; shuffled passages: 0.66): rank correlation with full width 0.93 and 0.88 at keep_ratio 0.5
and 0.25; renumbered 0.89 and 0.87.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size.
"""

from dataclasses import replace
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import layer_norm

from mrr_model.modeling import packed
from mrr_model.modeling.angles import Angles
from mrr_model.modeling.attention import AttentionRow, KeysValues, attention, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.rotary import rotated


class ModernBert(Backbone):
    """Runs a stock ModernBERT layer by layer, on padded batches.

    `LayerInputs.block_inputs` holds the inputs of each type of layer, by its name in the configuration's `layer_types`.
    """

    causal = False
    keeps_positions = True

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.layers)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids))

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        index, valid = self.pooled_index(spans, hidden.device), self.valid_positions(spans, hidden)
        full = LayerInputs(index, valid, {"attention_mask": None if valid is None else valid[:, None, None, :]})
        inputs = {"full_attention": full, "sliding_attention": full}
        position = self.token_positions(hidden, positions)
        half = int(self.model.config.sliding_window)
        if positions is not None or hidden.shape[1] > half + 1:
            inputs["sliding_attention"] = _windowed(full, position, half)
        rotary = cast(nn.Module, self.model.rotary_emb)
        for kind in set(self.model.config.layer_types):
            angles = {"position_embeddings": rotary(hidden, position, kind)}
            inputs[kind] = replace(inputs[kind], block_inputs={**inputs[kind].block_inputs, **angles})
        return LayerInputs(index, valid, dict(inputs))

    def _inputs(self, layer: int, inputs: LayerInputs) -> LayerInputs:
        """The inputs of a layer's type."""
        return cast(LayerInputs, inputs.block_inputs[cast(Any, self.layers[layer - 1]).attention_type])

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        own = self._inputs(layer, inputs)
        if attention_row is not None:
            attention_row.valid = own.valid
        return super().block(layer, hidden, own, attention_row)

    def _heads(self, states: Tensor) -> Tensor:
        """(B, T, H · d) to (B, H, T, d)."""
        return states.view(*states.shape[:2], self.model.config.num_attention_heads, -1).transpose(1, 2)

    def _queries(self, layer: int, hidden: Tensor, angles: Angles, known: Tensor | None) -> Tensor:
        """Rotated queries, (B, T, D) to (B, H, T, d); `known`: the same before their rotation, if they are known."""
        if known is None:
            block = cast(Any, self.layers[layer - 1])
            known = self._heads(packed.queries(block.attn.Wqkv, block.attn_norm(hidden), self.attention_size))
        return rotated(known, *angles)

    def keys_values(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> KeysValues:
        block = cast(Any, self.layers[layer - 1])
        angles = self._inputs(layer, inputs).block_inputs["position_embeddings"]  # (1 or B, T, d)
        key, value, query = packed.keys_values(block.attn.Wqkv, block.attn_norm(hidden), self.attention_size)
        query = None if query is None else self._heads(query)
        return KeysValues(rotated(self._heads(key), *angles), self._heads(value), query)

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs, keys_values: KeysValues) -> PooledState:
        inputs = self._inputs(layer, inputs)
        residual, known = inputs.pooled(hidden), inputs.pooled_query(keys_values)  # (B, D)
        angles = inputs.pooled_angles(inputs.block_inputs["position_embeddings"])
        query = self._queries(layer, residual[:, None], angles, known)  # (B, H, 1, d)
        attended = row_attention(query, keys_values.key, keys_values.value, inputs.attention_row(), scaling=None)
        return PooledState(attended, residual)

    def attended(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        own, inputs = cast(nn.Module, self.layers[layer - 1].attn), self._inputs(layer, inputs)
        if attention_row is not None:
            attention_row.valid = inputs.valid
        query = self._queries(layer, hidden, inputs.block_inputs["position_embeddings"], keys_values.query)
        mask = inputs.block_inputs["attention_mask"]
        out, _ = attention(own, query, keys_values.key, keys_values.value, mask, attention_row=attention_row)
        return out.flatten(2)

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        hidden = pooled.residual + block.attn.Wo(pooled.attended)
        return cast(Tensor, hidden + block.mlp(block.mlp_norm(hidden)))

    def final_norm(self, hidden: Tensor) -> Tensor:
        norm = cast(nn.LayerNorm, self.model.final_norm)
        bias = cast(Tensor | None, norm.bias)
        return layer_norm(
            hidden, norm.normalized_shape, norm.weight.float(), None if bias is None else bias.float(), norm.eps
        )

    @property
    def attention_size(self) -> int:
        return int(self.model.config.hidden_size)

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        return (cast(Any, self.layers[layer - 1]).attn.Wqkv,)

    def key_value_share(self, layer: int) -> float:
        return 2 / 3 if packed.has_parts(cast(Any, self.layers[layer - 1]).attn.Wqkv) else 1.0


def _windowed(inputs: LayerInputs, position: Tensor, half: int) -> LayerInputs:
    """The inputs of layers in which a token sees those at most `half` positions away; `position`: (1 or B, T)."""
    low, high = position[:, :, None] - half, position[:, :, None] + half  # no differences: they take 8 bytes each
    mask = (position[:, None] >= low) & (position[:, None] <= high)  # (1 or B, T, T)
    valid = inputs.valid
    if valid is not None:
        # Padding sees padding: a row without any visible position would be undefined.
        mask = mask & (valid[:, None] == valid[:, :, None])
    if inputs.pooled_index is not None:
        own = inputs.pooled(position.expand(len(inputs.pooled_index), -1))[:, None]  # (B, 1)
        near = (position - own).abs() <= half  # (B, T)
        valid = near if valid is None else near & valid
    return LayerInputs(inputs.pooled_index, valid, {"attention_mask": mask[:, None]})
