"""The command line: what goes in, what comes out on which stream, and the exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from mrr_model import MatryoshkaReranker, __version__, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.cli import app as cli
from mrr_model.data.groups import Group, read_groups, write_groups
from mrr_model.training import mining
from mrr_model.training import recipe as finetuning
from mrr_model.training import self_distill as self_distilling
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.mining import MineConfig, mine_sources

QUERY = "what is the panda?"
TEXTS = ["the panda is eating", "what", "panda panda panda", "is the panda?"]
SCRIPT = [sys.executable, "-c", "from mrr_model.cli.app import main; main()"]
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
        return CliRunner(env={"COLUMNS": "60"}).invoke(
            cli.app, [str(word) for word in arguments], input=stdin, prog_name="mrr"
        )

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
        given = {("input_score" if key == "score" else key): value for key, value in documents[row["index"]].items()}
        assert row == {**given, **{key: row[key] for key in ("index", "rank", "score")}}
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
def test_no_documents_are_a_warning(rerank: Mrr, output: str) -> None:
    result = rerank("--format", output, stdin="\n\n")
    assert result.exit_code == 0
    assert result.stderr == "warning: stdin holds no documents.\n"
    assert (result.stdout == "") == (output == "jsonl")


def test_table_names_the_setting_and_shortens_texts(rerank: Mrr) -> None:
    documents = [{"_id": "doc-1", "text": "[bold]long[/bold] \x1b[31m\ttext " * 40}, {"text": "short"}]
    result = rerank("--format", "table", "--depth", 3, "--keep-ratio", "2:0.5", stdin=json_lines(documents))
    assert result.exit_code == 0
    assert "depth 3, keep ratio 2:0.5" in " ".join(result.stdout.split())
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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rerank", "x"], "Missing option '--query' / '-q'. See mrr rerank --help."),
        (["rerank", "-q"], "Option '-q' requires an argument."),
        (
            ["rerank", "-q", "x", "--depth", "deep"],
            "--depth must be a whole number, got 'deep'. See mrr rerank --help.",
        ),
        (["rerank", "-q", "x", "--min-score", "much"], "--min-score must be a number, got 'much'. "),
        (["rerank", "-q", "x", "--format", "csv"], "--format: 'csv' is not one of 'auto', 'table', 'jsonl'. "),
        (
            ["rerank", "-q", "x", "--top-m", "1"],
            "No such option: --top-m. Did you mean --top-n? See mrr rerank --help.",
        ),
        (["rerank", "-q", "x", "a", "b"], "Got unexpected extra argument"),
        (["evaluate"], "Missing argument 'MODEL'. See mrr evaluate --help."),
        (["rernk"], "No such command 'rernk'. Did you mean 'rerank'? See mrr --help."),
    ],
)
def test_usage_errors_are_one_line(mrr: Mrr, arguments: list[str], told: str) -> None:
    assert error_of(mrr(*arguments)).startswith(f"error: {told}")


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
from mrr_model.cli import app as cli
try:
    cli.app(["--help"])
finally:
    assert not {"torch", "transformers", "pydantic"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in run.stdout for command in ("rerank", "finetune", "self-distill", "mine", "info"))


def test_version(mrr: Mrr) -> None:
    assert mrr("--version").stdout == f"mrr {__version__}\n"


def test_info_shows_the_checkpoint_without_its_weights(
    mrr: Mrr, saved_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their files are mapped, and a sample is read to tell whether a profile is theirs.
    monkeypatch.setattr(
        "mrr_model.checkpoint.io.assign_weights", lambda *_, **__: pytest.fail("the weights were loaded")
    )
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


STAGE: dict[str, Any] = {
    "epochs": 2.0, "max_steps": 7, "learning_rate": 3e-5, "warmup": 0.2, "weight_decay": 0.0, "label_weight": 0.5,
    "teacher_weight": 0.25, "teacher_temperature": 0.04, "cascade_weight": 0.75, "merge_probability": 0.25,
    "default_merge_share": 0.125, "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0},
}  # fmt: skip
SETTINGS: dict[str, Any] = {
    "model": "some/model", "train": ("a.jsonl", "b#dev"), "output": Path("out"), "exits": (2, 4), "merge_layer": 2,
    "head": "similarity", "dev": ("c", "d#dev"), "dev_queries": 5,
    "on_bad_row": "skip", "stream": True, "sample": 0.5, "train_group_size": 4, "groups_per_step": 3, "length_parts": 2,
    "max_length": 64, "query_max_length": 16, "dtype": "bfloat16", "bf16": True, "save_steps": 10, "seed": 3,
    "stages": ("distill", "vertical"), "dropout": 0.1, "freeze_embeddings": False,
    "trainer": {"report_to": "tensorboard", "gradient_accumulation_steps": 2},
    "distill": {**STAGE, "cascade": "next", "ratios": (1, 2)},
    "vertical": STAGE,
    "horizontal": {**STAGE, "ratios": (2, 3)},
}  # fmt: skip


def leaves(settings: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A value for each flag's name, without the dashes in front of it."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        flag = f"{before}{name.replace('_', '-')}"
        found |= leaves(value, f"{flag}-") if isinstance(value, dict) and name != "trainer" else {flag: value}
    return found


Asked = list[FinetuneConfig | SelfDistillConfig]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The settings that ``mrr finetune`` or ``mrr self-distill`` was to train with, instead of training."""
    seen: Asked = []

    def record(settings: FinetuneConfig | SelfDistillConfig) -> Path:
        seen.append(settings)
        return settings.output

    monkeypatch.setattr(finetuning, "finetune", record)
    monkeypatch.setattr(self_distilling, "self_distill", record)
    return seen


