"""Results as file names, and the frontier as a picture."""

import re
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr_model import Compression
from mrr_model.evaluation.report import AXES, draw, frontier
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint

few = st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8, 1.0])
"""Few values, so that many points tie."""
points = st.lists(
    st.builds(
        ProfilePoint,
        depth=st.integers(1, 6),
        quality=few,
        kept=few,
        min_kept=few,
        seconds=few,
        flops=few,
    ),
    min_size=1,
    max_size=12,
)


def profile_of(ratios: int = 3) -> Profile:
    made = [
        ProfilePoint(
            depth=depth,
            keep_ratio=ratio,
            quality=0.5 - 0.05 * (6 - depth) - 0.1 * (1 - width),
            kept=1 - 0.1 * (6 - depth) - 0.2 * (1 - width),
            min_kept=1 - 0.1 * (6 - depth) - 0.2 * (1 - width),
            seconds=0.001 * depth * width,
            flops=1e6 * depth * width,
        )
        for ratio, width in [(1.0, 1.0), (0.5, 0.6), ({2: 0.5, 4: 0.25}, 0.5)][:ratios]
        for depth in (6, 4, 2)
    ]
    return Profile(
        metric="nDCG@10",
        collections=("toy",),
        queries=19,
        query_tokens=8,
        passage_tokens=40,
        device="a processor",
        dtype="float32",
        threads=1,
        points=tuple(made),
    )


@given(points)
@pytest.mark.parametrize("cost", ["seconds", "flops"])
def test_the_frontier_is_what_no_point_dominates(cost: str, points: list[ProfilePoint]) -> None:
    def cost_of(point: ProfilePoint) -> float:
        return float(getattr(point, cost))

    line = frontier(points, "seconds" if cost == "seconds" else "flops")
    expected = {
        (cost_of(one), one.quality)
        for one in points
        if not any(
            cost_of(other) <= cost_of(one)
            and other.quality >= one.quality
            and (cost_of(other), other.quality) != (cost_of(one), one.quality)
            for other in points
        )
    }
    assert [(cost_of(point), point.quality) for point in line] == sorted(expected)
    assert all(point in points for point in line)


def test_pictures_label_every_point_and_both_costs(tmp_path: Path) -> None:
    files = [tmp_path / "new" / "frontier.png", tmp_path / "frontier.svg"]
    draw(profile_of(), "a model: toy (19 queries)", files)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    texts = re.findall(
        "<!-- (.*?) -->", files[1].read_text(encoding="utf-8")
    )  # matplotlib's comments spell out its paths
    for depth in ("2", "4", "6"):
        assert texts.count(depth) == 3 * len(AXES)
    assert {"1", "0.5", "2:0.5,4:0.25", "keep ratio", "a model: toy (19 queries)"} <= set(texts)
    assert any("nDCG@10, relative to full size (0.500)" in text for text in texts)
    for axis in AXES:
        assert any(axis.label in text for text in texts)


def test_cascades_have_a_marker_and_a_label_of_their_own(tmp_path: Path) -> None:
    plain = profile_of()
    cascade = ProfileCascade(stages={2: 3.0, 4: 1.5}, top_n=10, lost=0.05)
    point = plain.full.model_copy(update={"cascade": cascade, "seconds": 0.003, "flops": 3e6})
    draw(plain.model_copy(update={"points": (*plain.points, point)}), "title", [tmp_path / "a.svg"])
    draw(plain, "title", [tmp_path / "b.svg"])
    texts, without = (
        re.findall("<!-- (.*?) -->", (tmp_path / name).read_text(encoding="utf-8")) for name in ("a.svg", "b.svg")
    )
    assert texts.count("margins 2:3,4:1.5") == len(AXES)
    assert texts.count("1, with a cascade") == 1
    assert not any("cascade" in text for text in without)
    assert texts.count("6") == without.count("6")  # the depths of the fixed settings only


def test_the_line_goes_through_the_frontier() -> None:
    made = profile_of()
    for axis in AXES:
        line = frontier(made.points, axis.cost)
        assert line[-1] == made.full
        assert 1 < len(line) < len(made.points)


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "a.svg", tmp_path / "b.svg"]
    for file in files:
        draw(profile_of(), "title", [file])
    contents = [file.read_bytes() for file in files]
    assert contents[0] == contents[1]
    assert contents[2] == contents[3]


@pytest.mark.parametrize("title", ["$x", "a_b^c $\\frac$ \\x", "50 % of {this}"])
def test_titles_are_not_read_as_formulas(tmp_path: Path, title: str) -> None:
    draw(profile_of(1), title, [tmp_path / "a.svg"])
    assert f"<!-- {title} -->" in (tmp_path / "a.svg").read_text(encoding="utf-8")


def test_run_names_are_file_names_and_all_different() -> None:
    settings = [Compression(4, ratio) for ratio in (1.0, 0.5, {1: 0.5}, {1: 0.5, 2: 0.25}, {1: 0.5, 12: 0.25})]
    names = [setting.file_name for setting in settings]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and not set(name) & set("/\\:,* ") for name in names)


def test_one_setting_and_no_quality_can_be_drawn(tmp_path: Path) -> None:
    point = ProfilePoint(depth=6, quality=0.0, kept=1.0, min_kept=1.0, seconds=1.0, flops=1.0)
    draw(profile_of().model_copy(update={"points": (point,)}), "one", [tmp_path / "a.png"])
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_without_matplotlib_the_pip_command_is_in_the_error(tmp_path: Path) -> None:
    with (
        patch.dict("sys.modules", {"matplotlib": None}),
        pytest.raises(ImportError, match=r"need matplotlib: pip install .*\[eval\]"),
    ):
        draw(profile_of(), "title", [tmp_path / "a.png"])
