"""Score heads: each kind is the formula of its docstring, in float32 whatever the states' format."""

import pytest
import torch

from mrr_model.heads import HeadKind, ScoreHead, soft_cap

KINDS: tuple[HeadKind, ...] = ("linear", "classifier", "yes_no")
STATES = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def test_linear_is_one_row() -> None:
    head = ScoreHead(8)
    assert {name: tuple(weight.shape) for name, weight in head.named_parameters()} == {"linear.weight": (1, 8)}
    torch.testing.assert_close(head(STATES), STATES @ head.linear.weight[0])


def test_bias_is_added() -> None:
    head = ScoreHead(8, bias=True)
    torch.testing.assert_close(head(STATES), STATES @ head.linear.weight[0] + head.linear.bias)


def test_classifier_is_dense_tanh_row() -> None:
    head = ScoreHead(8, "classifier", bias=True)
    assert head.dense is not None
    pooled = torch.tanh(STATES @ head.dense.weight.T + head.dense.bias)
    torch.testing.assert_close(head(STATES), pooled @ head.linear.weight[0] + head.linear.bias)


def test_yes_no_is_the_difference_of_two_rows() -> None:
    head = ScoreHead(8, "yes_no")
    yes, no = head.linear.weight
    torch.testing.assert_close(head(STATES), STATES @ yes - STATES @ no)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_float32_whatever_comes(kind: HeadKind) -> None:
    head = ScoreHead(8, kind)
    expected = head(STATES.bfloat16().float())
    logits = head(STATES.bfloat16())
    assert logits.shape == (5,)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_the_head(kind: HeadKind) -> None:
    head = ScoreHead(8, kind)
    expected = head(STATES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(STATES), expected)


def test_soft_cap_keeps_order_and_bounds() -> None:
    logits = torch.linspace(-60, 60, 41)
    capped = soft_cap(logits, 30.0)
    assert capped.abs().max() < 30
    assert capped.diff().gt(0).all()
    torch.testing.assert_close(capped, 30 * torch.tanh(logits / 30))
    assert soft_cap(logits, None) is logits
