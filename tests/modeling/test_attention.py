"""The attention that tokens receive, against whole attention matrices."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mrr_model.modeling.attention import UNFUSED_ROWS, AttentionRow, attention, received_weights

BATCH, TOKENS, HEADS, SIZE = 3, UNFUSED_ROWS + 9, 6, 4
LENGTHS = torch.tensor([TOKENS, UNFUSED_ROWS, 1])
VALID = torch.arange(TOKENS) < LENGTHS[:, None]
DISTANCE = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)[None]
GENERATOR = torch.Generator().manual_seed(0)
BIAS = torch.randn(1, HEADS, TOKENS, TOKENS, generator=GENERATOR)
COUNTS = torch.randint(1, 5, (BATCH, TOKENS), generator=GENERATOR) * VALID

MASKS: dict[str, Tensor | None] = {
    "padding": VALID[:, None, None],
    "local": VALID[:, None, None] & (DISTANCE.abs() < 5)[None, None],
    "bias": BIAS.masked_fill(~VALID[:, None, None], float("-inf")),
    "causal": None,
    "window": None,
}


def drawn(heads: int) -> Tensor:
    return torch.randn(BATCH, TOKENS, heads, SIZE, generator=GENERATOR).transpose(1, 2)


def dense_received(query: Tensor, key: Tensor, scaling: float, softcap: float | None, seen: Tensor) -> Tensor:
    """The attention that tokens receive on average, from the whole matrix; `seen` is added to the products."""
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(2, 3) * scaling
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    weights = (scores + seen).softmax(-1).sum(1)  # (B, T, T)
    rows = []
    for matrix, counts in zip(weights, COUNTS, strict=True):
        repeated = [row for row, count in zip(matrix, counts, strict=True) for _ in range(int(count))]
        rows.append(torch.stack(repeated).mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("key_heads", [6, 2, 1])
def test_received_weights_equal_those_of_the_whole_matrix(key_heads: int, softcap: float | None, mask: str) -> None:
    query, key, value = drawn(HEADS), drawn(key_heads), drawn(key_heads)
    given = MASKS[mask]
    if given is None:
        window = 7 if mask == "window" else None
        unseen = DISTANCE.lt(0) | DISTANCE.ge(window or TOKENS)
        seen = torch.zeros(TOKENS, TOKENS).masked_fill(unseen, float("-inf"))
    elif given.dtype == torch.bool:
        window = None
        seen = torch.zeros(given.shape).masked_fill(~given, float("-inf"))
    else:
        window, seen = None, given
    expected = dense_received(query, key, 0.3, softcap, seen)

    row = AttentionRow(None, VALID, COUNTS)
    module: Any = SimpleNamespace(is_causal=given is None)
    kwargs: dict[str, Any] = {"scaling": 0.3, "softcap": softcap, "sliding_window": window}
    out, _ = attention(module, query, key, value, given, attention_row=row, **kwargs)
    assert row.weights is not None
    torch.testing.assert_close(row.weights, expected)
    assert row.weights[~VALID].eq(0).all()
    torch.testing.assert_close(row.weights.sum(1), torch.full((BATCH,), float(HEADS)))
    torch.testing.assert_close(attention(module, query, key, value, given, **kwargs)[0], out)


def test_a_state_without_counts_stands_for_one_token() -> None:
    query, key = drawn(HEADS), drawn(HEADS)
    mask = MASKS["padding"]
    plain = received_weights(query, key, AttentionRow(None, VALID), None, attention_mask=mask)
    torch.testing.assert_close(
        received_weights(query, key, AttentionRow(None, VALID, VALID.long()), SIZE**-0.5, attention_mask=mask), plain
    )
    counted = received_weights(query, key, AttentionRow(None, VALID, COUNTS), None, attention_mask=mask)
    assert (counted - plain).abs().max() > 1e-3


def test_gradients_flow_through_received_weights() -> None:
    query, key = drawn(HEADS).requires_grad_(), drawn(2).requires_grad_()
    row = AttentionRow(None, VALID)
    received = received_weights(query, key, row, None, 2.0, MASKS["local"])
    to_query, to_key = torch.autograd.grad(received.square().sum(), (query, key))
    for gradient in (to_query, to_key):
        assert gradient.isfinite().all()
        assert gradient[VALID[:, None].expand(-1, gradient.shape[1], -1)].abs().max() > 0
