"""`mrr mine`, `mrr finetune` and `mrr self-distill`."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mrr_model.cli import train as commands
from mrr_model.data.groups import Group, read_groups, write_groups
from mrr_model.evaluation import dev
from mrr_model.training import mining
from mrr_model.training import recipe as finetuning
from mrr_model.training import self_distill as self_distilling
from mrr_model.training.config import FinetuneConfig, MineConfig, SelfDistillConfig
from mrr_model.training.mining import mine_sources

QUERY = "what is the panda?"
TEXTS = ["the panda is eating", "what", "panda panda panda", "is the panda?"]

Mrr = Callable[..., Any]


STAGE: dict[str, Any] = {
    "epochs": 2.0, "max_steps": 7, "learning_rate": 3e-5, "warmup": 0.2, "weight_decay": 0.0, "label_weight": 0.5,
    "teacher_weight": 0.25, "teacher_temperature": 0.04, "cascade_weight": 0.75, "merge_probability": 0.25,
    "default_merge_share": 0.125, "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0},
}  # fmt: skip
RUN: dict[str, Any] = {
    "model": "some/model", "train": ("a.jsonl", "b#dev"), "output": Path("out"), "exits": (2, 4), "merge_layer": 2,
    "head": "similarity",
    "on_bad_row": "skip", "stream": True, "sample": 0.5, "train_group_size": 4, "groups_per_step": 3, "length_parts": 2,
    "max_length": 64, "query_max_length": 16, "dtype": "bfloat16", "bf16": True, "save_steps": 10, "seed": 3,
    "stages": ("distill", "vertical"), "dropout": 0.1, "freeze_embeddings": False,
    "trainer": {"report_to": "tensorboard", "gradient_accumulation_steps": 2},
    "distill": {**STAGE, "cascade": "next", "ratios": (1, 2)},
    "vertical": STAGE,
    "horizontal": {**STAGE, "ratios": (2, 3)},
}  # fmt: skip


def leaves(config: dict[str, Any], before: str = "") -> dict[str, Any]:
    """A value for each flag's name, without the dashes in front of it."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        flag = f"{before}{name.replace('_', '-')}"
        found |= leaves(value, f"{flag}-") if isinstance(value, dict) and name != "trainer" else {flag: value}
    return found