def test_every_setting_of_a_run_is_a_flag(mrr: Mrr, asked: Asked) -> None:
    settings = FinetuneConfig(**SETTINGS)
    defaults = leaves(FinetuneConfig(model="m", train=("t",), output=Path("o")).model_dump())
    given = leaves(settings.model_dump())
    assert [flag for flag, value in given.items() if value == defaults.get(flag)] == [], "give each a value above"
    arguments: list[object] = []
    for flag, value in given.items():
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif flag in ("train", "dev"):
            arguments += [word for source in value for word in (f"--{flag}", source)]
        elif flag == "trainer":
            arguments += [f"--trainer={key}={of_key}" for key, of_key in value.items()]
        else:
            arguments += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else value]
    result = mrr("finetune", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "The trained re-ranker is in out\n"
    assert asked == [settings]


REQUIRED = ("--model", "m", "--train", "t", "--output", "o")
TRAINING = {"finetune": REQUIRED, "self-distill": ("--model", "m", "--texts", "t", "--output", "o")}
COMMANDS = pytest.mark.parametrize("command", TRAINING)


def test_defaults_are_those_of_the_settings(mrr: Mrr, asked: Asked) -> None:
    assert mrr("finetune", *TRAINING["finetune"]).exit_code == 0
    assert mrr("self-distill", *TRAINING["flatten"]).exit_code == 0
    assert asked == [
        FinetuneConfig(model="m", train=("t",), output=Path("o")),
        SelfDistillConfig(model="m", texts=("t",), output=Path("o")),
    ]


def test_settings_come_from_a_file_and_flags_win(mrr: Mrr, asked: Asked, tmp_path: Path) -> None:
    settings = FinetuneConfig(**SETTINGS)
    file = tmp_path / "settings.json"  # as a run notes them: JSON is YAML
    file.write_text(settings.model_dump_json(), encoding="utf-8")
    assert mrr("finetune", file).exit_code == 0
    flags = ("--distill-learning-rate", "2e-4", "--stages", "distill", "--no-bf16", "--train", "c.jsonl")
    assert mrr("finetune", file, *flags, "--trainer", "report_to=none").exit_code == 0
    assert mrr("finetune", *flags, "--trainer=report_to=none", file).exit_code == 0
    changed = {
        "distill": {**SETTINGS["distill"], "learning_rate": 2e-4},
        "stages": ("distill",),
        "bf16": False,
        "train": ("c.jsonl",),
        "trainer": {"report_to": "none", "gradient_accumulation_steps": 2},
    }
    other = FinetuneConfig(**{**SETTINGS, **changed})
    assert asked == [settings, other, other]


def test_flatten_takes_texts_a_layout_and_words_for_yes_and_no(mrr: Mrr, asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "flatten.yaml"
    file.write_text("texts: [a, b]\nyes: true\nno: no\nhorizontal:\n  ratios: [2]\n", encoding="utf-8")
    flags = ("--texts", "c", "--texts", "d", "--template", "template.json", "--yes", "Yes", "--horizontal-max-steps", 5)
    result = mrr("self-distill", file, "--model", "m", "--output", "o", *flags)
    assert (result.exit_code, result.stdout) == (0, "The trained re-ranker is in o\n"), result.output
    assert asked == [
        SelfDistillConfig(
            model="m",
            texts=("c", "d"),
            output=Path("o"),
            template=Path("template.json"),
            yes="Yes",
            no="no",
            horizontal={"ratios": (2,), "max_steps": 5},
        )
    ]


@COMMANDS
def test_help_is_that_of_the_settings(mrr: Mrr, command: str) -> None:
    result = mrr(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    assert "Where the trained checkpoint is written." in text
    assert "[default: 200]" in text, "save_steps"


@COMMANDS
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--train-group-size", 1), ["--train-group-size must be at least 2, got '1'."]),
        (("--trainer", "seed=1"), ["--trainer: seed has a flag of its own: --seed, got {'seed': 1}."]),
        (("--trainer", "seed"), ["--trainer takes KEY=VALUE, got 'seed'"]),
        (("--stream",), ["a streamed run has no epochs: give max_steps in "]),
        (("missing.yaml",), ["there is no configuration file 'missing.yaml'."]),
        (
            ("--on-bad-row", "x", "--horizontal-ratios", "1,x", "--vertical-merge-probability", 2),
            [
                "--on-bad-row must be 'fail' or 'skip', got 'x'.",
                "--vertical-merge-probability must be at most 1, got '2'.",
                "--horizontal-ratios, item 2, must be a whole number, got 'x'.",
            ],
        ),
        (("--horizontal-ratios", "1"), ["--horizontal-ratios: horizontal ratios are different whole"]),
    ],
)
def test_faults_in_settings_are_one_line_each(
    mrr: Mrr, asked: Asked, command: str, flags: tuple[object, ...], told: list[str]
) -> None:
    result = mrr(command, *TRAINING[command], *flags)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    lines = result.stderr.splitlines()
    assert len(lines) == len(told)
    for line, start in zip(lines, told, strict=True):
        assert line.startswith(f"error: {start}")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("lr: 1", "config.yaml: lr is not a setting."),
        (
            "distill: {learn_rate: 1}",
            "config.yaml: distill.learn_rate is not a setting. Did you mean distill.learning_rate?",
        ),
        ("1: 1", "a key must be text, got 1."),
        ("[", "config.yaml is not valid YAML: while parsing"),
        ("- model", "config.yaml must hold a mapping of settings, got list."),
        ("", "config.yaml must hold a mapping of settings, got NoneType."),
    ],
)
def test_a_fault_in_the_file_is_one_line(
    mrr: Mrr, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content, encoding="utf-8")
    assert error_of(mrr("finetune", "config.yaml", *REQUIRED)).startswith(f"error: {told}")
    assert asked == []


