"""What a user asks for (Compression), and the same resolved for one model (Plan)."""

import dataclasses
import json
import math
import pickle
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr_model.compression import (
    VERTICAL,
    Compression,
    Plan,
    as_step,
    evenly_spread,
    horizontal_name,
    nearest_step,
    resolve,
)

LAYERS = 32
EXITS = tuple(range(4, LAYERS + 1))
MERGE_LAYERS = tuple(range(4, LAYERS, 4))


def plan_of(depth: int | None = None, keep_ratio: Any = 1.0, **changes: Any) -> Plan:
    given: dict[str, Any] = {
        "num_layers": LAYERS,
        "exits": EXITS,
        "merge_layers": MERGE_LAYERS,
        "default_merge_layer": 8,
    }
    return resolve(Compression(depth, keep_ratio), **{**given, **changes})


ratios = st.floats(1e-3, 1.0)


@st.composite
def mappings(draw: st.DrawFn) -> dict[int, float]:
    """{merge layer: ratio}, non-increasing."""
    layers = sorted(draw(st.sets(st.sampled_from(MERGE_LAYERS), min_size=1)))
    widths = sorted((draw(ratios) for _ in layers), reverse=True)
    return dict(zip(layers, widths, strict=True))


# Compression


@pytest.mark.parametrize(
    "given_as",
    [
        {8: 0.5, 16: 0.25},
        {16: 0.25, 8: 0.5},
        {"8": 0.5, "16": 0.25},
        "8:0.5,16:0.25",
        " 8:0.5, 16:0.25",
        [(8, 0.5), (16, 0.25)],
        ((8, 0.5), (16, 0.25)),
        {np.int64(8): np.float32(0.5), 16: Fraction(1, 4)},
    ],
)
def test_the_same_width_in_many_forms(given_as: Any) -> None:
    compression = Compression(20, given_as)
    assert compression == Compression(20, {8: 0.5, 16: 0.25})
    assert compression.keep_ratio == ((8, 0.5), (16, 0.25))
    assert hash(compression) == hash(Compression(20, {8: 0.5, 16: 0.25}))


def test_a_ratio_is_kept_as_a_float() -> None:
    half: Any = Fraction(1, 2)
    assert Compression(keep_ratio="0.5") == Compression(keep_ratio=half) == Compression(None, 0.5)
    assert type(Compression(keep_ratio=1).keep_ratio) is float
    assert Compression(keep_ratio={}).keep_ratio == 1.0


@given(depth=st.none() | st.integers(1, 99), keep_ratio=ratios | mappings())
def test_compression_is_a_value(depth: int | None, keep_ratio: Any) -> None:
    compression = Compression(depth, keep_ratio)
    assert compression == Compression(compression.depth, compression.keep_ratio)
    assert pickle.loads(pickle.dumps(compression)) == compression
    with pytest.raises(dataclasses.FrozenInstanceError):
        compression.depth = 3  # type: ignore[misc]


def test_compression_as_text() -> None:
    assert str(Compression()) == "all layers, keep ratio 1"
    assert str(Compression(20, {8: 0.5, 16: 0.25})) == "depth 20, keep ratio 8:0.5,16:0.25"


@given(st.dictionaries(st.integers(1, 40), st.integers(1, 1000)), st.integers(1, 1000))
def test_a_setting_survives_text_json_and_keyword_arguments(widths: dict[int, int], whole: int) -> None:
    falling = sorted((width / 1000 for width in widths.values()), reverse=True)
    for ratio in (whole / 1000, dict(zip(sorted(widths), falling, strict=True))):
        setting = Compression(7, ratio)
        assert Compression(7, setting.keep_ratio_text) == setting
        assert json.loads(json.dumps(setting.to_json())) == setting.to_json()
        assert Compression.from_json(setting.to_json()) == setting
        assert Compression(**setting.to_kwargs()) == setting


def test_json_that_is_no_setting() -> None:
    assert Compression.from_json({}) == Compression()
    with pytest.raises(ValueError, match="depth and keep_ratio, got width"):
        Compression.from_json({"depth": 3, "width": 0.5})
    with pytest.raises(TypeError, match="keep_ratio"):
        Compression.from_json({"keep_ratio": {"a": 0.5}})


