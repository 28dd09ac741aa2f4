"""What calibration maps are worth: how far probabilities can be taken at their word, before and after."""

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
from mrr_model.calibration.maps import Calibration, CalibrationMap, setting_name
from mrr_model.compression import Plan

THRESHOLDS = (0.2, 0.5, 0.8)

MIN_KEPT = 10
"""Precision of fewer pairs than this is not compared between settings: it is chance for the most part."""


def expected_calibration_error(
    probabilities: Numbers, targets: Numbers, bins: int = 15, *, equal: Literal["width", "mass"] = "width"
) -> float:
    """Σ over bins of (pairs in it / all pairs) · |mean target − mean probability|; 0 is perfect (Guo et al., 2017, eq.
    3; Naeini et al., 2015).

    Bins are of equal ``width`` in probability, (0, 1/bins], (1/bins, 2/bins] …; or of equal ``mass``: runs of the
    sorted probabilities, equally long to within one pair, in input order where they tie. Where few pairs are relevant
    most lie near 0 and weigh most: then compare it with the share of relevant pairs, which is what a model that says
    0 to everything gets.

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
        place = np.clip(np.ceil(p * bins) - 1, 0, bins - 1).astype(int)
    else:
        place = np.empty(len(p), dtype=int)
        place[np.argsort(p, kind="stable")] = np.arange(len(p)) * bins // len(p)
    return float(np.abs(np.bincount(place, t - p, bins)).sum() / len(p))


def precision_at(threshold: float, probabilities: Numbers, targets: Numbers) -> float:
    """The mean target of the pairs whose probability is at least ``threshold``; NaN where there is none.

    >>> precision_at(0.5, [0.2, 0.5, 0.9], [1, 0, 1])
    0.5
    """
    p, t = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    check_lengths(probabilities=len(p), targets=len(t))
    kept = p >= threshold
    return float(t[kept].mean()) if kept.any() else math.nan


@dataclass(frozen=True)
class Reliability:
    """How far one setting's probabilities can be taken at their word."""

    error: float
    """Expected calibration error, bins of equal width."""
    log_loss: float
    """Mean −ln of the probability given to what was the case."""
    precision: dict[float, float]
    """Threshold -> precision of what reaches it; NaN where nothing does."""
    kept: dict[float, int]
    """Threshold -> how many pairs reach it."""

    @classmethod
    def measure(cls, calibrated: Numbers, targets: Numbers, thresholds: Sequence[float]) -> Reliability:
        """From logits (raw or calibrated) whose logistic function is the probability."""
        z, t = np.asarray(calibrated, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        p = logistic(z)
        return cls(
            error=expected_calibration_error(p, t),
            log_loss=float(log_losses(z, t).mean()),
            precision={threshold: precision_at(threshold, p, t) for threshold in thresholds},
            kept={threshold: int((p >= threshold).sum()) for threshold in thresholds},
        )


@dataclass(frozen=True)
class CalibrationReport:
    """Each setting's reliability on pairs that no map has seen, by setting, for three ways to a probability."""

    before: dict[str, Reliability]
    """The plain logistic function of the raw logit."""
    shared: dict[str, Reliability]
    """The largest setting's map for all: a threshold that was chosen at full size, used at every setting as it is."""
    after: dict[str, Reliability]
    """Each setting's own map."""
    pairs: int
    relevant: float
    """The mean target of the pairs, which is also the calibration error of saying 0 to everything."""

    def spread(self, threshold: float) -> tuple[float, float, float]:
        """The greatest less the smallest precision at a threshold between settings: before, shared, after. Settings
        where fewer than ``MIN_KEPT`` pairs reach it are left out, and it is NaN where fewer than two are left.
        """
        spreads = []
        for way in (self.before, self.shared, self.after):
            found = [each.precision[threshold] for each in way.values() if each.kept[threshold] >= MIN_KEPT]
            spreads.append(max(found) - min(found) if len(found) > 1 else math.nan)
        return spreads[0], spreads[1], spreads[2]

    def markdown(self) -> str:
        """A table with a row a setting: the calibration error and, for each threshold, the precision of the pairs that
        reach it and (in brackets) how many do; each before, shared, after. The last row is :meth:`spread`.
        """
        thresholds = list(next(iter(self.before.values())).precision)
        heads = " | ".join(f"precision at {threshold:g}" for threshold in thresholds)
        lines = [f"| setting | calibration error | {heads} |", "| --- |" + " ---: |" * (len(thresholds) + 1)]
        for setting in self.before:
            ways = [way[setting] for way in (self.before, self.shared, self.after)]
            cells = [" / ".join(f"{each.error:.4f}" for each in ways)]
            for threshold in thresholds:
                cells.append(" / ".join(f"{_decimal(w.precision[threshold])} ({w.kept[threshold]})" for w in ways))
            lines.append(f"| {setting} | {' | '.join(cells)} |")
        spreads = [" / ".join(map(_decimal, self.spread(threshold))) for threshold in thresholds]
        lines.append(f"| max − min |  | {' | '.join(spreads)} |")
        return "\n".join(lines)


def error_table(reports: Mapping[str, CalibrationReport]) -> str:
    """The calibration errors alone, before / shared / after: a row a setting, a column for each of ``reports``."""
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
    """Measure ``calibration`` on pairs that it was not fitted on; a setting without its own map takes the nearest's."""
    maps = {plan: calibration.nearest(plan.last_layer, plan.merges).map for plan in logits}
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
    """What :func:`calibrate` is worth on new queries of the same kind: every query is held out once, and calibrated by
    maps that were fitted on the other folds.
    """
    t = np.asarray(targets, dtype=np.float64)
    fitted = []
    for held_out in fold_masks(groups, folds, seed):
        seen = np.flatnonzero(~held_out)
        names = [groups[place] for place in seen.tolist()]
        maps = {
            plan: fit_setting(plan, np.asarray(z, dtype=np.float64)[seen], t[seen], names, None, seed)
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
    """``fitted``: the pairs to measure, in parts that make up all of them, each with the maps for its part."""
    t = np.asarray(targets, dtype=np.float64)
    largest = max(logits, key=lambda plan: (plan.last_layer, plan.mean_width))
    before, shared, after = {}, {}, {}
    for plan, raw in logits.items():
        z = np.asarray(raw, dtype=np.float64)
        own, other = np.empty(len(t)), np.empty(len(t))
        for part, maps in fitted:
            own[part], other[part] = mapped(maps[plan], z[part]), mapped(maps[largest], z[part])
        name = setting_name(plan.last_layer, plan.merges)
        before[name] = Reliability.measure(z, t, thresholds)
        shared[name] = Reliability.measure(other, t, thresholds)
        after[name] = Reliability.measure(own, t, thresholds)
    return CalibrationReport(before, shared, after, len(t), float(t.mean()))


def _decimal(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