@COMMANDS
def test_what_is_missing_is_one_line_each(mrr: Mrr, asked: Asked, command: str) -> None:
    result = mrr(command, "--model", "m")
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    data = TRAINING[command][2]
    assert sorted(result.stderr.splitlines()) == sorted(["error: --output is missing.", f"error: {data} is missing."])


@COMMANDS
@pytest.mark.parametrize(
    ("stray", "told"),
    [
        (("--epochs", "3"), "No such option: --epochs. "),
        (("--max-lengt", "3"), "No such option: --max-lengt. Did you mean --max-length"),
        (("--max-length", "x"), "--max-length must be a whole number, got 'x'."),
        (("a.yaml", "stray"), "Got unexpected extra argument"),
        (("--model",), "Option '--model' requires an argument."),
    ],
)
def test_usage_errors_of_training_are_one_line(
    mrr: Mrr, asked: Asked, command: str, stray: tuple[str, ...], told: str
) -> None:
    assert error_of(mrr(command, *TRAINING[command], *stray)).startswith(f"error: {told}")
    assert asked == []


def test_data_of_one_command_is_no_flag_of_the_other(mrr: Mrr, asked: Asked) -> None:
    for command, flag in (("finetune", "--texts"), ("self-distill", "--train"), ("flatten", "--distill-epochs")):
        result = mrr(command, *TRAINING[command], flag, "1")
        assert "No such option" in error_of(result)
        assert asked == []


