"""A setting explained: why it is used, what it runs, what it costs and keeps."""

from collections.abc import Callable
from dataclasses import dataclass

from mrr_model.calibration.maps import Calibration, setting_of
from mrr_model.cascade import Cascade
from mrr_model.compression import Compression, Plan
from mrr_model.selection.latency import moment
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint

CHANGED = "the weights have changed since they were loaded, so the checkpoint's measurements no longer describe them"


@dataclass(frozen=True)
class Explanation:
    """What is known about a setting; `str()` gives it line by line."""

    setting: Compression
    """As the user gave it, or as a target chose it."""
    reason: str
    """Why it is used."""
    plan: Plan
    """The setting resolved for the model."""
    flops_share: float
    """The share of full size's FLOPs, for a query of 32 and a passage of 192 tokens."""
    calibration: str
    """Which map turns its logits into probabilities."""
    measured: str
    """What the checkpoint's profile says about it."""
    cascade: str | None
    """Which documents of a ranking stop before the setting's exit, and what is known of it; None: none do."""

    def __str__(self) -> str:
        merges = ", ".join(
            f"after layer {layer} to {float(self.plan.width(layer + 1)):g}" for layer in sorted(self.plan.merges)
        )
        lines = {
            "setting": f"{self.setting}: {self.reason}",
            "does": f"runs {self.plan.last_layer} layers, merges passage tokens {merges or 'nowhere'}",
            "adapters": ", ".join(self.plan.adapters) or "none",
            "FLOPs": f"{self.flops_share:.1%} of full size's",
            "measured": self.measured,
            "probabilities": self.calibration,
            **({} if self.cascade is None else {"cascade": self.cascade}),
        }
        return "\n".join(f"{name:<14}{line}" for name, line in lines.items())


def explain(
    setting: Compression,
    plan: Plan,
    *,
    reason: str,
    flops_share: float,
    calibration: Calibration | None,
    profile: Profile | None,
    resolve: Callable[[Compression], Plan],
    weights_changed: bool,
    cascade: Cascade | None = None,
) -> Explanation:
    """Explain a setting.

    Args:
        setting: What to explain.
        plan: The setting resolved for the model.
        reason: Why it is used.
        flops_share: Its share of full size's FLOPs.
        calibration: The checkpoint's; None if it has none.
        profile: The checkpoint's; None if it has none.
        resolve: Gives the Plan of a setting.
        weights_changed: Whether the weights in memory differ from those that were measured.
        cascade: What is in effect; None if all documents run to the setting's exit.
    """
    return Explanation(
        setting=setting,
        reason=reason,
        plan=plan,
        flops_share=flops_share,
        calibration=_calibration(plan, calibration, weights_changed),
        measured=_measured(plan, profile, resolve, weights_changed),
        cascade=None if cascade is None else _cascade(cascade, plan, profile, resolve, weights_changed),
    )


def _calibration(plan: Plan, calibration: Calibration | None, weights_changed: bool) -> str:
    if calibration is None:
        return "the logistic function of the logits: the checkpoint has no calibration"
    used = calibration.nearest(plan)
    whose = "this setting's own map" if used.setting == setting_of(plan) else f"the map of {used}, the nearest"
    if weights_changed:
        return f"by {whose}, which no longer fits: {CHANGED}"
    size = f"{calibration.pairs} pairs, {calibration.relevant_share:.1%} of them relevant"
    return f"by {whose}, fitted on {calibration.data}, {size}"


def _measured(
    plan: Plan, profile: Profile | None, resolve: Callable[[Compression], Plan], weights_changed: bool
) -> str:
    if profile is None:
        return "nothing: the checkpoint has no profile"
    if weights_changed:
        return f"nothing: {CHANGED}"
    point = next((point for point in profile.fixed if resolve(point.setting) == plan), None)
    if point is None:
        return f"not at this setting; other settings on {profile.data}"
    return _kept(point, profile)


def _kept(point: ProfilePoint, profile: Profile) -> str:
    when = "" if profile.measured_at is None else f", {moment(profile.measured_at)}"
    noise = f" ({profile.noise})" if profile.noise is not None and profile.noise.noisy else ""
    return (
        f"kept {point.kept:.1%} of full size's {profile.metric} on {profile.data}, {profile.speedup(point):.2f} times "
        f"as fast on {profile.device} in {profile.dtype}{when}{noise}"
    )


def _cascade(
    cascade: Cascade,
    plan: Plan,
    profile: Profile | None,
    resolve: Callable[[Compression], Plan],
    weights_changed: bool,
) -> str:
    known = _origin(cascade, plan, profile, resolve, weights_changed)
    return f"{cascade}, {_unit(cascade)}: {known}; score and score_pairs run the whole setting"


def _unit(cascade: Cascade) -> str:
    if cascade.by == "count":
        return "the documents that survive each exit"
    rank = "the last document returned" if cascade.top_n is None else f"the {cascade.top_n} best documents"
    return f"in logits below {rank} at each exit"


def _origin(
    cascade: Cascade,
    plan: Plan,
    profile: Profile | None,
    resolve: Callable[[Compression], Plan],
    weights_changed: bool,
) -> str:
    points = [point for point in (profile.points if profile else ()) if resolve(point.setting) == plan]
    point = next((point for point in points if point.cascade and point.cascade.cascade == cascade), None)
    if profile is None or point is None or point.cascade is None:
        return "as given, and not in the checkpoint's profile"
    if weights_changed:
        return f"in the checkpoint's profile, but {CHANGED}"
    share = f"{point.flops / profile.full.flops:.1%} of full size's FLOPs expected"
    return f"{_fit(point.cascade)}; {share}, {_kept(point, profile)}"


def _fit(cascade: ProfileCascade) -> str:
    lose = "of the queries lose one of the setting's best documents"
    parts = ["as given" if cascade.lost is None else f"fitted so that at most {cascade.lost:.1%} {lose}"]
    if cascade.held_out is not None:
        share = lose if cascade.lost is None else "of those that it was not fitted on did"
        parts.append(f"{cascade.held_out:.1%} {share}")
    return ", ".join(parts)
