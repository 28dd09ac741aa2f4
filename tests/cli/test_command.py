"""The help of every command, and completion in the shell."""

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command
from typer.testing import CliRunner

from mrr_model.cli import app as cli
from mrr_model.cli.command import ADVANCED
from mrr_model.cli.evaluate import CalibrateCommand, EvaluateCommand
from mrr_model.cli.info import InfoConfig
from mrr_model.cli.rerank import RerankConfig
from mrr_model.cli.train import FinetuneCommand, SelfDistillCommand
from mrr_model.serving.config import ServeConfig
from mrr_model.training.config import MineConfig

NAMES = ["rerank", "serve", "batch", "info", "evaluate", "calibrate", "mine", "finetune", "self-distill"]
"""In the order of use."""
EVERY = pytest.mark.parametrize("name", ["", *NAMES])


def help_of(name: str, width: int = 80, flag: str = "--help") -> str:
    result = CliRunner(env={"COLUMNS": str(width)}).invoke(cli.app, [*name.split(), flag], prog_name="mrr")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def parameters(name: str) -> Iterator[Any]:
    root: Any = get_command(cli.app)
    context = root.make_context("mrr", [], resilient_parsing=True)
    command = root.commands[name] if name else root
    return iter(command.get_params(command.context_class(command, info_name=name, parent=context)))


@EVERY
@pytest.mark.parametrize("width", [60, 100, 120])
def test_help_cuts_no_name_and_breaks_no_choice(name: str, width: int) -> None:
    text = help_of(name, width)
    assert max(map(len, text.splitlines())) <= width
    for parameter in parameters(name):
        words = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else []
        for word in [*words, *([parameter.metavar] if parameter.metavar else [])]:
            assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text), f"{word} is not whole in the help"


@EVERY
def test_h_is_help(name: str) -> None:
    assert help_of(name, flag="-h") == help_of(name)


def test_commands_come_in_the_order_of_use() -> None:
    assert (
        re.findall(r"^  ([\w-]+) ", help_of("").partition("Commands:")[2].partition("Options:")[0], re.MULTILINE)
        == NAMES
    )


@pytest.mark.parametrize("name", ["finetune", "self-distill"])
def test_stages_come_in_their_order_and_rare_flags_last(name: str) -> None:
    text = help_of(name)
    stages = ["distill", "vertical", "horizontal"][name == "self-distill" :]
    panels = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert panels == ["Arguments", "Run", *(f"Stage {stage}" for stage in stages), "Options", ADVANCED]
    before, rare = text.split(f"\n{ADVANCED}:\n")
    for flag in ("--trainer", "--save-steps", *(f"--{stage}-warmup" for stage in stages)):
        assert flag not in before
        assert flag in rare
    first = "--texts" if name == "self-distill" else "--model"
    assert before.index(first) < before.index("--output") < before.index("--max-length") < before.index("--vertical")
    assert "--vertical-learning-rate" in before


def configs() -> Iterator[Any]:
    """The config of every command, and those that are nested in it."""

    def models(config: Any) -> Iterator[Any]:
        yield config
        for field in config.model_fields.values():
            if isinstance(field.get_default(), BaseModel):
                yield from models(type(field.get_default()))

    for config in (
        RerankConfig, ServeConfig, InfoConfig, EvaluateCommand, CalibrateCommand, MineConfig, FinetuneCommand,
        SelfDistillCommand,
    ):  # fmt: skip
        yield from models(config)


def test_what_help_orders_is_a_field() -> None:
    every = list(configs())
    fields = {name for config in every for name in config.model_fields}
    for config in every:
        assert {*getattr(config, "help_first", ()), *getattr(config, "help_last", ())} <= fields


def test_every_field_has_a_help_text() -> None:
    for config in configs():
        for name, field in config.model_fields.items():
            assert field.description, f"{config.__name__}.{name}"


def test_a_flag_that_repeats_another_stage_is_named_with_its_default_alone() -> None:
    text = help_of("finetune")
    assert "Passes over the data." in text.split("Stage vertical:")[0]
    assert "Passes over the data." not in text.split("Stage vertical:")[1]
    assert "--vertical-learning-rate X [2e-05]" in text


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from mrr_model.cli import app as cli

def imported(command):
    try:
        cli.app([*command, "--help"])
    except SystemExit as ended:
        assert ended.code == 0
    heavy = {{"torch", "transformers", "peft", "numpy", "datasets", "accelerate", "rich.table", "fastapi"}}
    return heavy & set(sys.modules)

assert not imported([]) and "pydantic" not in sys.modules
for name in {NAMES}:
    assert not imported([name]), (name, imported([name]))
"""
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def completed(line: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    env = {"_MRR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = CliRunner(env=env).invoke(cli.app, [], prog_name="mrr")
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mrr fi", ["finetune"]),
        ("mrr rerank --keep-", ["--keep-ratio", "--keep-quality"]),
        ("mrr serve --log-format j", ["json"]),
        ("mrr finetune --distill-le", ["--distill-learning-rate"]),
        ("mrr finetune --model m --no-b", ["--no-bf16"]),
        ("mrr finetune --dtype bf", ["bfloat16"]),
        ("mrr finetune --distill-cascade ", ["anchors", "next", "final", "none"]),
        ("mrr self-distill m --horizontal-rat", ["--horizontal-ratios"]),
        ("mrr rerank --format ta", ["table"]),
        ("mrr rerank --dtype ", ["auto", "float32", "bfloat16", "float16"]),
        ("mrr rerank --if-unreachable f", ["fastest"]),
        ("mrr evaluate mini --preset ms", ["msmarco-passage", "msmarco-document"]),
        ("mrr calibrate mini --first-stage b", ["bm25"]),
        ("mrr mine --on-bad-row ", ["fail", "skip"]),
        ("mrr self-distill --on-bad-row s", ["skip"]),
    ],
)
def test_completion_knows_commands_flags_and_choices(line: str, offered: list[str]) -> None:
    assert sorted(completed(line)) == sorted(offered)


@pytest.mark.slow
def test_completion_can_be_shown_and_installed() -> None:
    script = CliRunner(env={"_MRR_COMPLETE": "source_bash"}).invoke(cli.app, [], prog_name="mrr").stdout
    assert "complete -o default -F _mrr_completion mrr" in script
    for flag in ("--install-completion", "--show-completion"):
        assert flag in help_of("")


def test_without_a_command_there_is_help_and_exit_code_2() -> None:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [], prog_name="mrr")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == help_of("")