@COMMANDS
def test_without_the_train_extra_the_command_to_get_it_is_named(
    mrr: Mrr, asked: Asked, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert error_of(mrr(command, *TRAINING[command])).endswith('pip install "matryoshka-reranker[train]"')
    assert asked == []


@COMMANDS
def test_interrupted_training_says_how_to_go_on(mrr: Mrr, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def interrupted(settings: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(finetuning if command == "finetune" else self_distilling, command, interrupted)
    result = mrr(command, *TRAINING[command])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped: run the same command to resume from the last save in o.\n"


@COMMANDS
def test_what_training_prints_is_no_result(mrr: Mrr, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def prints(settings: FinetuneConfig | SelfDistillConfig) -> Path:
        sys.stdout.write("{'loss': 1.0}\n")
        return settings.output

    monkeypatch.setattr(finetuning if command == "finetune" else self_distilling, command, prints)
    result = mrr(command, *TRAINING[command])
    assert (result.stdout, result.stderr) == ("The trained re-ranker is in o\n", "{'loss': 1.0}\n")


def test_a_trained_checkpoint_ranks(mrr: Mrr, encoder: Path, tmp_path: Path) -> None:
    write_groups(tmp_path / "train.jsonl", [Group(QUERY, (TEXTS[0],), tuple(TEXTS[1:]))] * 2)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {encoder}\ntrain: [{tmp_path}/train.jsonl]\ntrain_group_size: 4\nmax_length: 32\n")
    words = ("finetune", config, "--output", tmp_path / "out", "--stages", "distill", "--distill-ratios", 1)
    result = mrr(*words, "--groups-per-step", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"The trained re-ranker is in {tmp_path / 'out'}\n"
    rows = rows_of(mrr("rerank", "-q", QUERY, "--model", tmp_path / "out", "--max-length", 64, stdin="\n".join(TEXTS)))
    assert len(rows) == len(TEXTS)
    assert "already holds a checkpoint" in error_of(mrr(*words))


ROWS = [Group("panda", ("the panda is eating",), prompt="What for?"), Group("what", ("what", "what is"), ("the bird",))]


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    write_groups(tmp_path / "rows.jsonl", ROWS)
    return tmp_path / "rows.jsonl"


def test_mine_says_how_often_the_query_itself_was_left_out(mrr: Mrr, tmp_path: Path) -> None:
    rows = [{"query": "what flows?", "pos": ["It flows."], "neg": ["It falls.", "It stands."]}]
    rows.append({"query": "It Falls.", "pos": ["Rain falls."], "neg": ["It flies."]})
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    result = mrr("mine", source, "--output", tmp_path / "a.jsonl", "--negatives", 3)
    assert result.stdout.endswith("a.jsonl; the query itself was left out for 1 of them\n"), result.output
    assert "It falls." not in list(read_groups(tmp_path / "a.jsonl"))[1].negatives
    result = mrr("mine", source, "--output", tmp_path / "b.jsonl", "--negatives", 4, "--keep-identical")
    assert result.stdout.endswith("b.jsonl\n"), result.output
    assert "It falls." in list(read_groups(tmp_path / "b.jsonl"))[1].negatives


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz"])
def test_mine_writes_what_mining_gives(mrr: Mrr, rows_file: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / "out" / name
    output.parent.mkdir()
    options = ("--negatives", 2, "--depth", 3, "--seed", 4)
    result = mrr("mine", rows_file, rows_file, "--output", output, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 rows with 2 mined negatives each are in {output}\n"
    settings = MineConfig(negatives=2, depth=3, seed=4)
    assert list(read_groups(output)) == list(mine_sources([str(rows_file)] * 2, settings))
    assert list(output.parent.iterdir()) == [output]


def test_mine_with_a_bi_encoder(mrr: Mrr, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encoder(name: str) -> Callable[[Sequence[str]], torch.Tensor]:
        assert name == "some/encoder"
        return lambda texts: torch.nn.functional.normalize(
            torch.tensor([[1.0, len(text), text.count("a")] for text in texts]), dim=-1
        )

    monkeypatch.setattr(mining, "_encoder", encoder)
    output = tmp_path / "mined.jsonl"
    options = ("--encoder", "some/encoder", "--margin", 0.5, "--scores", "--negatives", 1)
    assert mrr("mine", rows_file, "--output", output, *options).exit_code == 0
    settings = MineConfig("some/encoder", negatives=1, margin=0.5, scores=True)
    rows = list(read_groups(output))
    assert rows == list(mine_sources([str(rows_file)], settings))
    assert all(row.negative_scores is not None and len(row.negative_scores) == 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--on-bad-row", "stop"), "--on-bad-row must be fail or skip, got 'stop'."),
        (("--scores",), "name an encoder"),
        (("--negatives", 0), "--negatives must be at least 1"),
        (("--depth", 0), "--depth must be at least 1"),
        (("--margin", 5), "margin must be above 0 and at most 1"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--negatives", 50), "but 50 negatives were asked for"),
        (("missing.jsonl",), "there is no file or folder 'missing.jsonl'"),
    ],
)
def test_a_wrong_argument_of_mine_is_one_line_and_leaves_nothing(
    mrr: Mrr, rows_file: Path, tmp_path: Path, arguments: tuple[object, ...], part: str
) -> None:
    output = tmp_path / "mined.jsonl"
    assert part in error_of(mrr("mine", rows_file, "--negatives", 1, "--output", output, *arguments))
    assert list(tmp_path.iterdir()) == [rows_file]
    assert mrr("mine", rows_file, "--negatives", 1, "--output", output).exit_code == 0


def test_mine_overwrites_nothing(mrr: Mrr, rows_file: Path) -> None:
    before = rows_file.read_bytes()
    assert "rows.jsonl' exists. Choose another" in error_of(mrr("mine", rows_file, "--output", rows_file))
    nowhere = rows_file.parent / "nowhere"
    assert f"there is no folder {nowhere}" in error_of(mrr("mine", rows_file, "--output", nowhere / "mined.jsonl"))
    assert rows_file.read_bytes() == before


def test_mine_fails_on_a_bad_row_or_leaves_it_out(
    mrr: Mrr, rows_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rows_file.open("a", encoding="utf-8") as file:
        file.write("broken\n")
    words = ("mine", rows_file, "--negatives", 1, "--output", tmp_path / "mined.jsonl")
    assert f"{rows_file}:3: expected one JSON object a line" in error_of(mrr(*words))
    result = mrr(*words, "--on-bad-row", "skip")
    assert (result.exit_code, result.stdout.split(" ")[0]) == (0, "2")
    assert f"{rows_file}:3: " in caplog.text


@pytest.mark.parametrize("arguments", [("--output", "o"), ("rows.jsonl",), ("rows.jsonl", "--output", "o", "--n", 3)])
def test_usage_errors_of_mine_exit_with_2(mrr: Mrr, arguments: tuple[object, ...]) -> None:
    result = mrr("mine", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_flatten_takes_the_model_as_its_argument(mrr: Mrr, encoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = mrr("self-distill", encoder, "--texts", tmp_path / "texts.jsonl", "--output", output)
    assert "is a Matryoshka re-ranker already" in error_of(result)
    assert not output.exists()  # what did not begin leaves nothing behind