def test_file_names_are_all_different_and_need_no_quoting() -> None:
    settings = [Compression(depth, ratio) for depth in (None, 4, 5) for ratio in (1.0, 0.5, {1: 0.5, 2: 0.25})]
    names = [setting.file_name for setting in settings]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)
    assert names[0] == "all-layers_keep-ratio-1"


def test_an_overridden_setting_keeps_what_was_not_given() -> None:
    setting = Compression(4, 0.5)
    assert setting.override() == setting
    assert setting.override(depth=None) == Compression(None, 0.5)
    assert setting.override(keep_ratio="1:0.25") == Compression(4, {1: 0.25})


@pytest.mark.parametrize("depth", [2.0, 2.5, "3", True, [3], math.nan])
def test_depth_that_is_no_whole_number(depth: Any) -> None:
    with pytest.raises(TypeError, match=r"^depth must be a whole number"):
        Compression(depth)


@pytest.mark.parametrize("depth", [0, -1])
def test_depth_below_1(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth .*{depth}"):
        Compression(depth)


@pytest.mark.parametrize("ratio", [0, 0.0, -0.5, 1.0001, 2, math.nan, math.inf])
def test_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio must be in \(0, 1\]"):
        Compression(keep_ratio=ratio)
    with pytest.raises(ValueError, match=r"^keep_ratio\[8\] must be in \(0, 1\]"):
        Compression(keep_ratio={8: ratio})


@pytest.mark.parametrize("ratio", [None, True, 0.5j, {8: "half"}, {8: None}])
def test_ratio_of_another_type(ratio: Any) -> None:
    with pytest.raises(TypeError, match=r"^keep_ratio(\[8\])? must be a number in \(0, 1\]"):
        Compression(keep_ratio=ratio)


@pytest.mark.parametrize("ratio", [[0.5], [8, 0.5], (8, 0.5), [(8, 0.5, 3)], {(8, 0.5)}, [[8]]])
def test_sequence_that_holds_no_pairs(ratio: Any) -> None:
    """One clear error that names the argument, as for everything else."""
    with pytest.raises((TypeError, ValueError), match="keep_ratio"):
        Compression(keep_ratio=ratio)


@pytest.mark.parametrize("text", ["", "half", "8:", "8:0.5,", "8:0.5:2", "8-0.5", "a:0.5"])
def test_text_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio="):
        Compression(keep_ratio=text)


def test_ratio_that_grows_with_depth() -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio .*0\.5 at merge layer 16 after 0\.25 at 8"):
        Compression(keep_ratio={16: 0.5, 8: 0.25})


def test_merge_layer_named_twice() -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio .*merge layer 8"):
        Compression(keep_ratio="8:0.5,8:0.25")


@pytest.mark.parametrize("layer", [1.5, 8.0, "eight", None])
def test_merge_layer_that_is_no_whole_number(layer: Any) -> None:
    with pytest.raises(TypeError, match=r"^keep_ratio's merge layers"):
        Compression(keep_ratio={layer: 0.5})


def test_merge_layer_below_1() -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio's merge layers .*0"):
        Compression(keep_ratio={0: 0.5})


# Resolving for one model


def test_depth_below_the_only_exit_names_the_command_that_gives_more() -> None:
    command = "mrr self-distill MODEL --texts TEXTS --output OUTPUT"
    with pytest.raises(ValueError, match=rf"^depth=3 .*only exit, 12.*{command}"):
        plan_of(3, exits=(12,))
    with pytest.raises(ValueError, match=r"^depth=3 .*Its exits are 6, 12\."):
        plan_of(3, exits=(6, 12))


@given(depth=st.none() | st.integers(1, 60), exits=st.sets(st.integers(1, LAYERS), min_size=1))
def test_depth_resolves_to_the_deepest_exit_not_above_it(depth: int | None, exits: set[int]) -> None:
    reachable = [exit_layer for exit_layer in exits if depth is None or exit_layer <= depth]
    if reachable:
        assert plan_of(depth, exits=sorted(exits)).exits == (max(reachable),)
    else:
        with pytest.raises(ValueError, match=rf"^depth={depth} .*depth >= {min(exits)}[.,]"):
            plan_of(depth, exits=sorted(exits))


def test_depth_below_the_first_exit_lists_the_exits() -> None:
    with pytest.raises(ValueError, match=r"^depth=3 .*4, 8, 16"):
        plan_of(3, exits=(4, 8, 16))


def test_a_number_merges_once_at_the_default_layer() -> None:
    assert plan_of(None, 0.5).merges == {8: Fraction(1, 2)}
    assert plan_of(None, 0.5, default_merge_layer=4).merges == {4: Fraction(1, 2)}
    assert plan_of(None, 1.0).merges == {}


def test_the_releases_ratio_2_at_8_and_16() -> None:
    assert plan_of(None, {8: 0.5, 16: 0.25}).merges == {8: Fraction(1, 2), 16: Fraction(1, 2)}


def test_merge_at_or_beyond_the_exit_is_not_in_the_plan() -> None:
    widths = {8: 0.5, 16: 0.25, 24: 0.1}
    assert list(plan_of(16, widths).merges) == [8]
    assert list(plan_of(17, widths).merges) == [8, 16]
    assert list(plan_of(8, widths).merges) == []


def test_equal_ratios_merge_once() -> None:
    assert plan_of(None, {8: 0.5, 16: 0.5, 24: 0.5}).merges == {8: Fraction(1, 2)}


@given(widths=mappings())
def test_width_is_the_requested_ratio(widths: dict[int, float]) -> None:
    """The product of the steps up to a layer is the requested ratio: rounding errors don't add up over layers."""
    plan = plan_of(None, widths)
    for layer, ratio in widths.items():
        assert float(plan.width(layer + 1)) == pytest.approx(ratio, abs=2 / 1024)
    assert plan.width(1) == 1
    assert all(0 < step < 1 for step in plan.merges.values())


def test_merge_layer_that_the_model_lacks() -> None:
    with pytest.raises(ValueError, match=r"^keep_ratio .*merge layer 5,.* 4, 8, 12"):
        plan_of(None, {5: 0.5})
    with pytest.raises(ValueError, match=r"^keep_ratio .*merge layer 40"):
        plan_of(None, {40: 0.5})
    assert plan_of(None, {5: 1.0}).merges == {}  # no merge there


def test_model_that_cannot_merge() -> None:
    assert plan_of(8, 1.0, merge_layers=()).merges == {}
    with pytest.raises(ValueError, match=r"^keep_ratio must be 1\.0"):
        plan_of(8, 0.5, merge_layers=())


@given(ratio=st.floats(1e-9, 1.0))
@settings(max_examples=200)
def test_step_is_the_exact_nearest_fraction(ratio: float) -> None:
    step = as_step(ratio)
    assert Fraction(1, 1024) <= step <= 1
    assert step.denominator <= 1024
    assert abs(step - Fraction(ratio)) <= Fraction(1, 1024)
    assert as_step(step) == step


@pytest.mark.parametrize("k", range(1, 17))
def test_unit_fractions_survive_being_floats(k: int) -> None:
    assert as_step(1 / k) == Fraction(1, k)


# Compensation


@pytest.mark.parametrize("exit_layer", [4, 31, 32])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@pytest.mark.parametrize("vertical", [True, False])
@pytest.mark.parametrize("horizontal", [(), (Fraction(1, 2),)])
def test_rule_of_the_adapters(
    exit_layer: int, keep_ratio: float, vertical: bool, horizontal: tuple[Fraction, ...]
) -> None:
    plan = plan_of(exit_layer, keep_ratio, vertical=vertical, horizontal=horizontal)
    expected = []
    if vertical and exit_layer < LAYERS:
        expected.append(VERTICAL)
    if horizontal and plan.merges:
        expected.append("horizontal_1_2")
    assert plan.adapters == tuple(expected)


def test_merges_that_do_not_run_activate_nothing() -> None:
    assert plan_of(8, {16: 0.5}, horizontal=[Fraction(1, 2)]).adapters == ()


@pytest.mark.parametrize(
    ("widths", "name"),
    [
        ({8: 0.5}, "horizontal_1_2"),
        ({8: 0.25}, "horizontal_1_4"),
        ({8: 0.125}, "horizontal_1_8"),
        ({8: 0.5, 16: 0.0625}, "horizontal_1_4"),  # steps 1/2 and 1/8: their geometric mean is 1/4
        ({8: 0.5, 16: 0.25, 24: 0.125}, "horizontal_1_2"),
        ({8: 0.9}, "horizontal_1_2"),
        ({8: 0.01}, "horizontal_1_8"),
        ({8: 0.36}, "horizontal_1_2"),  # just above and below the middle of 1/2 and 1/4 in log, 0.3536
        ({8: 0.35}, "horizontal_1_4"),
    ],
)
def test_nearest_horizontal_adapter(widths: dict[int, float], name: str) -> None:
    trained = [Fraction(1, 2), Fraction(1, 8), Fraction(1, 4)]
    assert plan_of(None, widths, horizontal=trained).adapters == (name,)


@given(k=st.integers(2, 30), trained=st.permutations([Fraction(1, 2), Fraction(1, 8)]))
def test_ties_go_to_the_narrower(k: int, trained: list[Fraction]) -> None:
    assert nearest_step([Fraction(1, 4)], trained) == Fraction(1, 8)
    assert nearest_step([Fraction(1, 2)] * k + [Fraction(1, 8)] * k, trained) == Fraction(1, 8)


def test_horizontal_name_holds_the_step() -> None:
    assert horizontal_name(Fraction(3, 10)) == "horizontal_3_10"


# A Plan


def test_plan_is_a_value() -> None:
    plan = Plan((4, 8), {2: Fraction(1, 2), 3: Fraction(1, 3)}, (VERTICAL,))
    same = Plan((4, 8), {3: Fraction(1, 3), 2: Fraction(1, 2)}, (VERTICAL,))
    assert plan == same
    assert hash(plan) == hash(same)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert plan.last_layer == 8
    assert [plan.width(layer) for layer in (1, 2, 3, 4, 8)] == [1, 1, Fraction(1, 2), Fraction(1, 6), Fraction(1, 6)]


@given(mappings(), st.integers(5, LAYERS))
def test_mean_width_is_the_mean_over_the_layers(widths: dict[int, float], depth: int) -> None:
    plan = plan_of(depth, widths)
    each = [float(plan.width(layer)) for layer in range(1, plan.last_layer + 1)]
    assert plan.mean_width == pytest.approx(sum(each) / len(each))
    assert min(each) <= plan.mean_width <= 1.0
    assert plan_of(depth).mean_width == 1.0


def test_a_plan_as_text() -> None:
    assert str(Plan((6,))) == "exit 6, no merges"
    assert str(Plan((4,), {3: Fraction(1, 3), 2: Fraction(1, 2)})) == "exit 4, merges 2:1/2,3:1/3"


@pytest.mark.parametrize("exits", [(), (4, 2), (4, 4)])
def test_plan_needs_ascending_exits(exits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^exits"):
        Plan(exits)


@pytest.mark.parametrize("layer", [0, 4, 5])
def test_plan_merges_before_its_last_exit(layer: int) -> None:
    with pytest.raises(ValueError, match=r"^merges .*1 … 3"):
        Plan((2, 4), {layer: Fraction(1, 2)})


@given(st.sets(st.integers(1, 60), min_size=1).map(sorted), st.integers(2, 6))
def test_spread_exits_hold_the_first_and_the_last(exits: list[int], count: int) -> None:
    chosen = evenly_spread(exits, count)
    assert chosen == tuple(sorted(set(chosen), reverse=True))
    assert set(chosen) <= set(exits)
    assert len(chosen) == min(count, len(exits)) or len(chosen) < count
    assert {chosen[0], chosen[-1]} == {exits[0], exits[-1]}
