"""Score heads: each kind is the formula of its docstring, in float32 for states of any dtype."""

import math

import pytest
import torch

from mrr_model.modeling.heads import INITIAL_SCALE, HeadKind, ScoreHead, soft_cap

KINDS: tuple[HeadKind, ...] = ("linear", "classifier", "yes_no", "similarity")
STATES = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
MEANS = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1))


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


def test_similarity_is_a_row_and_a_cosine_both_scaled() -> None:
    head = ScoreHead(8, "similarity")
    assert head.similarity is not None
    torch.nn.init.normal_(head.similarity.projection.weight)
    torch.nn.init.constant_(head.similarity.log_scale, 1.5)
    rows = (STATES @ head.linear.weight[0]).tolist()
    for row, (query, passage), logit in zip(rows, MEANS, head(STATES, MEANS).tolist(), strict=True):
        query = head.similarity.projection.weight @ query
        cosine = (query @ passage / query.norm() / passage.norm()).item()
        assert logit == pytest.approx(math.exp(1.5) * (row + cosine), abs=1e-5)


def test_similarity_of_nothing_is_zero() -> None:
    head = ScoreHead(8, "similarity")
    empty = MEANS.clone()
    empty[:, 1] = 0
    torch.testing.assert_close(head(STATES, empty), INITIAL_SCALE * (STATES @ head.linear.weight[0]))


def test_similarity_needs_means() -> None:
    with pytest.raises(ValueError, match="needs the mean states"):
        ScoreHead(8, "similarity")(STATES)


def test_fresh_heads_take_given_rows_or_small_noise() -> None:
    head, rows = ScoreHead(8), torch.arange(8.0)[None]
    head.initialize(rows)
    assert torch.equal(head.linear.weight, rows)
    head.initialize()
    assert 0 < head.linear.weight.abs().max() < 0.2


@pytest.mark.parametrize("bias", [False, True])
def test_fresh_similarity_is_a_plain_cosine(bias: bool) -> None:
    head = ScoreHead(8, "similarity", bias=bias)
    for weight in head.parameters():
        torch.nn.init.normal_(weight)
    head.initialize()
    cosine = torch.nn.functional.cosine_similarity(MEANS[:, 0], MEANS[:, 1])
    torch.testing.assert_close(head(STATES, MEANS), INITIAL_SCALE * cosine)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_float32_whatever_comes(kind: HeadKind) -> None:
    head = ScoreHead(8, kind)
    expected = head(STATES.bfloat16().float(), MEANS.bfloat16().float())
    logits = head(STATES.bfloat16(), MEANS.bfloat16())
    assert logits.shape == (5,)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_does_not_reach_the_head(kind: HeadKind) -> None:
    head = ScoreHead(8, kind)
    expected = head(STATES, MEANS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(STATES, MEANS), expected)


def test_soft_cap_keeps_order_and_bounds() -> None:
    logits = torch.linspace(-60, 60, 41)
    capped = soft_cap(logits, 30.0)
    assert capped.abs().max() < 30
    assert capped.diff().gt(0).all()
    torch.testing.assert_close(capped, 30 * torch.tanh(logits / 30))
    assert soft_cap(logits, None) is logits
