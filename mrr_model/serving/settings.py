"""From what a request asks for to the setting that runs."""

import warnings
from collections.abc import Collection
from functools import lru_cache

from mrr_model.cascade import Cascade, CascadeOption
from mrr_model.compression import Compression, Plan
from mrr_model.reranker import MatryoshkaReranker
from mrr_model.selection.choose import choose_by_profile
from mrr_model.selection.profile import Profile
from mrr_model.selection.target import Target
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.shedding import RETURN, Step
from mrr_model.serving.work import ChosenBy, Knobs, ServedSetting
from mrr_model.validation.arguments import DEFAULT, Default

REMEMBERED = 256
"""Settings and targets that are resolved once."""


class SettingChooser:
    """Resolves the knobs of requests for one model.

    Args:
        reranker: The model; its own setting and cascade are the server's default.
        allowed: The knobs that requests may use.
    """

    def __init__(self, reranker: MatryoshkaReranker, allowed: Collection[str]) -> None:
        self.reranker, self.allowed = reranker, frozenset(allowed)
        self._full_flops = reranker.flops(depth=None, keep_ratio=1.0)
        self._facts = lru_cache(REMEMBERED)(self._computed_facts)
        self._target = lru_cache(REMEMBERED)(self._chosen_for)
        explanation = reranker.explain()
        reason = "the server's default"
        if explanation.reason != "as given":
            reason = f"{reason}: {explanation.reason}"
        self.default = self._served(reranker.compression, DEFAULT, "server", reason)

    def chosen(self, knobs: Knobs, seconds_at_full_size: float, pairs: int) -> ServedSetting:
        """The setting of a request.

        Args:
            knobs: What it asks for.
            seconds_at_full_size: How long it would take at full size, for a target of a latency.
            pairs: How many pairs it has.

        Raises:
            ServingError: NOT_ALLOWED for a knob that the server keeps to itself, INVALID for one that the model lacks.
        """
        refused = [name for name in knobs.given if name not in self.allowed]
        if refused:
            granted = ", ".join(sorted(self.allowed)) or "none"
            raise ServingError(
                Fault.NOT_ALLOWED,
                f"{' and '.join(refused)}: this server does not let requests choose it; it allows {granted}.",
            )
        if not knobs.given:
            return self.default
        try:
            if knobs.target is None:
                depth = knobs.depth
                if isinstance(depth, int):  # all layers run beyond the last one; here that is no reason to warn
                    depth = min(depth, self.reranker.num_layers)
                setting = self.reranker.compression.override(depth, knobs.keep_ratio)
                return self._served(setting, knobs.cascade, "request", "as asked")
            if len(knobs.given) > 1:
                raise ValueError("target chooses depth, keep_ratio and cascade: give it or them, not both.")
            if knobs.target.max_latency_ms is not None:
                return self._within(knobs.target, seconds_at_full_size, pairs)
            return self._target(knobs.target)
        except (TypeError, ValueError) as error:
            raise ServingError(Fault.INVALID, str(error)) from error

    def shed(self, step: Step, queue_seconds: float) -> ServedSetting:
        """The setting of requests that ask for none while a step is in force; the default if that is no larger."""
        setting = self._shed_setting(step.action)
        reason = f"the queue is {1000 * queue_seconds:.0f} ms long ({step}, until {1000 * RETURN * step.seconds:g} ms)"
        served = self._served(setting, None, "shedding", reason)
        return served if served.flops_share < self.default.flops_share else self.default

    def check_step(self, step: Step) -> None:
        """Check that the model can do what a step says. Raises `ValueError` if not."""
        self._shed_setting(step.action)

    def reaches(self, target: Target) -> bool:
        """Whether a target has a setting that computes less than the default."""
        try:
            share = self._share(self._shed_setting(target))
        except ValueError:
            return False
        return share < self.default.flops_share

    def _shed_setting(self, action: Target | Compression) -> Compression:
        """A fixed setting: a cascade's time depends on the documents, so it is no way to shed load."""
        if isinstance(action, Compression):
            self.reranker.plan(**action.to_kwargs())
            return action
        profile = self.reranker.profile
        if profile is None:
            return self._target(action).setting
        return choose_by_profile(action, profile.model_copy(update={"points": profile.fixed})).setting

    def _chosen_for(self, target: Target) -> ServedSetting:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of a target out of reach; the answer says it
            chosen = self.reranker.copy(target=target)
        cascade = chosen.cascade if isinstance(chosen.cascade, Cascade) else None
        return self._served(chosen.compression, cascade, "request", chosen.explain().reason)

    def _within(self, target: Target, seconds_at_full_size: float, pairs: int) -> ServedSetting:
        """The profile's best setting within the target's latency at the server's own pace, else the fastest."""
        profile = self._profile()
        full = profile.full.seconds
        seconds = {point.setting: seconds_at_full_size * point.seconds / full for point in profile.fixed}
        target = Target(max_latency_ms=target.max_latency_ms, documents=pairs, if_unreachable=target.if_unreachable)
        fastest = min(profile.fixed, key=lambda point: point.seconds)
        if target.if_unreachable == "fastest" and 1000 * seconds[fastest.setting] > (target.max_latency_ms or 0):
            reason = f"the fastest setting: {1000 * seconds[fastest.setting]:.0f} ms at this server's pace"
            return self._served(fastest.setting, None, "request", f"{reason}, without waiting")
        choice = choose_by_profile(target, profile, seconds, timed="at this server's pace, without waiting")
        return self._served(choice.setting, None, "request", choice.reason)

    def _profile(self) -> Profile:
        profile = self.reranker.profile
        if profile is None:
            raise ValueError("target max_latency_ms needs a checkpoint with a profile, and this one has none.")
        return profile

    def _served(
        self, setting: Compression, cascade: CascadeOption | Default, chosen_by: ChosenBy, reason: str
    ) -> ServedSetting:
        plan = self.reranker.plan(**setting.to_kwargs())
        resolved = self.reranker.resolved_cascade(cascade, plan)
        share, kept = self._facts(setting, plan, resolved)
        return ServedSetting(
            setting=Compression(
                plan.last_layer,
                dict(setting.keep_ratio) if isinstance(setting.keep_ratio, tuple) else setting.keep_ratio,
            ),
            plan=plan,
            cascade=resolved,
            chosen_by=chosen_by,
            reason=reason,
            flops_share=share,
            quality_kept=kept,
        )

    def _share(self, setting: Compression) -> float:
        return self.reranker.flops(**setting.to_kwargs()) / self._full_flops

    def _computed_facts(self, setting: Compression, plan: Plan, cascade: Cascade | None) -> tuple[float, float | None]:
        """A setting's share of full size's FLOPs, and of its quality if the profile has it."""
        profile, kept = self.reranker.profile, None
        for point in profile.points if profile else ():
            own = None if point.cascade is None else point.cascade.cascade
            if own == cascade and self.reranker.plan(**point.setting.to_kwargs()) == plan:
                kept = point.kept
        return self._share(setting), kept
