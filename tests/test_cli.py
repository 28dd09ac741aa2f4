"""The command line: what goes in, what comes out on which stream, and the exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mrr_model import MatryoshkaReranker, __version__, checkpoint, cli
from mrr_model.checkpoint import Checkpoint
from mrr_model.training import finetune as finetuning
from mrr_model.training.finetune import FinetuneSettings
from mrr_model.training.groups import Group, write_groups

QUERY = "what is the panda?"
TEXTS = ["the panda is eating", "what", "panda panda panda", "is the panda?"]
SCRIPT = [sys.executable, "-c", "from mrr_model.cli import main; main()"]
"""What the installed ``mrr`` runs."""

Mrr = Callable[..., Result]


@pytest.fixture(scope="module")
def encoder(make_checkpoint: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT without adapters."""
    folder = tmp_path_factory.mktemp("checkpoints") / "encoder"
    checkpoint.save(make_checkpoint("bert", adapters=False), folder)
    return folder


@pytest.fixture
def mrr() -> Mrr:
    """``mrr("rerank", ..., stdin="...")`` in this process, on a terminal of 60 columns that is none."""

    def run(*arguments: object, stdin: str | bytes = "") -> Result:
        return CliRunner(env={"COLUMNS": "60"}).invoke(cli.app, [str(word) for word in arguments], input=stdin)

    return run


@pytest.fixture
def rerank(mrr: Mrr, encoder: Path) -> Mrr:
    """``mrr rerank`` for QUERY on the tiny encoder."""
    return lambda *arguments, stdin="": mrr(
        "rerank", "--query", QUERY, "--model", encoder, "--max-length", 64, *arguments, stdin=stdin
    )


def json_lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows_of(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.split("\n") if line]


def error_of(result: Result) -> str:
    """The one line that is on stderr, with nothing on stdout and exit code 2."""
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


