"""`mrr evaluate` and `mrr calibrate`."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model import Compression, MatryoshkaReranker, Target
from mrr_model.checkpoint.hub import SHIPPED
from mrr_model.cli import evaluate as commands
from mrr_model.cli.flags import flags_of
from mrr_model.evaluation import evaluate as evaluating
from mrr_model.inference.engine import InferenceEngine
from mrr_model.selection import stopwatch
from mrr_model.selection.choose import choose_by_profile

Mrr = Callable[..., Any]
FAST = ("--timing-pairs", "1", "--timing-repeats", "1", "--dtype", "float32")
SMALL = ("--depth", "3,6", "--keep-ratio", "1,0.5")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MRR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(stopwatch, "PROCESSOR_TIMES", tmp_path / "nowhere")  # whatever else this machine does


@pytest.fixture
def evaluate(mrr: Mrr, saved_encoder: Path, toy_beir: Path, tmp_path: Path) -> Mrr:
    """`mrr evaluate` of the tiny encoder on the toy collection."""
    return lambda *arguments: mrr(
        "evaluate", saved_encoder, toy_beir, "--output", tmp_path / "out", "--max-length", 64, *FAST, *arguments
    )


def test_the_table_and_recommendations_go_to_stdout(evaluate: Mrr, tmp_path: Path) -> None:
    result = evaluate(
        *SMALL, "--keep-quality", "0.9", "--speedup", "1000", "--metric", "R@2,Compat(p=0.8, normalize=True)"
    )
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    profile = evaluating.Profile.model_validate(
        json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))["profile"]
    )
    table = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert result.stdout.startswith(table)
    chosen = choose_by_profile(Target(keep_quality=0.9), profile)
    *_, kept, speedup, where = result.stdout.splitlines()
    assert kept == f"Target(keep_quality=0.9): {chosen.setting}, {chosen.reason}"
    assert speedup.startswith("Target(speedup=1000.0): no setting of the profile is 1000 times as")
    assert where.endswith(str(tmp_path / "out"))
    assert profile.metric == "R@2"
    assert "Compat(p=0.8, normalize=True)" in (tmp_path / "out" / "queries" / "toy.jsonl").read_text(encoding="utf-8")
    assert len(profile.points) == 4


def test_flags_are_the_config(mrr: Mrr, tmp_path: Path) -> None:
    with patch.object(evaluating, "evaluate", side_effect=ValueError("seen")) as run:
        result = mrr(
            "evaluate", "m", "a", "--output", tmp_path, "--depth", "4,2", "--keep-ratio", "1,0.5", "--keep-ratio",
            "1:0.5,2:0.25", "--metric", "AP,RBP(p=0.8, rel=1),R@5", "--first-stage", "bm25", "--candidates", 7,
            "--limit-queries", 3, "--seed", 5, "--max-length", 99, "--query-max-length", 9, "--prompt", "p", "--dtype",
            "float32", "--device", "cpu", "--batch-tokens", 77, "--timing-pairs", 4, "--timing-repeats", 2,
            "--without-compensation", "--local-files-only", "--preset", "beir", "--keep-identical-ids", "--retime",
            "--cascade", "--cascade-loss", 0.05, "--cascade-top-n", 5, "--cascade-stages", "2:50,4:20",
            "--cascade-stages", "3:9", "--cascade-by", "count",
        )  # fmt: skip
    assert result.error == "error: seen"
    assert run.call_args.args[0] == commands.EvaluateCommand(
        model="m", collections=("a",), output=tmp_path, depths=(4, 2), keep_ratios=("1", "0.5", "1:0.5,2:0.25"),
        metrics=("AP", "RBP(p=0.8, rel=1)", "R@5"), first_stage="bm25", candidates=7, limit_queries=3, seed=5,
        max_length=99, query_max_length=9, prompt="p", dtype="float32", device="cpu", batch_tokens=77, timing_pairs=4,
        timing_repeats=2, without_compensation=True, local_files_only=True, preset="beir", keep_identical_ids=True,
        retime=True, cascade=True, cascade_loss=0.05, cascade_top_n=5, cascade_stages=("2:50,4:20", "3:9"),
        cascade_by="count",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--depth", "4,"], "--depth, item 2, must be a whole number, got ''."),
        (["--depth", "deep"], "--depth, item 1, must be a whole number, got 'deep'."),
        (["--depth", "0"], "depth must be at least 1"),
        (["--keep-ratio", "1.5"], "keep_ratio must be in (0, 1]"),
        (["--keep-ratio", "0.5,"], "keep_ratio='' cannot be read"),
        (["--keep-ratio", "nan"], "keep_ratio must be in (0, 1]"),
        (["--keep-ratio", "6:0.5"], "keep_ratio names merge layer 6, which this model lacks"),
        (["--metric", "nDCG@10,speed"], "metric 'speed'"),
        (["--metric", "Compat(p=0.8"], "Compat(p=0.8"),
        (["--keep-quality", "98"], "keep_quality must be a share above 0 and at most 1"),
        (["--speedup", "nan"], "--speedup must be a finite number"),
        (["--speedup", "0.5"], "speedup must be at least 1"),
        (["--preset", "trec"], "--preset must be 'msmarco-passage', 'msmarco-document' or 'beir', got 'trec'."),
        (["--first-stage", "dense"], "--first-stage must be 'given', 'bm25' or 'auto', got 'dense'."),
        (["--candidates", "0"], "--candidates must be at least 1, got '0'."),
        (["--settings", "absent.yaml"], "absent.yaml"),
        (["--settings", "absent.yaml", "--depth", "4"], "settings replaces depths"),
        (["--run", "absent.run"], "run='absent.run': there is no such file"),
        (["--prompt", "Is it so?"], "has no prompt"),
        (["--max-length", "512"], "max_length=512 is more than the 130 positions"),
        (["--dtype", "int8"], "dtype must be"),
        (["--without-compensation", "--save-profile"], "--without-compensation measures what the checkpoint does not"),
        (["--cascade-stages", "2"], "stages='2' cannot be read. Write pairs of exit:number"),
        (["--cascade-stages", "9:1"], "cascade names exit 9, which this model lacks. Choose among 1, 2, 3, 4, 5."),
        (["--cascade-stages", "6:1"], "cascade names exit 6, and the setting ends at exit 6"),
        (["--cascade-stages", "2:-1"], "stages[2] must be a finite margin of at least 0"),
        (["--cascade-stages", "2:1", "--cascade-by", "rank"], "--cascade-by must be 'margin' or 'count', got 'rank'."),
        (["--cascade-by", "count"], "cascade_by says what numbers in cascade_stages are"),
        (["--cascade-loss", "0.1"], "cascade_loss goes with cascade"),
        (["--cascade", "--cascade-loss", "1.5"], "--cascade-loss must be below 1, got '1.5'."),
        (["--cascade", "--cascade-top-n", "0"], "--cascade-top-n must be at least 1, got '0'."),
        (["no/such/folder"], "no/such/folder"),
    ],
)
def test_a_wrong_argument_is_one_line(evaluate: Mrr, arguments: list[str], part: str) -> None:
    with patch("mrr_model.evaluation.collection.read_hub", side_effect=FileNotFoundError("no/such/folder")):
        line = evaluate(*arguments).error
    assert part in line


def test_a_bad_settings_file_is_one_line(evaluate: Mrr, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("- {depth: 4}\n- {depth: 4, keep_ratio: 2}\n", encoding="utf-8")
    assert "bad.yaml: setting 2: keep_ratio must be in (0, 1]" in evaluate("--settings", tmp_path / "bad.yaml").error


def test_nothing_to_evaluate_on_is_one_line(mrr: Mrr) -> None:
    assert "give a collection to evaluate on, or a preset" in mrr("evaluate", "mini").error


def test_the_output_of_another_evaluation_is_refused(evaluate: Mrr) -> None:
    assert evaluate("--depth", 6, "--keep-ratio", 1).exit_code == 0
    assert "holds logits of another evaluation (other max_length)" in evaluate("--max-length", 32).error


def test_ctrl_c_says_how_to_resume(evaluate: Mrr, tmp_path: Path) -> None:
    with patch.object(InferenceEngine, "logits", side_effect=KeyboardInterrupt):
        result = evaluate(*SMALL)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == f"stopped: run the same command to resume from {tmp_path / 'out'}.\n"
    assert evaluate(*SMALL).exit_code == 0


def test_what_comes_next_is_said_in_a_terminal(evaluate: Mrr) -> None:
    with patch.object(commands, "_note", wraps=commands._note) as note:
        assert evaluate("--depth", 6, "--keep-ratio", 1).stderr == ""
    assert [call.args[0].split()[0] for call in note.mock_calls] == ["opening", "timing"]


# Stored with the checkpoint


@pytest.mark.slow
def test_a_stored_profile_serves_targets(mrr: Mrr, own_mini: Path, facts_beir: Path, tmp_path: Path) -> None:
    collection, common = f"{facts_beir}#test", (*FAST, *SMALL, "--output", tmp_path / "out")
    before = mrr("info", own_mini).stdout
    assert "none; to measure one: mrr evaluate" in before
    rerank = ("rerank", "--query", "who wrote Faust?", "--model", own_mini, "--dtype", "float32")
    lines = "Bees make honey.\nGoethe is the author of Faust.\n"
    line = mrr(*rerank, "--keep-quality", 0.9, stdin=lines).error
    assert "Target(keep_quality=0.9) needs a profile" in line
    assert f"`mrr evaluate {own_mini} COLLECTION --save-profile`" in line

    result = mrr("evaluate", own_mini, collection, *common, "--save-profile", "--save-calibration")
    assert result.exit_code == 0, result.output
    assert f"the profile is stored in {own_mini}" in result.stdout
    assert f"4 maps are stored in {own_mini}" in result.stdout
    profile_is_small, *_, maps_are_small = (line for line in result.stderr.splitlines() if "only: with fewer" in line)
    assert profile_is_small.startswith(
        "warning: The profile is of 8 queries only: with fewer than 100, settings differ"
    )
    assert maps_are_small.startswith("warning: The maps are fitted on 8 relevant pairs only: with fewer than 100,")
    reranker = MatryoshkaReranker(own_mini, dtype="float32")
    assert reranker.profile is not None
    assert reranker.calibration is not None
    assert reranker.calibration.data == "facts (8 queries)"
    card = (own_mini / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "table.md").read_text(encoding="utf-8").strip() in card
    info = mrr("info", own_mini).stdout
    assert "4 settings on facts, timed on" in info
    assert "4 settings on facts (8 queries)" in info

    for need in (("--keep-quality", 0.5), ("--speedup", 1), ("--max-latency-ms", 1e6)):
        result = mrr(*rerank, *need, "--explain", stdin=lines)
        assert result.exit_code == 0, result.output
        first, _ = [json.loads(row) for row in result.stdout.splitlines()]
        assert first["text"].startswith("Goethe")
        assert result.stderr.startswith("setting ")
        assert "kept " in result.stderr
    assert "done with 2 documents in 1e+06 ms" in result.stderr
    assert "out of reach" not in result.stderr
    assert (
        "no setting of the profile is done with 2 documents in 1e-06 ms"
        in mrr(*rerank, "--max-latency-ms", 1e-6, stdin=lines).error
    )
    assert "Leave out --depth" in mrr(*rerank, "--speedup", 1, "--depth", 3, stdin=lines).error
    both = mrr(*rerank, "--speedup", 1, "--keep-quality", 0.5, stdin=lines).error
    assert "--keep-quality and --speedup each choose a setting" in both
    assert "--refresh-timings goes with --max-latency-ms" in mrr(*rerank, "--refresh-timings", stdin=lines).error
    fastest = ("--if-unreachable", "fastest")
    assert "--if-unreachable goes with --speedup" in mrr(*rerank, *fastest, stdin=lines).error
    assert "--if-unreachable must be 'raise' or 'fastest'" in mrr(*rerank, "--if-unreachable", "no", stdin=lines).error
    assert "no setting of the profile is 999 times as" in mrr(*rerank, "--speedup", 999, stdin=lines).error
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = mrr(*rerank, "--speedup", 999, *fastest, stdin=lines)
    assert (result.exit_code, result.stdout.count("\n")) == (0, 2)
    assert "It is used nevertheless." in result.stderr


def test_what_cannot_be_stored_is_said_before_anything_runs(mrr: Mrr, tmp_path: Path) -> None:
    for command, flag in (("evaluate", ["--save-profile"]), ("evaluate", ["--save-calibration"]), ("calibrate", [])):
        line = mrr(command, "owner/name", "toy", "--output", tmp_path / "out", *flag).error
        assert "'owner/name' is not a local folder" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_measurements_of_the_shipped_model_are_stored_with_a_copy(mrr: Mrr, facts_beir: Path, tmp_path: Path) -> None:
    given = ("mini", f"{facts_beir}#test", "--output", tmp_path / "out", "--depth", 6, "--keep-ratio", 1)
    before = (SHIPPED["mini"] / "profile.json").read_bytes()
    for words in (("evaluate", *given, "--save-profile"), ("calibrate", *given)):
        assert (
            "'mini' is a part of the installed package, so nothing is stored with it. Name a folder"
            in mrr(*words).error
        )
    assert not (tmp_path / "out").exists()
    result = mrr("evaluate", *given, *FAST, "--save-profile", "--save-to", tmp_path / "copy")
    assert result.exit_code == 0, result.output
    assert f"the profile is stored in {tmp_path / 'copy'}" in result.stdout
    copied = MatryoshkaReranker(tmp_path / "copy", dtype="float32").profile
    assert copied is not None
    assert copied.collections == ("facts",)
    assert (SHIPPED["mini"] / "profile.json").read_bytes() == before
    assert "--save-to says where to store" in mrr("evaluate", *given, "--save-to", tmp_path / "copy").error


def test_fitted_margins_are_stored_for_cascade_auto(evaluate: Mrr, tmp_path: Path) -> None:
    fit = ("--cascade", "--cascade-loss", 0.3, "--cascade-top-n", 2, "--keep-quality", 0.5)
    result = evaluate(*SMALL, *fit, "--save-profile", "--save-to", tmp_path / "copy")
    assert result.exit_code == 0, result.output
    assert "warning: The cascade's margins" in result.stderr  # fitted on few queries
    assert "of the queries that it was not fitted on lose one of the setting's best 2" in result.stdout
    reranker = MatryoshkaReranker(tmp_path / "copy", dtype="float32")
    assert reranker.profile is not None
    fitted = {point.setting: point.cascade.cascade for point in reranker.profile.points if point.cascade}
    assert fitted.keys() == {Compression(6, 1.0), Compression(6, 0.5)}
    documents = [f"panda {'zoo ' * number}" for number in range(5)]
    for setting, cascade in fitted.items():
        options = setting.to_kwargs()
        assert reranker.rank("panda", documents, cascade="auto", **options) == reranker.rank(
            "panda", documents, cascade=cascade, **options
        )
    assert "## What each size keeps and costs" in (tmp_path / "copy" / "README.md").read_text(encoding="utf-8")


def test_maps_are_fitted_on_the_logits_that_cascades_were(evaluate: Mrr, tmp_path: Path) -> None:
    given = (*SMALL, "--cascade", "--cascade-top-n", 2)
    assert evaluate(*given).exit_code == 0
    with patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed again")):
        result = evaluate(*given, "--save-calibration", "--save-to", tmp_path / "copy")
    assert "cannot be calibrated: targets do not rise" in result.stderr  # no map fits a random model's logits


# Calibrating


@pytest.mark.slow
def test_calibrate_stores_maps_and_shows_what_they_are_worth(
    mrr: Mrr, own_mini: Path, facts_beir: Path, tmp_path: Path
) -> None:
    given = ("calibrate", own_mini, f"{facts_beir}#test", "--output", tmp_path / "out", "--dtype", "float32", *SMALL)
    result = mrr(*given, "--dry-run")
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert "facts (8 queries), queries held out" in result.stdout
    assert "| depth 3, keep ratio 1:0.5 |" in result.stdout
    assert not (own_mini / "calibration.json").exists()
    result = mrr(*given, "--held-out", f"{facts_beir}#half")
    assert result.stdout.endswith(f"4 maps are stored in {own_mini}\n"), result.output
    assert (own_mini / "calibration.json").is_file()
    reranker = MatryoshkaReranker(own_mini, dtype="float32", depth=3, keep_ratio=0.5)
    assert "by this setting's own map, fitted on facts (8 queries)" in str(reranker.explain())
    texts = [f"{text}\n" for text in ("Bees make honey.", "Goethe is the author of Faust.")]
    rows = mrr(
        "rerank", "--query", "who wrote Faust?", "--model", own_mini, "--dtype", "float32", stdin="".join(texts)
    ).stdout.splitlines()
    best = MatryoshkaReranker(own_mini, dtype="float32").rank("who wrote Faust?", [text.strip() for text in texts])
    assert [json.loads(row)["score"] for row in rows] == [ranked.score for ranked in best]


@pytest.mark.slow
def test_calibrate_by_texts(mrr: Mrr, own_mini: Path, facts_beir: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (facts_beir / "corpus.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row["text"] for row in rows]
    file = tmp_path / "texts.jsonl"
    file.write_text(
        "".join(json.dumps({"query": f"what of {answer}?", "documents": answers}) + "\n" for answer in answers),
        encoding="utf-8",
    )
    result = mrr("calibrate", own_mini, "--texts", file, "--output", tmp_path / "out", *SMALL, "--dtype", "float32")
    assert (result.exit_code, result.stdout) == (0, f"4 maps are stored in {own_mini}\n"), result.output
    calibration = MatryoshkaReranker(own_mini).calibration
    assert calibration is not None
    assert calibration.targets == "full size"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "give either collections with judgements or texts (--texts)"),
        (["toy", "--texts", "a.jsonl"], "give either collections"),
        (["--texts", "absent.jsonl"], "absent.jsonl"),
        (["toy", "--limit-queries", "0"], "--limit-queries"),
    ],
)
def test_calibrate_refuses_what_it_cannot_fit_on(mrr: Mrr, tmp_path: Path, arguments: list[str], part: str) -> None:
    assert part in mrr("calibrate", "mini", "--dry-run", "--output", tmp_path / "out", *arguments).error


def test_calibrate_says_how_to_resume(mrr: Mrr, facts_beir: Path, tmp_path: Path) -> None:
    with patch.object(InferenceEngine, "logits", side_effect=KeyboardInterrupt):
        result = mrr("calibrate", "mini", f"{facts_beir}#test", "--dry-run", "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr.startswith("stopped: run the same command to resume from ")


@pytest.mark.parametrize("command", ["evaluate", "calibrate"])
def test_help_names_every_flag(mrr: Mrr, command: str) -> None:
    text = mrr(command, "--help").stdout
    for flag in ("--output", "--depth", "--keep-ratio", "--settings", "--preset", "--run", "--local-files-only"):
        assert flag in text


@pytest.mark.parametrize("command", [commands.EvaluateCommand, commands.CalibrateCommand])
def test_ratios_split_at_commas_but_for_mappings(command: Any) -> None:
    seen: list[Any] = []
    flags_of(command)(seen.append)(
        model="mini", collections=["toy"], keep_ratios=["1,0.5", "1:0.5,3:0.25"], depths=["6"]
    )
    assert seen[0].grid((6,), merges=True) == [
        Compression(6, 1.0),
        Compression(6, 0.5),
        Compression(6, {1: 0.5, 3: 0.25}),
    ]
