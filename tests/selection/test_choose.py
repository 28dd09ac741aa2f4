"""From a target to a setting: among measured ones, by FLOPs, and by a re-ranker's own; and settings explained."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mrr_model import Compression, MatryoshkaReranker, Target
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.cascade import Cascade
from mrr_model.checkpoint import Checkpoint
from mrr_model.selection.choose import RATIOS, candidate_settings, choose, choose_by_flops, choose_by_profile
from mrr_model.selection.latency import Request, Timings
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint
from mrr_model.selection.stopwatch import Noise, Timed

QUIET = Noise(spread=0.01, contention=0.0)
QUERY, TEXTS = "what is the panda?", ["the panda is eating", "what", "panda panda panda"]


def profile_of(points: list[tuple[int, Any, float, float]]) -> Profile:
    """From (depth, keep ratio, share of quality, share of time)."""
    return Profile(
        metric="nDCG@10",
        collections=("toy",),
        queries=19,
        query_tokens=6,
        passage_tokens=15,
        device="a processor",
        dtype="float32",
        threads=1,
        points=tuple(
            ProfilePoint(
                depth=depth,
                keep_ratio=ratio,
                quality=0.8 * kept,
                kept=kept,
                min_kept=kept,
                seconds=0.01 * time,
                flops=1e9 * time,
            )
            for depth, ratio, kept, time in points
        ),
    )


PROFILE = profile_of([(6, 1.0, 1.0, 1.0), (6, 0.5, 0.99, 0.6), (4, 0.5, 0.97, 0.4), (3, {1: 0.25}, 0.8, 0.2)])
CALIBRATION = Calibration(
    settings=(
        CalibratedSetting(depth=6, map=PlattMap(slope=0.5, intercept=-1.0)),
        CalibratedSetting(depth=4, keep_ratio={1: 0.5}, map=PlattMap(slope=0.1, intercept=0.0)),
    ),
    data="toy (19 queries)",
    targets="labels",
    pairs=108,
    relevant_share=0.2,
)


# Among measured settings, and by FLOPs


few = st.sampled_from([0.25, 0.5, 0.75, 0.9, 0.98, 1.0, 1.02])


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """Full size and up to eight settings below it, with many ties."""
    settings = draw(st.sets(st.tuples(st.integers(1, 5), st.sampled_from([1.0, 0.5, 0.25])), max_size=8))
    points = [ProfilePoint(depth=6, quality=0.8, kept=1.0, min_kept=1.0, seconds=1.0, flops=1.0)]
    for depth, ratio in sorted(settings):
        kept = draw(few)
        taken = draw(st.sampled_from([0.1, 0.2, 0.4, 0.5, 1.0, 1.25]))
        points.append(
            ProfilePoint(
                depth=depth,
                keep_ratio=ratio,
                quality=0.8 * kept,
                kept=kept,
                min_kept=kept,
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


@given(profiles(), st.sampled_from([0.01, 0.5, 0.8, 0.98, 1.0]))
def test_keep_quality_is_the_fastest_that_keeps_it(profile: Profile, share: float) -> None:
    chosen = point_of(profile, choose_by_profile(Target(keep_quality=share), profile).setting)
    assert chosen.kept >= share
    for other in profile.points:
        if other.kept >= share:
            assert (chosen.seconds, -chosen.kept) <= (other.seconds, -other.kept)


@given(profiles(), st.sampled_from([1.0, 1.5, 2.0, 4.0, 8.0]))
def test_speedup_is_the_best_that_is_as_fast(profile: Profile, times: float) -> None:
    fast = [point for point in profile.points if point.seconds <= profile.full.seconds / times]
    assume(fast)
    chosen = point_of(profile, choose_by_profile(Target(speedup=times), profile).setting)
    assert chosen in fast
    assert all((chosen.kept, -chosen.seconds) >= (other.kept, -other.seconds) for other in fast)


@given(profiles(), st.data())
def test_latency_goes_by_this_devices_times_and_not_by_the_profiles(profile: Profile, data: st.DataObject) -> None:
    times = {point.setting: data.draw(st.sampled_from([0.01, 0.05, 0.2])) for point in profile.points}
    target = Target(max_latency_ms=60)
    within = [point for point in profile.points if times[point.setting] <= 0.06]
    if not within:
        with pytest.raises(ValueError, match=r"done with 20 documents in 60 ms: the fastest, .*, reaches 200 ms"):
            choose_by_profile(target, profile, times)
        return
    choice = choose_by_profile(target, profile, times)
    assert point_of(profile, choice.setting).kept == max(point.kept for point in within)
    assert times[choice.setting] <= 0.06
    assert f"{times[choice.setting] * 1000:.0f} ms on this device" in choice.reason


@given(profiles())
def test_more_quality_never_comes_faster_and_more_speed_never_better(profile: Profile) -> None:
    taken = [
        point_of(profile, choose_by_profile(Target(keep_quality=share), profile).setting).seconds
        for share in (0.3, 0.8, 1.0)
    ]
    assert taken == sorted(taken)
    largest = profile.full.seconds / min(point.seconds for point in profile.points)
    kept = [
        point_of(profile, choose_by_profile(Target(speedup=times), profile).setting).kept
        for times in (1.0, 1.5, 2.0, 4.0)
        if times <= largest
    ]
    assert kept == sorted(kept, reverse=True)


@given(profiles())
def test_what_is_out_of_reach_says_what_is_not(profile: Profile) -> None:
    with pytest.raises(ValueError, match=r"no setting of the profile is 100 times as fast .* `mrr evaluate"):
        choose_by_profile(Target(speedup=100), profile)


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


def test_candidates_are_settings_of_different_plans(make_checkpoint: Callable[..., Checkpoint]) -> None:
    for merge_layers in ((1, 2, 3, 4, 5), (3, 5), ()):
        own = {"default_merge_layer": merge_layers[0] if merge_layers else 1, "merge_layers": merge_layers}
        reranker = opened(make_checkpoint("bert", own=own, adapters=False))
        found = candidate_settings(reranker.exits, merge_layers[0] if merge_layers else None)
        plans = [reranker.plan(setting.depth, setting.keep_ratio) for setting in found]
        ratios = RATIOS if merge_layers else RATIOS[:1]
        assert len(set(plans)) == len(plans)
        assert set(plans) == {reranker.plan(depth, ratio) for depth in reranker.exits for ratio in ratios}


def test_only_what_a_target_needs_is_computed() -> None:
    full, half = Compression(6, 1.0), Compression(4, 0.5)
    profile = profile_of([(6, 1.0, 1.0, 1.0), (4, 0.5, 0.9, 0.3)])
    asked: list[Any] = []

    def timings(settings: Any, request: Request, *, refresh: bool) -> Timings:
        asked.append((settings, request, refresh))
        return timings_of({full: 0.5, half: 0.1})

    options: dict[str, Any] = {"candidates": [full, half], "time_settings": timings, "model": "toy"}
    shares = {full: 1.0, half: 0.4}.__getitem__
    assert choose(Target(speedup=2), None, flops_share=shares, **options).setting == half
    options["flops_share"] = lambda _: pytest.fail("FLOPs are not asked for")
    assert choose(Target(speedup=2), profile, **options).setting == half
    assert choose(Target(keep_quality=0.95), profile, **options).setting == full
    assert asked == []
    assert choose(Target(max_latency_ms=200, documents=7, refresh=True), profile, **options).setting == half
    assert asked == [([full, half], Request(documents=7, query_tokens=6, passage_tokens=15), True)]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bare(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint("bert")


@pytest.fixture(scope="module")
def measured(bare: Checkpoint) -> Checkpoint:
    return replace(bare, calibration=CALIBRATION, profile=PROFILE)


def opened(loaded: Checkpoint, **options: Any) -> MatryoshkaReranker:
    return MatryoshkaReranker(loaded, **{"max_length": 64, "dtype": "float32", **options})


# With a profile


@pytest.mark.parametrize(
    ("target", "setting"),
    [
        (Target(keep_quality=1), Compression(6, 1.0)),
        (Target(keep_quality=0.98), Compression(6, 0.5)),
        (Target(keep_quality=0.5), Compression(3, {1: 0.25})),
        (Target(speedup=1), Compression(6, 1.0)),
        (Target(speedup=2), Compression(4, 0.5)),
        (Target(speedup=5), Compression(3, {1: 0.25})),
    ],
    ids=str,
)
def test_a_target_chooses_from_the_profile(measured: Checkpoint, target: Target, setting: Compression) -> None:
    reranker = opened(measured, target=target)
    assert reranker.compression == setting
    own = opened(measured, depth=setting.depth, keep_ratio=setting.keep_ratio)
    assert reranker.score(QUERY, TEXTS) == own.score(QUERY, TEXTS)


def timings_of(times: dict[Compression, float], noise: Noise = QUIET) -> Timings:
    return Timings(
        seconds={str(setting): seconds for setting, seconds in times.items()},
        measured_at=datetime(2026, 3, 1, 9, 5, tzinfo=timezone.utc),
        device="a processor",
        dtype="float32",
        threads=2,
        versions={"torch": "2.9"},
        noise=noise,
        process="this one",
    )


TIMES = {point.setting: 0.001 * point.depth for point in PROFILE.points}
TIMES[Compression(6, 0.5)] = 0.5  # here it is slow


def test_a_latency_is_timed_on_this_device_and_once(measured: Checkpoint) -> None:
    with patch("mrr_model.reranker.request_timings", return_value=timings_of(TIMES)) as timed:
        reranker = opened(measured, target=Target(max_latency_ms=5, documents=7))
    assert reranker.compression == Compression(4, 0.5)
    [call] = timed.mock_calls
    assert call.args[1] == [point.setting for point in PROFILE.points]
    assert call.args[2] == Request(documents=7, query_tokens=6, passage_tokens=15)
    assert call.kwargs["refresh"] is False
    assert "4 ms on this device, and kept 97.0%" in str(reranker.explain())
    with patch("mrr_model.selection.latency.timed", return_value=Timed(TIMES, QUIET)) as timed:
        for _ in range(2):
            assert opened(measured, target=Target(max_latency_ms=5)).compression == Compression(4, 0.5)
        timed.assert_called_once()  # then it is in the cache
        opened(measured, target=Target(max_latency_ms=5, refresh=True))
        assert timed.call_count == 2


@pytest.mark.parametrize(
    ("noise", "said"),
    [(QUIET, "quiet"), (Noise(spread=0.3), "noisy: repeated runs differ by 30%")],
)
def test_an_explanation_says_when_and_where_a_latency_was_measured(
    measured: Checkpoint, noise: Noise, said: str
) -> None:
    where = f"(measured 2026-03-01 09:05 UTC on a processor, 2 threads, float32, torch 2.9; {said})"
    with patch("mrr_model.reranker.request_timings", return_value=timings_of(TIMES, noise)):
        reranker = opened(measured, target=Target(max_latency_ms=5))
        assert reranker.explain().reason.endswith(f"on toy (19 queries) {where}")
        with pytest.raises(
            ValueError, match=r"reaches 3 ms \(measured 2026-03-01 .*Ask for less, measure again with ref"
        ):
            opened(measured, target=Target(max_latency_ms=1))


def test_what_the_profile_cannot_reach_is_an_error(measured: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"no setting of the profile is 6 times as fast .*reaches 5.00 times"):
        opened(measured, target=Target(speedup=6))


def test_a_service_may_take_the_fastest_with_a_warning(measured: Checkpoint, bare: Checkpoint) -> None:
    fastest = Compression(3, {1: 0.25})
    with (
        patch("mrr_model.reranker.request_timings", return_value=timings_of(TIMES)),
        pytest.warns(
            UserWarning, match=r"no setting .* in 1 ms: the fastest, .*3 ms .*It is used nevertheless"
        ) as caught,
    ):
        reranker = opened(measured, target=Target(max_latency_ms=1, if_unreachable="fastest"))
    assert caught[0].filename == __file__
    assert reranker.compression == fastest
    assert reranker.explain().reason.startswith("the fastest setting, because no setting of the profile is done with")
    with pytest.warns(UserWarning, match=r"no setting of the profile is 6 times as fast"):
        assert opened(measured, target=Target(speedup=6, if_unreachable="fastest")).compression == fastest
    with pytest.warns(UserWarning, match=r"speedup=1000 is out of reach: the smallest setting, depth 1, keep ratio 1,"):
        made = opened(bare, target=Target(speedup=1000, if_unreachable="fastest"))
    assert made.compression == Compression(1, 1.0)
    assert opened(measured, target=Target(speedup=2, if_unreachable="fastest")).compression == Compression(4, 0.5)


def test_a_running_service_can_choose_again(measured: Checkpoint) -> None:
    faster = {setting: seconds / 2 for setting, seconds in TIMES.items()}
    with patch("mrr_model.selection.latency.timed", side_effect=[Timed(TIMES, QUIET), Timed(faster, QUIET)]):
        reranker = opened(measured, target=Target(max_latency_ms=5))
        again = reranker.copy(target=Target(max_latency_ms=5, refresh=True))
    assert (reranker.compression, again.compression) == (Compression(4, 0.5), Compression(6, 1.0))
    assert again.model is reranker.model
    assert "best setting that is done with 20 documents" in again.explain().reason
    with pytest.raises(ValueError, match="chooses depth and keep_ratio: give it or them"):
        reranker.copy(target=Target(speedup=2), depth=3)
    with pytest.raises(TypeError, match="target must be a Target, got 3"):
        reranker.copy(target=3)  # type: ignore[arg-type]


# Without one


@pytest.mark.parametrize("times", [1, 1.5, 2, 3, 5])
def test_without_a_profile_the_flops_model_serves_for_speedup(bare: Checkpoint, times: float) -> None:
    reranker = opened(bare, target=Target(speedup=times))
    full = reranker.flops(depth=None, keep_ratio=1.0)
    assert reranker.flops() <= full / times
    within = [
        reranker.flops(depth=depth, keep_ratio=ratio)
        for depth in reranker.exits
        for ratio in RATIOS
        if reranker.flops(depth=depth, keep_ratio=ratio) <= full / times
    ]
    assert reranker.flops() == max(within)
    assert "by the FLOPs model: this checkpoint has no profile" in reranker.explain().reason


def test_of_settings_that_are_one_plan_the_widest_is_named(make_checkpoint: Callable[..., Checkpoint]) -> None:
    late = make_checkpoint("bert", own={"default_merge_layer": 5, "merge_layers": (5,)})
    reranker = opened(late, target=Target(speedup=1.9))
    assert reranker.compression == Compression(3, 1.0)


@pytest.mark.parametrize("target", [Target(keep_quality=0.9), Target(max_latency_ms=10)], ids=str)
def test_without_a_profile_the_others_name_the_command(bare: Checkpoint, target: Target) -> None:
    with pytest.raises(
        ValueError, match=r"needs a profile, .* `mrr evaluate a loaded checkpoint COLLECTION --save-pro"
    ):
        opened(bare, target=target)


def test_without_a_profile_too_much_speed_is_an_error(bare: Checkpoint) -> None:
    with pytest.raises(
        ValueError, match=r"speedup=1000 is out of reach: the smallest setting, depth 1, keep ratio 1, takes"
    ):
        opened(bare, target=Target(speedup=1000))


# Instead of a setting


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": 3}, TypeError, r"target must be a Target, got 3. Write target=Target\(speedup=3\)"),
        ({"target": Target(speedup=2), "depth": 4}, ValueError, "chooses depth and keep_ratio: give it or them"),
        ({"target": Target(speedup=2), "keep_ratio": 0.5}, ValueError, "chooses depth and keep_ratio"),
    ],
)
def test_a_target_stands_alone(bare: Checkpoint, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        opened(bare, **options)


def test_a_chosen_setting_pickles_and_gives_way_to_another(measured: Checkpoint) -> None:
    reranker = opened(measured, target=Target(speedup=2))
    again = pickle.loads(pickle.dumps(reranker))
    assert (again.compression, str(again.explain())) == (reranker.compression, str(reranker.explain()))
    assert again.score(QUERY, TEXTS) == reranker.score(QUERY, TEXTS)
    assert reranker.copy(max_length=32).explain().reason == reranker.explain().reason
    assert reranker.copy(depth=5).explain().reason == "as given"
    assert reranker.explain(depth=5).reason == reranker.explain(keep_ratio=1.0).reason == "as given"


# Cascades


def cascaded(time: float, kept: float, *, depth: int = 6, ratio: float = 1.0, **facts: Any) -> ProfilePoint:
    """Full size, or another setting, with a cascade that takes and keeps these shares of full size."""
    given: dict[str, Any] = {"stages": {1: 3.0, 2: 1.0}, "top_n": 10, "lost": 0.05, "held_out": 0.04, "queries": 500}
    return ProfilePoint(
        depth=depth, keep_ratio=ratio, cascade=ProfileCascade(**{**given, **facts}), quality=0.8 * kept, kept=kept,
        min_kept=kept, seconds=0.01 * time, flops=0.9e9 * time,
    )  # fmt: skip


def with_cascades(*points: ProfilePoint) -> Profile:
    return PROFILE.model_copy(update={"points": (*PROFILE.points, *points)})


CASCADE = Cascade({1: 3.0, 2: 1.0}, top_n=10)


@pytest.mark.parametrize(
    ("target", "point", "chosen"),
    [
        (Target(keep_quality=0.98), cascaded(0.5, 0.995), True),
        (Target(keep_quality=0.98), cascaded(0.6, 0.995), False),  # no faster than the setting that keeps enough
        (Target(keep_quality=0.98), cascaded(0.3, 0.975), False),
        (Target(keep_quality=0.5), cascaded(0.3, 0.995), False),
        (Target(speedup=2), cascaded(0.45, 0.995), True),
        (Target(speedup=2), cascaded(0.55, 0.995), False),
        (Target(speedup=2), cascaded(0.3, 0.97), False),  # keeps no more than the best setting
        (Target(speedup=1), cascaded(0.5, 1.0), False),
    ],
)
def test_a_cascade_is_chosen_if_it_is_better_than_every_setting(
    target: Target, point: ProfilePoint, chosen: bool
) -> None:
    choice = choose_by_profile(target, with_cascades(point))
    assert choice.cascade == (CASCADE if chosen else None)
    if chosen:
        assert choice.setting == Compression(6, 1.0)
        share = point.flops / PROFILE.full.flops
        assert f"with a cascade (margins 1:3,2:1; {share:.1%} of full size's FLOPs expected), the" in choice.reason
    else:
        assert choice == choose_by_profile(target, PROFILE)


def test_a_latency_never_chooses_a_cascade() -> None:
    profile, asked = with_cascades(cascaded(0.1, 1.0)), []
    times = {point.setting: 0.001 * point.depth for point in PROFILE.points}

    def timings(settings: Any, request: Request, *, refresh: bool) -> Timings:
        asked.append(settings)
        return timings_of(times)

    choice = choose(
        Target(max_latency_ms=5), profile, candidates=[], flops_share=lambda _: 1.0, time_settings=timings, model="toy"
    )
    assert choice.cascade is None
    assert asked == [[point.setting for point in PROFILE.points]]


def test_the_fastest_may_have_a_cascade() -> None:
    target = Target(speedup=100, if_unreachable="fastest")
    with pytest.warns(UserWarning, match="the fastest, depth 6, keep ratio 1, margins 1:3,2:1, reaches 10.00 times"):
        choice = choose_by_profile(target, with_cascades(cascaded(0.1, 0.9)))
    assert choice.cascade == CASCADE


def test_a_chosen_cascade_runs_and_is_explained(measured: Checkpoint) -> None:
    made = replace(measured, profile=with_cascades(cascaded(0.5, 0.995)))
    reranker = opened(made, target=Target(keep_quality=0.98))
    assert (reranker.compression, reranker.cascade) == (Compression(6, 1.0), CASCADE)
    assert str(reranker.explain()).splitlines()[-1] == (
        "cascade       margins 1:3,2:1, in logits below the 10 best documents at each exit: fitted so that at most "
        "5.0% of the queries lose one of the setting's best documents, 4.0% of those that it was not fitted on did; "
        "45.0% of full size's FLOPs expected, kept 99.5% of full size's nDCG@10 on toy (19 queries), 2.00 times "
        "as fast on a processor in float32; score and score_pairs run the whole setting"
    )
    assert reranker.explain().measured.startswith("kept 100.0%")  # of the setting alone
    assert reranker.explain(cascade=None).cascade is None
    assert opened(made, cascade="auto").explain().cascade == reranker.explain().cascade


def test_what_is_known_of_other_cascades_is_said(measured: Checkpoint, bare: Checkpoint) -> None:
    given = cascaded(0.5, 0.9, stages={2: 2}, by="count", top_n=None, lost=None)
    reranker = opened(replace(measured, profile=with_cascades(given)))
    counts = str(reranker.explain(cascade=Cascade({2: 2}, by="count")).cascade)
    assert counts.startswith(
        "counts 2:2, the documents that survive each exit: as given, 4.0% of the queries lose one of the setting's "
        "best documents; 45.0% of full size's FLOPs expected, kept 90.0%"
    )
    for other in (reranker, opened(bare)):
        assert other.explain(cascade=Cascade({2: 0.5})).cascade == (
            "margins 2:0.5, in logits below the last document returned at each exit: as given, and not in the "
            "checkpoint's profile; score and score_pairs run the whole setting"
        )


def test_a_cascade_of_changed_weights_is_not_described(make_checkpoint: Callable[..., Checkpoint]) -> None:
    profile = with_cascades(cascaded(0.5, 0.995))
    reranker = opened(replace(make_checkpoint("bert"), profile=profile), cascade=CASCADE)
    assert "45.0% of full size's FLOPs expected" in str(reranker.explain().cascade)
    with torch.no_grad():
        next(reranker.model.parameters()).add_(1)
    assert "in the checkpoint's profile, but the weights have changed" in str(reranker.explain().cascade)


# Explained


def test_an_explanation_says_what_runs_and_what_is_known_of_it(measured: Checkpoint) -> None:
    said = opened(measured, target=Target(speedup=2)).explain()
    assert said.setting == Compression(4, 0.5)
    assert str(said).splitlines() == [
        "setting       depth 4, keep ratio 0.5: the best setting that is 2 times as fast as full size: 2.50 times as "
        "fast, and kept 97.0% of full size's nDCG@10 on toy (19 queries)",
        "does          runs 4 layers, merges passage tokens after layer 1 to 0.5",
        "adapters      vertical, horizontal_1_2",
        f"FLOPs         {said.flops_share:.1%} of full size's",
        "measured      kept 97.0% of full size's nDCG@10 on toy (19 queries), 2.50 times as fast on a processor in "
        "float32",
        "probabilities by this setting's own map, fitted on toy (19 queries), 108 pairs, 20.0% of them relevant",
    ]
    reranker = opened(measured)
    assert said.flops_share == reranker.flops(depth=4, keep_ratio=0.5) / reranker.flops()
    full = reranker.explain()
    assert (full.flops_share, full.reason, full.plan) == (1.0, "as given", reranker.plan())
    assert "merges passage tokens nowhere" in str(full)
    assert "adapters      none" in str(full)


def test_an_explanation_says_when_the_profile_was_measured_and_how_large_it_is(measured: Checkpoint) -> None:
    facts = {"measured_at": datetime(2026, 3, 1, tzinfo=timezone.utc), "relevant": 12, "noise": Noise(spread=0.3)}
    made = replace(measured, profile=PROFILE.model_copy(update=facts))
    assert opened(made).explain().measured == (
        "kept 100.0% of full size's nDCG@10 on toy (19 queries, 12 relevant documents), 1.00 times as fast on a "
        "processor in float32, 2026-03-01 00:00 UTC (noisy: repeated runs differ by 30%)"
    )


@pytest.mark.parametrize(
    ("depth", "keep_ratio", "known"),
    [
        (None, 1.0, "kept 100.0%"),
        (6, 1.0, "kept 100.0%"),
        (4, {1: 0.5}, "kept 97.0%"),  # the default merge layer, in other words
        (3, 0.25, "kept 80.0%"),
        (4, 1.0, "not at this setting; other settings on toy (19 queries)"),
    ],
)
def test_what_was_measured_is_found_however_the_setting_is_said(
    measured: Checkpoint, depth: int | None, keep_ratio: Any, known: str
) -> None:
    assert opened(measured).explain(depth=depth, keep_ratio=keep_ratio).measured.startswith(known)


def test_the_nearest_map_is_named_where_a_setting_has_none(measured: Checkpoint, bare: Checkpoint) -> None:
    reranker = opened(measured)
    assert reranker.explain(depth=5).calibration.startswith(
        "by the map of depth 6, keep ratio 1, the nearest, fitted on"
    )
    assert reranker.explain(depth=3, keep_ratio=0.5).calibration.startswith("by the map of depth 4, keep ratio 1:0.5,")
    nothing = opened(bare).explain()
    assert nothing.calibration == "the logistic function of the logits: the checkpoint has no calibration"
    assert nothing.measured == "nothing: the checkpoint has no profile"


def test_a_quality_is_kept_on_every_collection_not_on_average() -> None:
    full, wide, small, _ = PROFILE.points
    uneven = small.model_copy(update={"min_kept": 0.9})
    profile = PROFILE.model_copy(update={"points": (full, wide, uneven)})
    assert choose_by_profile(Target(keep_quality=0.95), profile).setting == wide.setting
    assert choose_by_profile(Target(keep_quality=0.9), profile).setting == small.setting
