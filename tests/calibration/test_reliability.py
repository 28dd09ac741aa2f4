"""How far probabilities can be taken at their word."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr_model.calibration import fit as calibrating
from mrr_model.calibration.fit import calibrate, fit_platt, fold_masks
from mrr_model.calibration.reliability import (
    cross_fitted_report,
    error_table,
    expected_calibration_error,
    precision_at,
    report,
)
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


def scores_of_settings(true: Array) -> dict[Plan, Array]:
    return {plan: (true - intercept) / slope for plan, (slope, intercept) in TRUE.items()}


probabilities = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.25])), min_size=1, max_size=60)


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
        run = [pair for index, pair in enumerate(ordered) if index * bins // len(pairs) == number]
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


@pytest.mark.parametrize("metric", [expected_calibration_error, lambda p, t: precision_at(0.5, p, t)])
def test_metrics_need_as_many_targets(metric: Any) -> None:
    with pytest.raises(ValueError, match="2 probabilities, 1 targets"):
        metric([0.1, 0.2], [0])


def test_bins_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="bins must be at least 1"):
        expected_calibration_error([0.1], [0], 0)


# The report


def test_maps_bring_settings_together() -> None:
    true, labels = drawn(4000)
    fitted = calibrate(scores_of_settings(true), labels, queries(4000), data="drawn")
    new, new_labels = drawn(4000, seed=1)
    found = report(fitted, scores_of_settings(new), new_labels, (0.5, 0.8))
    assert list(found.after) == ["depth 6, keep ratio 1", "depth 4, keep ratio 1:0.5", "depth 2, keep ratio 1"]
    assert (found.pairs, found.relevant) == (4000, pytest.approx(new_labels.mean()))
    for name, before in found.before.items():
        assert found.after[name].error < 0.05 < before.error
        assert found.after[name].log_loss < before.log_loss
    before, shared, after = found.spread(0.5)
    assert after < 0.05 < shared
    assert after < before
    full = "depth 6, keep ratio 1"
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
    after = found.after["depth 4, keep ratio 1:0.5"]
    assert labels.sum() * 0.8 < calibrating.MIN_PER_CLASS  # Platt's line, then
    assert after.error == pytest.approx(expected_calibration_error(logistic(calibrated), labels))
    assert after.precision == {0.5: pytest.approx(precision_at(0.5, logistic(calibrated), labels))}


def test_the_table_has_a_row_a_setting_and_the_spread() -> None:
    true, labels = drawn(2000)
    logits = scores_of_settings(true)
    fitted = calibrate(logits, labels, queries(2000), data="drawn")
    lines = report(fitted, logits, labels, (0.5, 1.1)).markdown().splitlines()
    assert lines[0] == "| setting | calibration error | precision at 0.5 | precision at 1.1 |"
    assert lines[3].startswith("| depth 4, keep ratio 1:0.5 | ")
    assert lines[3].endswith("| – (0) / – (0) / – (0) |")
    assert lines[-1].startswith("| max − min |  | ")
    assert lines[-1].endswith("| – / – / – |")
    assert {line.count("|") for line in lines} == {5}


def test_the_table_of_errors_has_a_column_for_each_report() -> None:
    true, labels = drawn(2000)
    logits = scores_of_settings(true)
    made = report(calibrate(logits, labels, queries(2000), data="drawn"), logits, labels)
    lines = error_table({"here": made, "there": made}).splitlines()
    assert lines[0] == "| calibration error | here | there |"
    assert len(lines) == 2 + len(logits)
    cell = " / ".join(f"{way['depth 2, keep ratio 1'].error:.3f}" for way in (made.before, made.shared, made.after))
    assert f"| depth 2, keep ratio 1 | {cell} | {cell} |" in lines
