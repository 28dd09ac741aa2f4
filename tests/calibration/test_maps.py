"""Maps from raw to calibrated logits, and which setting's map is used."""

import itertools
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mrr_model.calibration.maps import (
    CalibratedSetting,
    Calibration,
    CalibrationMap,
    KnotMap,
    PlattMap,
    distance,
    setting_of,
)
from mrr_model.compression import Compression, Plan, resolve

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
MAP = PlattMap(slope=0.5, intercept=-2.0)
LARGEST = float(np.finfo(np.float32).max)

float32s = st.floats(-LARGEST, LARGEST, width=32)
usual_logits = st.floats(-50, 50, width=32)
platt_maps = st.builds(PlattMap, slope=st.floats(1e-6, 1e6), intercept=st.floats(-1e6, 1e6))


@st.composite
def knot_maps(draw: st.DrawFn, gap: float = 1e-3) -> KnotMap:
    """Knots at least `gap` apart, in both directions."""
    count = draw(st.integers(2, 8))
    gaps = st.lists(st.floats(gap, 10), min_size=count - 1, max_size=count - 1)
    ends = [draw(st.floats(-20, 20)) for _ in range(2)]
    logits, calibrated = (tuple(itertools.accumulate(draw(gaps), initial=end)) for end in ends)
    return KnotMap(logits=logits, calibrated=calibrated)


def setting(depth: int, keep_ratio: Any = 1.0, slope: float = 1.0) -> CalibratedSetting:
    return CalibratedSetting(depth=depth, keep_ratio=keep_ratio, map=PlattMap(slope=slope, intercept=0.0))


def calibration(*settings: CalibratedSetting, **changes: Any) -> Calibration:
    given = {"settings": settings, "data": "squad", "targets": "labels", "pairs": 100, "relevant_share": 0.01}
    return Calibration(**{**given, **changes})


# The maps


@given(fitted=platt_maps | knot_maps(), logits=st.tuples(float32s, float32s))
def test_any_map_keeps_the_order_of_logits(fitted: CalibrationMap, logits: tuple[float, float]) -> None:
    low, high = sorted(logits)
    assert fitted(low) <= fitted(high)
    assert math.isfinite(fitted(low))
    assert math.isfinite(fitted(high))


@given(
    fitted=st.builds(PlattMap, slope=st.floats(1e-2, 1e2), intercept=st.floats(-50, 50)) | knot_maps(gap=0.1),
    logits=st.tuples(usual_logits, usual_logits).filter(lambda pair: abs(pair[0] - pair[1]) > 1e-8),
)
def test_different_float32_logits_stay_different(fitted: CalibrationMap, logits: tuple[float, float]) -> None:
    """Float64 holds 16 figures: 1e-8 between logits of up to 50, at a slope of 1/100, is still more than rounding."""
    low, high = sorted(logits)
    assert fitted(low) < fitted(high)


@given(knot_maps())
def test_a_knot_map_meets_its_knots_and_extends_beyond_them(fitted: KnotMap) -> None:
    assert [fitted(logit) for logit in fitted.logits] == list(fitted.calibrated)
    x, y = fitted.logits, fitted.calibrated
    inner = min(3, len(x) - 1)
    before, after = (y[inner] - y[0]) / (x[inner] - x[0]), (y[-1] - y[-1 - inner]) / (x[-1] - x[-1 - inner])
    assert fitted(x[0] - 2.0) == pytest.approx(y[0] - 2 * before)
    assert fitted(x[-1] + 2.0) == pytest.approx(y[-1] + 2 * after)


