"""Fit a calibration map for each setting.

A pair's target is 1 if the document is relevant, 0 if it is not (unjudged counts as not), or a probability in between.
The calibrated probability is then the share of *such candidates* that are relevant: with one relevant document among
some 100 candidates per query it is 1 % on average, and only a document that stands out comes near 1. Classes are not
weighed against each other, so that this stays true. The price: candidates from another source, with k times the odds of
being relevant, get logits that are too low by ln k, equally at every setting. `weights` change which mixture of
candidates is meant (with 1 / pairs of its query, for example, each query counts once).

scikit-learn does the fitting, and is imported only then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mrr_model.calibration.maps import (
    CalibratedSetting,
    Calibration,
    CalibrationMap,
    KnotMap,
    PlattMap,
    setting_of,
)
from mrr_model.compression import Plan

Numbers = Sequence[float] | npt.NDArray[np.floating[Any]]
Array = npt.NDArray[np.float64]

MIN_PER_CLASS = 300
"""Relevant pairs, and other pairs, that an isotonic fit needs: with fewer a bin holds too little."""

BINS = 50
"""Maximum number of bins of an isotonic fit."""

BIN_INFORMATION = 20.0
"""Minimum information Σ p (1 − p) in a bin of an isotonic fit; if relevant pairs are rare, about as many of them."""

PRIOR = 4.0
"""Weight of Platt's rate in each bin of an isotonic fit, as information: a bin is expected to lie half a logit, 1/√4,
off Platt's line.
"""

BLEND = 0.1
"""Share of Platt's map in an isotonic fit's values: the fit is nowhere flatter than a tenth of Platt's line."""

IDENTITY = PlattMap(slope=1.0, intercept=0.0)


def fit_platt(logits: Numbers, targets: Numbers, weights: Numbers | None = None) -> PlattMap:
    """Fit the line a · logit + b of maximum likelihood, for targets smoothed by one pair per class.

    Platt (1999), section 2.2: with N₊ relevant and N₋ other pairs the targets 1 and 0 become (N₊ + 1) / (N₊ + 2) and
    1 / (N₋ + 2), and targets in between are interpolated, so that classes that do not overlap give a finite slope too.

    Args:
        logits: One for each pair.
        targets: In 0 … 1, one for each pair.
        weights: One for each pair; None: 1.

    Raises:
        ValueError: If all targets or all logits are equal, or targets do not rise with the logits.

    Example:
        >>> even = fit_platt([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0], [0, 0, 1, 0, 1, 1])
        >>> even.slope > 0, abs(even.intercept) < 1e-6
        (True, True)
    """
    z, t, w = _checked(logits, targets, weights)
    relevant, other = float(w @ t), float(w @ (1 - t))
    t = t * (relevant + 1) / (relevant + 2) + (1 - t) / (other + 2)
    middle, scale = float(z.mean()), float(z.std())
    unit = (z - middle) / scale
    if np.average((t - np.average(t, weights=w)) * unit, weights=w) < 1e-9:  # the slope's sign is the covariance's
        raise ValueError(
            "targets do not rise with the logits, so no increasing map calibrates them. Check that both are in the "
            "same order, or give more pairs."
        )

    # A soft target is a relevant pair of weight t and another one of weight 1 − t.
    rows, classes = np.concatenate([unit, unit])[:, None], np.repeat([1, 0], len(z))
    model = _sklearn().linear_model.LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8)
    fit = model.fit(rows, classes, sample_weight=np.concatenate([w * t, w * (1 - t)]))
    slope = float(fit.coef_[0, 0]) / scale
    return PlattMap(slope=slope, intercept=float(fit.intercept_[0]) - slope * middle)


def fit_isotonic(
    logits: Numbers, targets: Numbers, weights: Numbers | None = None, platt: PlattMap | None = None
) -> KnotMap:
    """Fit a smoothed isotonic map: strictly increasing, without steps, and near Platt's line where data are few.

    (1) Bins of equal information Σ w p (1 − p), p being Platt's probability: they are narrow where relevance is
    undecided and do not depend on targets; each holds at least `BIN_INFORMATION`, and equal logits share one. (2) A
    bin's rate is its mean target, with pseudo-pairs at Platt's rate that carry the information `PRIOR`. (3) Isotonic
    regression of the rates. (4) One knot per bin, at its mean logit; its value mixes the rate's logit with Platt's, by
    the share `BLEND`, so that what the regression made flat still rises. With fewer than two knots, the map is Platt's
    line.

    Args:
        logits: One for each pair.
        targets: In 0 … 1, one for each pair.
        weights: One for each pair; None: 1.
        platt: The Platt map; None: fitted here.

    Raises:
        ValueError: As `fit_platt`.
    """
    z, t, w = _checked(logits, targets, weights)
    line = fit_platt(z, t, w) if platt is None else platt
    z, t, w = z[w > 0], t[w > 0], w[w > 0]
    information = w * _information(mapped(line, z))

    bins = _equal_bins(z, information)
    total, weight = np.bincount(bins, information), np.bincount(bins, w)
    centre = np.bincount(bins, information * z) / total
    expected = np.clip(mapped(line, centre), -30.0, 30.0)
    pseudo = PRIOR / _information(expected)
    rate = (np.bincount(bins, w * t) + pseudo * logistic(expected)) / (weight + pseudo)
    pooled = _sklearn().isotonic.IsotonicRegression().fit_transform(centre, rate, sample_weight=weight + pseudo)
    value = (1 - BLEND) * np.log(pooled / (1 - pooled)) + BLEND * expected

    apart = (np.diff(centre) > 1e-6 * np.ptp(z)) & (np.diff(value) > 1e-9)
    knots = np.flatnonzero(np.append(True, apart))
    if len(knots) < 2:
        centre = np.array([z.min(), z.max()])
        value, knots = mapped(line, centre), np.arange(2)
    return KnotMap(logits=tuple(centre[knots].tolist()), calibrated=tuple(value[knots].tolist()))


