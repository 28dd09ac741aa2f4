"""The attention function behind every block: fused for all rows, plus the reading token's own row where a merge needs
it.

It is registered under transformers' attention interface, so that stock blocks call it. No (tokens × tokens) matrix is
stored.

Letters: B pairs, H heads, K key/value heads (H is a multiple of K), T tokens, d head size.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from mrr_model.modeling.prefix import KeyValue

NAME = "matryoshka"
"""What this function is called in transformers' attention interface."""

UNFUSED_ROWS = 64
"""Soft-capped attention has no fused kernel: outside of training it runs over this many query rows at a time."""


@dataclass
class ReadingRow:
    """Asks a block for its reading tokens' attention; the block fills in ``weights``.

    ``index`` int64 (B,): the reading tokens' places. ``valid`` bool (B, T) or None: which places hold tokens, None for
    all.
    ``weights`` float32 (B, T): attention from the reading token to each place, summed over heads.
    """

    index: Tensor
    valid: Tensor | None
    weights: Tensor | None = None


def register() -> None:
    """Make the function known to transformers; called when a backbone is built, repeatable."""
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
    reading_row: ReadingRow | None = None,
    shared: KeyValue | None = None,
    bands: dict[int, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention in transformers' calling convention.

    ``shared``: a span in front of every row. Where it is empty, this call fills it in; else its keys and values are
    seen, and reading rows and their weights count it in on the way and leave it out of what comes back. ``bands``:
    sliding-window masks by their window, made by the first layer that needs one and kept for the others of its width.

    ``query`` (B, H, T, d), ``key`` and ``value`` (B, K, T, d), ``attention_mask`` bool (B or 1, 1, T or 1, T), True
    where visible, or None. A causal module without a mask sees the past only (within ``sliding_window``). Returns ((B,
    T, H, d), None).
    """
    before = 0
    if shared is not None and shared.key is None:
        shared.key, shared.value = key, value
    elif shared is not None and shared.key is not None:
        before = shared.key.shape[2]
        query, key, value = shared.before(query, key, value)
    if reading_row is not None:
        weights = row_weights(query, key, reading_row, scaling, softcap, sliding_window)
        reading_row.weights = weights[:, before:]

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)  # (B, H, T, d)
    causal = bool(getattr(module, "is_causal", True)) and attention_mask is None
    if causal and sliding_window is not None and key.shape[2] > sliding_window:
        attention_mask, causal = _band(key.shape[2], sliding_window, key.device, {} if bands is None else bands), False

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
    row: ReadingRow,
    scaling: float | None,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """The reading token's attention to every place, summed over heads: float32 (B, T). One row of the attention matrix.

    ``query`` (B, H, T, d), ``key`` (B, K, T, d).
    """
    batch, heads, _, size = query.shape
    at = row.index[:, None, None, None].expand(batch, heads, 1, size)
    reader = query.gather(2, at).view(batch, key.shape[1], -1, size)  # (B, K, H/K, d)
    return _row_softmax(reader, key, row, scaling, softcap, sliding_window).sum((1, 2))  # (B, T)


def row_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: ReadingRow,
    scaling: float | None,
    softcap: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention for the reading tokens alone: ``query`` (B, H, 1, d), ``key`` and ``value`` (B, K, T, d); returns (B,
    H · d).
    """
    batch, heads, _, size = query.shape
    reader = query.view(batch, key.shape[1], -1, size)  # (B, K, H/K, d): the heads of one key stand as its rows
    if softcap is None:
        visible = visible_places(row, key.shape[2], sliding_window)
        mask = None if visible is None else visible[:, None, None, :]
        out = scaled_dot_product_attention(reader, key, value, attn_mask=mask, scale=scaling)
    else:
        out = _row_softmax(reader, key, row, scaling, softcap, sliding_window).to(value.dtype) @ value
    return out.reshape(batch, heads * size)


def _row_softmax(
    reader: Tensor,
    key: Tensor,
    row: ReadingRow,
    scaling: float | None,
    softcap: float | None,
    sliding_window: int | None,
) -> Tensor:
    """The reading tokens' attention: ``reader`` (B, K, H/K, d) to float32 (B, K, H/K, T)."""
    scores = _row_products(reader, key).float() * (scaling or reader.shape[-1] ** -0.5)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    visible = visible_places(row, key.shape[2], sliding_window)
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], float("-inf"))
    return scores.softmax(-1)


def _row_products(reader: Tensor, key: Tensor) -> Tensor:
    """Each reading query with every key: (B, K, H/K, d) and (B, K, T, d) to (B, K, H/K, T).

    Keys that lie in memory token by token, all heads of a token together, would be copied head by head for a product
    by heads. There the queries are set into a block-diagonal matrix instead, and one product serves all heads.
    """
    by_token = key.transpose(1, 2)  # (B, T, K, d)
    if not by_token.is_contiguous():
        return reader @ key.transpose(2, 3)
    batch, heads, group, size = reader.shape
    head = torch.arange(heads, device=reader.device)
    blocks = reader.new_zeros(batch, heads, size, heads, group)
    blocks[:, head, :, head] = reader.permute(1, 0, 3, 2)  # (K, B, d, H/K)
    products = by_token.flatten(2) @ blocks.view(batch, heads * size, heads * group)  # (B, T, H)
    return products.transpose(1, 2).reshape(batch, heads, group, -1)


def visible_places(row: ReadingRow, size: int, sliding_window: int | None) -> Tensor | None:
    """Which places the reading tokens see, bool (B, T); None for all of them."""
    if sliding_window is None or size <= sliding_window:
        return row.valid
    near = torch.arange(size, device=row.index.device)[None, :] > row.index[:, None] - sliding_window
    return near if row.valid is None else near & row.valid


def _band(size: int, window: int, device: torch.device, known: dict[int, Tensor]) -> Tensor:
    """The causal sliding-window mask, bool (1, 1, T, T): built only where the input is longer than the window."""
    if window not in known:
        place = torch.arange(size, device=device)
        distance = place[:, None] - place[None, :]
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
    """softmax(c · tanh(q·k / c)) v for some query rows, by matrix products; inputs (B, H, T, d), result (B, H, rows,
    d).
    """
    query = query[:, :, rows.start : rows.stop] * (scaling or query.shape[-1] ** -0.5)
    seen = min(rows.stop, key.shape[2]) if causal else key.shape[2]
    scores = query @ key[:, :, :seen].transpose(2, 3)  # (B, H, rows, seen)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if causal:
        place = torch.arange(seen, device=query.device)
        mask = place <= torch.arange(rows.start, rows.start + query.shape[2], device=query.device)[:, None]
    elif mask is not None and mask.shape[2] > 1:
        mask = mask[:, :, rows.start : rows.stop]
    if mask is not None:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return weights @ value[:, :, :seen]
