"""Fitting maps to synthetic logits whose true probability is known, and the errors against loops."""

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr_model.calibration import fit as calibrating
from mrr_model.calibration.fit import (
    calibrate,
    fit_isotonic,
    fit_map,
    fit_platt,
    fold_masks,
    self_calibrate,
    self_labels,
)
from mrr_model.calibration.maps import Calibration, KnotMap, PlattMap
from mrr_model.compression import Plan

Array = npt.NDArray[np.float64]

FULL, NARROW, SHALLOW = Plan((6,)), Plan((4,), {1: Fraction(1, 2)}), Plan((2,))
TRUE = {FULL: (1.0, -4.0), NARROW: (0.5, -1.0), SHALLOW: (2.0, 1.0)}
"""Setting -> slope and intercept of the map that turns its logits into the true ones."""


def logistic(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def drawn(count: int, seed: int = 0, middle: float = -1.0) -> tuple[Array, Array]:
    """True logits around `middle` and labels drawn from them."""
    rng = np.random.default_rng(seed)
    true = rng.normal(middle, 2.0, count)
    return true, (rng.random(count) < logistic(true)).astype(float)


def queries(count: int, size: int = 20) -> list[str]:
    return [f"q{pair // size}" for pair in range(count)]


def log_loss(fitted: Any, logits: Array, targets: Array) -> float:
    calibrated = np.array([fitted(logit) for logit in logits.tolist()])
    return float(np.mean(np.logaddexp(0, calibrated) - targets * calibrated))


def scores_of_settings(true: Array) -> dict[Plan, Array]:
    return {plan: (true - intercept) / slope for plan, (slope, intercept) in TRUE.items()}


# Platt


@pytest.mark.parametrize(("slope", "intercept"), [(0.5, -2.0), (1.0, 0.0), (20.0, 7.0), (0.01, -3.0)])
def test_platt_finds_the_line_that_made_the_logits(slope: float, intercept: float) -> None:
    true, labels = drawn(20_000)
    fitted = fit_platt((true - intercept) / slope, labels)
    assert fitted.slope == pytest.approx(slope, rel=0.05)
    assert fitted.intercept == pytest.approx(intercept, abs=0.15)


def test_platt_finds_the_line_exactly_from_soft_targets() -> None:
    """Apart from the pair that is added to each class, which 100,000 pairs hide."""
    true, _ = drawn(100_000)
    fitted = fit_platt((true + 2) / 3, logistic(true))
    assert fitted.slope == pytest.approx(3.0, rel=1e-3)
    assert fitted.intercept == pytest.approx(-2.0, abs=1e-3)


def test_a_weight_stands_for_as_many_pairs() -> None:
    true, labels = drawn(300)
    weights = np.random.default_rng(1).integers(0, 4, 300)
    repeated = fit_platt(np.repeat(true, weights), np.repeat(labels, weights))
    weighed = fit_platt(true, labels, weights.astype(float))
    assert weighed.slope == pytest.approx(repeated.slope, rel=1e-6)
    assert weighed.intercept == pytest.approx(repeated.intercept, rel=1e-6)


def test_classes_that_do_not_overlap_give_a_finite_slope() -> None:
    """The likelihood is greatest where both classes have Platt's targets, 3/4 and 1/4 of two pairs each."""
    fitted = fit_platt([-2.0, -2.0, 2.0, 2.0], [0, 0, 1, 1])
    assert fitted.slope == pytest.approx(math.log(3) / 2)
    assert fitted.intercept == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("logits", "targets", "weights", "message"),
    [
        ([0.0, 1.0], [0, 0], None, "targets must hold relevant"),
        ([0.0, 1.0], [1, 1], None, "targets must hold relevant"),
        ([0.0, 1.0, 2.0], [0, 0, 1], [1, 1, 0], "targets must hold relevant"),
        ([2.0, 2.0], [0, 1], None, "logits must differ"),
        ([2.0, 2.0, 3.0], [0, 1, 1], [1, 1, 0], "logits must differ"),
        ([1.0, 0.0], [0, 1], None, "do not rise"),
        ([0.0, 1.0], [0.3, 0.3], None, "do not rise"),
        ([0.0, math.nan], [0, 1], None, "finite"),
        ([0.0, 1.0], [0, 2], None, "targets must lie in"),
        ([0.0, 1.0], [0, 1], [1, -1], "weights"),
        ([0.0, 1.0], [0], None, "2 logits, 1 targets"),
        ([], [], None, "0 logits"),
    ],
)
@pytest.mark.parametrize("fit", [fit_platt, fit_isotonic])
def test_data_that_tells_nothing_is_refused(fit: Any, logits: Any, targets: Any, weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(logits, targets, weights)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"matryoshka-reranker\[eval\]"):
        fit_platt([0.0, 1.0], [0, 1])


# Isotonic


def bent(true: Array) -> Array:
    """Logits of which no line makes the true ones: steep below 0, flat above."""
    return np.where(true < 0, true / 4, true * 3)


def test_isotonic_follows_a_bend_that_platt_cannot() -> None:
    true, labels = drawn(20_000)
    held_out, held_out_labels = drawn(20_000, seed=1)
    curve, line = fit_isotonic(bent(true), labels), fit_platt(bent(true), labels)
    best = log_loss(float, held_out, held_out_labels)
    curved, straight = (log_loss(fitted, bent(held_out), held_out_labels) for fitted in (curve, line))
    assert curved - best < (straight - best) / 5


