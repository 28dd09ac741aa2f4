"""Profiles: what a checkpoint's settings keep and take."""

from typing import Any

import pytest
from pydantic import ValidationError

from mrr_model import Compression
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
