"""Logits to the probabilities that a user sees."""

import math
from collections.abc import Iterable

from mrr_model.calibration.maps import Calibration
from mrr_model.compression import Plan


def probability(logit: float) -> float:
    """The logistic function in float64, strictly inside (0, 1).

    Example:
        >>> probability(0.0), 0.0 < probability(-1e4), probability(1e4) < 1.0
        (0.5, True, True)
    """
    if logit >= 0:
        return min(1.0 / (1.0 + math.exp(-logit)), math.nextafter(1.0, 0.0))
    grown = math.exp(max(logit, -700.0))
    return grown / (1.0 + grown)


def probabilities(logits: Iterable[float], plan: Plan, calibration: Calibration | None) -> list[float]:
    """Turn the logits of a Plan's last exit into probabilities.

    Args:
        logits: Raw logits.
        plan: The Plan that gave them.
        calibration: The checkpoint's maps, of which the nearest to the Plan is used; None for the logistic function
            alone.

    Returns:
        Float64 probabilities, strictly inside (0, 1).
    """
    if calibration is None:
        return [probability(logit) for logit in logits]
    own = calibration.nearest(plan).map
    return [probability(own(logit)) for logit in logits]
