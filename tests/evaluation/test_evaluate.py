"""One evaluation from collections to the frontier, and one that was interrupted."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ir_measures
import pytest
import scipy.stats

from mrr_model import Compression, MatryoshkaReranker
from mrr_model.cascade import Cascade
from mrr_model.data.beir import read_qrels, read_run
from mrr_model.evaluation import report, timing
from mrr_model.evaluation.cascades import measured_of
from mrr_model.evaluation.collection import open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import evaluate, open_collections, open_reranker
from mrr_model.evaluation.grid import plan_passes
from mrr_model.evaluation.metrics import evaluate_run
from mrr_model.evaluation.presets import PRESETS
from mrr_model.evaluation.report import STAR, Evaluation
from mrr_model.inference.engine import InferenceEngine
from mrr_model.selection.latency import Timings, measure_timings
from mrr_model.selection.profile import ProfilePoint
from mrr_model.selection.stopwatch import Noise, Timed

METRICS = ("nDCG@10", "RR@10", "Compat(p=0.8)")
SMALL: dict[str, Any] = {
    "max_length": 64,
    "dtype": "float32",
    "depths": (3, 6),
    "keep_ratios": (1.0, 0.5),
    "metrics": METRICS,
    "timing_pairs": 1,
    "timing_repeats": 1,
}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    """Other work on this machine does not change the tests."""
    with patch("mrr_model.selection.stopwatch.PROCESSOR_TIMES", Path("/nowhere")):
        yield


@pytest.fixture(scope="module")
def small_beir(make_beir: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One query, no candidates of its own: BM25 finds them."""
    corpus = {"x": "the panda eats bamboo", "y": "a zoo", "z": "panda panda", "same": "a zoo"}
    folder = tmp_path_factory.mktemp("collections") / "small"
    return make_beir(folder, {"q": "panda in a zoo"}, corpus, {"q": {"x": 2, "y": 1}})


@pytest.fixture(scope="module")
def config_of(saved_encoder: Path, toy_beir: Path) -> Callable[..., EvaluateConfig]:
    given = {**SMALL, "model": str(saved_encoder), "collections": (str(toy_beir),)}
    return lambda **changes: EvaluateConfig(**{**given, **changes})


@pytest.fixture(scope="module", autouse=True)
def _load_once() -> Iterator[None]:
    """Loading a model takes longer than evaluating it."""
    with patch("mrr_model.evaluation.evaluate.MatryoshkaReranker", cache(MatryoshkaReranker)):
        yield


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr(report, "draw", lambda *_: None)


@pytest.fixture(scope="module")
def evaluated(config_of: Callable[..., EvaluateConfig], tmp_path_factory: Any) -> tuple[Evaluation, Path]:
    """One evaluation, and its output folder, to be copied."""
    output = tmp_path_factory.mktemp("evaluations") / "one"
    return evaluate(config_of(output=output)), output


@pytest.fixture
def output(evaluated: tuple[Evaluation, Path], tmp_path: Path) -> Path:
    """A copy of the output folder."""
    return Path(shutil.copytree(evaluated[1], tmp_path / "copy"))


@pytest.fixture(scope="module")
def both(
    config_of: Callable[..., EvaluateConfig], toy_beir: Path, small_beir: Path, tmp_path_factory: Any
) -> tuple[Evaluation, Path]:
    """Both collections evaluated, and the output folder."""
    output = tmp_path_factory.mktemp("evaluations") / "both"
    return evaluate(config_of(collections=(str(toy_beir), str(small_beir)), output=output)), output


