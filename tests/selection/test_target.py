"""Targets: one need, and the setting of a profile that meets it."""

import math
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mrr_model import Compression
from mrr_model.selection.profile import Profile, ProfilePoint
from mrr_model.selection.target import DOCUMENTS, Target, choose, choose_by_flops

few = st.sampled_from([0.25, 0.5, 0.75, 0.9, 0.98, 1.0, 1.02])


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Full size and up to eight settings below it, with many ties."""
    settings = draw(st.sets(st.tuples(st.integers(1, 5), st.sampled_from([1.0, 0.5, 0.25])), max_size=8))
    points = [ProfilePoint(depth=6, quality=0.8, kept=1.0, least=1.0, seconds=1.0, flops=1.0)]
    for depth, ratio in sorted(settings):
        kept = draw(few)
        taken = draw(st.sampled_from([0.1, 0.2, 0.4, 0.5, 1.0, 1.25]))
        points.append(
            ProfilePoint(
                depth=depth,
                keep_ratio=ratio,
                quality=0.8 * kept,
                kept=kept,
                least=kept,
                seconds=taken,
                flops=taken,
            )
        )
    return Profile(
        metric="nDCG@10", collections=("toy",), queries=9, query_tokens=8, passage_tokens=40, device="a processor",
        dtype="float32", threads=1, points=tuple(points),
    )  # fmt: skip


def point_of(profile: Profile, setting: Compression) -> ProfilePoint:
    [point] = [point for point in profile.points if point.setting == setting]
    return point


# Choosing


@given(profiles(), st.sampled_from([0.01, 0.5, 0.8, 0.98, 1.0]))
def test_keep_quality_is_the_quickest_that_keeps_it(profile: Profile, share: float) -> None:
    chosen = point_of(profile, choose(Target(keep_quality=share), profile).setting)
    assert chosen.kept >= share
    for other in profile.points:
        if other.kept >= share:
            assert (chosen.seconds, -chosen.kept) <= (other.seconds, -other.kept)


@given(profiles(), st.sampled_from([1.0, 1.5, 2.0, 4.0, 8.0]))
def test_speedup_is_the_best_that_is_as_quick(profile: Profile, times: float) -> None:
    quick = [point for point in profile.points if point.seconds <= profile.full.seconds / times]
    assume(quick)
    chosen = point_of(profile, choose(Target(speedup=times), profile).setting)
    assert chosen in quick
    assert all((chosen.kept, -chosen.seconds) >= (other.kept, -other.seconds) for other in quick)


@given(profiles(), st.data())
def test_latency_goes_by_this_devices_times_and_not_by_the_profiles(profile: Profile, data: st.DataObject) -> None:
    times = {point.setting: data.draw(st.sampled_from([0.01, 0.05, 0.2])) for point in profile.points}
    target = Target(max_latency_ms=60)
    within = [point for point in profile.points if times[point.setting] <= 0.06]
    if not within:
        with pytest.raises(ValueError, match=r"done with 20 documents in 60 ms: the quickest, .*, comes to 200 ms"):
            choose(target, profile, times)
        return
    choice = choose(target, profile, times)
    assert point_of(profile, choice.setting).kept == max(point.kept for point in within)
    assert times[choice.setting] <= 0.06
    assert f"{times[choice.setting] * 1000:.0f} ms on this device" in choice.reason


@given(profiles())
def test_more_quality_never_comes_quicker_and_more_speed_never_better(profile: Profile) -> None:
    taken = [
        point_of(profile, choose(Target(keep_quality=share), profile).setting).seconds for share in (0.3, 0.8, 1.0)
    ]
    assert taken == sorted(taken)
    quickest = profile.full.seconds / min(point.seconds for point in profile.points)
    kept = [
        point_of(profile, choose(Target(speedup=times), profile).setting).kept
        for times in (1.0, 1.5, 2.0, 4.0)
        if times <= quickest
    ]
    assert kept == sorted(kept, reverse=True)


@given(profiles())
def test_what_is_out_of_reach_says_what_is_not(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"no setting of the profile is 100 times as quick .* `mrr evaluate"):
        choose(Target(speedup=100), profile)


@given(
    st.dictionaries(
        st.builds(Compression, st.integers(1, 6), st.sampled_from([1.0, 0.5])), st.floats(0.01, 1.0), min_size=1
    ),
    st.sampled_from([1, 1.5, 2, 5]),
)
def test_without_a_profile_most_computation_within_the_budget_is_chosen(
    shares: dict[Compression, float], times: float
) -> None:
    if min(shares.values()) > 1 / times:
        with pytest.raises(ValueError, match=f"speedup={times:g} is out of reach: the smallest setting"):
            choose_by_flops(times, shares)
        return
    choice = choose_by_flops(times, shares)
    within = [share for share in shares.values() if share <= 1 / times]
    assert shares[choice.setting] == pytest.approx(max(within), abs=1e-8)
    assert "FLOPs model: this checkpoint has no profile (make one with `mrr evaluate" in choice.reason


# What a user says


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of keep_quality, speedup, max_latency_ms, got none"),
        ({"speedup": 2, "keep_quality": 0.9}, ValueError, "got keep_quality, speedup"),
        ({"speedup": 0.5}, ValueError, "speedup must be at least 1"),
        ({"speedup": math.nan}, ValueError, "speedup must be at least 1.*got nan"),
        ({"speedup": "3"}, TypeError, "speedup must be a number, got '3'"),
        ({"speedup": True}, TypeError, "speedup must be a number, got True"),
        ({"speedup": Decimal(3)}, TypeError, "speedup must be a number"),
        ({"keep_quality": 0}, ValueError, "keep_quality must be a share above 0"),
        ({"keep_quality": 98}, ValueError, "keep_quality must be a share above 0 and at most 1, such as 0.98, got 98"),
        ({"keep_quality": -0.1}, ValueError, "keep_quality must be a share"),
        ({"max_latency_ms": 0}, ValueError, "max_latency_ms must be a number of milliseconds above 0"),
        ({"max_latency_ms": [5]}, TypeError, "max_latency_ms must be a number"),
        ({"max_latency_ms": 5, "documents": 0}, ValueError, "documents must be at least 1"),
        ({"max_latency_ms": 5, "documents": 2.0}, TypeError, "documents must be a whole number"),
        ({"max_latency_ms": 5, "documents": True}, TypeError, "documents must be a whole number"),
        ({"speedup": 5, "documents": 50}, ValueError, "documents goes with max_latency_ms"),
        (
            {"speedup": 5, "if_unreachable": "warn"},
            ValueError,
            "if_unreachable must be 'raise' or 'fastest', got 'warn'",
        ),
        ({"max_latency_ms": 5, "refresh": 1}, TypeError, "refresh must be True or False, got 1"),
        ({"speedup": 5, "refresh": True}, ValueError, "refresh goes with max_latency_ms"),
    ],
)
def test_wrong_needs_are_refused_by_name(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Target(**arguments)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(speedup=3), "Target(speedup=3.0)"),
        (Target(keep_quality=1), "Target(keep_quality=1.0)"),
        (Target(max_latency_ms=50), f"Target(max_latency_ms=50.0, documents={DOCUMENTS})"),
        (Target(max_latency_ms=50, documents=7), "Target(max_latency_ms=50.0, documents=7)"),
        (Target(speedup=2, if_unreachable="fastest"), "Target(speedup=2.0, if_unreachable='fastest')"),
        (Target(max_latency_ms=5, refresh=True), f"Target(max_latency_ms=5.0, documents={DOCUMENTS}, refresh=True)"),
    ],
)
def test_targets_are_values(target: Target, text: str) -> None:
    assert repr(target) == text
    assert pickle.loads(pickle.dumps(target)) == target
    assert hash(target) == hash(eval(text))
    with pytest.raises(AttributeError):
        target.speedup = 2.0  # type: ignore[misc]


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert Target(speedup=np.float32(2)) == Target(speedup=Fraction(2)) == Target(speedup=2)  # type: ignore[arg-type]
    made = Target(max_latency_ms=5, documents=np.int64(3))  # type: ignore[arg-type]
    assert made == Target(max_latency_ms=5, documents=3)
    assert type(made.documents) is int
