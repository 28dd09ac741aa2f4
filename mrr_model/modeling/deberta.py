"""DeBERTa-v2 and -v3: disentangled attention, in which products with relative positions are added to those of contents.

The stock modules keep their weights; only how their attention is computed is replaced. Equation 4 of the DeBERTa paper
(arXiv 2006.03654): A_ij = (q_i·k_j + q_i·kr_{δ(i,j)} + qr_{δ(i,j)}·k_j) / √(3d), δ version 2's log buckets.

A merged token keeps the middle of its tokens' positions. Measured as for GTE (`mrr_model.modeling.gte`; shuffled
passages: 0.63): rank correlation with full width 0.99 and 0.97 at keep_ratio 0.5 and 0.25; renumbered 0.98 and 0.95.

Shapes: B pairs, T tokens, D hidden size, H heads, d head size, P relative positions.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, make_log_bucket_position

from mrr_model.modeling.attention import AttentionRow, KeysValues, attention, row_attention
from mrr_model.modeling.backbone import Backbone, LayerInputs, PooledState
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.construction import NamedTensors
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.transfer import to_device

CHUNK = 1 << 20
"""Products with relative positions that are held at a time, per kind: pairs run in chunks of at most this many."""


@dataclass(frozen=True)
class RelativePositions:
    """What an attention needs of the tokens' relative positions. It takes the way of the stock `relative_pos`.

    Attributes:
        index: The relative position of each two tokens, as a row of the relative embeddings, int64 (1 or B, T, T).
        row: Where to write the pooled tokens' attention.
    """

    index: Tensor
    row: AttentionRow | None = None


class DisentangledAttention(DisentangledSelfAttention):
    """The stock module, its weights and their names, with this project's attention function.

    Stock blocks hand `relative_pos` down to it.
    """

    is_causal = False

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: RelativePositions | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """The stock signature; the mask is bool (B, 1, 1, T) or None, and there is no second output."""
        assert relative_pos is not None
        query, key, value = (
            self.heads(part(hidden_states)) for part in (self.query_proj, self.key_proj, self.value_proj)
        )  # (B, H, T, d)
        return self.attended(query, KeysValues(key, value), attention_mask, relative_pos, rel_embeddings), None

    def attended(
        self,
        query: Tensor,
        keys_values: KeysValues,
        attention_mask: Tensor | None,
        relative_pos: RelativePositions,
        rel_embeddings: Tensor | None,
    ) -> Tensor:
        """The attention of queries (B, H, T, d), before its output projection: (B, T, H · d)."""
        key, value = keys_values.key, keys_values.value
        keys, queries = self.relative_projections(rel_embeddings)
        batch, heads, tokens, _ = query.shape
        positions = 0 if keys is None and queries is None else len(cast(Tensor, rel_embeddings))
        size = max(1, CHUNK // (heads * tokens * max(tokens, positions)))
        outputs, rows = [], []
        for pairs in (slice(start, start + size) for start in range(0, batch, size)):
            index = relative_pos.index if len(relative_pos.index) == 1 else relative_pos.index[pairs]
            mask = None if attention_mask is None else attention_mask[pairs]
            bias = self.bias(query[pairs], key[pairs], keys, queries, index)
            if bias is not None:
                mask = bias if mask is None else bias.masked_fill_(~mask, float("-inf"))
            row = None if relative_pos.row is None else _part(relative_pos.row, pairs)
            dropout = self.dropout.p if self.training else 0.0
            outputs.append(
                attention(self, query[pairs], key[pairs], value[pairs], mask, dropout, self.scaling, attention_row=row)[
                    0
                ]
            )
            rows.append(row)
        if relative_pos.row is not None:
            relative_pos.row.weights = torch.cat([cast(Tensor, row.weights) for row in rows if row is not None])
        return torch.cat(outputs).flatten(2)

    @property
    def scaling(self) -> float:
        """The factor of every product."""
        kinds = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        return float((self.attention_head_size * kinds) ** -0.5)

    def heads(self, states: Tensor) -> Tensor:
        """(…, T, H · d) to (…, H, T, d)."""
        return states.view(*states.shape[:-1], self.num_attention_heads, -1).transpose(-3, -2)

    def relative_projections(self, embeddings: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The keys and the queries of relative positions, (H, P, d) each: of relative embeddings (P, D)."""
        if embeddings is None or not self.relative_attention:
            return None, None
        embeddings = self.pos_dropout(embeddings)
        shared = self.share_att_key
        keys = queries = None
        if "c2p" in self.pos_att_type:
            keys = self.heads((self.key_proj if shared else self.pos_key_proj)(embeddings))
        if "p2c" in self.pos_att_type:
            queries = self.heads((self.query_proj if shared else self.pos_query_proj)(embeddings))
        return keys, queries

    def bias(
        self, query: Tensor, key: Tensor, keys: Tensor | None, queries: Tensor | None, index: Tensor
    ) -> Tensor | None:
        """The scaled products with relative positions.

        Args:
            query: (B, H, T, d).
            key: (B, H, T, d).
            keys: The keys of relative positions, (H, P, d); None if the model has none.
            queries: Their queries, (H, P, d), likewise.
            index: The relative position of each two tokens, int64 (1 or B, T, T).

        Returns:
            (B, H, T, T), to be added to the products of contents; None if the model has neither.
        """
        shape = (*query.shape[:3], key.shape[2])
        index = index[:, None]
        bias = None
        if keys is not None:
            bias = (query * self.scaling @ keys.transpose(1, 2)).gather(3, index.expand(shape))
        if queries is not None:
            other = (queries * self.scaling @ key.transpose(2, 3)).gather(2, index.expand(shape))
            bias = other if bias is None else bias.add_(other)
        return bias

    def row_bias(
        self, query: Tensor, key: Tensor, keys: Tensor | None, queries: Tensor | None, index: Tensor
    ) -> Tensor | None:
        """The same for one query of each pair.

        Args:
            query: (B, H, 1, d).
            key: (B, H, T, d).
            keys: As for `bias`.
            queries: As for `bias`.
            index: The relative position of the query's token and each other, int64 (1 or B, T).

        Returns:
            (B, H, T), or None.
        """
        bias = None
        if keys is not None:
            products = (query * self.scaling @ keys.transpose(1, 2))[:, :, 0]  # (B, H, P)
            bias = products.gather(2, index[:, None].expand(*key.shape[:3]))
        if queries is not None:
            at = queries[:, index].transpose(0, 1)  # (1 or B, H, T, d)
            other = (key * at).sum(3) * self.scaling
            bias = other if bias is None else bias + other
        return bias