def fit_map(
    logits: Numbers,
    targets: Numbers,
    groups: Sequence[object],
    weights: Numbers | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
) -> CalibrationMap:
    """Fit Platt's line, or the isotonic map if there are enough pairs and it predicts held-out queries better.

    Enough means `MIN_PER_CLASS` relevant (Σ w t) and as many other pairs, of at least `folds` queries; better means a
    lower log loss over the folds.

    Args:
        logits: One for each pair.
        targets: In 0 … 1, one for each pair.
        groups: Each pair's query; its pairs are held out together.
        weights: One for each pair; None: 1.
        folds: How many parts are held out in turn.
        seed: Draws the folds.

    Raises:
        ValueError: As `fit_platt`.
    """
    z, t, w = _checked(logits, targets, weights)
    check_lengths(logits=len(z), groups=len(groups))
    platt = fit_platt(z, t, w)
    if min(w @ t, w @ (1 - t)) < MIN_PER_CLASS or len(set(groups)) < folds:
        return platt
    gain = 0.0
    for held_out in fold_masks(groups, folds, seed):
        seen = ~held_out
        line = fit_platt(z[seen], t[seen], w[seen])
        curve = fit_isotonic(z[seen], t[seen], w[seen], line)
        before, after = (log_losses(mapped(each, z[held_out]), t[held_out]) for each in (line, curve))
        gain += float(w[held_out] @ (before - after))
    return fit_isotonic(z, t, w, platt) if gain > 0 else platt


def calibrate(
    logits: Mapping[Plan, Numbers],
    targets: Numbers,
    groups: Sequence[object],
    weights: Numbers | None = None,
    *,
    data: str,
    seed: int = 0,
) -> Calibration:
    """Fit a map for each setting on the same judged pairs.

    Args:
        logits: By Plan (of one exit), the raw logits of the pairs.
        targets: In 0 … 1, one for each pair.
        groups: Each pair's query.
        weights: One for each pair; None: 1.
        data: What the pairs are, in words.
        seed: Draws the folds.

    Raises:
        ValueError: If a setting cannot be fitted; names it.
    """
    maps = {plan: fit_setting(plan, z, targets, groups, weights, seed) for plan, z in logits.items()}
    return _calibration(maps, targets, groups, weights, data, "labels")


def self_calibrate(
    logits: Mapping[Plan, Numbers],
    full: Plan,
    groups: Sequence[object],
    weights: Numbers | None = None,
    *,
    full_map: CalibrationMap | None = None,
    data: str,
    seed: int = 0,
) -> Calibration:
    """Fit a map for each setting without labels: full size's probabilities (`self_labels`) are the targets.

    A threshold then means the same at every setting, but only what it means at full size.

    Args:
        logits: By Plan (of one exit), the raw logits of the pairs.
        full: The key of full size.
        groups: Each pair's query.
        weights: One for each pair; None: 1.
        full_map: Full size's map, which it keeps; None: its logits are used as they are.
        data: What the pairs are, in words.
        seed: Draws the folds.

    Raises:
        ValueError: If a setting cannot be fitted; names it.
    """
    targets = self_labels(logits[full], full_map)
    maps = {
        plan: full_map or IDENTITY if plan == full else fit_setting(plan, z, targets, groups, weights, seed)
        for plan, z in logits.items()
    }
    return _calibration(maps, targets, groups, weights, data, "full size")


def self_labels(full_logits: Numbers, full_map: CalibrationMap | None = None) -> Array:
    """Full size's own probabilities, calibrated if it has a map: soft targets for every other setting.

    >>> self_labels([0.0, 2.0], PlattMap(slope=1.0, intercept=-2.0)).round(2).tolist()
    [0.12, 0.5]
    """
    return logistic(mapped(full_map or IDENTITY, np.asarray(full_logits, dtype=np.float64)))


