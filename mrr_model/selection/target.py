"""Target: what a user needs, from which a setting is chosen: a share of full size's quality, a multiple of its speed,
or so many milliseconds.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal, get_args

from mrr_model.compression import Compression
from mrr_model.selection.profile import Profile
from mrr_model.validation.arguments import callers_level

DOCUMENTS = 20
"""How many documents a request has, where a latency is asked for and nothing is said of them."""


IfUnreachable = Literal["raise", "fastest"]
"""What to do where no setting is fast enough. An error is the default, as for every argument that cannot be honoured:
whoever sets the service up sees it at once, where a warning in a log goes unseen.
"""


@dataclass(frozen=True)
class Target:
    """One need, in place of a depth and a keep ratio.

    ``keep_quality``: the share of full size's quality to keep, in (0, 1]: the quickest setting that kept it on every
    collection of the profile; full size always did.
    ``speedup``: how many times as quick as full size, from 1: the best setting that is. ``max_latency_ms``: the most
    milliseconds of a request with ``documents`` documents: the best setting that takes no more on this device.
    ``if_unreachable``: if no setting is fast enough, ``"raise"`` a ``ValueError``, or take the ``"fastest"`` there is
    with a ``UserWarning``, for a service that should rather be slow than down. ``refresh``: measure this device's times
    again, even if they are in the cache; goes with ``max_latency_ms``.

    Raises ``TypeError`` or ``ValueError`` that names the argument.

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
        least, most, allowed = NEEDS[need]
        if not least <= float(value) <= most or float(value) == 0:
            raise ValueError(f"{need} must be {allowed}, got {value!r}.")
        object.__setattr__(self, need, float(value))
        if isinstance(self.documents, bool) or not isinstance(self.documents, Integral):
            raise TypeError(f"documents must be a whole number, got {self.documents!r}.")
        if self.documents < 1:
            raise ValueError(f"documents must be at least 1, got {self.documents}.")
        object.__setattr__(self, "documents", int(self.documents))
        if self.max_latency_ms is None and self.documents != DOCUMENTS:
            raise ValueError("documents goes with max_latency_ms: the other needs don't depend on it. Leave it out.")
        if self.if_unreachable not in get_args(IfUnreachable):
            raise ValueError(f"if_unreachable must be 'raise' or 'fastest', got {self.if_unreachable!r}.")
        if not isinstance(self.refresh, bool):
            raise TypeError(f"refresh must be True or False, got {self.refresh!r}.")
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
    "speedup": (1.0, math.inf, "at least 1: how many times as quick as full size"),
    "max_latency_ms": (0.0, math.inf, "a number of milliseconds above 0"),
}
"""Each need's least and greatest value, and the two in words."""


@dataclass(frozen=True)
class Choice:
    """A setting, and in one sentence why it was chosen."""

    setting: Compression
    reason: str


def choose(
    target: Target, profile: Profile, seconds: Mapping[Compression, float] | None = None, timed: str = ""
) -> Choice:
    """The setting of a profile that a target asks for. ``seconds``: a request's time at each setting on this device,
    where a latency is asked for; ``timed``: when and where that was measured, in words.

    Raises ``ValueError`` where no setting is fast enough, or warns and takes the fastest, as the target says.
    """
    if target.keep_quality is not None:
        enough = [point for point in profile.points if point.least >= target.keep_quality]
        quickest = min(enough, key=lambda point: (point.seconds, -point.kept))
        return Choice(
            quickest.setting,
            f"the quickest setting that kept at least {target.keep_quality:.1%} of full size's {profile.metric} on "
            f"every collection: {quickest.kept:.1%} on average, {quickest.least:.1%} at least, at "
            f"{profile.speedup(quickest):.2f} times its speed, measured on {profile.data}",
        )
    if target.speedup is not None:
        times = {point.setting: point.seconds for point in profile.points}
        limit, wanted = profile.full.seconds / target.speedup, f"{target.speedup:g} times as quick as full size"
    else:
        assert target.max_latency_ms is not None
        assert seconds is not None
        times, limit = dict(seconds), target.max_latency_ms / 1000
        wanted = f"done with {target.documents} documents in {target.max_latency_ms:g} ms"
    quick = [point for point in profile.points if times[point.setting] <= limit]
    timed = f" ({timed})" if timed else ""
    if not quick:
        setting, least = min(times.items(), key=lambda item: item[1])
        at_best = f"{profile.full.seconds / least:.2f} times" if target.speedup else f"{least * 1000:.0f} ms{timed}"
        again = "measure again with refresh=True, " if target.max_latency_ms else ""
        return _fastest(
            target.if_unreachable,
            setting,
            f"no setting of the profile is {wanted}: the quickest, {setting}, comes to {at_best}",
            f"Ask for less, {again}profile smaller settings with `mrr evaluate MODEL COLLECTION --depth … "
            "--keep-ratio … --save-profile`",
        )
    best = max(quick, key=lambda point: (point.kept, -times[point.setting]))
    measured = (
        f"{profile.speedup(best):.2f} times as quick"
        if target.speedup
        else f"{times[best.setting] * 1000:.0f} ms on this device"
    )
    return Choice(
        best.setting,
        f"the best setting that is {wanted}: {measured}, and kept {best.kept:.1%} of full size's {profile.metric} on "
        f"{profile.data}{timed}",
    )


def _fastest(if_unreachable: IfUnreachable, setting: Compression, fault: str, advice: str) -> Choice:
    """The fastest setting with a warning, where the target takes it; else the error."""
    if if_unreachable == "raise":
        raise ValueError(f'{fault}. {advice}, or take the fastest there is with if_unreachable="fastest".')
    warnings.warn(f"{fault}. It is used all the same.", UserWarning, stacklevel=callers_level())
    return Choice(setting, f"the fastest there is, because {fault}")


def choose_by_flops(
    speedup: float, shares: Mapping[Compression, float], if_unreachable: IfUnreachable = "raise"
) -> Choice:
    """The setting that computes most within full size's FLOPs over ``speedup``; ``shares`` of full size's.

    What stands in for a profile: more computation is taken for better quality; of equal ones the deeper is chosen.

    >>> shares = {Compression(6, 1.0): 1.0, Compression(4, 0.5): 0.42, Compression(2, 0.5): 0.23}
    >>> choose_by_flops(3, shares).setting
    Compression(depth=2, keep_ratio=0.5)
    """
    within = [setting for setting, share in shares.items() if share <= 1 / speedup]
    if not within:
        setting, least = min(shares.items(), key=lambda item: item[1])
        return _fastest(
            if_unreachable,
            setting,
            f"speedup={speedup:g} is out of reach: the smallest setting, {setting}, takes {least:.1%} of full size's "
            f"FLOPs, {1 / least:.2f} times as quick at best",
            "Ask for less",
        )
    chosen = max(within, key=lambda setting: (round(shares[setting], 9), setting.depth or 0))
    return Choice(
        chosen,
        f"the largest setting within 1/{speedup:g} of full size's FLOPs ({shares[chosen]:.1%}), by the FLOPs "
        "model: this checkpoint has no profile (make one with `mrr evaluate MODEL COLLECTION --save-profile`)",
    )