Asked = list[FinetuneConfig | SelfDistillConfig]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The configs that `mrr finetune` or `mrr self-distill` would train with, instead of training."""
    seen: Asked = []

    def record(config: FinetuneConfig | SelfDistillConfig) -> Path:
        seen.append(config)
        return config.output

    monkeypatch.setattr(finetuning, "finetune", record)
    monkeypatch.setattr(self_distilling, "self_distill", record)
    return seen


def test_every_field_of_a_run_is_a_flag(mrr: Mrr, asked: Asked) -> None:
    config = FinetuneConfig(**RUN)
    defaults = leaves(FinetuneConfig(model="m", train=("t",), output=Path("o")).model_dump())
    given = leaves(config.model_dump(exclude=set(commands.DevConfig.model_fields)))
    assert [flag for flag, value in given.items() if value == defaults.get(flag)] == [], "give each a value above"
    arguments: list[object] = []
    for flag, value in given.items():
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif flag == "train":
            arguments += [word for source in value for word in (f"--{flag}", source)]
        elif flag == "trainer":
            arguments += [f"--trainer={key}={of_key}" for key, of_key in value.items()]
        else:
            arguments += [f"--{flag}", ",".join(map(str, value)) if isinstance(value, tuple) else value]
    result = mrr("finetune", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == "The trained re-ranker is in out\n"
    assert asked == [config]


REQUIRED = ("--model", "m", "--train", "t", "--output", "o")
TRAINING = {"finetune": REQUIRED, "self-distill": ("m", "--texts", "t", "--output", "o")}
COMMANDS = pytest.mark.parametrize("command", TRAINING)
MODULES = {"finetune": finetuning, "self-distill": self_distilling}


def test_defaults_are_those_of_the_config(mrr: Mrr, asked: Asked) -> None:
    assert mrr("finetune", *TRAINING["finetune"]).exit_code == 0
    assert mrr("self-distill", *TRAINING["self-distill"]).exit_code == 0
    assert asked == [
        FinetuneConfig(model="m", train=("t",), output=Path("o")),
        SelfDistillConfig(model="m", texts=("t",), output=Path("o")),
    ]


def test_a_run_comes_from_a_file_and_flags_win(mrr: Mrr, asked: Asked, tmp_path: Path) -> None:
    config = FinetuneConfig(**RUN)
    file = tmp_path / "config.json"  # as a run stores it: JSON is YAML
    file.write_text(config.model_dump_json(), encoding="utf-8")
    assert mrr("finetune", file).exit_code == 0
    flags = ("--distill-learning-rate", "2e-4", "--stages", "distill", "--no-bf16", "--train", "c.jsonl")
    assert mrr("finetune", file, *flags, "--trainer", "report_to=none").exit_code == 0
    assert mrr("finetune", *flags, "--trainer=report_to=none", file).exit_code == 0
    changed = {
        "distill": {**RUN["distill"], "learning_rate": 2e-4},
        "stages": ("distill",),
        "bf16": False,
        "train": ("c.jsonl",),
        "trainer": {"report_to": "none", "gradient_accumulation_steps": 2},
    }
    other = FinetuneConfig(**{**RUN, **changed})
    assert asked == [config, other, other]


def test_self_distill_takes_texts_a_template_and_answers(mrr: Mrr, asked: Asked, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: m\ntexts: [a, b]\nanswers: [yes, no]\nhorizontal:\n  ratios: [2]\n", encoding="utf-8")
    flags = ("--texts", "c", "--texts", "d", "--template", "template.json", "--horizontal-max-steps", 5)
    result = mrr("self-distill", file, "--output", "o", *flags)
    assert (result.exit_code, result.stdout) == (0, "The trained re-ranker is in o\n"), result.output
    assert asked == [
        SelfDistillConfig(
            model="m",
            texts=("c", "d"),
            output=Path("o"),
            template="template.json",
            answers=("yes", "no"),
            horizontal={"ratios": (2,), "max_steps": 5},
        )
    ]
    assert mrr("self-distill", file, "--output", "o", "--answers", "Yes").exit_code == 0
    assert asked[-1].answers == ("Yes",)  # type: ignore[union-attr]


@COMMANDS
def test_help_is_that_of_the_config(mrr: Mrr, command: str) -> None:
    result = mrr(command, "--help")
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "Folder to write the trained checkpoint to." in text
    assert "[default: 200]" in text, "save_steps"


@COMMANDS
@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (("--train-group-size", 1), ["--train-group-size must be at least 2, got '1'."]),
        (("--trainer", "seed=1"), ["--trainer: seed has a flag of its own: --seed, got {'seed': 1}."]),
        (("--trainer", "seed"), ["--trainer takes KEY=VALUE, got 'seed'"]),
        (("--stream",), ["a streamed run has no epochs: give max_steps in "]),
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
def test_each_fault_is_one_line(
    mrr: Mrr, asked: Asked, command: str, flags: tuple[object, ...], messages: list[str]
) -> None:
    result = mrr(command, *TRAINING[command], *flags)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    lines = result.stderr.splitlines()
    assert len(lines) == len(messages)
    for line, start in zip(lines, messages, strict=True):
        assert line.startswith(f"error: {start}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: 1", "config.yaml: lr is not an option."),
        (
            "distill: {learn_rate: 1}",
            "config.yaml: distill.learn_rate is not an option. Did you mean distill.learning_rate?",
        ),
        ("1: 1", "a key must be text, got 1."),
        ("[", "config.yaml is not valid YAML: while parsing"),
        ("- model", "config.yaml must hold a mapping of options (KEY: VALUE), got list."),
        ("", "config.yaml is empty. "),
    ],
)
def test_a_fault_in_the_file_is_one_line(
    mrr: Mrr, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content, encoding="utf-8")
    assert mrr("finetune", "config.yaml", *REQUIRED).error.startswith(f"error: {message}")
    assert asked == []


@COMMANDS
def test_what_is_missing_is_one_line_each(mrr: Mrr, asked: Asked, command: str) -> None:
    result = mrr(command, "--seed", 1)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    model, data = {"finetune": ("--model", "--train"), "self-distill": ("MODEL", "--texts")}[command]
    assert result.stderr.splitlines() == [f"error: {each} is missing." for each in (model, "--output", data)]


@COMMANDS
def test_a_missing_file_is_one_line(mrr: Mrr, asked: Asked, command: str) -> None:
    result = mrr(command, "missing.yaml", "--output", "o")
    assert result.error == "error: there is no configuration file 'missing.yaml'."
    assert asked == []


@pytest.mark.parametrize("name", ["owner/name", "./mini", "a folder", "v2.yml.bak"])
def test_the_model_to_self_distill_is_the_argument(mrr: Mrr, asked: Asked, name: str) -> None:
    assert mrr("self-distill", name, "--texts", "t", "--output", "o").exit_code == 0
    assert [config.model for config in asked] == [name]
    assert "No such option: --model" in mrr("self-distill", "--model", name, "--texts", "t", "--output", "o").error


@COMMANDS
@pytest.mark.parametrize(
    ("stray", "message"),
    [
        (("--epochs", "3"), "No such option: --epochs. "),
        (("--max-lengt", "3"), "No such option: --max-lengt. Did you mean --max-length"),
        (("--dev-querie", "3"), "No such option: --dev-querie. Did you mean --dev-queries"),
        (("--max-length", "x"), "--max-length must be a whole number, got 'x'."),
        (("a.yaml", "stray"), "Got unexpected extra argument"),
        (("--output",), "Option '--output' requires an argument."),
    ],
)
def test_usage_errors_of_training_are_one_line(
    mrr: Mrr, asked: Asked, command: str, stray: tuple[str, ...], message: str
) -> None:
    assert mrr(command, *TRAINING[command], *stray).error.startswith(f"error: {message}")
    assert asked == []


def test_data_of_one_command_is_no_flag_of_the_other(mrr: Mrr, asked: Asked) -> None:
    for command, flag in (("finetune", "--texts"), ("self-distill", "--train"), ("self-distill", "--distill-epochs")):
        result = mrr(command, *TRAINING[command], flag, "1")
        assert "No such option" in result.error
        assert asked == []


@COMMANDS
def test_without_the_train_extra_the_command_to_get_it_is_named(
    mrr: Mrr, asked: Asked, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    assert mrr(command, *TRAINING[command]).error.endswith('pip install "matryoshka-reranker[train]"')
    assert asked == []


@COMMANDS
def test_interrupted_training_says_how_to_resume(mrr: Mrr, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def interrupted(config: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULES[command], command.replace("-", "_"), interrupted)
    result = mrr(command, *TRAINING[command])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "stopped: run the same command to resume from the last save in o.\n"


@COMMANDS
def test_what_training_prints_is_no_result(mrr: Mrr, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def prints(config: FinetuneConfig | SelfDistillConfig) -> Path:
        sys.stdout.write("{'loss': 1.0}\n")
        return config.output

    monkeypatch.setattr(MODULES[command], command.replace("-", "_"), prints)
    result = mrr(command, *TRAINING[command])
    assert (result.stdout, result.stderr) == ("The trained re-ranker is in o\n", "{'loss': 1.0}\n")


class Measured:
    """A stand-in for the development collections that notes when it is opened and read."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __call__(self, collections: Sequence[str], *, limit_queries: int | None, **_: Any) -> "Measured":
        self.events.append(f"open {','.join(collections)}, {limit_queries} queries")
        return self

    def table(self, folder: Path) -> str:
        self.events.append(f"measure {folder}")
        return "| nDCG@10 | 0.5 |"


