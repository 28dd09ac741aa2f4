"""The attention function of every block: a fused kernel for all rows, and one row of weights for a merge.

The weights are the pooled token's own row, or the mean over all tokens' rows if the mean over tokens is pooled. The
function is registered in transformers' attention interface, so that stock blocks call it. No (T, T) matrix is stored.

Shapes: B pairs, H heads, K key/value heads (H is a multiple of K), T tokens, d head size, Q tokens of a shared prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from mrr_model.modeling import unpadded
from mrr_model.modeling.gathering import gathered_heads

NAME = "matryoshka"
"""The name of this function in transformers' attention interface."""

UNFUSED_ROWS = 64
"""What has no fused kernel, soft-capped attention and the mean over all rows, takes this many query rows at a time.

In training, soft-capped attention takes all rows at once.
"""


@dataclass(frozen=True)
class KeysValues:
    """One layer's keys and values of a batch's own tokens, or of a span that all rows of a batch continue.

    Attributes:
        key: With its positions, (B, K, T, d).
        value: (B, K, T, d).
        query: (B, H, T, d), before its norm and positions: if one product makes it together with the keys and values
            (`mrr_model.modeling.packed`). Else None, and it is computed where it is needed.
    """

    key: Tensor
    value: Tensor
    query: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "KeysValues":
        """These tensors, changed."""
        return KeysValues(change(self.key), change(self.value), None if self.query is None else change(self.query))

    def tokens(self, index: Tensor) -> "KeysValues":
        """Those of some of the tokens, int64 (N',), of an unpadded batch; they lie token by token."""
        return self.each(lambda each: each.transpose(1, 2).index_select(1, index).transpose(1, 2))

    @classmethod
    def joined(cls, parts: "Sequence[KeysValues]") -> "KeysValues":
        """Those of several unpadded batches, one after the other."""
        queries = [part.query for part in parts if part.query is not None]
        return cls(
            torch.cat([part.key for part in parts], 2),
            torch.cat([part.value for part in parts], 2),
            torch.cat(queries, 2) if queries else None,
        )

    @classmethod
    def gathered(cls, parts: "Sequence[KeysValues]", rows: Sequence[Tensor], size: int) -> "KeysValues":
        """Some rows of several batches, in order, cut or padded to `size` tokens; `rows`: int64, on their device."""
        queries = [part.query for part in parts if part.query is not None]
        return cls(
            gathered_heads([part.key for part in parts], rows, size),
            gathered_heads([part.value for part in parts], rows, size),
            gathered_heads(queries, rows, size) if queries else None,
        )

    def after(self, span: "KeysValues") -> "KeysValues":
        """Keys and values with a span, (1, K, Q, d), before every row: (B, K, Q + T, d)."""
        batch = len(self.key)
        return KeysValues(
            torch.cat([span.key.expand(batch, -1, -1, -1), self.key], 2),
            torch.cat([span.value.expand(batch, -1, -1, -1), self.value], 2),
        )


@dataclass
class AttentionRow:
    """A request for a merge's weights; the block fills in `weights`.

    Attributes:
        index: The pooled tokens' positions, int64 (B,); None if the mean over tokens is pooled.
        valid: Which positions hold tokens, bool (B, T); None if all do.
        counts: How many tokens each state stands for, int64 (B, T); None if each stands for one.
        weights: The pooled token's attention to each position, summed over heads, float32 (B, T). Without a pooled
            token, the attention that each position receives from all tokens, on average.
        layout: Of an unpadded batch: keys and values are (1, K, N, d), and `weights` (1, N); `index` and `valid` are
            those of its padded form. None for padded batches.
    """

    index: Tensor | None
    valid: Tensor | None
    counts: Tensor | None = None
    weights: Tensor | None = None
    layout: unpadded.Layout | None = None


