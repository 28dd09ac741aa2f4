"""Fitting maps to synthetic logits whose true probability is known, and the measures against loops."""

import math
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr_model.calibration import Calibration, KnotMap, PlattMap
from mrr_model.compression import Plan
from mrr_model.evaluation import calibrating
from mrr_model.evaluation.calibrating import (
    calibrate,
    cross_fitted_report,
    expected_calibration_error,
    fit_isotonic,
    fit_map,
    fit_platt,
    fold_masks,
    precision_at,
    report,
    self_calibrate,
    self_labels,
)

Array = npt.NDArray[np.float64]

FULL, NARROW, SHALLOW = Plan((6,)), Plan((4,), {1: Fraction(1, 2)}), Plan((2,))
TRUE = {FULL: (1.0, -4.0), NARROW: (0.5, -1.0), SHALLOW: (2.0, 1.0)}
"""Setting -> slope and intercept of the map that turns its logits into the true ones."""

probabilities = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.25])), min_size=1, max_size=60)


def logistic(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def drawn(count: int, seed: int = 0, middle: float = -1.0) -> tuple[Array, Array]:
    """True logits around ``middle`` and labels drawn from them."""
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
        ([0.0, 1.0], [0, 0], None, "relevant pairs and others"),
        ([0.0, 1.0], [1, 1], None, "relevant pairs and others"),
        ([0.0, 1.0, 2.0], [0, 0, 1], [1, 1, 0], "relevant pairs and others"),
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
    """With ties too, where ``grid`` rounds. Targets that Platt's line cannot rise with are another test's."""
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
    assert fitted.relevant == pytest.approx(labels.mean())
    assert Calibration.model_validate_json(fitted.model_dump_json()) == fitted
    for plan, logits in scores_of_settings(true).items():
        own = fitted.nearest(plan.last_layer, plan.merges)
        assert own.matches(plan.last_layer, plan.merges)
        calibrated = [own.map(logit) for logit in logits.tolist()]
        assert np.abs(np.subtract(calibrated, true)).max() < 0.6
        assert np.argsort(calibrated).tolist() == np.argsort(true).tolist()


def test_an_error_names_its_setting() -> None:
    true, labels = drawn(400)
    logits = {**scores_of_settings(true), NARROW: -true}
    with pytest.raises(ValueError, match="exit 4, merges 1:1/2 cannot be calibrated: targets do not rise"):
        calibrate(logits, labels, queries(400), data="drawn")


@pytest.mark.parametrize("full_map", [None, PlattMap(slope=1.0, intercept=-4.0)])
def test_without_labels_every_setting_takes_full_sizes_probability(full_map: PlattMap | None) -> None:
    true, _ = drawn(4000)
    logits = scores_of_settings(true)
    fitted = self_calibrate(logits, FULL, queries(4000), full_map=full_map, data="drawn")
    assert fitted.targets == "full size"
    assert fitted.nearest(6, {}).map == (full_map or PlattMap(slope=1.0, intercept=0.0))
    labels = self_labels(logits[FULL], full_map)
    assert fitted.relevant == pytest.approx(labels.mean())
    for plan, raw in logits.items():
        own = fitted.nearest(plan.last_layer, plan.merges).map
        assert logistic(np.array([own(logit) for logit in raw.tolist()])) == pytest.approx(labels, abs=0.02)


# Measures


@given(pairs=probabilities, bins=st.integers(1, 15))
def test_the_calibration_error_is_that_of_the_loop(pairs: list[tuple[float, float]], bins: int) -> None:
    error = 0.0
    for number in range(bins):
        held = [
            (p, t) for p, t in pairs if number < math.ceil(p * bins) <= number + 1 or (number == 0 and p * bins == 0)
        ]
        if held:
            accuracy, confidence = sum(t for _, t in held) / len(held), sum(p for p, _ in held) / len(held)
            error += len(held) / len(pairs) * abs(accuracy - confidence)
    p, t = zip(*pairs, strict=True)
    assert expected_calibration_error(p, t, bins) == pytest.approx(error)


@given(pairs=probabilities, bins=st.integers(1, 15))
def test_bins_of_equal_mass_are_runs_of_the_sorted_pairs(pairs: list[tuple[float, float]], bins: int) -> None:
    ordered = sorted(pairs, key=lambda pair: pair[0])
    error = 0.0
    for number in range(bins):
        run = [pair for place, pair in enumerate(ordered) if place * bins // len(pairs) == number]
        error += abs(sum(t - p for p, t in run)) / len(pairs)
    p, t = zip(*pairs, strict=True)
    assert expected_calibration_error(p, t, bins, equal="mass") == pytest.approx(error)


def test_calibration_errors_of_the_extremes() -> None:
    assert expected_calibration_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0.0
    assert expected_calibration_error([1.0, 0.0], [0, 1]) == 1.0
    assert expected_calibration_error([0.0, 0.0, 0.0, 0.0], [0, 0, 0, 1]) == 0.25  # the share of relevant pairs


def test_precision_counts_what_reaches_the_threshold() -> None:
    assert precision_at(0.5, [0.5, 0.5, 0.4], [1, 0, 1]) == 0.5
    assert math.isnan(precision_at(0.9, [0.5, 0.4], [1, 0]))


@pytest.mark.parametrize("measure", [expected_calibration_error, lambda p, t: precision_at(0.5, p, t)])
def test_measures_need_as_many_targets(measure: Any) -> None:
    with pytest.raises(ValueError, match="2 probabilities, 1 targets"):
        measure([0.1, 0.2], [0])


def test_bins_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1"):
        expected_calibration_error([0.1], [0], 0)


# The report


def test_maps_bring_settings_together() -> None:
    true, labels = drawn(4000)
    fitted = calibrate(scores_of_settings(true), labels, queries(4000), data="drawn")
    new, new_labels = drawn(4000, seed=1)
    found = report(fitted, scores_of_settings(new), new_labels, (0.5, 0.8))
    assert list(found.after) == ["exit 6, no merges", "exit 4, merges 1:1/2", "exit 2, no merges"]
    assert (found.pairs, found.relevant) == (4000, pytest.approx(new_labels.mean()))
    for name, before in found.before.items():
        assert found.after[name].error < 0.05 < before.error
        assert found.after[name].log_loss < before.log_loss
    before, shared, after = found.spread(0.5)
    assert after < 0.05 < shared
    assert after < before
    full = "exit 6, no merges"
    assert found.shared[full] == found.after[full]  # the largest setting shares its own map


def test_a_setting_without_its_own_map_is_measured_with_the_nearest() -> None:
    true, labels = drawn(2000)
    logits = scores_of_settings(true)
    fitted = calibrate({FULL: logits[FULL]}, labels, queries(2000), data="drawn")
    found = report(fitted, logits, labels)
    assert found.after == found.shared


def test_cross_fitting_measures_queries_that_their_maps_have_not_seen() -> None:
    """Each fold by hand."""
    true, labels = drawn(1000)
    logits, groups = scores_of_settings(true), queries(1000)
    calibrated = np.empty(1000)
    for held_out in fold_masks(groups, 4, seed=2):
        fitted = fit_platt(logits[NARROW][~held_out], labels[~held_out])
        calibrated[held_out] = [fitted(logit) for logit in logits[NARROW][held_out].tolist()]
    found = cross_fitted_report(logits, labels, groups, (0.5,), folds=4, seed=2)
    after = found.after["exit 4, merges 1:1/2"]
    assert labels.sum() * 0.8 < calibrating.MIN_PER_CLASS  # Platt's line, then
    assert after.error == pytest.approx(expected_calibration_error(logistic(calibrated), labels))
    assert after.precision == {0.5: pytest.approx(precision_at(0.5, logistic(calibrated), labels))}


def test_the_table_has_a_row_a_setting_and_the_spread() -> None:
    true, labels = drawn(2000)
    logits = scores_of_settings(true)
    fitted = calibrate(logits, labels, queries(2000), data="drawn")
    lines = report(fitted, logits, labels, (0.5, 1.1)).markdown().splitlines()
    assert lines[0] == "| setting | calibration error | precision at 0.5 | precision at 1.1 |"
    assert lines[3].startswith("| exit 4, merges 1:1/2 | ")
    assert lines[3].endswith("| – (0) / – (0) / – (0) |")
    assert lines[-1].startswith("| max − min |  | ")
    assert lines[-1].endswith("| – / – / – |")
    assert {line.count("|") for line in lines} == {5}
