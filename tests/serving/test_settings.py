from typing import Any

import pytest

from mrr_model import Cascade, Compression, MatryoshkaReranker, Target
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.settings import SettingChooser
from mrr_model.serving.shedding import Step, automatic_policy, parse_policy
from mrr_model.serving.work import Knobs

ALL = ("depth", "keep_ratio", "target", "cascade")


@pytest.fixture(scope="module")
def chooser(mini: MatryoshkaReranker) -> SettingChooser:
    return SettingChooser(mini, ALL)


def test_the_default_is_the_model_s_own(chooser: SettingChooser, mini: MatryoshkaReranker) -> None:
    default = chooser.chosen(Knobs(), 1.0, 10)
    assert (default.setting, default.chosen_by, default.flops_share) == (Compression(6), "server", 1.0)
    assert default.quality_kept == 1.0
    fast = SettingChooser(mini.copy(target=Target(speedup=2)), ALL).default
    assert "2 times as fast" in fast.reason
    assert fast.flops_share < 1


def test_knobs_override_the_default_s(mini: MatryoshkaReranker) -> None:
    chooser = SettingChooser(mini.copy(depth=4, keep_ratio=0.5), ALL)
    deep, wide = chooser.chosen(Knobs(depth=None), 0, 1), chooser.chosen(Knobs(keep_ratio=1.0), 0, 1)
    assert (deep.setting, wide.setting) == (Compression(6, 0.5), Compression(4))
    assert deep.chosen_by == wide.chosen_by == "request"


def test_a_depth_above_the_last_layer_runs_all(mini: MatryoshkaReranker) -> None:
    served = SettingChooser(mini.copy(), ALL).chosen(Knobs(depth=10**30), 0, 1)  # warnings are errors
    assert (served.setting, served.chosen_by) == (Compression(6), "request")


def test_a_cascade_is_resolved(chooser: SettingChooser) -> None:
    auto = chooser.chosen(Knobs(cascade="auto"), 0, 1)
    assert isinstance(auto.cascade, Cascade)
    assert auto.label == "6@1+cascade"
    assert auto.to_json()["cascade"]["by"] == "margin"
    assert auto.quality_kept is not None
    assert chooser.chosen(Knobs(cascade=Cascade({2: 1.0})), 0, 1).quality_kept is None


def test_targets_say_why(chooser: SettingChooser, mini: MatryoshkaReranker) -> None:
    served = chooser.chosen(Knobs(target=Target(speedup=2)), 0, 1)
    want = mini.copy(target=Target(speedup=2))
    assert (served.plan, served.reason) == (want.plan(), want.explain().reason)
    assert served.header.isascii()
    assert "\n" not in served.header
    assert chooser.chosen(Knobs(target=Target(speedup=1000, if_unreachable="fastest")), 0, 1).flops_share < 0.5


def test_a_latency_is_met_by_the_server_s_pace(chooser: SettingChooser) -> None:
    slow, fast, none = (chooser.chosen(Knobs(target=fastest_within(ms)), 1.0, 50) for ms in (2000, 500, 1))
    assert slow.setting == Compression(6)
    assert fast.flops_share < 0.6
    assert "50 documents" in fast.reason
    assert none.reason.startswith("the fastest setting")
    with pytest.raises(ServingError, match="no setting of the profile"):
        chooser.chosen(Knobs(target=Target(max_latency_ms=1)), 1.0, 50)


def fastest_within(milliseconds: float) -> Target:
    return Target(max_latency_ms=milliseconds, if_unreachable="fastest")


@pytest.mark.parametrize(
    ("knobs", "fault", "match"),
    [
        (Knobs(depth=1), Fault.INVALID, "depth"),
        (Knobs(keep_ratio={9: 0.5}), Fault.INVALID, "merge"),
        (Knobs(depth=4, target=Target(speedup=2)), Fault.INVALID, "target"),
        (Knobs(cascade=Cascade({6: 2.0})), Fault.INVALID, "cascade"),
    ],
)
def test_what_the_model_lacks(chooser: SettingChooser, knobs: Knobs, fault: Fault, match: str) -> None:
    with pytest.raises(ServingError, match=match) as caught:
        chooser.chosen(knobs, 0, 1)
    assert caught.value.fault is fault


def test_knobs_that_are_not_granted(mini: MatryoshkaReranker) -> None:
    chooser = SettingChooser(mini, ("depth",))
    assert chooser.chosen(Knobs(depth=4), 0, 1).plan.last_layer == 4
    with pytest.raises(ServingError, match="keep_ratio and target") as caught:
        chooser.chosen(Knobs(depth=4, keep_ratio=0.5, target=Target(speedup=2)), 0, 1)
    assert caught.value.fault is Fault.NOT_ALLOWED


def test_shedding_never_computes_more(chooser: SettingChooser, mini: MatryoshkaReranker) -> None:
    step = Step(0.2, Target(speedup=2))
    served = chooser.shed(step, 0.35)
    assert served.chosen_by == "shedding"
    assert "350 ms" in served.reason
    assert served.cascade is None
    assert served.flops_share < 1
    smallest = SettingChooser(mini.copy(depth=2, keep_ratio=0.25), ALL)
    assert smallest.shed(step, 0.35) == smallest.default


def test_a_policy_for_the_model(chooser: SettingChooser) -> None:
    steps = automatic_policy(0.1, chooser.reaches)
    assert [step.seconds for step in steps] == pytest.approx([0.1 * number for number in range(1, len(steps) + 1)])
    shares = [chooser.shed(step, 9).flops_share for step in steps]
    assert len(shares) >= 2
    assert shares == sorted(shares, reverse=True)
    with pytest.raises(ValueError, match="depth"):
        chooser.check_step(Step(1, Compression(1)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "ascend"),
        ("queue>1s: speedup=2; queue>200ms: speedup=4", "ascend"),
        ("queue>1: speedup=2", "queue>NUMBERms"),
        ("queue>1s: faster", "speedup=X"),
        ("queue>1s: speedup=fast", "no number"),
        ("queue>1.2.3s: speedup=2", "no number"),
        ("queue>1s: speedup=0.5", "speedup"),
        ("queue>1s: depth=two", "depth must be a whole number"),
        ("queue>1s: depth=2, speedup=2", "speedup=X"),
    ],
)
def test_policies_that_say_nothing(text: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_policy(text)


def test_headers_cannot_be_split(chooser: SettingChooser) -> None:
    served: Any = chooser.default
    object.__setattr__(served := type(served)(**vars(served)), "reason", 'a "b"\r\nSet-Cookie: ü')
    assert served.header == "depth=6; keep_ratio=1; chosen_by=server; reason=\"a 'b'''Set-Cookie: '\""