def register() -> None:
    """Register the function with transformers. Calling this again does no harm."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    attention_row: AttentionRow | None = None,
    prefix: KeysValues | None = None,
    bands: dict[int, Tensor] | None = None,
    layout: unpadded.Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention.

    Args:
        module: The attention module. If it is causal and there is no mask, a token sees the tokens before it only.
        query: (B, H, T, d).
        key: (B, K, T, d).
        value: (B, K, T, d).
        attention_mask: Bool (B or 1, 1, T or 1, T), True where visible; or float (B or 1, H, T, T), added to the
            products; or None.
        dropout: Probability.
        scaling: Factor of the products; None for 1 / √d.
        softcap: Bound c of the products: c · tanh(x / c).
        sliding_window: How many tokens back a causal module sees, itself included.
        attention_row: Where to write a merge's weights.
        prefix: Keys and values of a span before every row, which every row sees. `attention_row` counts its tokens in
            its index and leaves them out of its weights.
        bands: Sliding-window masks by window: the first layer that needs one makes it, later layers use it.
        layout: Of an unpadded batch; there is no mask, cap, prefix or dropout then. The batch is one row.

    Returns:
        (B, T, H, d), and None for the weights.
    """
    if layout is not None:
        if attention_row is not None:
            weights = row_weights(query, key, attention_row, scaling, sliding_window=sliding_window)
            attention_row.weights = layout.tokens(weights)  # (1, N)
        causal = bool(getattr(module, "is_causal", True))
        options: dict[str, Any] = {"causal": causal, "scaling": scaling, "window": sliding_window if causal else None}
        return unpadded.attend(query, key, value, layout, **options), None
    before = 0
    if prefix is not None:
        # The span's queries are zeros, and their attention is thrown away: the attention stays square, so that the
        # fused causal kernels serve it.
        before = prefix.key.shape[2]
        query = torch.cat([query.new_zeros(*query.shape[:2], before, query.shape[3]), query], 2)  # (B, H, Q + T, d)
        whole = KeysValues(key, value).after(prefix)
        key, value = whole.key, whole.value
    if attention_row is not None and attention_row.index is not None:
        bias = pooled_bias(attention_mask, attention_row)
        weights = row_weights(query, key, attention_row, scaling, softcap, sliding_window, bias)
        attention_row.weights = weights[:, before:]

    causal = bool(getattr(module, "is_causal", True)) and attention_mask is None
    if causal and sliding_window is not None and key.shape[2] > sliding_window:
        attention_mask, causal = _band(key.shape[2], sliding_window, key.device, {} if bands is None else bands), False
    if attention_row is not None and attention_row.index is None:
        attention_row.weights = received_weights(query, key, attention_row, scaling, softcap, attention_mask, causal)

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)  # (B, H, T, d)

    # The fused CPU kernel's backward pass takes about twice as long as plain matrix products, so training does without
    # it there.
    training_on_cpu = query.requires_grad and query.device.type == "cpu"
    if softcap is None and not training_on_cpu:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=causal, scale=scaling
        )
    else:
        rows = query.shape[2] if query.requires_grad else UNFUSED_ROWS
        chunks = [
            _unfused(query, key, value, attention_mask, causal, scaling, softcap, dropout, range(start, start + rows))
            for start in range(0, query.shape[2], rows)
        ]
        out = torch.cat(chunks, 2)
    return out[:, :, before:].transpose(1, 2).contiguous(), None  # (B, T, H, d)