def fold_masks(groups: Sequence[object], folds: int, seed: int = 0) -> Iterator[npt.NDArray[np.bool_]]:
    """For each fold, a mask of the pairs that it holds out: whole groups, drawn by `seed`, split as evenly as possible.

    Raises:
        ValueError: If there are fewer groups than folds, or fewer than two folds.

    Example:
        >>> [mask.sum().item() for mask in fold_masks(["a", "a", "b", "c"], 3)]
        [1, 1, 2]
    """
    known = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if not 2 <= folds <= len(known):
        raise ValueError(f"folds must be between 2 and the {len(known)} groups, got {folds}.")
    fold = np.random.default_rng(seed).permutation(len(known)) % folds
    drawn = np.array([fold[known[group]] for group in groups])
    for number in range(folds):
        yield drawn == number


def fit_setting(
    plan: Plan, logits: Numbers, targets: Numbers, groups: Sequence[object], weights: Numbers | None, seed: int
) -> CalibrationMap:
    """Fit one setting's map, as `fit_map`.

    Raises:
        ValueError: As `fit_map`; names the setting.
    """
    try:
        return fit_map(logits, targets, groups, weights, seed=seed)
    except ValueError as error:
        raise ValueError(f"{setting_of(plan)} cannot be calibrated: {error}") from error


def _calibration(
    maps: Mapping[Plan, CalibrationMap],
    targets: Numbers,
    groups: Sequence[object],
    weights: Numbers | None,
    data: str,
    kind: Literal["labels", "full size"],
) -> Calibration:
    settings = []
    for plan, fitted in maps.items():
        ratio = setting_of(plan).keep_ratio
        ratios = ratio if isinstance(ratio, float) else dict(ratio)
        settings.append(CalibratedSetting(depth=plan.last_layer, keep_ratio=ratios, map=fitted))
    return Calibration(
        settings=tuple(settings),
        data=data,
        targets=kind,
        pairs=len(targets),
        queries=len(set(groups)),
        relevant_share=float(np.average(np.asarray(targets, dtype=np.float64), weights=weights)),
    )


def _equal_bins(z: Array, information: Array) -> npt.NDArray[np.intp]:
    """The bin of each logit, ascending from 0 without gaps; bins hold equal information, as far as ties allow."""
    distinct, which = np.unique(z, return_inverse=True)
    held = np.bincount(which, information, len(distinct))
    count = int(np.clip(held.sum() / BIN_INFORMATION, 1, BINS))
    middle = np.cumsum(held) - held / 2
    bins = np.minimum((middle / held.sum() * count).astype(int), count - 1)
    return np.unique(bins, return_inverse=True)[1][which]


def mapped(fitted: CalibrationMap, logits: Array) -> Array:
    """A map applied to an array of logits."""
    return np.array([fitted(logit) for logit in logits.tolist()], dtype=np.float64)


def logistic(logits: Array) -> Array:
    """Logits to probabilities, without overflow."""
    p: Array = np.exp(-np.logaddexp(0.0, -logits))
    return p


def _information(logits: Array) -> Array:
    """The information p (1 − p), never quite zero."""
    p = logistic(np.clip(logits, -30.0, 30.0))
    return p * (1 - p)


def log_losses(logits: Array, targets: Array) -> Array:
    """−t ln p − (1 − t) ln(1 − p)."""
    return np.logaddexp(0.0, logits) - targets * logits


def _checked(logits: Numbers, targets: Numbers, weights: Numbers | None) -> tuple[Array, Array, Array]:
    """All three as float64 of one length; `ValueError` for what cannot be fitted."""
    z, t = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    w = np.ones(len(z)) if weights is None else np.asarray(weights, dtype=np.float64)
    check_lengths(logits=len(z), targets=len(t), weights=len(w))
    if not np.isfinite(z).all():
        raise ValueError("logits must be finite; leave out the pairs whose scores are not.")
    if not ((t >= 0) & (t <= 1)).all():
        raise ValueError(f"targets must lie in 0 … 1, got {t.min()} … {t.max()}; write 1 for every relevant grade.")
    if not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"weights must be finite and not negative, got {w.min()} … {w.max()}.")
    if w @ t == 0 or w @ (1 - t) == 0:
        raise ValueError(
            "targets must hold relevant pairs and other pairs: give more judged queries, or use self-labels."
        )
    if np.ptp(z[w > 0]) == 0:
        raise ValueError("logits must differ: one value for all pairs does not say which are relevant.")
    return z, t, w


def check_lengths(**lengths: int) -> None:
    """Check that the named lengths are equal and not zero.

    Raises:
        ValueError: If they differ, or are zero.
    """
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        given = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"each pair needs one value of each kind, got {given}.")


def _sklearn() -> Any:
    try:
        import sklearn.isotonic
        import sklearn.linear_model
    except ImportError as error:
        raise ImportError(
            f'calibrating needs scikit-learn ({error}): pip install "matryoshka-reranker[eval]"'
        ) from error
    return sklearn