@given(fitted=knot_maps(), logit=st.floats(-30, 60))
def test_a_knot_map_is_linear_in_between(fitted: KnotMap, logit: float) -> None:
    inside = min(max(logit, fitted.logits[0]), fitted.logits[-1])
    assert fitted(inside) == pytest.approx(float(np.interp(inside, fitted.logits, fitted.calibrated)), abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (PlattMap, {"slope": 0.0, "intercept": 0.0}, "slope"),
        (PlattMap, {"slope": -1.0, "intercept": 0.0}, "slope"),
        (PlattMap, {"slope": math.nan, "intercept": 0.0}, "slope"),
        (PlattMap, {"slope": 1.0, "intercept": math.inf}, "intercept"),
        (PlattMap, {"slope": 1.0, "intercept": 0.0, "bias": 1.0}, "bias"),
        (KnotMap, {"logits": (0.0,), "calibrated": (0.0,)}, "logits"),
        (KnotMap, {"logits": (0.0, 1.0), "calibrated": (0.0, 1.0, 2.0)}, "logits and calibrated"),
        (KnotMap, {"logits": (0.0, 0.0), "calibrated": (0.0, 1.0)}, "strictly ascending"),
        (KnotMap, {"logits": (0.0, 1.0, 2.0), "calibrated": (0.0, 1.0, 1.0)}, "strictly ascending"),
        (KnotMap, {"logits": (0.0, 1.0), "calibrated": (0.0, math.nan)}, "calibrated"),
        (KnotMap, {"logits": (0.0, 1.0), "calibrated": (0.0, 1e-9)}, "slope"),
    ],
)
def test_a_map_that_would_not_rise_is_refused(kind: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**fields)


# Settings, and how they are stored


@given(fitted=platt_maps | knot_maps())
def test_json_gives_back_the_same_map(fitted: CalibrationMap) -> None:
    adapter: TypeAdapter[CalibrationMap] = TypeAdapter(CalibrationMap)
    assert adapter.validate_python(json.loads(json.dumps(adapter.dump_python(fitted, mode="json")))) == fitted


def test_json_gives_back_the_same_calibration() -> None:
    steep = KnotMap(logits=(-1.0, 2.0), calibrated=(-3.0, 0.1))
    fitted = calibration(
        setting(6), CalibratedSetting(depth=4, keep_ratio={1: 1 / 3, 2: 0.25}, map=steep), targets="full size"
    )
    written = json.loads(json.dumps(fitted.model_dump(mode="json")))
    assert [each["keep_ratio"] for each in written["settings"]] == [1.0, {"1": 1 / 3, "2": 0.25}]
    assert Calibration.model_validate(written) == fitted
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted


ratios = st.sampled_from([1.0, 0.9, 0.75, 0.5, 1 / 3, 0.25, 0.1]) | st.floats(0.01, 1.0)


@given(st.lists(ratios, max_size=4), st.integers(0, 3))
def test_a_setting_of_a_plan_gets_that_plans_map(drawn: list[float], gap: int) -> None:
    """Also where a keep ratio's float does not give back a step's exact fraction."""
    widths = {1 + index + gap: ratio for index, ratio in enumerate(sorted(drawn, reverse=True))}
    asked = Compression(8, widths)
    plan = resolve(asked, num_layers=8, exits=(8,), merge_layers=range(1, 8), default_merge_layer=1)
    ratio = setting_of(plan).keep_ratio
    own = setting(8, ratio if isinstance(ratio, float) else dict(ratio))
    assert calibration(own, setting(7)).nearest(plan) is own
    assert own.plan().merges.keys() == plan.merges.keys()
    assert own.plan().mean_width == pytest.approx(plan.mean_width, abs=1e-5)


def test_a_setting_is_the_same_plan_however_it_is_written() -> None:
    plan = Plan((4,), {1: HALF, 2: HALF})
    for ratio in ({1: 0.5, 2: 0.25}, {"2": 0.25, "1": "0.5"}, {2: 0.25, 1: 0.5}):
        assert setting(4, ratio).plan() == plan
        assert setting(4, ratio).setting == setting_of(plan)
    assert setting(4).plan() == Plan((4,))


@pytest.mark.parametrize(
    ("depth", "keep_ratio"),
    [
        (0, 1.0),
        (4, {4: 0.5}),
        (4, 0.5),
        (4, {1: 0}),
        (4, {1: 1.5}),
        (4, {0: 0.5}),
        (4, {1: "half"}),
        (4, {1: 0.25, 2: 0.5}),
        (4, [(1,)]),
    ],
)
def test_a_setting_that_no_plan_has_is_refused(depth: int, keep_ratio: Any) -> None:
    with pytest.raises(ValidationError):
        setting(depth, keep_ratio)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": ()},
        {"settings": (setting(4), setting(4, slope=2.0))},
        {"pairs": 0},
        {"relevant_share": 0.0},
        {"relevant_share": 1.0},
        {"targets": "guesses"},
    ],
)
def test_a_calibration_that_says_too_little_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        calibration(**{"settings": (setting(6),), **changes})


