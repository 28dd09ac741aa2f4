"""Target: what a user needs, from which a setting is chosen."""

import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Literal, get_args

from mrr_model.validation.arguments import true_or_false, whole_number

DOCUMENTS = 20
"""Documents of a request, by default."""

IfUnreachable = Literal["raise", "fastest"]
"""What to do if no setting is fast enough. An error is the default, as for every argument that cannot be honoured: who
sets up a service sees it at once, while a warning in a log is overlooked.
"""


@dataclass(frozen=True)
class Target:
    """One need, instead of a depth and a keep ratio. Give exactly one of the first three.

    Args:
        keep_quality: The share of full size's quality to keep, in (0, 1]. Chooses the fastest setting that kept it on
            every collection of the profile; full size always did. It comes with a cascade if that is faster.
        speedup: How many times as fast as full size, at least 1. Chooses the best setting that is, with a cascade if
            that keeps more.
        max_latency_ms: The maximum time of a request, in milliseconds. Chooses the best setting that meets it on this
            device; never a cascade, whose time depends on the documents.
        documents: Documents of that request; only with `max_latency_ms`.
        if_unreachable: If no setting is fast enough, `"raise"` a `ValueError`, or use the `"fastest"` setting with a
            `UserWarning`, for a service that should rather be slow than down.
        refresh: Measure the times on this device again, even if they are in the cache; only with `max_latency_ms`.

    Raises:
        TypeError: For an argument of the wrong type; names it.
        ValueError: For an argument that is out of range, or does not fit the others; names it.

    Example:
        >>> Target(speedup=3)
        Target(speedup=3.0)
    """

    keep_quality: float | None = None
    speedup: float | None = None
    max_latency_ms: float | None = None
    documents: int = DOCUMENTS
    if_unreachable: IfUnreachable = "raise"
    refresh: bool = False

    def __post_init__(self) -> None:
        given = {need: value for need in NEEDS if (value := getattr(self, need)) is not None}
        if len(given) != 1:
            raise ValueError(
                f"a Target takes exactly one of {', '.join(NEEDS)}, got {', '.join(given) or 'none'}. "
                "Write Target(speedup=3), for example."
            )
        [(need, value)] = given.items()
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{need} must be a number, got {value!r} ({type(value).__name__}).")
        minimum, maximum, allowed = NEEDS[need]
        if not minimum <= float(value) <= maximum or float(value) == 0:
            raise ValueError(f"{need} must be {allowed}, got {value!r}.")
        object.__setattr__(self, need, float(value))
        object.__setattr__(self, "documents", whole_number("documents", self.documents))
        if self.max_latency_ms is None and self.documents != DOCUMENTS:
            raise ValueError("documents goes with max_latency_ms: the other needs don't depend on it. Leave it out.")
        if self.if_unreachable not in get_args(IfUnreachable):
            raise ValueError(f"if_unreachable must be 'raise' or 'fastest', got {self.if_unreachable!r}.")
        object.__setattr__(self, "refresh", true_or_false("refresh", self.refresh))
        if self.refresh and self.max_latency_ms is None:
            raise ValueError("refresh goes with max_latency_ms: nothing is timed for the other needs. Leave it out.")

    def __repr__(self) -> str:
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        shown = [
            f"{name}={value!r}"
            for name, (value, default) in values.items()
            if value != default or (name == "documents" and self.max_latency_ms is not None)
        ]
        return f"Target({', '.join(shown)})"


NEEDS = {
    "keep_quality": (0.0, 1.0, "a share above 0 and at most 1, such as 0.98"),
    "speedup": (1.0, math.inf, "at least 1: how many times as fast as full size"),
    "max_latency_ms": (0.0, math.inf, "a number of milliseconds above 0"),
}
"""Each need's minimum and maximum, and its range in words."""