def _part(row: AttentionRow, pairs: slice) -> AttentionRow:
    """The request for some of the pairs."""
    index, valid, counts = (None if each is None else each[pairs] for each in (row.index, row.valid, row.counts))
    return AttentionRow(index, valid, counts)


class Deberta(Backbone):
    """Runs a stock DeBERTa-v2 layer by layer.

    Raises:
        ValueError: If the model has a convolution (`conv_kernel_size`), which runs over neighbouring tokens.
    """

    causal = False
    keeps_positions = True

    def __init__(
        self, model: PreTrainedModel, pooling: Pooling, token_types: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__(model, pooling, token_types)
        config = model.config
        if getattr(config, "conv_kernel_size", 0) > 0:
            raise ValueError(
                f"conv_kernel_size={config.conv_kernel_size}: a DeBERTa with a convolution is not supported; use one "
                "without, such as DeBERTa-v3"
            )
        for block in self.layers:
            cast(Any, block).attention.self.__class__ = DisentangledAttention
        self._rows = _embedding_rows(cast(Any, model.encoder)) if config.relative_attention else None

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, cast(Any, self.model.encoder).layer)

    def embed(self, input_ids: Tensor, spans: Spans) -> Tensor:
        token_types = self.token_type_ids(input_ids, spans)
        return cast(Tensor, cast(nn.Module, self.model.embeddings)(input_ids=input_ids, token_type_ids=token_types))

    def layer_inputs(
        self, hidden: Tensor, spans: Spans, prefix: SharedPrefix | None = None, positions: Tensor | None = None
    ) -> LayerInputs:
        valid = self.valid_positions(spans, hidden)
        index, embeddings = self._relative(hidden, positions)
        inputs = {
            "attention_mask": None if valid is None else valid[:, None, None, :],  # (B, 1, 1, T)
            "relative_pos": RelativePositions(index),
            "rel_embeddings": embeddings,
        }
        return LayerInputs(self.pooled_index(spans, hidden.device), valid, inputs)

    def _relative(self, hidden: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Each two tokens' row of the relative embeddings, (1 or B, T, T), and the embeddings that occur, (P, D)."""
        size = hidden.shape[1]
        if self._rows is None:
            return torch.zeros(1, size, size, dtype=torch.int64, device=hidden.device), None
        if positions is not None:
            farthest = len(self._rows) // 2
            [rows] = to_device([self._rows], hidden.device)
            distance = positions[:, :, None] - positions[:, None, :]  # (B, T, T)
            index = rows[distance.clamp(-farthest, farthest) + farthest]
            return index, cast(Any, self.model.encoder).get_rel_embedding()
        rows = self._rows[self._distances(size)]  # ascending
        first, last = int(rows[0]), int(rows[-1])
        [rows] = to_device([rows - first], hidden.device)
        index = rows.unfold(0, size, 1).flip(1)[None]  # row i − j + T − 1 for tokens i and j
        return index, cast(Any, self.model.encoder).get_rel_embedding()[first : last + 1]

    def _distances(self, size: int) -> Tensor:
        """Where `_rows` has the distances of `size` neighbours, 1 − T … T − 1."""
        farthest = len(cast(Tensor, self._rows)) // 2
        return torch.arange(1 - size, size, device="cpu").clamp(-farthest, farthest) + farthest

    def block(
        self, layer: int, hidden: Tensor, inputs: LayerInputs, attention_row: AttentionRow | None = None
    ) -> Tensor:
        relative = replace(inputs.block_inputs["relative_pos"], row=attention_row)
        output = self.layers[layer - 1](hidden, **{**inputs.block_inputs, "relative_pos": relative})
        return cast(Tensor, output[0])

    def _self_attention(self, layer: int) -> DisentangledAttention:
        return cast(DisentangledAttention, cast(Any, self.layers[layer - 1]).attention.self)

    def keys_values(self, layer: int, hidden: Tensor, inputs: LayerInputs) -> KeysValues:
        own = self._self_attention(layer)
        return KeysValues(own.heads(own.key_proj(hidden)), own.heads(own.value_proj(hidden)))

    def pooled_attention(self, layer: int, hidden: Tensor, inputs: LayerInputs, keys_values: KeysValues) -> PooledState:
        own, key = self._self_attention(layer), keys_values.key
        residual = inputs.pooled(hidden)  # (B, D)
        query = own.heads(own.query_proj(residual)[:, None])  # (B, H, 1, d)
        keys, queries = own.relative_projections(inputs.block_inputs["rel_embeddings"])
        index = inputs.pooled(inputs.block_inputs["relative_pos"].index.expand(len(hidden), -1, -1))  # (B, T)
        bias = own.row_bias(query, key, keys, queries, index)
        attended = row_attention(query, key, keys_values.value, inputs.attention_row(), own.scaling, bias=bias)
        return PooledState(attended, residual)

    def attended(
        self,
        layer: int,
        hidden: Tensor,
        inputs: LayerInputs,
        keys_values: KeysValues,
        attention_row: AttentionRow | None = None,
    ) -> Tensor:
        own, given = self._self_attention(layer), inputs.block_inputs
        relative = replace(given["relative_pos"], row=attention_row)
        query = own.heads(own.query_proj(hidden))  # (B, H, T, d)
        return own.attended(query, keys_values, given["attention_mask"], relative, given["rel_embeddings"])

    def pooled_output(self, layer: int, pooled: PooledState) -> Tensor:
        block = cast(Any, self.layers[layer - 1])
        attended = block.attention.output(pooled.attended, pooled.residual)
        return cast(Tensor, block.output(block.intermediate(attended), attended))

    def final_norm(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def attention_size(self) -> int:
        return cast(int, cast(Any, self.layers[0]).attention.self.all_head_size)

    @property
    def max_tokens(self) -> int | None:
        """Relative positions have no limit; absolute ones do."""
        config = self.model.config
        return int(config.max_position_embeddings) if config.position_biased_input else None

    def key_value_projections(self, layer: int) -> tuple[nn.Module, ...]:
        own = cast(Any, self.layers[layer - 1]).attention.self
        return own.key_proj, own.value_proj

    def token_modules(self, layer: int) -> Iterable[nn.Module]:
        named = self.layers[layer - 1].named_modules()
        return (module for name, module in named if not name.endswith(("pos_key_proj", "pos_query_proj")))

    def relative_flops(self, tokens: int, whole: int, merged: bool) -> float:
        if self._rows is None:
            return 0.0
        rows = self._rows[self._distances(tokens)] if not merged else self._rows
        kinds, positions = self.model.config.pos_att_type or (), int(rows[-1] - rows[0]) + 1
        content = whole * positions if "c2p" in kinds else 0
        position = tokens * (positions if whole > 1 else 1) if "p2c" in kinds else 0
        return 2.0 * self.attention_size * (content + position)


def _embedding_rows(encoder: Any) -> Tensor:
    """The row of the relative embeddings of every distance from −M to M, int64 (2M + 1,), ascending.

    M is the farthest distance that the model tells apart from farther ones.
    """
    farthest, buckets = int(encoder.max_relative_positions), int(encoder.position_buckets)
    distance = torch.arange(-farthest, farthest + 1, device="cpu")
    span = buckets if buckets > 0 else farthest
    if buckets > 0:
        with NamedTensors(torch.float32):  # in the process's default dtype, a distance may fall into another bucket
            distance = make_log_bucket_position(distance.float(), buckets, farthest).long()
    return (distance + span).clamp(0, 2 * span - 1)
