"""How reliable probabilities are, with and without calibration maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mrr_model.calibration.fit import (
    Numbers,
    check_lengths,
    fit_setting,
    fold_masks,
    log_losses,
    logistic,
    mapped,
)
from mrr_model.calibration.maps import Calibration, CalibrationMap, setting_of
from mrr_model.compression import Plan

THRESHOLDS = (0.2, 0.5, 0.8)

MIN_COUNT = 10
"""Minimum number of pairs whose precision is compared between settings: with fewer it is mostly chance."""


def expected_calibration_error(
    probabilities: Numbers, targets: Numbers, bins: int = 15, *, equal: Literal["width", "mass"] = "width"
) -> float:
    """How far probabilities are from the targets on average; 0 is perfect.

    Σ over bins of (pairs in the bin / all pairs) · |mean target − mean probability| (Guo et al., 2017, eq. 3; Naeini et
    al., 2015).

    If few pairs are relevant, most probabilities lie near 0 and dominate: compare the error with the share of relevant
    pairs, which is the error of a model that predicts 0 for every pair.

    Args:
        probabilities: One for each pair.
        targets: In 0 … 1, one for each pair.
        bins: How many.
        equal: Bins of equal `width` in probability, (0, 1/bins], (1/bins, 2/bins] …; or of equal `mass`: runs of the
            sorted probabilities, equally long to within one pair, ties in input order.

    Raises:
        ValueError: If lengths differ, or `bins` is less than 1.

    Example:
        >>> expected_calibration_error([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 0], bins=2)
        0.25
        >>> expected_calibration_error([0.1, 0.3, 0.7, 0.9], [0, 0, 1, 0], bins=4, equal="mass")
        0.4
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    check_lengths(probabilities=len(p), targets=len(t))
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}.")
    if equal == "width":
        index = np.clip(np.ceil(p * bins) - 1, 0, bins - 1).astype(int)
    else:
        index = np.empty(len(p), dtype=int)
        index[np.argsort(p, kind="stable")] = np.arange(len(p)) * bins // len(p)
    return float(np.abs(np.bincount(index, t - p, bins)).sum() / len(p))