def test_plain_lines_come_back_as_json_lines_in_the_cores_order(rerank: Mrr, encoder: Path) -> None:
    rows = rows_of(rerank("--depth", 4, "--keep-ratio", 0.5, stdin="\n" + "\n \n".join(TEXTS)))
    reranker = MatryoshkaReranker(encoder, depth=4, keep_ratio=0.5, max_length=64)
    assert rows == [
        {"text": ranked.text, "index": ranked.index, "rank": rank, "score": ranked.score}
        for rank, ranked in enumerate(reranker.rank(QUERY, TEXTS), 1)
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_only_line_ends_separate_documents(rerank: Mrr, tmp_path: Path, ending: str) -> None:
    file = tmp_path / "documents.txt"
    file.write_bytes(b"\xef\xbb\xbf" + f"one\u2028line{ending}other{ending}".encode())
    assert {row["text"] for row in rows_of(rerank(file))} == {"one\u2028line", "other"}


def test_json_objects_are_carried_through_and_titles_are_scored(rerank: Mrr, encoder: Path, tmp_path: Path) -> None:
    documents = [
        {"_id": "é", "title": "the", "text": TEXTS[0], "nested": {"page": [1, 2.5, None]}},
        {"id": 7, "title": None, "text": TEXTS[1], "score": "first stage", "half": "\ud800"},
        {"text": "", "title": TEXTS[2]},
    ]
    file = tmp_path / "documents.data"
    file.write_text("\n" + "\n".join(map(json.dumps, documents)), encoding="utf-8")
    scores = MatryoshkaReranker(encoder, max_length=64).score(QUERY, [f"the {TEXTS[0]}", TEXTS[1], TEXTS[2]])
    rows = rows_of(rerank(file))
    assert [row["score"] for row in rows] == sorted(scores, reverse=True)
    assert [row["rank"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row == {**documents[row["index"]], **{key: row[key] for key in ("index", "rank", "score")}}
        assert row["score"] == scores[row["index"]]


@pytest.mark.parametrize(
    ("name", "options", "content", "as_json"),
    [
        ("a.txt", (), "plain\n", False),
        ("a.txt", (), '\n{"text": "x"}\n', True),
        ("a.txt", ("--input-format", "text"), '{"text": "x"}\n', False),
        ("a.txt", (), '["x"]\n', False),
        ("a.jsonl", (), '{"text": "x"}\n', True),
        ("a.data", ("--input-format", "jsonl"), '{"text": "x"}\n', True),
    ],
)
def test_input_format(
    rerank: Mrr, tmp_path: Path, name: str, options: Sequence[str], content: str, as_json: bool
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    [row] = rows_of(rerank(file, *options))
    assert row["text"] == ("x" if as_json else content.strip())


def test_top_n_min_score_and_raw(rerank: Mrr, encoder: Path) -> None:
    stdin = "\n".join(TEXTS)
    logits = sorted(MatryoshkaReranker(encoder, max_length=64, normalize=False).score(QUERY, TEXTS), reverse=True)
    assert [row["score"] for row in rows_of(rerank("--raw", "-", stdin=stdin))] == logits
    assert [row["score"] for row in rows_of(rerank("--raw", "--top-n", 2, stdin=stdin))] == logits[:2]
    assert [row["score"] for row in rows_of(rerank("--raw", "--min-score", logits[2], stdin=stdin))] == logits[:3]


@pytest.mark.parametrize("output", ["table", "jsonl"])
def test_no_documents_are_no_error(rerank: Mrr, output: str) -> None:
    result = rerank("--format", output, stdin="\n\n")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert (result.stdout == "") == (output == "jsonl")


def test_table_names_the_setting_and_shortens_texts(rerank: Mrr) -> None:
    documents = [{"_id": "doc-1", "text": "[bold]long[/bold] \x1b[31m\ttext " * 40}, {"text": "short"}]
    result = rerank("--format", "table", "--depth", 3, "--keep-ratio", "2:0.5", stdin=json_lines(documents))
    assert result.exit_code == 0
    assert "depth 3, keep ratio 2:0.5" in result.stdout.replace("\n", " ")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 60
    [first] = [line for line in lines if "doc-1" in line]
    assert "[bold]long[/bold] [31m text" in first
    assert "…" in first
    [second] = [line for line in lines if "short" in line]
    assert " 1 " in second, "a document without an id shows its index"


@pytest.mark.parametrize(
    ("arguments", "stdin", "part"),
    [
        (["--depth", "0"], "x", "depth must be at least 1"),
        (["--keep-ratio", "2:x"], "x", "keep_ratio='2:x' cannot be read"),
        (["--keep-ratio", "1.5"], "x", "keep_ratio must be in (0, 1]"),
        (["--top-n", "0"], "x", "top_n must be at least 1"),
        (["--dtype", "int8"], "x", "dtype must be"),
        (["--prompt", "find"], "x", "has no prompt"),
        (["--max-length", "4096"], "x", "max_length=4096"),
        (["--query", " "], "x", "query is empty"),
        (["--model", "no/such/folder"], "x", "model 'no/such/folder'"),
        (["no/such/file"], "", "no/such/file cannot be read: No such file"),
        (["."], "", ". cannot be read: Is a directory"),
        ([], b"\xff", "stdin is no UTF-8 text"),
        ([], '{"text": "x"}\n{"text": 1}', "stdin:2: expected a string under \"text\"; the keys are 'text'"),
        ([], '{"contents": "x"}', "stdin:1: expected a string under \"text\"; the keys are 'contents'"),
        ([], '{"text": "x", "title": 1}', 'stdin:1: expected a string under "title", got int'),
        ([], '{"text": "x"}\n\n["x"]', "stdin:3: expected one JSON object a line, got list"),
        ([], '{"text": "x"}\n{', "stdin:2: expected one JSON object a line, but this is not JSON"),
    ],
)
def test_a_wrong_argument_is_one_line(rerank: Mrr, arguments: list[str], stdin: str, part: str) -> None:
    assert part in error_of(rerank("--local-files-only", *arguments, stdin=stdin))


@pytest.mark.parametrize("arguments", [["rerank", "x"], ["rerank", "-q", "x", "--depth", "deep"], ["nothing"]])
def test_usage_errors_exit_with_2(mrr: Mrr, arguments: list[str]) -> None:
    result = mrr(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")


@pytest.mark.filterwarnings("always::UserWarning")
def test_a_warning_is_one_line_on_stderr(rerank: Mrr) -> None:
    result = rerank("--depth", 9, stdin="x")
    assert len(rows_of(result)) == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("warning: depth=9 is more than the 6 layers of ")


def test_ctrl_c_is_quiet(rerank: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MatryoshkaReranker, "rank", interrupted)
    result = rerank(stdin="x")
    assert (result.exit_code, result.output) == (130, "")


def test_closed_pipe_is_quiet(encoder: Path) -> None:
    process = subprocess.Popen(
        [*SCRIPT, "rerank", "-q", QUERY, "--model", encoder, "--max-length", "64"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate("\n".join(TEXTS).encode())
    assert (process.returncode, errors) == (1, b"")


def test_output_is_utf_8_in_any_locale(encoder: Path) -> None:
    run = subprocess.run(
        [*SCRIPT, "rerank", "-q", QUERY, "--model", encoder, "--max-length", "64"],
        input="ünï".encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert json.loads(run.stdout.decode())["text"] == "ünï"
    assert run.stderr == b""


def test_help_and_version_import_neither_torch_nor_transformers() -> None:
    code = """
import sys
from mrr_model import cli
try:
    cli.app(["--help"])
finally:
    assert not {"torch", "transformers", "pydantic"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in run.stdout for command in ("rerank", "finetune", "info"))


def test_version(mrr: Mrr) -> None:
    assert mrr("--version").stdout == f"mrr {__version__}\n"


def test_info_shows_the_checkpoint_without_its_weights(
    mrr: Mrr, saved_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mrr_model.checkpoint.read_weights", lambda folder: pytest.fail("the weights were read"))
    result = mrr("info", saved_checkpoint)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for fact in (
        "backbone llama, hidden size 32",
        "layers 6",
        "exits 1, 2, 3, 4, 5, 6",
        "merge layers 1, 2, 3, 4, 5",
        "default merge layer 1",
        "head linear, one per exit",
        "prompt Predict whether passage B contains an answer to query A.",
        "vertical",
        "in F32",
        "100%",
    ):
        assert fact in text


def test_info_of_a_model_that_cannot_merge(mrr: Mrr, reference: Path) -> None:
    result = mrr("info", reference / "minicpm" / "model")
    assert result.exit_code == 0
    assert "keep ratio 1" in result.stdout
    assert "0.5" not in result.stdout


def test_info_of_what_is_no_checkpoint(mrr: Mrr, tmp_path: Path) -> None:
    assert "holds no config.json" in error_of(mrr("info", tmp_path))


SETTINGS: dict[str, Any] = {
    "model": "some/model", "train": (Path("a.jsonl"), Path("b.jsonl.gz")), "output": Path("out"), "exits": (2, 4),
    "merge_layer": 2, "sample": 0.5, "passages": 4, "groups_per_step": 3, "epochs": 2.0, "learning_rate": 2e-5,
    "warmup": 0.2, "weight_decay": 0.0, "dropout": 0.1, "max_length": 64, "query_max_length": 16, "label_weight": 0.5,
    "teacher_weight": 0.25, "teacher_temperature": 0.04, "cascade_weight": 0.75, "ratios": (1, 2),
    "merge_probability": 0.25, "freeze_embeddings": False, "bf16": True, "save_steps": 10, "seed": 3,
}  # fmt: skip


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[FinetuneSettings]:
    """The settings that ``mrr finetune`` was to train with, instead of training."""
    seen: list[FinetuneSettings] = []

    def record(settings: FinetuneSettings) -> Path:
        seen.append(settings)
        return settings.output

    monkeypatch.setattr(finetuning, "finetune", record)
    return seen


def test_every_setting_of_a_run_is_a_flag(mrr: Mrr, asked: list[FinetuneSettings]) -> None:
    assert set(SETTINGS) == set(FinetuneSettings.model_fields), "give a new setting a value here"
    arguments: list[object] = []
    for name, value in SETTINGS.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "train":
            arguments += [word for file in value for word in ("--train", file)]
        else:
            arguments += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else value]
    result = mrr("finetune", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "The trained re-ranker is in out\n"
    assert asked == [FinetuneSettings(**SETTINGS)]


REQUIRED = ("--model", "m", "--train", "t", "--output", "o")


def test_defaults_are_those_of_the_settings(mrr: Mrr, asked: list[FinetuneSettings]) -> None:
    assert mrr("finetune", *REQUIRED).exit_code == 0
    assert asked == [FinetuneSettings(model="m", train=(Path("t"),), output=Path("o"))]


def test_help_is_that_of_the_settings(mrr: Mrr) -> None:
    result = mrr("finetune", "--help")
    assert result.exit_code == 0
    assert "Where the trained checkpoint is written." in " ".join(result.stdout.replace("│", " ").split())


def test_faults_in_settings_are_one_line_each(mrr: Mrr, asked: list[FinetuneSettings]) -> None:
    result = mrr("finetune", *REQUIRED, "--passages", 1, "--ratios", "1,x", "--merge-probability", 2)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    lines = result.stderr.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["--passages", "--ratios", "--merge-probability"]
    assert "got 'x'" in lines[1]


@pytest.mark.parametrize("arguments", [("--model", "m"), (*REQUIRED, "--epoch", "3"), (*REQUIRED, "stray")])
def test_usage_errors_of_finetune_exit_with_2(
    mrr: Mrr, asked: list[FinetuneSettings], arguments: tuple[str, ...]
) -> None:
    result = mrr("finetune", *arguments)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert "mrr finetune" in result.stderr or "root finetune" in result.stderr


def test_without_the_train_extra_the_command_to_get_it_is_named(
    mrr: Mrr, asked: list[FinetuneSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert error_of(mrr("finetune", *REQUIRED)).endswith('pip install "matryoshka-reranker[train]"')
    assert asked == []


def test_interrupted_training_says_how_to_go_on(mrr: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(settings: FinetuneSettings) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning, "finetune", interrupted)
    result = mrr("finetune", *REQUIRED)
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped: the same command goes on from the last save in o.\n"


def test_a_trained_checkpoint_ranks(mrr: Mrr, encoder: Path, tmp_path: Path) -> None:
    write_groups(tmp_path / "train.jsonl", [Group(QUERY, (TEXTS[0],), tuple(TEXTS[1:]))] * 2)
    options = ("--passages", 4, "--groups-per-step", 2, "--max-length", 32, "--ratios", 1)
    places = ("--model", encoder, "--train", tmp_path / "train.jsonl", "--output", tmp_path / "out")
    result = mrr("finetune", *places, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"The trained re-ranker is in {tmp_path / 'out'}\n"
    rows = rows_of(mrr("rerank", "-q", QUERY, "--model", tmp_path / "out", "--max-length", 64, stdin="\n".join(TEXTS)))
    assert len(rows) == len(TEXTS)
    assert "already holds a checkpoint" in error_of(mrr("finetune", *places, *options))