def row_weights(
    query: Tensor,
    key: Tensor,
    row: AttentionRow,
    scaling: float | None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The pooled token's row of the attention matrix, summed over heads: the weights of a merge.

    Args:
        query: Of all tokens, (B, H, T, d).
        key: (B, K, T, d).
        row: The pooled tokens' positions, and which positions hold tokens.
        scaling: See `attention`.
        softcap: See `attention`.
        sliding_window: See `attention`.
        bias: What is added to the pooled tokens' products, (B, H, T); None for nothing.

    Returns:
        Float32 (B, T), for an unpadded batch too.
    """
    assert row.index is not None
    if row.layout is not None:
        own = query[0].index_select(1, row.layout.starts[:-1] + row.index)  # (H, B, d)
        query, key = own.transpose(0, 1), row.layout.padded(key)
    else:
        index = row.index[:, None, None, None].expand(*query.shape[:2], 1, query.shape[3])
        query = query.gather(2, index)  # (B, H, 1, d)
    pooled = query.reshape(len(query), key.shape[1], -1, query.shape[-1])  # (B, K, H/K, d)
    return _row_softmax(pooled, key, row, scaling, softcap, sliding_window, bias).sum((1, 2))  # (B, T)


def received_weights(
    query: Tensor,
    key: Tensor,
    row: AttentionRow,
    scaling: float | None,
    softcap: float | None = None,
    attention_mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """The attention that each token receives from all tokens on average, summed over heads: the weights of a merge.

    Args:
        query: (B, H, T, d).
        key: (B, K, T, d).
        row: Which positions hold tokens, and how many each stands for. A state that stands for several counts as often.
        scaling: See `attention`.
        softcap: See `attention`.
        attention_mask: See `attention`.
        causal: Whether a token sees those before it only; there is no mask then.

    Returns:
        Float32 (B, T), 0 for padding.
    """
    batch, _, tokens, size = query.shape
    query = query.view(batch, key.shape[1], -1, tokens, size)  # (B, K, H/K, T, d)
    counts = query.new_ones(batch, tokens, dtype=torch.float32) if row.counts is None else row.counts.float()
    if row.valid is not None:
        counts = counts * row.valid
    share = counts / counts.sum(1, keepdim=True)  # (B, T)
    position = torch.arange(tokens, device=query.device)
    received = torch.zeros_like(share)
    for start in range(0, tokens, UNFUSED_ROWS):
        rows = slice(start, start + UNFUSED_ROWS)
        chunk = query[:, :, :, rows]
        products = chunk.flatten(2, 3) @ key.transpose(2, 3)  # (B, K, H/K · rows, T)
        scores = products.view(*chunk.shape[:4], tokens).float() * (scaling or size**-0.5)
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if causal:
            scores = scores.masked_fill(position > position[rows, None], float("-inf"))
        if attention_mask is not None:
            added = _added(attention_mask, rows, scores.dtype)  # (B or 1, H or 1, rows or 1, T)
            by_key = chunk.shape[1:3] if added.shape[1] > 1 else (1, 1)
            scores = scores + added.reshape(len(added), *by_key, *added.shape[2:])
        received = received + (scores.softmax(-1) * share[:, None, None, rows, None]).sum((1, 2, 3))
    return received


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: AttentionRow,
    scaling: float | None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Attention of the pooled tokens alone, before the output projection.

    Args:
        query: Of the pooled tokens, (B, H, 1, d).
        key: Of all tokens, (B, K, T, d).
        value: Of all tokens, (B, K, T, d).
        row: The pooled tokens' positions, and which positions hold tokens.
        scaling: See `attention`.
        softcap: See `attention`.
        sliding_window: See `attention`.
        bias: What is added to the pooled tokens' products, (B, H, T); None for nothing.

    Returns:
        (B, H · d).
    """
    if row.layout is not None:
        key, value = row.layout.padded(key), row.layout.padded(value)
    batch, heads, _, size = query.shape
    pooled = query.view(batch, key.shape[1], -1, size)  # (B, K, H/K, d): the heads of one key become its rows
    if softcap is None and bias is None:
        visible = visible_positions(row, key.shape[2], sliding_window)
        mask = None if visible is None else visible[:, None, None, :]
        out = scaled_dot_product_attention(pooled, key, value, attn_mask=mask, scale=scaling)
    else:
        out = _row_softmax(pooled, key, row, scaling, softcap, sliding_window, bias).to(value.dtype) @ value
    return out.reshape(batch, heads * size)


def pooled_bias(attention_mask: Tensor | None, row: AttentionRow) -> Tensor | None:
    """The pooled tokens' rows of a float mask, (B or 1, H, T, T) to (B, H, T); None for a bool mask or none."""
    if attention_mask is None or attention_mask.dtype == torch.bool:
        return None
    assert row.index is not None
    batch = torch.arange(len(row.index), device=row.index.device)
    return attention_mask.expand(len(batch), -1, -1, -1)[batch, :, row.index]


def _row_softmax(
    pooled: Tensor,
    key: Tensor,
    row: AttentionRow,
    scaling: float | None,
    softcap: float | None,
    sliding_window: int | None,
    bias: Tensor | None,
) -> Tensor:
    """The attention of the pooled tokens' queries (B, K, H/K, d): float32 (B, K, H/K, T)."""
    scores = _row_products(pooled, key).float() * (scaling or pooled.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + bias.view(scores.shape)
    visible = visible_positions(row, key.shape[2], sliding_window)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
    return scores.softmax(-1)


def _row_products(pooled: Tensor, key: Tensor) -> Tensor:
    """Each pooled token's query with every key: (B, K, H/K, d) and (B, K, T, d) to (B, K, H/K, T).

    A product by heads would copy keys that lie in memory token by token, all heads of a token together. For those, the
    queries are written into a block-diagonal matrix instead, and one product serves all heads.
    """
    by_token = key.transpose(1, 2)  # (B, T, K, d)
    if not by_token.is_contiguous():
        return pooled @ key.transpose(2, 3)
    batch, heads, group, size = pooled.shape
    head = torch.arange(heads, device=pooled.device)
    blocks = pooled.new_zeros(batch, heads, size, heads, group)
    blocks[:, head, :, head] = pooled.permute(1, 0, 3, 2)  # (K, B, d, H/K)
    products = by_token.flatten(2) @ blocks.view(batch, heads * size, heads * group)  # (B, T, H)
    return products.transpose(1, 2).reshape(batch, heads, group, -1)


def visible_positions(row: AttentionRow, size: int, sliding_window: int | None) -> Tensor | None:
    """Which of `size` positions the pooled tokens see, bool (B, T); None if they see all of them."""
    assert row.index is not None
    if sliding_window is None or size <= sliding_window:
        return row.valid
    near = torch.arange(size, device=row.index.device)[None, :] > row.index[:, None] - sliding_window
    return near if row.valid is None else near & row.valid


def _band(size: int, window: int, device: torch.device, known: dict[int, Tensor]) -> Tensor:
    """The causal sliding-window mask, bool (1, 1, T, T)."""
    if window not in known:
        position = torch.arange(size, device=device)
        distance = position[:, None] - position[None, :]
        known[window] = ((distance >= 0) & (distance < window))[None, None]
    return known[window]


def _unfused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    causal: bool,
    scaling: float | None,
    softcap: float | None,
    dropout: float,
    rows: range,
) -> Tensor:
    """Soft-capped attention, softmax(c · tanh(q·k / c)) v, of some query rows: (B, H, T, d) to (B, H, rows, d)."""
    query = query[:, :, rows.start : rows.stop] * (scaling or query.shape[-1] ** -0.5)
    seen = min(rows.stop, key.shape[2]) if causal else key.shape[2]
    scores = query @ key[:, :, :seen].transpose(2, 3)  # (B, H, rows, seen)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if causal:
        position = torch.arange(seen, device=query.device)
        mask = position <= torch.arange(rows.start, rows.start + query.shape[2], device=query.device)[:, None]
        scores = scores + _added(mask[None, None], slice(None), scores.dtype)
    elif mask is not None:
        scores = scores + _added(mask, slice(rows.start, rows.stop), scores.dtype)
    weights = scores.softmax(-1)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return weights @ value[:, :, :seen]


def _added(mask: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """What a mask adds to the products of some query rows, (B or 1, H or 1, rows or 1, T)."""
    if mask.shape[2] > 1:
        mask = mask[:, :, rows]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
