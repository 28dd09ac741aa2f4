"""The config of an evaluation and of a calibration, and its grid of settings."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrr_model import Compression
from mrr_model.cascade import Cascade
from mrr_model.compression import DEFAULT_KEEP_RATIOS
from mrr_model.evaluation.config import DEPTHS, CalibrateConfig, EvaluateConfig
from mrr_model.evaluation.presets import preset

EXITS = (2, 3, 4, 5, 6)


def config_of(**given: Any) -> EvaluateConfig:
    return EvaluateConfig(**{"collections": ("toy",), **given})


@given(
    st.sets(st.integers(1, 40), min_size=1).map(sorted),
    st.one_of(st.none(), st.lists(st.integers(1, 50), min_size=1).map(tuple)),
    st.one_of(st.none(), st.lists(st.sampled_from([1.0, 0.5, "0.5", "1:0.5,3:0.25"]), min_size=1).map(tuple)),
    st.booleans(),
)
def test_full_size_comes_first_and_no_setting_twice(
    exits: list[int], depths: tuple[int, ...] | None, ratios: tuple[Any, ...] | None, merges: bool
) -> None:
    grid = config_of(depths=depths, keep_ratios=ratios).grid(exits, merges)
    assert grid[0] == Compression(exits[-1], 1.0)
    assert len(set(grid)) == len(grid)
    for setting in grid:
        assert setting.depth in exits or depths is not None  # the model refuses a depth below its first exit


def test_without_depths_and_ratios_the_grid_is_spread_over_the_exits() -> None:
    grid = config_of().grid(range(8, 33), merges=True)
    assert {setting.depth for setting in grid} == {32, 26, 20, 14, 8}
    assert {setting.keep_ratio for setting in grid} == set(DEFAULT_KEEP_RATIOS)
    assert len(grid) == DEPTHS * len(DEFAULT_KEEP_RATIOS)
    assert config_of().grid((4, 6), merges=False) == [Compression(6, 1.0), Compression(4, 1.0)]
    assert config_of().grid((6,), merges=False) == [Compression(6, 1.0)]


def test_depths_resolve_to_exits_and_repetitions_go() -> None:
    grid = config_of(depths=(3, 100, 7, 6, 3), keep_ratios=("1", 1.0, 0.5)).grid((2, 4, 6), merges=True)
    assert grid == [Compression(6, 1.0), Compression(2, 1.0), Compression(2, 0.5), Compression(6, 0.5)]


def test_a_depth_below_the_first_exit_stays_for_the_model_to_refuse() -> None:
    assert config_of(depths=(1,)).grid(EXITS, merges=False)[1] == Compression(1, 1.0)


def test_a_settings_file_is_a_grid(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "- {depth: 4, keep_ratio: 0.5}\n- depth: 5\n  keep_ratio: {1: 0.5, 3: 0.25}\n"
        "- {}\n- {keep_ratio: '2:0.5'}\n- {depth: 4, keep_ratio: 0.5}\n",
        encoding="utf-8",
    )
    assert config_of(settings=file).grid(EXITS, merges=True) == [
        Compression(6, 1.0),
        Compression(4, 0.5),
        Compression(5, {1: 0.5, 3: 0.25}),
        Compression(6, {2: 0.5}),
    ]
    (tmp_path / "grid.json").write_text('[{"depth": 3, "keep_ratio": {"1": 0.5}}]', encoding="utf-8")
    assert config_of(settings=tmp_path / "grid.json").grid(EXITS, merges=True)[1] == Compression(3, {1: 0.5})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold a list of settings"),
        (b"[]", "must hold a list of settings"),
        (b"depth: 4", r"must hold a list of settings such as \{depth: 4, keep_ratio: 0.5\}, got"),
        (b"- [", "is not valid YAML"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        (b"- 4", "setting 1 must be"),
        (b"- {depth: 4}\n- {deph: 4}", r"setting 2 must be .*'deph'"),
        (b"- {depth: four}", "setting 1: depth must be a whole number, got 'four'"),
        (b"- {depth: 4.0}", "setting 1: depth must be a whole number, got 4.0"),
        (b"- {depth: 0}", "setting 1: depth must be at least 1"),
        (b"- {keep_ratio: .nan}", r"setting 1: keep_ratio must be in \(0, 1\], got nan"),
        (b"- {keep_ratio: }", "setting 1: keep_ratio must be a number"),
        (b"- {keep_ratio: {1: 0.25, 2: 0.5}}", "setting 1: keep_ratio must not increase with depth"),
    ],
)
def test_a_settings_file_that_is_none_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.yaml.*{message}"):
        config_of(settings=file).grid(EXITS, merges=True)


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        config_of(settings=tmp_path / "absent.yaml").grid(EXITS, merges=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_length": 64, "query_max_length": 64}, "query_max_length"),
        ({"dtype": "int8"}, "dtype"),
        ({"collections": ()}, "give a collection to evaluate on, or a preset"),
        ({"settings": Path("a.yaml"), "depths": (4,)}, "settings replaces depths"),
        ({"settings": Path("a.yaml"), "keep_ratios": (0.5,)}, "settings replaces depths"),
        ({"run": Path("a.run"), "collections": ("a", "b")}, "exactly one collection"),
        ({"preset": "trec"}, "preset"),
        ({"first_stage": "dense"}, "first_stage"),
        ({"candidates": 0}, "candidates"),
        ({"limit_queries": 0}, "limit_queries"),
        ({"timing_pairs": 0}, "timing_pairs"),
        ({"timing_repeats": 0}, "timing_repeats"),
        ({"max_length": 0}, "max_length"),
        ({"depth": 4}, "depth"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(**given)


def test_what_is_given_wins_over_the_preset() -> None:
    bare = EvaluateConfig(preset="msmarco-passage")
    assert bare.all_collections == preset("msmarco-passage").collections
    assert bare.all_metrics == ("RR@10",)
    own = EvaluateConfig(preset="msmarco-passage", collections=("toy",), metrics=("AP",))
    assert (own.all_collections, own.all_metrics) == (("toy",), ("AP",))
    assert config_of().all_metrics == ("nDCG@10",)


@pytest.mark.parametrize(
    "given",
    [{"texts": "pairs.jsonl", "collections": ("toy",)}, {"texts": "pairs.jsonl", "preset": "beir"}, {}],
)
def test_a_calibration_takes_either_collections_or_texts(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="texts"):
        CalibrateConfig(**given)


def test_identical_ids_are_kept_as_the_config_says_else_as_the_preset_says() -> None:
    for fields, left_out in (
        ({}, True),
        ({"preset": "beir"}, True),
        ({"preset": "msmarco-passage"}, False),
        ({"preset": "msmarco-passage", "keep_identical_ids": False}, True),
        ({"keep_identical_ids": True}, False),
    ):
        assert config_of(**fields).leaves_out_identical_ids == left_out


# Cascades


def test_cascades_run_to_the_deepest_setting_of_each_ratio() -> None:
    grid = config_of(depths=(6, 4), keep_ratios=(1.0, 0.5)).grid(EXITS, merges=True)
    assert config_of().final_settings(grid) == []
    assert config_of(cascade=True).final_settings(grid) == [Compression(6, 1.0), Compression(6, 0.5)]
    assert config_of(cascade_stages=("2:3",)).final_settings(grid) == [Compression(6, 1.0)]


def test_given_cascades_are_parsed_and_not_repeated() -> None:
    made = config_of(cascade_stages=("2:3,4:1", "2:3.0,4:1", "3:2"), cascade_top_n=7).given_cascades
    assert made == (Cascade({2: 3, 4: 1}, top_n=7), Cascade({3: 2}, top_n=7))
    counts = config_of(cascade_stages=("2:50,4:20",), cascade_by="count").given_cascades
    assert counts == (Cascade({2: 50, 4: 20}, by="count"),)


def test_cascades_are_timed_on_more_queries() -> None:
    assert config_of().pairs_to_time < config_of(cascade=True).pairs_to_time
    assert config_of(cascade_stages=("2:3",)).pairs_to_time == config_of(cascade=True).pairs_to_time
    assert config_of(cascade=True, timing_pairs=7).pairs_to_time == 7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cascade_by": "count"}, "cascade_by says what numbers in cascade_stages are: give both"),
        ({"cascade_loss": 0.05}, "cascade_loss goes with cascade, which fits margins"),
        ({"cascade_stages": ("2:3",), "cascade_loss": 0.05}, "cascade_loss goes with cascade"),
        ({"cascade_top_n": 5}, "cascade_top_n goes with cascade or cascade_stages"),
        ({"cascade": True, "cascade_loss": 1}, "cascade_loss"),
        ({"cascade": True, "cascade_loss": -0.1}, "cascade_loss"),
        ({"cascade": True, "cascade_top_n": 0}, "cascade_top_n"),
        ({"cascade_stages": ("2",)}, "stages='2' cannot be read"),
        ({"cascade_stages": ("2:-1",)}, "must be a finite margin of at least 0"),
        ({"cascade_stages": ("2:5,4:9",), "cascade_by": "count"}, "counts must not grow with depth"),
    ],
)
def test_what_contradicts_itself_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config_of(**given)
