"""The sub-network of a training step."""

from collections import Counter
from fractions import Fraction
from typing import Any

from mrr_model.training.sampling import SHALLOW_SHARE, draw_merges, draw_shallow

SPACE: dict[str, Any] = {"merge_layers": (1, 2, 3, 4, 5), "ratios": (1, 2, 4), "probability": 0.3}


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    draws = [draw_merges(3, step, **SPACE) for step in range(50)]
    assert draws == [draw_merges(3, step, **SPACE) for step in range(50)]
    assert draws != [draw_merges(4, step, **SPACE) for step in range(50)]
    assert len({str(draw) for draw in draws}) > 10


def test_draws_do_not_change_between_versions() -> None:
    # Frozen from the first version: a resumed run must continue with the same draws.
    assert [sorted(draw_merges(0, step, **SPACE).items()) for step in range(3)] == FIRST_DRAWS


FIRST_DRAWS = [[(4, Fraction(1, 2))], [(1, Fraction(1, 4))], [(2, Fraction(1, 2))]]


def test_every_ratio_and_layer_comes_up_about_as_often_as_it_should() -> None:
    draws = [draw_merges(0, step, **SPACE) for step in range(3000)]
    ratios = Counter(next(iter(draw.values()), Fraction(1)) for draw in draws)
    assert all(abs(ratios[Fraction(1, ratio)] - 1000) < 120 for ratio in (1, 2, 4))
    merged = [draw for draw in draws if draw]
    # A layer is on with probability 0.3, or as the one drawn if none came on: 0.3 + 0.7 ** 5 / 5.
    expected = (0.3 + 0.7**5 / 5) * len(merged)
    assert all(abs(sum(layer in draw for draw in merged) - expected) < 150 for layer in range(1, 6))


def test_a_step_that_merges_always_has_a_merge() -> None:
    assert all(draw_merges(0, step, merge_layers=(2, 5), ratios=(2,), probability=0.0) for step in range(20))
    assert draw_merges(0, 1, merge_layers=(), ratios=(2,), probability=0.5) == {}


def test_the_default_layer_merges_alone_in_its_share_of_the_steps() -> None:
    draws = [
        draw_merges(0, step, **{**SPACE, "ratios": (2,)}, default_layer=3, default_share=0.6) for step in range(2000)
    ]
    alone = sum(list(draw) == [3] for draw in draws)
    # Besides its share, layer 3 comes on alone by itself: one of five with 0.3 · 0.7⁴, or drawn if none came on.
    expected = (0.6 + 0.4 * (0.3 * 0.7**4 + 0.7**5 / 5)) * len(draws)
    assert abs(alone - expected) < 100
    assert draw_merges(0, 1, merge_layers=(1,), ratios=(2,), default_layer=4, default_share=1.0) == {1: Fraction(1, 2)}


def test_which_exits_a_horizontal_step_trains_depends_on_seed_and_step_alone() -> None:
    draws = [draw_shallow(3, step) for step in range(1000)]
    assert draws == [draw_shallow(3, step) for step in range(1000)]
    assert draws != [draw_shallow(4, step) for step in range(1000)]
    assert abs(sum(draws) - 1000 * SHALLOW_SHARE) < 60