def test_isotonic_stays_by_a_line_that_is_right() -> None:
    true, labels = drawn(20_000)
    curve = fit_isotonic(true, labels)
    assert len(curve.logits) == calibrating.BINS
    assert np.abs(np.subtract(curve.calibrated, curve.logits)).max() < 0.5


@settings(deadline=None, max_examples=40)
@given(
    pairs=st.lists(
        st.tuples(st.floats(-30, 30, width=32), st.sampled_from([0.0, 1.0, 0.5])), min_size=2, max_size=50
    ).filter(lambda pairs: 0 < sum(target for _, target in pairs) < len(pairs)),
    grid=st.sampled_from([0.0, 1.0, 8.0]),
)
def test_isotonic_rises_whatever_the_pairs(pairs: list[tuple[float, float]], grid: float) -> None:
    """With ties too, where `grid` rounds. Targets that Platt's line cannot rise with are another test's."""
    logits = [round(logit / grid) * grid if grid else logit for logit, _ in pairs]
    targets = [target for _, target in pairs]
    try:
        line = fit_platt(logits, targets)
    except ValueError:
        return
    curve = fit_isotonic(logits, targets, platt=line)
    values = [curve(logit) for logit in sorted(set(logits))]
    assert values == sorted(values)
    assert curve.logits[0] >= min(logits) - 1e-9
    assert curve.logits[-1] <= max(logits) + 1e-9


def test_two_logits_leave_platts_line() -> None:
    """All the information lies with one logit's pairs, so that there is one bin."""
    logits, targets = [-1.0] * 3 + [1.0] * 1000, [0.0] * 3 + [0.0, 1.0] * 500
    line, curve = fit_platt(logits, targets), fit_isotonic(logits, targets)
    assert curve.logits[0] == -1.0
    assert [curve(logit) for logit in (-1.0, 1.0)] == pytest.approx([line(-1.0), line(1.0)], abs=0.1)


# Which of them


def test_a_bend_in_many_pairs_takes_the_isotonic_fit() -> None:
    true, labels = drawn(6000)
    assert isinstance(fit_map(bent(true), labels, queries(6000)), KnotMap)


def test_few_relevant_pairs_take_platts_line() -> None:
    true, labels = drawn(6000, middle=-7.0)
    assert 10 < labels.sum() < calibrating.MIN_PER_CLASS
    assert fit_map(bent(true), labels, queries(6000)) == fit_platt(bent(true), labels)


def test_few_queries_take_platts_line() -> None:
    true, labels = drawn(4000)
    assert isinstance(fit_map(bent(true), labels, ["q1", "q2"] * 2000), PlattMap)


def test_a_choice_is_the_same_for_the_same_seed() -> None:
    true, labels = drawn(3000)
    assert fit_map(true, labels, queries(3000), seed=3) == fit_map(true, labels, queries(3000), seed=3)


@given(sizes=st.lists(st.integers(1, 5), min_size=3, max_size=12), seed=st.integers(0, 9))
def test_folds_split_queries_between_them(sizes: list[int], seed: int) -> None:
    groups = [query for query, size in enumerate(sizes) for _ in range(size)]
    masks = list(fold_masks(groups, 3, seed))
    assert np.sum(masks, 0).tolist() == [1] * len(groups)
    held_out = [{group for group, out in zip(groups, mask, strict=True) if out} for mask in masks]
    assert sum(map(len, held_out)) == len(sizes)
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1


@pytest.mark.parametrize("folds", [0, 1, 4])
def test_folds_need_as_many_groups(folds: int) -> None:
    with pytest.raises(ValueError, match="between 2 and the 3 groups"):
        list(fold_masks(["a", "b", "c"], folds))


# All settings


def test_calibrated_settings_agree() -> None:
    true, labels = drawn(4000)
    fitted = calibrate(scores_of_settings(true), labels, queries(4000), data="drawn")
    assert (fitted.data, fitted.targets, fitted.pairs) == ("drawn", "labels", 4000)
    assert fitted.relevant_share == pytest.approx(labels.mean())
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted
    for plan, logits in scores_of_settings(true).items():
        own = fitted.nearest(plan)
        assert own.plan() == plan
        calibrated = [own.map(logit) for logit in logits.tolist()]
        assert np.abs(np.subtract(calibrated, true)).max() < 0.6
        assert np.argsort(calibrated).tolist() == np.argsort(true).tolist()


def test_an_error_names_its_setting() -> None:
    true, labels = drawn(400)
    logits = {**scores_of_settings(true), NARROW: -true}
    with pytest.raises(ValueError, match=r"depth 4, keep ratio 1:0\.5 cannot be calibrated"):
        calibrate(logits, labels, queries(400), data="drawn")


@pytest.mark.parametrize("full_map", [None, PlattMap(slope=1.0, intercept=-4.0)])
def test_without_labels_every_setting_takes_full_sizes_probability(full_map: PlattMap | None) -> None:
    true, _ = drawn(4000)
    logits = scores_of_settings(true)
    fitted = self_calibrate(logits, FULL, queries(4000), full_map=full_map, data="drawn")
    assert fitted.targets == "full size"
    assert fitted.nearest(FULL).map == (full_map or PlattMap(slope=1.0, intercept=0.0))
    labels = self_labels(logits[FULL], full_map)
    assert fitted.relevant_share == pytest.approx(labels.mean())
    for plan, raw in logits.items():
        own = fitted.nearest(plan).map
        assert logistic(np.array([own(logit) for logit in raw.tolist()])) == pytest.approx(labels, abs=0.02)