def results_of(output: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    results: dict[str, Any] = json.loads((output / "results.json").read_text(encoding="utf-8"), parse_constant=refuse)
    return results


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    points = [{**point, "seconds": None} for point in results["profile"]["points"]]
    return {**results, "profile": {**results["profile"], "points": points, "measured_at": None, "noise": None}}


def files_of(output: Path) -> dict[str, bytes]:
    """The files that do not depend on times."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for folder in ("logits", "runs", "queries")
        for path in sorted((output / folder).rglob("*"))
        if path.is_file()
    }


# The output


def test_every_metric_is_what_ir_measures_computes_from_the_written_runs(
    both: tuple[Evaluation, Path], toy_beir: Path, small_beir: Path
) -> None:
    evaluation, output = both
    library = [ir_measures.parse_measure(name) for name in METRICS]
    for folder, stored in zip((toy_beir, small_beir), results_of(output)["collections"], strict=True):
        qrels = read_qrels(folder, "test")
        by_query = [
            json.loads(line)
            for line in (output / "queries" / f"{folder.name}.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        runs = sorted((output / "runs" / folder.name).iterdir())
        assert {run.stem for run in runs} == stored["settings"].keys() == {row["setting"] for row in by_query}
        assert len(runs) == 4
        for run in runs:
            results = ir_measures.calc(library, qrels, list(ir_measures.read_trec_run(str(run))))
            for name, each in zip(METRICS, library, strict=True):
                assert stored["settings"][run.stem][name] == pytest.approx(results.aggregated[each], abs=1e-9)
                rows = {row["query"]: row[name] for row in by_query if row["setting"] == run.stem}
                found = {metric.query_id: metric.value for metric in results.per_query if metric.measure == each}
                assert rows == pytest.approx(found, abs=1e-9)
                assert rows.keys() == qrels.keys()  # the query without candidates too
    assert [result.source for result in evaluation.collections] == [str(toy_beir), str(small_beir)]


def test_runs_hold_the_logits_of_single_calls(both: tuple[Evaluation, Path], saved_encoder: Path) -> None:
    _, output = both
    reranker = MatryoshkaReranker(saved_encoder, dtype="float32", max_length=64, normalize=False)
    run = read_run(output / "runs" / "small" / "depth-3_keep-ratio-0.5.run")["q"]
    texts = {"x": "the panda eats bamboo", "y": "a zoo", "z": "panda panda", "same": "a zoo"}
    alone = dict(zip(texts, reranker.score("panda in a zoo", texts.values(), depth=3, keep_ratio=0.5), strict=True))
    assert run == pytest.approx(alone, rel=1e-5, abs=1e-5)
    order = list(run)
    assert order.index("y") + 1 == order.index("same")  # a tie, by docid descending
    assert run["y"] > run["same"]


def test_the_first_stage_is_evaluated_in_its_own_order(both: tuple[Evaluation, Path], toy_beir: Path) -> None:
    evaluation, output = both
    given = read_run(toy_beir / "candidates" / "test.run")
    expected = evaluate_run(METRICS, read_qrels(toy_beir, "test"), given)
    assert evaluation.collections[0].first_stage == expected
    assert results_of(output)["collections"][0]["first_stage"] == expected.mean


def test_differences_are_tested_query_by_query_against_full_size(both: tuple[Evaluation, Path]) -> None:
    _, output = both
    rows = [json.loads(line) for line in (output / "queries" / "toy.jsonl").read_text(encoding="utf-8").splitlines()]
    toy, small = results_of(output)["collections"]
    values = {setting: [row["nDCG@10"] for row in rows if row["setting"] == setting] for setting in toy["settings"]}
    full = "depth-6_keep-ratio-1"
    assert toy["against_full"].keys() == values.keys() - {full}
    for setting, compared in toy["against_full"].items():
        expected = scipy.stats.ttest_rel(values[setting], values[full])
        assert compared["nDCG@10"]["p_value"] == pytest.approx(expected.pvalue)
        assert compared["nDCG@10"]["difference"] == pytest.approx(
            toy["settings"][setting]["nDCG@10"] - toy["settings"][full]["nDCG@10"]
        )
    assert small["against_full"]["depth-3_keep-ratio-1"]["RR@10"]["p_value"] is None  # one query is no sample


def test_the_profile_is_the_mean_over_collections(
    both: tuple[Evaluation, Path], saved_encoder: Path, toy_beir: Path, small_beir: Path
) -> None:
    evaluation, output = both
    profile = evaluation.profile
    assert results_of(output)["profile"] == json.loads(profile.model_dump_json())
    assert (profile.collections, profile.queries, profile.metric) == (("toy", "small"), 20, "nDCG@10")
    assert profile.relevant == sum(
        grade > 0 and document in read_run(output / "runs" / folder.name / "depth-6_keep-ratio-1.run").get(query, {})
        for folder in (toy_beir, small_beir)
        for query, judged in read_qrels(folder, "test").items()
        for document, grade in judged.items()
    )
    toy, small = evaluation.collections
    for point in profile.points:
        means = [result.settings[point.setting].mean["nDCG@10"] for result in (toy, small)]
        assert point.quality == pytest.approx(sum(means) / 2)
        assert point.kept == pytest.approx(point.quality / profile.full.quality)
        assert math.isfinite(point.seconds)
    reranker = MatryoshkaReranker(saved_encoder, max_length=64)
    flops = [point.flops for point in profile.points]
    shares = [reranker.flops(depth=p.depth, keep_ratio=p.keep_ratio) for p in profile.points]
    assert sorted(range(4), key=flops.__getitem__) == sorted(range(4), key=shares.__getitem__)


def test_the_table_shows_the_same_numbers(both: tuple[Evaluation, Path]) -> None:
    evaluation, output = both
    table = evaluation.markdown()
    assert (output / "table.md").read_text(encoding="utf-8") == table + "\n"
    head, rule, first, *rows, blank, star = table.splitlines()
    assert head == (
        "| nDCG@10 | toy | small | mean | quality kept | ms per pair | time vs full size | FLOPs vs full size |"
    )
    assert first.startswith("| first stage | ")
    assert (blank, star) == ("", STAR)
    assert {line.count("|") for line in (head, rule, first, *rows)} == {9}
    assert [row.split(" | ")[0] for row in rows] == [
        "| full size",
        "| depth 3, keep ratio 1",
        "| depth 3, keep ratio 0.5",
        "| depth 6, keep ratio 0.5",
    ]
    assert "| 100.0% |" in rows[0]
    for point, row in zip(evaluation.profile.points, rows, strict=True):
        cells = [cell.strip() for cell in row.split("|")[2:-1]]
        means = [result.settings[point.setting].mean["nDCG@10"] for result in evaluation.collections]
        assert [cell.rstrip("*") for cell in cells[:2]] == [f"{mean:.3f}" for mean in means]
        compared = evaluation.collections[0].against_full.get(point.setting)
        assert cells[0].endswith("*") == (compared is not None and compared["nDCG@10"].p_value < 0.05)
        assert cells[2:4] == [f"{point.quality:.3f}", f"{point.kept:.1%}"]
    for name in ("frontier.png", "frontier.svg"):
        assert (output / name).stat().st_size > 1000


# Cascades


CASCADES: dict[str, Any] = {
    "cascade": True, "cascade_loss": 0.3, "cascade_top_n": 2, "cascade_stages": ("1:4,3:3", "2:3"),
    "cascade_by": "count",
}  # fmt: skip


@pytest.fixture(scope="module")
def cascaded(
    config_of: Callable[..., EvaluateConfig], toy_beir: Path, small_beir: Path, tmp_path_factory: Any
) -> tuple[Evaluation, Path]:
    """Both collections evaluated with cascades, and the output folder."""
    output = tmp_path_factory.mktemp("evaluations") / "cascaded"
    config = config_of(collections=(str(toy_beir), str(small_beir)), output=output, **CASCADES)
    return evaluate(config), output


def points_with_cascades(evaluation: Evaluation) -> list[ProfilePoint]:
    return [point for point in evaluation.profile.points if point.cascade is not None]


def test_every_final_setting_gets_a_fitted_cascade_and_full_size_the_given_ones(
    cascaded: tuple[Evaluation, Path], both: tuple[Evaluation, Path]
) -> None:
    evaluation, plain = cascaded[0], both[0]
    *fitted, first, second = points_with_cascades(evaluation)
    assert [point.setting for point in fitted] == [Compression(6, 1.0), Compression(6, 0.5)]
    for point in fitted:
        assert point.cascade is not None
        assert (point.cascade.lost, point.cascade.top_n, point.cascade.queries) == (0.3, 2, 19)
        assert point.cascade.held_out is not None
    assert [point.cascade and point.cascade.cascade for point in (first, second)] == [
        Cascade({1: 4, 3: 3}, by="count"), Cascade({2: 3}, by="count")
    ]  # fmt: skip
    assert all(point.cascade and point.cascade.lost is None and point.cascade.held_out for point in (first, second))
    for own, other in zip(evaluation.profile.fixed, plain.profile.points, strict=True):
        assert (own.setting, own.quality) == (other.setting, pytest.approx(other.quality, abs=1e-6))
    assert any("19 queries with enough candidates" in caution for caution in evaluation.profile.cautions)


def test_a_cascades_run_is_the_ranking_of_the_call(
    cascaded: tuple[Evaluation, Path], saved_encoder: Path, toy_beir: Path
) -> None:
    evaluation, output = cascaded
    reranker = MatryoshkaReranker(saved_encoder, dtype="float32", max_length=64)
    collection = open_collection(str(toy_beir))
    for point in points_with_cascades(evaluation):
        measured = measured_of(point)
        run = read_run(output / "runs" / "toy" / f"{measured.file_name}.run")
        assert point.cascade is not None
        for query in ("q1", "q7", "q13"):
            documents = collection.candidates[query]
            ranking = reranker.rank(
                collection.queries[query],
                [collection.corpus[document] for document in documents],
                cascade=point.cascade.cascade,
                **point.setting.to_kwargs(),
            )
            called = [documents[each.index] for each in ranking]
            same = {"d00", "same"}  # equal texts: by id in a run, by input order in a call
            assert [each in same or each for each in run[query]] == [each in same or each for each in called]


def test_cascades_cost_their_share_and_are_compared_with_full_size(cascaded: tuple[Evaluation, Path]) -> None:
    evaluation, output = cascaded
    full = evaluation.profile.full
    for point in points_with_cascades(evaluation):
        own = next(each for each in evaluation.profile.fixed if each.setting == point.setting)
        assert point.flops < own.flops <= full.flops
        for result in evaluation.collections:
            assert measured_of(point) in result.against_full
        assert point.quality == pytest.approx(
            sum(result.settings[measured_of(point)].mean["nDCG@10"] for result in evaluation.collections) / 2
        )
    table = (output / "table.md").read_text(encoding="utf-8")
    assert "| depth 6, keep ratio 1, counts 1:4,3:3 |" in table
    assert "`depth 6, keep ratio 1, counts 2:3`: " in table
    rows = [json.loads(line) for line in (output / "queries" / "small.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["setting"] for row in rows}) == len(evaluation.profile.points)
    assert len(results_of(output)["collections"][0]["settings"]) == len(evaluation.profile.points)


@pytest.mark.usefixtures("_no_pictures")
def test_cascades_take_no_pass_of_their_own_and_resume(
    config_of: Callable[..., EvaluateConfig], counted: dict[str, int], tmp_path: Path
) -> None:
    evaluate(config_of(output=tmp_path / "plain"))
    needed = counted["calls"]
    counted.update(calls=0)
    config = config_of(output=tmp_path / "cascaded", **CASCADES)
    made = evaluate(config)
    assert counted["calls"] == needed
    counted.update(calls=0, stop=0)
    with patch.object(MatryoshkaReranker, "rank", side_effect=AssertionError("timed again")):
        assert evaluate(config) == made


def test_a_cascade_is_timed_as_it_is_called(config_of: Callable[..., EvaluateConfig], output: Path) -> None:
    with patch.object(MatryoshkaReranker, "rank", autospec=True, side_effect=MatryoshkaReranker.rank) as ranked:
        evaluate(config_of(output=output, cascade_stages=("2:1",), cascade_top_n=3))
    assert ranked.call_count == 2  # a warm-up and one turn, on one query
    for call in ranked.mock_calls:
        assert call.kwargs == {"top_n": 3, "cascade": Cascade({2: 1}, top_n=3), "depth": 6, "keep_ratio": 1.0}


@pytest.mark.usefixtures("_no_pictures")
def test_where_no_cascade_saves_anything_there_is_none(
    config_of: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    lines: list[str] = []
    made = evaluate(config_of(output=tmp_path, cascade=True, cascade_top_n=10), lines.append)  # six candidates each
    assert points_with_cascades(made) == []
    assert [line for line in lines if "cascade" in line] == [
        "no cascade to depth 6, keep ratio 1 saves enough",
        "no cascade to depth 6, keep ratio 0.5 saves enough",
    ]


def test_a_cascade_that_the_model_cannot_run_is_an_error_before_anything_is_scored(
    config_of: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cascade names exit 6, and the setting ends at exit 6"):
        evaluate(config_of(output=tmp_path, cascade_stages=("6:1",)))
    assert not (tmp_path / "logits").exists()


# Interrupted and called again


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often the grid computed logits, and the call that is interrupted."""
    counts = {"calls": 0, "stop": -1}
    computed = InferenceEngine.logits

    def logits(self: InferenceEngine, *args: Any, **kwargs: Any) -> Any:
        if kwargs["show_progress"] is None:  # a call that is timed; the grid has a progress bar of its own
            return computed(self, *args, **kwargs)
        if counts["calls"] == counts["stop"]:
            raise KeyboardInterrupt
        counts["calls"] += 1
        return computed(self, *args, **kwargs)

    monkeypatch.setattr(InferenceEngine, "logits", logits)
    return counts


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("model", ["saved_encoder", "saved_checkpoint"])
def test_an_interrupted_evaluation_resumes_to_the_same_results(
    config_of: Callable[..., EvaluateConfig],
    request: pytest.FixtureRequest,
    counted: dict[str, int],
    tmp_path: Path,
    model: str,
) -> None:
    name = str(request.getfixturevalue(model))
    whole = config_of(model=name, output=tmp_path / "whole")
    evaluate(whole)
    needed = counted["calls"]
    assert needed == 3 * len(plan_passes(open_reranker(whole), whole.grid((1, 2, 3, 4, 5, 6), merges=True)))
    stopped = config_of(model=name, output=tmp_path / "stopped")
    for stop in (needed // 2, 1):  # the second time after one more chunk
        counted.update(calls=0, stop=stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(stopped)
        assert not (tmp_path / "stopped" / "results.json").exists()
    last = max((tmp_path / "stopped" / "logits").rglob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    last.write_bytes(last.read_bytes()[:-7])  # the line that was being written
    counted.update(calls=0, stop=-1)
    evaluate(stopped)
    assert counted["calls"] == needed - needed // 2  # the rest, and the line that was cut off
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")
    assert without_times(results_of(tmp_path / "stopped")) == without_times(results_of(tmp_path / "whole"))


@pytest.mark.usefixtures("_no_pictures")
def test_the_same_call_again_computes_nothing_and_another_metric_is_added(
    config_of: Callable[..., EvaluateConfig], counted: dict[str, int], output: Path
) -> None:
    counted["stop"] = 0
    again = evaluate(config_of(output=output, metrics=("AP",)))
    assert again.profile.metric == "AP"
    assert all("AP" in means for means in results_of(output)["collections"][0]["settings"].values())


def everything_in(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in sorted(output.rglob("*")) if path.is_file()}


def test_the_same_call_again_times_nothing_and_writes_the_same(
    config_of: Callable[..., EvaluateConfig], evaluated: tuple[Evaluation, Path], output: Path
) -> None:
    made, before = evaluated[0], everything_in(output)
    assert [name for name in before if name.startswith("timings/")]
    lines: list[str] = []
    with patch.object(MatryoshkaReranker, "score", side_effect=AssertionError("timed again")):
        again = evaluate(config_of(output=output), lines.append)
    assert again == made
    assert everything_in(output) == before
    assert made.profile.measured_at is not None
    assert lines[1:] == [f"reusing the times of {made.profile.measured_at:%Y-%m-%d %H:%M} UTC"]


@pytest.mark.usefixtures("_no_pictures")
def test_an_evaluation_that_stopped_after_timing_does_not_time_again(
    config_of: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    with (
        patch("mrr_model.evaluation.evaluate.write_results", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        evaluate(config_of(output=tmp_path))
    with patch.object(MatryoshkaReranker, "score", side_effect=AssertionError("timed again")):
        evaluate(config_of(output=tmp_path))


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize(
    "changes",
    [
        {"retime": True},
        {"depths": (6,)},
        {"timing_repeats": 2},
        {"timing_pairs": 30},
        {"batch_tokens": 64},
        {"seed": 1},
    ],
    ids=str,
)
def test_a_change_that_times_depend_on_is_timed_again(
    config_of: Callable[..., EvaluateConfig], output: Path, changes: dict[str, Any]
) -> None:
    with patch.object(timing, "measure_timings", wraps=measure_timings) as timed:
        evaluate(config_of(output=output))
        timed.assert_not_called()
        evaluate(config_of(output=output, **changes))
    timed.assert_called_once()


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize(
    ("name", "value"),
    [("mrr_model.selection.latency.torch.get_num_threads", 64), ("mrr_model.reranker.device_name", "another")],
    ids=["threads", "device"],
)
def test_other_threads_and_another_device_are_timed_again(
    config_of: Callable[..., EvaluateConfig], output: Path, name: str, value: Any
) -> None:
    with (
        patch.object(timing, "measure_timings", wraps=measure_timings) as timed,
        patch(name, return_value=value),
    ):
        evaluate(config_of(output=output))
    timed.assert_called_once()


@pytest.mark.usefixtures("_no_pictures")
def test_damaged_times_are_a_warning_and_timed_again(
    config_of: Callable[..., EvaluateConfig], output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    [file] = (output / "timings").iterdir()
    file.write_text("{")
    evaluate(config_of(output=output))
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(file) in record.message
    assert Timings.model_validate_json(file.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("_no_pictures")
def test_noisy_times_are_written_and_noted(config_of: Callable[..., EvaluateConfig], output: Path) -> None:
    grid = config_of().grid((1, 2, 3, 4, 5, 6), merges=True)
    noisy = Timed(dict.fromkeys(grid, 0.5), Noise(spread=0.4))
    shutil.rmtree(output / "timings")
    with patch("mrr_model.selection.latency.timed", return_value=noisy) as timed:
        for _ in range(2):
            made = evaluate(config_of(output=output))
    timed.assert_called_once()
    note = "Times are noisy: repeated runs differ by 40%; `--retime` measures them again"
    assert made.markdown().splitlines()[-1] == note
    assert results_of(output)["profile"]["noise"] == {"spread": 0.4, "contention": None}


@pytest.mark.parametrize("changes", [{"max_length": 32}, {"candidates": 3}, {"without_compensation": True}])
def test_an_output_folder_of_another_evaluation_is_refused(
    config_of: Callable[..., EvaluateConfig], output: Path, changes: dict[str, Any]
) -> None:
    before = files_of(output)
    with pytest.raises(ValueError, match=r"another evaluation .* output folder"):
        evaluate(config_of(output=output, depths=(6,), **changes))
    assert files_of(output) == before


# What cannot be evaluated


def test_what_the_model_cannot_do_is_an_error_before_a_collection_is_opened(
    config_of: Callable[..., EvaluateConfig], tmp_path: Path
) -> None:
    for changes, message in [
        ({"depths": (0,)}, "depth"),
        ({"keep_ratios": ({6: 0.5},)}, "keep_ratio names merge layer 6"),
        ({"metrics": ("nDCG@10", "nonsense")}, "metric 'nonsense'"),
        ({"prompt": "Is it so?"}, "prompt"),
        ({"max_length": 4096}, "max_length=4096"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate(config_of(collections=("no such/collection",), output=tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_collections_of_one_name_or_without_candidates_are_refused(
    config_of: Callable[..., EvaluateConfig], make_beir: Callable[..., Path], toy_beir: Path, tmp_path: Path
) -> None:
    other = make_beir(tmp_path / "toy", {"q": "a"}, {"d": "a"}, {"q": {"d": 1}}, {"q": ["d"]})
    with pytest.raises(ValueError, match=r"collections: .*'toy'"):
        open_collections(config_of(collections=(str(toy_beir), str(other))))
    empty = make_beir(tmp_path / "empty", {"q": "a"}, {"d": "a"}, {"q": {"d": 1}}, {})
    with pytest.raises(ValueError, match="empty has no candidates"):
        open_collections(config_of(collections=(str(empty),)))


@pytest.mark.parametrize(("query", "document"), [("q", "a b"), ("q\u00a01", "d"), ("q", " d")])
def test_ids_that_a_trec_run_does_not_allow_are_refused_before_anything_is_scored(
    config_of: Callable[..., EvaluateConfig],
    make_beir: Callable[..., Path],
    tmp_path: Path,
    query: str,
    document: str,
) -> None:
    folder = make_beir(tmp_path / "blank", {query: "panda"}, {document: "the panda"}, {query: {document: 1}})
    with pytest.raises(ValueError, match=r"blank: .* id .* space"):
        open_collections(config_of(collections=(str(folder),)))


@pytest.mark.usefixtures("_no_pictures")
def test_nothing_relevant_anywhere_is_no_error(
    config_of: Callable[..., EvaluateConfig], make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_beir(tmp_path / "none", {"q": "a"}, {"d": "a", "e": "b"}, {"q": {"d": 0}}, {"q": ["d", "e"]})
    made = evaluate(config_of(collections=(str(folder),), output=tmp_path / "out"))
    assert {(point.quality, point.kept) for point in made.profile.points} == {(0.0, 1.0)}


def test_an_output_that_is_a_file_is_an_error_before_anything_is_scored(
    config_of: Callable[..., EvaluateConfig], counted: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        evaluate(config_of(output=tmp_path / "file"))
    assert counted["calls"] == 0


# The protocol


def test_adapters_can_be_left_off(config_of: Callable[..., EvaluateConfig]) -> None:
    assert open_reranker(config_of()).adapters
    assert open_reranker(config_of(without_compensation=True)).adapters == ()


@pytest.mark.usefixtures("_no_pictures")
def test_a_preset_sets_lengths_prompt_and_metrics(
    config_of: Callable[..., EvaluateConfig], saved_checkpoint: Path, make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    texts = {"d": "the panda", "e": "a bear"}
    folder = make_beir(tmp_path / "trec-dl-quora", {"q": "panda"}, texts, {"q": {"d": 1}}, {"q": ["d", "e"]})
    given = {"model": str(saved_checkpoint), "collections": (str(folder),), "metrics": (), "depths": (6,)}
    config = config_of(**given, preset="msmarco-passage", max_length=None, output=tmp_path / "out")
    reranker = open_reranker(config)
    assert (reranker.max_length, reranker.query_max_length) == (224, 32)
    made = evaluate(config)
    assert set(made.collections[0].settings[Compression(6, 1.0)].mean) == {"RR@10", "nDCG@10"}
    file = next((tmp_path / "out" / "logits").rglob("*.jsonl"))
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["prompt"] is None
    beir = config_of(**given, preset="beir", output=tmp_path / "beir")
    evaluate(beir)
    file = next((tmp_path / "beir" / "logits").rglob("*.jsonl"))
    assert "asking the same thing" in json.loads(file.read_text(encoding="utf-8").splitlines()[0])["prompt"]
    own = config_of(**given, preset="beir", prompt="Mine?", output=tmp_path / "own")
    assert open_reranker(own).prompt == "Mine?"
    evaluate(own)
    file = next((tmp_path / "own" / "logits").rglob("*.jsonl"))
    assert json.loads(file.read_text(encoding="utf-8").splitlines()[0])["prompt"] == "Mine?"


TWINS = {
    "how do I bake bread?": "what is a good way of baking bread?",
    "where do penguins live?": "in which places do penguins live?",
    "how tall is the Eiffel tower?": "what is the height of the Eiffel tower?",
    "who wrote Faust?": "who is the author of Faust?",
}
"""Questions and their duplicates."""


@pytest.mark.usefixtures("_no_pictures")
def test_a_querys_own_document_is_left_out_and_counted(make_beir: Callable[..., Path], tmp_path: Path) -> None:
    queries = {f"q{number}": text for number, text in enumerate(TWINS)}
    corpus = {**queries, **{f"d{number}": text for number, text in enumerate(TWINS.values())}}
    qrels = {f"q{number}": {f"d{number}": 1} for number in range(len(TWINS))}
    folder = make_beir(tmp_path / "twins", queries, corpus, qrels, {query: list(corpus) for query in queries})
    given = {**SMALL, "max_length": 64, "depths": (6,), "keep_ratios": (1.0,), "collections": (str(folder),)}
    kept = evaluate(EvaluateConfig(**given, keep_identical_ids=True, output=tmp_path / "kept"))
    assert kept.profile.full.quality == pytest.approx(1 / math.log2(3))  # the query itself comes first
    assert results_of(tmp_path / "kept")["ignore_identical_ids"] is False
    assert "left out" not in kept.markdown()
    for preset in (None, "beir"):
        made = evaluate(EvaluateConfig(**given, preset=preset, output=tmp_path / f"{preset}"))
        assert made.profile.full.quality == 1.0
        assert made.markdown().endswith("left out because they have their query's own id, as in BEIR: twins 4")
        [stored] = results_of(tmp_path / f"{preset}")["collections"]
        assert stored["identical_ids_left_out"] == 4
        for query, found in read_run(next((tmp_path / f"{preset}" / "runs").rglob("*.run"))).items():
            assert query not in found
    by_preset = {name: EvaluateConfig(**given, preset=name).leaves_out_identical_ids for name in PRESETS}
    assert by_preset == {"msmarco-passage": False, "msmarco-document": False, "beir": True}
    assert EvaluateConfig(**given, preset="msmarco-passage", keep_identical_ids=False).leaves_out_identical_ids


@pytest.mark.usefixtures("_no_pictures")
def test_each_long_step_is_reported_before_it(
    config_of: Callable[..., EvaluateConfig], toy_beir: Path, tmp_path: Path
) -> None:
    lines: list[str] = []
    evaluate(config_of(output=tmp_path, depths=(6,), keep_ratios=(1.0,)), lines.append)
    assert lines == [f"opening {toy_beir}", "timing 1 settings, 1 times each"]


def test_nothing_is_printed_without_a_terminal(
    config_of: Callable[..., EvaluateConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluate(config_of(output=tmp_path, depths=(6,)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("_no_pictures")
def test_a_progress_bar_shows_in_a_terminal(config_of: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    with patch("mrr_model.evaluation.grid.tqdm") as bar:
        progress = bar.return_value.__enter__.return_value
        evaluate(config_of(output=tmp_path))
    total = bar.call_args.kwargs["total"]
    assert bar.call_args.kwargs["disable"] is None  # tqdm's own "in a terminal only"
    assert sum(call.args[0] for call in progress.update.call_args_list) == total > 0
    progress.set_description.assert_called_once_with("toy")