@COMMANDS
@pytest.mark.parametrize("rank", ["0", "1"])
def test_development_collections_are_opened_before_training_and_measured_after(
    mrr: Mrr, monkeypatch: pytest.MonkeyPatch, command: str, rank: str
) -> None:
    events: list[str] = []

    def train(config: FinetuneConfig | SelfDistillConfig) -> Path:
        events.append("train")
        assert type(config) in (FinetuneConfig, SelfDistillConfig), "what is measured is no part of the run"
        return config.output

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(dev, "HeldOut", Measured(events))
    monkeypatch.setattr(MODULES[command], command.replace("-", "_"), train)
    result = mrr(command, *TRAINING[command], "--dev", "qrels=q,corpus=c", "--dev", "d#dev", "--dev-queries", 5)
    assert result.exit_code == 0, result.output
    if rank == "0":
        assert events == ["open qrels=q,corpus=c,d#dev, 5 queries", "train", "measure o"]
        assert result.stdout == "| nDCG@10 | 0.5 |\n\nThe trained re-ranker is in o\n"
    else:
        assert (events, result.stdout) == (["train"], "")


@COMMANDS
def test_a_development_collection_that_cannot_be_opened_shows_before_training(
    mrr: Mrr, asked: Asked, tmp_path: Path, command: str
) -> None:
    result = mrr(command, *TRAINING[command], "--dev", tmp_path / "absent")
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "absent" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_a_trained_checkpoint_ranks(mrr: Mrr, encoder: Path, tmp_path: Path) -> None:
    write_groups(tmp_path / "train.jsonl", [Group(QUERY, (TEXTS[0],), tuple(TEXTS[1:]))] * 2)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {encoder}\ntrain: [{tmp_path}/train.jsonl]\ntrain_group_size: 4\nmax_length: 32\n")
    words = ("finetune", config, "--output", tmp_path / "out", "--stages", "distill", "--distill-ratios", 1)
    result = mrr(*words, "--groups-per-step", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"The trained re-ranker is in {tmp_path / 'out'}\n"
    rows = mrr("rerank", "-q", QUERY, "--model", tmp_path / "out", "--max-length", 64, stdin="\n".join(TEXTS)).rows
    assert len(rows) == len(TEXTS)
    assert "already holds a checkpoint" in mrr(*words).error


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
    options = ("--negatives", 2, "--top-k", 3, "--seed", 4)
    result = mrr("mine", rows_file, rows_file, "--output", output, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"4 rows with 2 mined negatives each are in {output}\n"
    config = MineConfig(negatives=2, top_k=3, seed=4)
    assert list(read_groups(output)) == list(mine_sources([str(rows_file)] * 2, config))
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
    config = MineConfig(encoder="some/encoder", negatives=1, margin=0.5, scores=True)
    rows = list(read_groups(output))
    assert rows == list(mine_sources([str(rows_file)], config))
    assert all(row.negative_scores is not None and len(row.negative_scores) == 1 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--on-bad-row", "stop"), "--on-bad-row must be 'fail' or 'skip', got 'stop'."),
        (("--scores",), "give an encoder"),
        (("--negatives", 0), "--negatives must be at least 1"),
        (("--top-k", -1), "--top-k must be at least 0"),
        (("--margin", 5), "--margin must be at most 1"),
        (("--seed", -1), "--seed must be at least 0"),
        (("--negatives", 50), "but negatives=50"),
        (("missing.jsonl",), "there is no file or folder 'missing.jsonl'"),
    ],
)
def test_a_wrong_argument_of_mine_is_one_line_and_leaves_nothing(
    mrr: Mrr, rows_file: Path, tmp_path: Path, arguments: tuple[object, ...], part: str
) -> None:
    output = tmp_path / "mined.jsonl"
    assert part in mrr("mine", rows_file, "--negatives", 1, "--output", output, *arguments).error
    assert list(tmp_path.iterdir()) == [rows_file]
    assert mrr("mine", rows_file, "--negatives", 1, "--output", output).exit_code == 0


def test_mine_overwrites_nothing(mrr: Mrr, rows_file: Path) -> None:
    before = rows_file.read_bytes()
    assert "rows.jsonl' exists. Choose another" in mrr("mine", rows_file, "--output", rows_file).error
    nowhere = rows_file.parent / "nowhere"
    assert f"there is no folder {nowhere}" in mrr("mine", rows_file, "--output", nowhere / "mined.jsonl").error
    assert rows_file.read_bytes() == before


def test_mine_fails_on_a_bad_row_or_leaves_it_out(
    mrr: Mrr, rows_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with rows_file.open("a", encoding="utf-8") as file:
        file.write("broken\n")
    words = ("mine", rows_file, "--negatives", 1, "--output", tmp_path / "mined.jsonl")
    assert f"{rows_file}:3: expected one JSON object a line" in mrr(*words).error
    result = mrr(*words, "--on-bad-row", "skip")
    assert (result.exit_code, result.stdout.split(" ")[0]) == (0, "2")
    assert f"{rows_file}:3: " in caplog.text


@pytest.mark.parametrize("arguments", [("--output", "o"), ("rows.jsonl",), ("rows.jsonl", "--output", "o", "--n", 3)])
def test_usage_errors_of_mine_exit_with_2(mrr: Mrr, arguments: tuple[object, ...]) -> None:
    result = mrr("mine", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_self_distill_takes_the_model_as_its_argument(mrr: Mrr, encoder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = mrr("self-distill", encoder, "--texts", tmp_path / "texts.jsonl", "--output", output)
    assert "exits 1, 2, 3, 4, 5, 6 already" in result.error
    assert not output.exists()  # what did not begin leaves nothing
