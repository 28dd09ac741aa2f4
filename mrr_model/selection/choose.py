"""From a target to a setting, by a checkpoint's profile, or without one by FLOPs."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from mrr_model.cascade import Cascade
from mrr_model.compression import Compression
from mrr_model.selection.latency import Request, Timings
from mrr_model.selection.profile import Profile, ProfilePoint
from mrr_model.selection.target import IfUnreachable, Target
from mrr_model.validation.arguments import callers_level

RATIOS = (1.0, 0.75, 0.5, 0.25)
"""The keep ratios to choose among without a profile."""


@dataclass(frozen=True)
class Choice:
    """A chosen setting, alone or with a cascade."""

    setting: Compression
    reason: str
    """Why it was chosen, in one sentence."""
    cascade: Cascade | None = None
    """The cascade that runs to it; None if all documents run to it."""


class TimeSettings(Protocol):
    """Times a request at each setting on this device."""

    def __call__(self, settings: Sequence[Compression], request: Request, *, refresh: bool) -> Timings:
        """`refresh`: measure again, whatever the cache holds."""
        ...


def choose(
    target: Target,
    profile: Profile | None,
    *,
    candidates: Sequence[Compression],
    flops_share: Callable[[Compression], float],
    time_settings: TimeSettings,
    model: str,
) -> Choice:
    """Choose the setting that a target asks for.

    Args:
        target: The need.
        profile: The checkpoint's; None if it has none.
        candidates: The settings to choose among without a profile.
        flops_share: A setting's share of full size's FLOPs.
        time_settings: Times requests on this device.
        model: What error messages call the checkpoint.

    Raises:
        ValueError: If the target needs a profile and there is none, or no setting is fast enough.
    """
    if profile is None:
        if target.speedup is None:
            raise ValueError(
                f"{target!r} needs a profile, and the checkpoint {model!r} has none. Make one with `mrr evaluate "
                f"{model} COLLECTION --save-profile`; Target(speedup=…) works without one."
            )
        shares = {setting: flops_share(setting) for setting in candidates}
        return choose_by_flops(target.speedup, shares, target.if_unreachable)
    if target.max_latency_ms is None:
        return choose_by_profile(target, profile)
    request = Request(target.documents, profile.query_tokens, profile.passage_tokens)
    settings = [point.setting for point in profile.fixed]
    timings = time_settings(settings, request, refresh=target.refresh)
    return choose_by_profile(target, profile, timings.of(settings), timed=str(timings))


def candidate_settings(exits: Sequence[int], merge_layer: int | None) -> list[Compression]:
    """Every exit at each of `RATIOS`, without settings that would run the same Plan.

    Args:
        exits: The model's exits.
        merge_layer: Where a plain keep ratio merges; None for a model that cannot merge.

    Example:
        >>> [str(setting) for setting in candidate_settings((1, 2), merge_layer=1)][:2]
        ['depth 1, keep ratio 1', 'depth 2, keep ratio 1']
    """
    return [
        Compression(depth, ratio)
        for depth in exits
        for ratio in (RATIOS if merge_layer is not None and merge_layer < depth else RATIOS[:1])
    ]


def choose_by_profile(
    target: Target, profile: Profile, seconds: Mapping[Compression, float] | None = None, timed: str = ""
) -> Choice:
    """Choose among the points of a profile.

    A cascade is chosen only if it is better than every fixed setting: faster than all that keep enough quality, or
    keeping more than all that are fast enough. A latency never chooses one: its time depends on how many documents of a
    query lie far below its best, so what a request will take cannot be promised.

    Args:
        target: The need.
        profile: What was measured.
        seconds: A request's time at each setting on this device; for a target of a latency.
        timed: When and where that was measured, in words.

    Raises:
        ValueError: If no setting is fast enough, unless the target accepts the fastest.
    """
    if target.keep_quality is not None:
        enough = [point for point in profile.points if point.min_kept >= target.keep_quality]
        fastest = min(enough, key=lambda point: (point.seconds, point.cascade is not None, -point.kept))
        return _choice(
            profile,
            fastest,
            f"the fastest setting that kept at least {target.keep_quality:.1%} of full size's {profile.metric} on "
            f"every collection: {fastest.kept:.1%} on average, {fastest.min_kept:.1%} at least, at "
            f"{profile.speedup(fastest):.2f} times its speed, measured on {profile.data}",
        )
    if target.speedup is not None:
        taken = [(point, point.seconds) for point in profile.points]
        limit, wanted = profile.full.seconds / target.speedup, f"{target.speedup:g} times as fast as full size"
    else:
        assert target.max_latency_ms is not None
        assert seconds is not None
        taken, limit = [(point, seconds[point.setting]) for point in profile.fixed], target.max_latency_ms / 1000
        wanted = f"done with {target.documents} documents in {target.max_latency_ms:g} ms"
    timed = f" ({timed})" if timed else ""
    fast = [(point, time) for point, time in taken if time <= limit]
    if not fast:
        fastest, shortest = min(taken, key=lambda item: item[1])
        at_best = (
            f"{profile.full.seconds / shortest:.2f} times" if target.speedup else f"{shortest * 1000:.0f} ms{timed}"
        )
        fault = f"no setting of the profile is {wanted}: the fastest, {fastest}, reaches {at_best}"
        again = "measure again with refresh=True, " if target.max_latency_ms else ""
        return _fastest(
            target.if_unreachable,
            _choice(profile, fastest, f"the fastest setting, because {fault}"),
            fault,
            f"Ask for less, {again}profile smaller settings with `mrr evaluate MODEL COLLECTION --depth … "
            "--keep-ratio … --save-profile`",
        )
    best, time = max(fast, key=lambda item: (item[0].kept, item[0].cascade is None, -item[1]))
    measured = (
        f"{profile.speedup(best):.2f} times as fast" if target.speedup else f"{time * 1000:.0f} ms on this device"
    )
    return _choice(
        profile,
        best,
        f"the best setting that is {wanted}: {measured}, and kept {best.kept:.1%} of full size's {profile.metric} on "
        f"{profile.data}{timed}",
    )


def choose_by_flops(
    speedup: float, shares: Mapping[Compression, float], if_unreachable: IfUnreachable = "raise"
) -> Choice:
    """Choose the setting that computes most within full size's FLOPs over `speedup`.

    It replaces a profile: more computation stands for better quality; of equal settings the deeper is chosen.

    Args:
        speedup: How many times as fast as full size.
        shares: Each setting's share of full size's FLOPs.
        if_unreachable: What to do if no setting is small enough.

    Raises:
        ValueError: If no setting is small enough, unless the fastest is accepted.

    Example:
        >>> shares = {Compression(6, 1.0): 1.0, Compression(4, 0.5): 0.42, Compression(2, 0.5): 0.23}
        >>> choose_by_flops(3, shares).setting
        Compression(depth=2, keep_ratio=0.5)
    """
    within = [setting for setting, share in shares.items() if share <= 1 / speedup]
    if not within:
        setting, smallest = min(shares.items(), key=lambda item: item[1])
        fault = (
            f"speedup={speedup:g} is out of reach: the smallest setting, {setting}, takes {smallest:.1%} of full "
            f"size's FLOPs, {1 / smallest:.2f} times as fast at best"
        )
        fastest = Choice(setting, f"the fastest setting, because {fault}")
        return _fastest(if_unreachable, fastest, fault, "Ask for less")
    chosen = max(within, key=lambda setting: (round(shares[setting], 9), setting.depth or 0))
    return Choice(
        chosen,
        f"the largest setting within 1/{speedup:g} of full size's FLOPs ({shares[chosen]:.1%}), by the FLOPs "
        "model: this checkpoint has no profile (make one with `mrr evaluate MODEL COLLECTION --save-profile`)",
    )


def _choice(profile: Profile, point: ProfilePoint, reason: str) -> Choice:
    if point.cascade is None:
        return Choice(point.setting, reason)
    share = f"{point.flops / profile.full.flops:.1%} of full size's FLOPs expected"
    return Choice(point.setting, f"with a cascade ({point.cascade.cascade}; {share}), {reason}", point.cascade.cascade)


def _fastest(if_unreachable: IfUnreachable, fastest: Choice, fault: str, advice: str) -> Choice:
    """The fastest setting with a warning, if the target accepts it; else the error."""
    if if_unreachable == "raise":
        raise ValueError(f'{fault}. {advice}, or accept the fastest setting with if_unreachable="fastest".')
    warnings.warn(f"{fault}. It is used nevertheless.", UserWarning, stacklevel=callers_level())
    return fastest