# The nearest map


@given(depth=st.sampled_from([2, 3, 5, 8, 31, 32]), ratio=st.sampled_from([1.0, {1: 0.5}, {1: 0.25}]))
def test_a_setting_with_a_map_gets_its_own(depth: int, ratio: Any) -> None:
    known = [setting(layer, each) for layer in (2, 3, 5, 8, 31, 32) for each in (1.0, {1: 0.5}, {1: 0.25})]
    own = setting(depth, ratio)
    assert calibration(*known).nearest(own.plan()) == own
    assert calibration(*known).nearest(Plan((depth,), own.plan().merges, ("vertical",))) == own


def test_the_same_cost_in_other_merges_is_not_the_same_setting() -> None:
    """Both have a mean width of 3/4, so that only the exact match distinguishes them."""
    late, twice = setting(4, {2: 0.5}), setting(4, {1: 5 / 6, 3: 1 / 3})
    assert late.plan().mean_width == 0.75
    assert twice.plan().mean_width == pytest.approx(0.75)
    assert twice.plan().merges == {1: Fraction(5, 6), 3: Fraction(2, 5)}
    assert calibration(late, twice).nearest(twice.plan()) == twice
    assert calibration(twice, late).nearest(late.plan()) == late


def test_an_exit_counts_more_than_a_width() -> None:
    wide, shallow = setting(4), setting(3, {1: 0.25})
    assert calibration(wide, shallow).nearest(Plan((4,), {1: QUARTER})) == wide


def test_exits_are_compared_as_ratios() -> None:
    """Two layers more of 30 are nearer than one layer less of 3."""
    assert calibration(setting(2), setting(4)).nearest(Plan((3,))) == setting(4)
    assert distance(Plan((30,)), Plan((32,))) < distance(Plan((3,)), Plan((2,)))


@given(st.permutations([setting(2), setting(8), setting(4, {1: 0.5}), setting(4, {2: 0.25})]))
def test_ties_do_not_depend_on_the_order(known: list[CalibratedSetting]) -> None:
    """Exit 4 is as far from 2 as from 8."""
    without = [each for each in known if each.depth != 4]
    assert calibration(*without).nearest(Plan((4,))) == setting(8)
    assert calibration(*known).nearest(Plan((4,))) == setting(4, {1: 0.5})  # mean width 5/8 both, and 1 is before 2


plans = st.sampled_from([Plan((layer,), merges) for layer in (3, 5) for merges in ({}, {1: HALF}, {2: HALF})])


@given(one=plans, other=plans)
def test_a_distance_is_symmetric_and_zero_to_oneself(one: Plan, other: Plan) -> None:
    assert distance(one, other) == pytest.approx(distance(other, one))
    assert distance(one, other) >= distance(one, one) == 0


def test_a_setting_as_text_is_the_settings_of_a_user() -> None:
    assert str(setting_of(Plan((6,), {2: QUARTER, 1: HALF}))) == "depth 6, keep ratio 1:0.5,2:0.125"
    assert str(setting(6)) == str(Compression(6)) == "depth 6, keep ratio 1"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["1 relevant pairs only"]),
        ({"pairs": 10_000}, []),
        ({"pairs": 9_900, "queries": 100}, ["99 relevant pairs only"]),
        ({"pairs": 10_000, "queries": 99}, ["99 queries only"]),
        ({"queries": 8}, ["8 queries only", "1 relevant pairs only"]),
    ],
)
def test_maps_of_little_say_so(changes: dict[str, Any], parts: list[str]) -> None:
    cautions = calibration(setting(6), **changes).cautions
    assert len(cautions) == len(parts)
    assert all(part in caution for part, caution in zip(parts, cautions, strict=True))
