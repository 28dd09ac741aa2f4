"""Profiles: what a checkpoint's settings keep and take."""

from typing import Any

import pytest
from pydantic import ValidationError

from mrr_model import Compression
from mrr_model.cascade import Cascade
from mrr_model.selection.profile import Profile, ProfilePoint

FULL: dict[str, Any] = {"depth": 6, "quality": 0.8, "kept": 1.0, "min_kept": 1.0, "seconds": 0.01, "flops": 4e9}
HALF: dict[str, Any] = {
    **FULL,
    "depth": 4,
    "keep_ratio": 0.5,
    "quality": 0.76,
    "kept": 0.95,
    "min_kept": 0.94,
    "seconds": 0.004,
}
TWICE: dict[str, Any] = {**HALF, "keep_ratio": {1: 0.5, 3: 0.25}}
FACTS: dict[str, Any] = {
    "metric": "nDCG@10",
    "collections": ("toy",),
    "queries": 19,
    "query_tokens": 8,
    "passage_tokens": 40,
    "device": "a processor",
    "dtype": "float32",
    "threads": 1,
}


CASCADE: dict[str, Any] = {"stages": {2: 3.0, 4: 1.0}, "top_n": 10, "lost": 0.05, "held_out": 0.04, "queries": 500}
CASCADED: dict[str, Any] = {**FULL, "cascade": CASCADE, "seconds": 0.005, "flops": 2e9}


def profile_of(*points: dict[str, Any], **changes: Any) -> Profile:
    return Profile(**{**FACTS, "points": points, **changes})


def test_json_and_back_is_the_same() -> None:
    made = profile_of(FULL, HALF, TWICE)
    assert Profile.model_validate_json(made.model_dump_json()) == made
    assert [point.setting for point in made.points] == [
        Compression(6, 1.0),
        Compression(4, 0.5),
        Compression(4, {1: 0.5, 3: 0.25}),
    ]


def test_cascades_are_points_of_their_own() -> None:
    made = profile_of(FULL, HALF, CASCADED, {**CASCADED, "cascade": {"stages": {2: 50}, "by": "count"}})
    assert Profile.model_validate_json(made.model_dump_json()) == made
    assert made.fixed == made.points[:2]
    assert [str(point) for point in made.points[2:]] == [
        "depth 6, keep ratio 1, margins 2:3,4:1",
        "depth 6, keep ratio 1, counts 2:50",
    ]
    cascade = made.points[2].cascade
    assert cascade is not None
    assert cascade.cascade == Cascade({2: 3, 4: 1}, top_n=10)


def test_profiles_from_before_cascades_still_load() -> None:
    stored = profile_of(FULL, HALF).model_dump(mode="json")
    for point in stored["points"]:
        del point["cascade"]
    assert Profile.model_validate(stored) == profile_of(FULL, HALF)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, []),
        ({"queries": 99}, ["margins 2:3,4:1 were fitted on 99 queries"]),
        ({"held_out": 0.06}, ["were to lose documents of 5.0% of the queries and lost some of 6.0%"]),
        ({"queries": 9, "held_out": 0.2}, ["9 queries", "20.0%"]),
        ({"lost": None, "queries": 9}, []),  # given, not fitted
    ],
)
def test_a_weak_fit_says_so(changes: dict[str, Any], parts: list[str]) -> None:
    made = profile_of(FULL, {**CASCADED, "cascade": {**CASCADE, **changes}}, queries=500)
    assert len(made.cautions) == len(parts)
    assert all(part in caution for part, caution in zip(parts, made.cautions, strict=True))


def test_speedups_are_against_full_size() -> None:
    made = profile_of(FULL, HALF)
    assert made.full.depth == 6
    assert made.speedup(made.full) == 1.0
    assert made.speedup(made.points[1]) == 2.5


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "points"),
        ([HALF], "the first point must be full size, got depth 4, keep ratio 0.5"),
        ([HALF, FULL], "the first point must be full size"),
        ([{**FULL, "depth": 3}, HALF], "the first point must be full size, got depth 3"),
        ([FULL, HALF, HALF], "points must differ from each other"),
        ([FULL, {**HALF, "keep_ratio": {1: 0.5}}, {**HALF, "keep_ratio": {"1": 0.5}}], "points must differ"),
        ([FULL, {**HALF, "keep_ratio": 1.5}], r"keep_ratio must be in \(0, 1\]"),
        ([FULL, {**HALF, "keep_ratio": {1: 0.25, 2: 0.5}}], "must not increase with depth"),
        ([FULL, {**HALF, "depth": 0}], "depth"),
        ([FULL, {**HALF, "quality": float("nan")}], "quality"),
        ([FULL, {**HALF, "kept": -0.1}], "kept"),
        ([FULL, {**HALF, "seconds": 0}], "seconds"),
        ([FULL, {**HALF, "flops": 0}], "flops"),
        ([FULL, {**HALF, "speed": 3}], "speed"),
        ([CASCADED, FULL], "the first point must be full size, got depth 6, keep ratio 1, margins 2:3,4:1"),
        ([FULL, CASCADED, {**CASCADED, "cascade": {**CASCADE, "lost": 0.1}}], "points must differ from each other"),
        ([FULL, {**HALF, "cascade": CASCADE}], "cascade names exit 4, and the setting ends at exit 4"),
        ([FULL, {**CASCADED, "cascade": {**CASCADE, "stages": {2: -1}}}], r"stages\[2\] must be a finite margin"),
        ([FULL, {**CASCADED, "cascade": {**CASCADE, "stages": {}}}], "stages"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(points: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        profile_of(*points)


@pytest.mark.parametrize("changes", [{"collections": ()}, {"queries": 0}, {"threads": 0}, {"unknown": 1}])
def test_facts_are_checked(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        profile_of(FULL, **changes)


def test_a_point_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ProfilePoint(**FULL).depth = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({}, ["19 queries only"]),
        ({"queries": 100}, []),
        ({"queries": 100, "relevant": 99}, ["99 relevant documents only"]),
        ({"queries": 100, "relevant": 100, "noise": {"spread": 0.01}}, []),
        (
            {"queries": 99, "relevant": 3, "noise": {"spread": 0.5}},
            ["99 queries", "3 relevant", "noisy: repeated runs"],
        ),
    ],
)
def test_a_profile_of_little_says_so(changes: dict[str, Any], parts: list[str]) -> None:
    cautions = profile_of(FULL, HALF, **changes).cautions
    assert len(cautions) == len(parts)
    assert all(part in caution for part, caution in zip(parts, cautions, strict=True))


def test_its_size_is_said() -> None:
    assert profile_of(FULL).data == "toy (19 queries)"
    assert profile_of(FULL, relevant=25, collections=("a", "b")).data == "a, b (19 queries, 25 relevant documents)"
