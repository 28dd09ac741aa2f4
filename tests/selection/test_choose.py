"""From a target to a setting of one re-ranker, and settings explained."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model import Compression, MatryoshkaReranker, Target
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.checkpoint import Checkpoint
from mrr_model.selection import choose as choosing
from mrr_model.selection.latency import Timings
from mrr_model.selection.profile import Profile, ProfilePoint
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
                least=kept,
                seconds=0.01 * time,
                flops=1e9 * time,
            )
            for depth, ratio, kept, time in points
        ),
    )


PROFILE = profile_of([(6, 1.0, 1.0, 1.0), (6, 0.5, 0.99, 0.6), (4, 0.5, 0.97, 0.4), (3, {1: 0.25}, 0.8, 0.2)])
CALIBRATION = Calibration(
    settings=(
        CalibratedSetting(exit_layer=6, map=PlattMap(slope=0.5, intercept=-1.0)),
        CalibratedSetting(exit_layer=4, merges={1: "1/2"}, map=PlattMap(slope=0.1, intercept=0.0)),
    ),
    data="toy (19 queries)",
    targets="labels",
    pairs=108,
    relevant=0.2,
)


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
    with patch.object(choosing, "request_timings", return_value=timings_of(TIMES)) as timed:
        reranker = opened(measured, target=Target(max_latency_ms=5, documents=7))
    assert reranker.compression == Compression(4, 0.5)
    [call] = timed.mock_calls
    assert call.args[1] == [point.setting for point in PROFILE.points]
    assert call.args[2] == choosing.Request(documents=7, query_tokens=6, passage_tokens=15)
    assert call.kwargs == {"refresh": False}
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
    with patch.object(choosing, "request_timings", return_value=timings_of(TIMES, noise)):
        reranker = opened(measured, target=Target(max_latency_ms=5))
        assert reranker.explain().reason.endswith(f"on toy (19 queries) {where}")
        with pytest.raises(
            ValueError, match=r"comes to 3 ms \(measured 2026-03-01 .*Ask for less, measure again with ref"
        ):
            opened(measured, target=Target(max_latency_ms=1))


def test_what_the_profile_cannot_reach_is_an_error(measured: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"no setting of the profile is 6 times as quick .*comes to 5.00 times"):
        opened(measured, target=Target(speedup=6))


def test_a_service_may_take_the_fastest_with_a_warning(measured: Checkpoint, bare: Checkpoint) -> None:
    fastest = Compression(3, {1: 0.25})
    with (
        patch.object(choosing, "request_timings", return_value=timings_of(TIMES)),
        pytest.warns(
            UserWarning, match=r"no setting .* in 1 ms: the quickest, .*3 ms .*It is used all the same"
        ) as caught,
    ):
        reranker = opened(measured, target=Target(max_latency_ms=1, if_unreachable="fastest"))
    assert caught[0].filename == __file__
    assert reranker.compression == fastest
    assert reranker.explain().reason.startswith("the fastest there is, because no setting of the profile is done with")
    with pytest.warns(UserWarning, match=r"no setting of the profile is 6 times as quick"):
        assert opened(measured, target=Target(speedup=6, if_unreachable="fastest")).compression == fastest
    with pytest.warns(UserWarning, match=r"speedup=1000 is out of reach: the smallest setting, depth 1, keep ratio 1,"):
        made = opened(bare, target=Target(speedup=1000, if_unreachable="fastest"))
    assert made.compression == Compression(1, 1.0)
    assert opened(measured, target=Target(speedup=2, if_unreachable="fastest")).compression == Compression(4, 0.5)


def test_a_running_service_can_choose_anew(measured: Checkpoint) -> None:
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
        for ratio in choosing.RATIOS
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


# In place of a setting


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
    assert reranker.copy(depth=5).explain().reason == "as asked"
    assert reranker.explain(depth=5).reason == reranker.explain(keep_ratio=1.0).reason == "as asked"


# Explained


def test_an_explanation_says_what_runs_and_what_is_known_of_it(measured: Checkpoint) -> None:
    said = opened(measured, target=Target(speedup=2)).explain()
    assert said.setting == Compression(4, 0.5)
    assert str(said).splitlines() == [
        "setting       depth 4, keep ratio 0.5: the best setting that is 2 times as quick as full size: 2.50 times as "
        "quick, and kept 97.0% of full size's nDCG@10 on toy (19 queries)",
        "does          runs 4 layers, merges passage tokens after layer 1 to 0.5",
        "adapters      vertical, horizontal_1_2",
        f"FLOPs         {said.flops:.1%} of full size's",
        "measured      kept 97.0% of full size's nDCG@10 on toy (19 queries), 2.50 times as quick on a processor in "
        "float32",
        "probabilities by this setting's own map, fitted on toy (19 queries), 108 pairs, 20.0% of them relevant",
    ]
    reranker = opened(measured)
    assert said.flops == reranker.flops(depth=4, keep_ratio=0.5) / reranker.flops()
    full = reranker.explain()
    assert (full.flops, full.reason, full.plan) == (1.0, "as asked", reranker.plan())
    assert "merges passage tokens nowhere" in str(full)
    assert "adapters      none" in str(full)


def test_an_explanation_says_when_the_profile_was_measured_and_how_large_it_is(measured: Checkpoint) -> None:
    facts = {"measured_at": datetime(2026, 3, 1, tzinfo=timezone.utc), "relevant": 12, "noise": Noise(spread=0.3)}
    made = replace(measured, profile=PROFILE.model_copy(update=facts))
    assert opened(made).explain().measured == (
        "kept 100.0% of full size's nDCG@10 on toy (19 queries, 12 relevant documents), 1.00 times as quick on a "
        "processor in float32, 2026-03-01 00:00 UTC (noisy: repeated runs differ by 30%)"
    )


@pytest.mark.parametrize(
    ("depth", "keep_ratio", "known"),
    [
        (None, 1.0, "kept 100.0%"),
        (6, 1.0, "kept 100.0%"),
        (4, {1: 0.5}, "kept 97.0%"),  # the default merge layer, in other words
        (3, 0.25, "kept 80.0%"),
        (4, 1.0, "not at this setting; others on toy (19 queries)"),
    ],
)
def test_what_was_measured_is_found_however_the_setting_is_said(
    measured: Checkpoint, depth: int | None, keep_ratio: Any, known: str
) -> None:
    assert opened(measured).explain(depth=depth, keep_ratio=keep_ratio).measured.startswith(known)


def test_the_nearest_map_is_named_where_a_setting_has_none(measured: Checkpoint, bare: Checkpoint) -> None:
    reranker = opened(measured)
    assert reranker.explain(depth=5).calibration.startswith("by the map of exit 6, no merges, the nearest, fitted on")
    assert reranker.explain(depth=3, keep_ratio=0.5).calibration.startswith("by the map of exit 4, merges 1:1/2,")
    nothing = opened(bare).explain()
    assert nothing.calibration == "the logistic function of the logits: the checkpoint has no calibration"
    assert nothing.measured == "nothing: the checkpoint has no profile"
