"""Score heads: each kind is the formula of its docstring, in float32 for states of any dtype."""

import math

import pytest
import torch

from mrr_model.modeling.heads import INITIAL_SCALE, HeadKind, HeadLayer, ScoreHead, soft_cap

KINDS: tuple[HeadKind, ...] = ("linear", "yes_no", "similarity")
STATES = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
MEANS = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1))


def test_linear_is_one_row() -> None:
    head = ScoreHead(8)
    assert {name: tuple(weight.shape) for name, weight in head.named_parameters()} == {"linear.weight": (1, 8)}
    torch.testing.assert_close(head(STATES), STATES @ head.linear.weight[0])


def test_bias_is_added() -> None:
    head = ScoreHead(8, bias=True)
    torch.testing.assert_close(head(STATES), STATES @ head.linear.weight[0] + head.linear.bias)


def test_layers_run_before_the_last_in_order() -> None:
    layers = [HeadLayer(kind="dense", size=5, activation="tanh"), HeadLayer(kind="norm", size=5, bias=False, eps=0.1)]
    head = ScoreHead(8, bias=True, layers=layers)
    weights = {name: torch.randn_like(weight) for name, weight in head.named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "layers.0.linear.weight": (5, 8),
        "layers.0.linear.bias": (5,),
        "layers.1.weight": (5,),
        "linear.weight": (1, 5),
        "linear.bias": (1,),
    }
    head.load_state_dict(weights)
    dense = torch.tanh(STATES @ weights["layers.0.linear.weight"].T + weights["layers.0.linear.bias"])
    centred = dense - dense.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 0.1).sqrt() * weights["layers.1.weight"]
    torch.testing.assert_close(head(STATES), normed @ weights["linear.weight"][0] + weights["linear.bias"])


def test_a_norm_takes_what_the_layer_before_it_gives() -> None:
    with pytest.raises(ValueError, match=r"head_layers\[1\] is a norm of size 8 over states of size 5"):
        ScoreHead(8, layers=[HeadLayer(kind="dense", size=5), HeadLayer(kind="norm", size=8)])
    with pytest.raises(ValueError, match=r"head_layers\[0\] is a norm of size 5 over states of size 8"):
        ScoreHead(8, layers=[HeadLayer(kind="norm", size=5)])


def test_an_activation_has_a_name_that_transformers_knows() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of .*gelu.*; got 'swoosh'"):
        HeadLayer(kind="dense", size=5, activation="swoosh")


def test_yes_no_is_the_difference_of_two_rows() -> None:
    head = ScoreHead(8, "yes_no")
    yes, no = head.linear.weight
    torch.testing.assert_close(head(STATES), STATES @ yes - STATES @ no)


def test_soft_caps_hold_each_of_two_logits_and_else_the_score() -> None:
    for kind in KINDS:
        plain, capped = ScoreHead(8, kind), ScoreHead(8, kind, softcap=0.5)
        capped.load_state_dict(plain.state_dict())
        if kind == "yes_no":
            yes, no = (soft_cap(STATES @ row, 0.5) for row in plain.linear.weight)
            expected = yes - no
        else:
            expected = soft_cap(plain(STATES, MEANS), 0.5)
        torch.testing.assert_close(capped(STATES, MEANS), expected)


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