def precision_at(threshold: float, probabilities: Numbers, targets: Numbers) -> float:
    """The mean target of the pairs whose probability is at least `threshold`; NaN if there is none.

    Raises:
        ValueError: If lengths differ.

    Example:
        >>> precision_at(0.5, [0.2, 0.5, 0.9], [1, 0, 1])
        0.5
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    check_lengths(probabilities=len(p), targets=len(t))
    reached = p >= threshold
    return float(t[reached].mean()) if reached.any() else math.nan


@dataclass(frozen=True)
class Reliability:
    """How reliable one setting's probabilities are."""

    error: float
    """Expected calibration error, with bins of equal width."""
    log_loss: float
    """Mean −ln of the probability of the outcome."""
    precision: dict[float, float]
    """By threshold, the precision of the pairs that reach it; NaN if none does."""
    counts: dict[float, int]
    """By threshold, how many pairs reach it."""

    @classmethod
    def measure(cls, calibrated: Numbers, targets: Numbers, thresholds: Sequence[float]) -> Reliability:
        """Measure logits, raw or calibrated, whose logistic function is the probability."""
        z, t = np.asarray(calibrated, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        p = logistic(z)
        return cls(
            error=expected_calibration_error(p, t),
            log_loss=float(log_losses(z, t).mean()),
            precision={threshold: precision_at(threshold, p, t) for threshold in thresholds},
            counts={threshold: int((p >= threshold).sum()) for threshold in thresholds},
        )


@dataclass(frozen=True)
class CalibrationReport:
    """Each setting's reliability on pairs that no map was fitted on, for three ways to compute probabilities.

    Settings are keyed by their text.
    """

    before: dict[str, Reliability]
    """The plain logistic function of the raw logit."""
    shared: dict[str, Reliability]
    """The largest setting's map for all settings: a threshold that was chosen at full size is used everywhere."""
    after: dict[str, Reliability]
    """Each setting's own map."""
    pairs: int
    relevant: float
    """The mean target of the pairs, which is also the calibration error of predicting 0 for every pair."""

    def spread(self, threshold: float) -> tuple[float, float, float]:
        """The range (maximum − minimum) of precision at a threshold over settings: before, shared, after.

        Settings where fewer than `MIN_COUNT` pairs reach it are left out; NaN if fewer than two are left.
        """
        spreads = []
        for way in (self.before, self.shared, self.after):
            found = [each.precision[threshold] for each in way.values() if each.counts[threshold] >= MIN_COUNT]
            spreads.append(max(found) - min(found) if len(found) > 1 else math.nan)
        return spreads[0], spreads[1], spreads[2]

    def markdown(self) -> str:
        """A table with one row per setting.

        The calibration error and, for each threshold, the precision of the pairs that reach it and (in brackets) their
        number; each before, shared, after. The last row is `spread`.
        """
        thresholds = list(next(iter(self.before.values())).precision)
        heads = " | ".join(f"precision at {threshold:g}" for threshold in thresholds)
        lines = [f"| setting | calibration error | {heads} |", "| --- |" + " ---: |" * (len(thresholds) + 1)]
        for setting in self.before:
            ways = [way[setting] for way in (self.before, self.shared, self.after)]
            cells = [" / ".join(f"{each.error:.4f}" for each in ways)]
            for threshold in thresholds:
                cells.append(" / ".join(f"{_decimal(w.precision[threshold])} ({w.counts[threshold]})" for w in ways))
            lines.append(f"| {setting} | {' | '.join(cells)} |")
        spreads = [" / ".join(map(_decimal, self.spread(threshold))) for threshold in thresholds]
        lines.append(f"| max − min |  | {' | '.join(spreads)} |")
        return "\n".join(lines)


def error_table(reports: Mapping[str, CalibrationReport]) -> str:
    """A table of calibration errors, before / shared / after, with one row per setting and one column per report."""
    lines = [f"| calibration error | {' | '.join(reports)} |", "| --- |" + " ---: |" * len(reports)]
    for setting in next(iter(reports.values())).before:
        cells = [
            " / ".join(f"{way[setting].error:.3f}" for way in (each.before, each.shared, each.after))
            for each in reports.values()
        ]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(
    calibration: Calibration,
    logits: Mapping[Plan, Numbers],
    targets: Numbers,
    thresholds: Sequence[float] = THRESHOLDS,
) -> CalibrationReport:
    """Measure a calibration on pairs that it was not fitted on.

    Args:
        calibration: The maps; a setting without a map of its own takes the nearest.
        logits: By Plan, the raw logits of the pairs.
        targets: In 0 … 1, one for each pair.
        thresholds: Where precision is measured.
    """
    maps = {plan: calibration.nearest(plan).map for plan in logits}
    return _measured([(np.ones(len(targets), dtype=bool), maps)], logits, targets, thresholds)


def cross_fitted_report(
    logits: Mapping[Plan, Numbers],
    targets: Numbers,
    groups: Sequence[object],
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    folds: int = 5,
    seed: int = 0,
) -> CalibrationReport:
    """Measure what `calibrate` gives on new queries of the same kind.

    Every query is held out once, and calibrated by maps that were fitted on the other folds.

    Args:
        logits: By Plan, the raw logits of the pairs.
        targets: In 0 … 1, one for each pair.
        groups: Each pair's query.
        thresholds: Where precision is measured.
        folds: How many parts are held out in turn.
        seed: Draws the folds.

    Raises:
        ValueError: If there are fewer queries than folds, or a setting cannot be fitted.
    """
    t = np.asarray(targets, dtype=np.float64)
    fitted = []
    for held_out in fold_masks(groups, folds, seed):
        seen = np.flatnonzero(~held_out)
        queries = [groups[index] for index in seen.tolist()]
        maps = {
            plan: fit_setting(plan, np.asarray(z, dtype=np.float64)[seen], t[seen], queries, None, seed)
            for plan, z in logits.items()
        }
        fitted.append((held_out, maps))
    return _measured(fitted, logits, targets, thresholds)


def _measured(
    fitted: Sequence[tuple[npt.NDArray[np.bool_], Mapping[Plan, CalibrationMap]]],
    logits: Mapping[Plan, Numbers],
    targets: Numbers,
    thresholds: Sequence[float],
) -> CalibrationReport:
    """Measure pairs, given in parts that make up all of them, each with its maps."""
    t = np.asarray(targets, dtype=np.float64)
    largest = max(logits, key=lambda plan: (plan.last_layer, plan.mean_width))
    before, shared, after = {}, {}, {}
    for plan, raw in logits.items():
        z = np.asarray(raw, dtype=np.float64)
        own, other = np.empty(len(t)), np.empty(len(t))
        for part, maps in fitted:
            own[part], other[part] = mapped(maps[plan], z[part]), mapped(maps[largest], z[part])
        name = str(setting_of(plan))
        before[name] = Reliability.measure(z, t, thresholds)
        shared[name] = Reliability.measure(other, t, thresholds)
        after[name] = Reliability.measure(own, t, thresholds)
    return CalibrationReport(before, shared, after, len(t), float(t.mean()))


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
