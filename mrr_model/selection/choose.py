"""From a target to a setting of one reranker, and a setting explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mrr_model.compression import Compression, Plan
from mrr_model.selection.latency import Request, moment, request_timings
from mrr_model.selection.target import Choice, Target, choose, choose_by_flops

if TYPE_CHECKING:
    from mrr_model.reranker import MatryoshkaReranker

RATIOS = (1.0, 0.75, 0.5, 0.25)
"""The keep ratios that the FLOPs model chooses among, where there is no profile."""


CHANGED = "the weights have changed since they were loaded, so the checkpoint's measurements are of others"


@dataclass(frozen=True)
class Explanation:
    """A setting: why it is used, what it does, what it costs and keeps. ``str()`` says it in lines."""

    setting: Compression
    """As a user says it."""
    reason: str
    """Where it comes from."""
    plan: Plan
    """The same resolved for the model."""
    flops: float
    """The share of full size's FLOPs, for a query of 32 and a passage of 192 tokens."""
    calibration: str
    """Which map makes probabilities of its logits."""
    measured: str
    """What the checkpoint's profile says of it."""

    def __str__(self) -> str:
        merges = ", ".join(
            f"after layer {layer} to {float(self.plan.width(layer + 1)):g}" for layer in sorted(self.plan.merges)
        )
        lines = {
            "setting": f"{self.setting}: {self.reason}",
            "does": f"runs {self.plan.last_layer} layers, merges passage tokens {merges or 'nowhere'}",
            "adapters": ", ".join(self.plan.adapters) or "none",
            "flops": f"{self.flops:.1%} of full size's",
            "measured": self.measured,
            "probabilities": self.calibration,
        }
        return "\n".join(f"{name:<14}{line}" for name, line in lines.items())


def chosen_setting(reranker: MatryoshkaReranker, target: Target) -> Choice:
    """The setting of this model that a target asks for.

    Raises ``ValueError`` where the target needs a profile that the checkpoint lacks, or nothing reaches it.
    """
    profile = reranker.profile
    if profile is not None and reranker.weights_changed:
        raise ValueError(f"{target!r} cannot choose: {CHANGED}. Measure a saved copy with `mrr evaluate`.")
    if profile is None:
        if target.speedup is None:
            raise ValueError(
                f"{target!r} needs a profile, and the checkpoint {str(reranker.name)!r} has none. Make one with "
                f"`mrr evaluate {reranker.name} COLLECTION --save-profile`; Target(speedup=…) does without."
            )
        ratios = RATIOS[::-1] if reranker.merge_layers else RATIOS[:1]  # of settings that are one Plan the widest stays
        grid = {reranker.plan(depth, ratio): Compression(depth, ratio) for depth in reranker.exits for ratio in ratios}
        full = reranker.flops(depth=None, keep_ratio=1.0)
        shares = {
            setting: reranker.flops(depth=setting.depth, keep_ratio=setting.keep_ratio) / full
            for setting in grid.values()
        }
        return choose_by_flops(target.speedup, shares, target.if_unreachable)
    if target.max_latency_ms is None:
        return choose(target, profile)
    request = Request(target.documents, profile.query_tokens, profile.passage_tokens)
    settings_of_profile = [point.setting for point in profile.points]
    timings = request_timings(reranker, settings_of_profile, request, refresh=target.refresh)
    return choose(target, profile, timings.of(settings_of_profile), timed=str(timings))


def explanation(reranker: MatryoshkaReranker, plan: Plan, setting: Compression, choice: Choice | None) -> Explanation:
    """What a reranker does at a setting; ``choice`` where a target chose it."""
    cost = reranker.flops(depth=setting.depth, keep_ratio=setting.keep_ratio)
    return Explanation(
        setting=setting,
        reason=choice.reason if choice is not None else "as asked",
        plan=plan,
        flops=cost / reranker.flops(depth=None, keep_ratio=1.0),
        calibration=_calibration(reranker, plan),
        measured=_measured(reranker, plan),
    )


def _calibration(reranker: MatryoshkaReranker, plan: Plan) -> str:
    calibration = reranker.calibration
    if calibration is None:
        return "the logistic function of the logits: the checkpoint has no calibration"
    used = calibration.nearest(plan.last_layer, plan.merges)
    whose = (
        "this setting's own map" if used.matches(plan.last_layer, plan.merges) else f"the map of {used}, the nearest"
    )
    if reranker.weights_changed:
        return f"by {whose}, which no longer fits: {CHANGED}"
    size = f"{calibration.pairs} pairs, {calibration.relevant:.1%} of them relevant"
    return f"by {whose}, fitted on {calibration.data}, {size}"


def _measured(reranker: MatryoshkaReranker, plan: Plan) -> str:
    profile = reranker.profile
    if profile is None:
        return "nothing: the checkpoint has no profile"
    if reranker.weights_changed:
        return f"nothing: {CHANGED}"
    same = (point for point in profile.points if reranker.plan(point.depth, point.keep_ratio) == plan)
    point = next(same, None)
    if point is None:
        return f"not at this setting; others on {profile.data}"
    when = "" if profile.measured_at is None else f", {moment(profile.measured_at)}"
    noise = f" ({profile.noise})" if profile.noise is not None and profile.noise.noisy else ""
    return (
        f"kept {point.kept:.1%} of full size's {profile.metric} on {profile.data}, {profile.speedup(point):.2f} times "
        f"as quick on {profile.device} in {profile.dtype}{when}{noise}"
    )
