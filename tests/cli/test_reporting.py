"""What goes wrong is one line or silence, never a traceback: closed streams, full disks, Ctrl-C, poor terminals."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from typer.testing import CliRunner

from mrr_model.cli import app as cli
from mrr_model.cli.command import Command, Group
from mrr_model.cli.reporting import INTERRUPTED, reported
from mrr_model.files.damage import faults_of

MRR = f"{sys.executable} -m mrr_model"


def shell(line: str) -> tuple[int, str, str]:
    run = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    return run.returncode, run.stdout, run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (f"{MRR} rerank -q x <&-", 2, "error: no documents: stdin is closed. "),
        (f"echo a | {MRR} rerank -q x >&-", 2, "error: stdout is closed"),
        (f"{MRR} rerank -q x absent 2>&-", 2, ""),
        (f"{MRR} rerank -q x <&- >&- 2>&-", 2, ""),
        (f"{MRR} --help >&-", 0, ""),
        (f"{MRR} --version >/dev/full", 2, "error: No space left on device."),
        (f"{MRR} nothing 2>/dev/full", 2, ""),
        (f"{MRR} finetune --help | head -n 0", 0, ""),
    ],
)
def test_closed_and_full_streams_leave_one_line_at_most(line: str, code: int, message: str) -> None:
    ended, out, errors = shell(line)
    assert (ended, out) == (code, "")
    assert errors.startswith(message)
    assert len(errors.splitlines()) == (1 if message else 0)


@pytest.mark.slow
def test_no_file_takes_the_number_of_a_closed_stream() -> None:
    opened = "from mrr_model.cli.reporting import open_streams; open_streams()"
    code = f"import os, sys; {opened}; sys.exit(os.open('.', 0) > 2)"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-')[0] == 1


@pytest.fixture
def run() -> Callable[[Callable[[], object]], Any]:
    """`run(function)` runs it as a command of `mrr`."""

    def invoke(function: Callable[[], object], *words: str) -> Any:
        app = typer.Typer(cls=Group, rich_markup_mode=None)
        app.command(cls=Command)(function)
        app.command(cls=Command)(lambda: None)
        return CliRunner().invoke(app, ["function", *words], prog_name="mrr")

    return invoke


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")
    number: int


class Holder(BaseModel):
    points: list[Strict]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("two\nlines"), "two lines"),
        (OSError(28, "No space left on device"), "No space left on device."),
        (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b: No such file or directory."),
        (EOFError("ended before"), "ended before"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("could not create a primitive"), "could not create a primitive"),
        (ImportError("no such library"), "no such library"),
    ],
)
def test_a_failure_is_one_line(run: Any, error: Exception, message: str) -> None:
    def function() -> None:
        with reported():
            raise error

    result = run(function)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"error: {message}\n")


def test_pydantics_words_are_translated_wherever_they_come_from(run: Any) -> None:
    def function() -> None:
        Strict.model_validate({"number": "x", "more": 1})

    assert run(function).stderr.splitlines() == [
        "error: number must be a whole number, got 'x'.",
        "error: more is not an option.",
    ]


def test_a_damaged_files_faults_are_in_the_same_words() -> None:
    for content, message in (
        ({"points": [{"number": "x"}, 3]}, "points.0.number must be a whole number, got 'x'. points, item 2, must "),
        ({}, "points is missing"),
    ):
        with pytest.raises(ValidationError) as raised:
            Holder.model_validate(content)
        assert faults_of(raised.value).startswith(message)


def test_a_fault_of_the_package_keeps_its_traceback(run: Any) -> None:
    def function() -> NoReturn:
        raise AttributeError("a fault")

    assert isinstance(run(function).exception, AttributeError)


@pytest.mark.parametrize("error", [ImportError, AttributeError, RuntimeError, TypeError, KeyboardInterrupt])
def test_ctrl_c_is_quiet_when_a_library_swallows_it(run: Any, error: type[BaseException]) -> None:
    def function() -> NoReturn:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise error("a half-imported library")

    before = signal.getsignal(signal.SIGINT)
    result = run(function)
    assert (result.exit_code, result.output) == (130, "")
    assert signal.getsignal(signal.SIGINT) is before
    INTERRUPTED.clear()


def test_an_exit_passes_through_and_nesting_says_nothing_twice() -> None:
    with pytest.raises(typer.Exit) as ended, reported(), reported():
        raise typer.Exit(3)
    assert ended.value.exit_code == 3


TEXTS = "the panda … 日本 😀\nwhat\n"


@pytest.mark.parametrize("charset", ["latin-1", "ascii"])
@pytest.mark.parametrize(
    "words",
    [
        ["rerank", "-q", "what … ?", "--format", "table", "--explain"],
        ["info"],
        ["rerank", "--help"],
        ["rerank", "-q", "日", "--depth", "0"],
    ],
)
def test_a_terminal_without_a_character_shows_a_question_mark(
    saved_encoder: Path, charset: str, words: Sequence[str]
) -> None:
    arguments = [*words, *(["--model", str(saved_encoder), "--max-length", "64"] if "-q" in words else [])]
    runner = CliRunner(charset=charset, env={"COLUMNS": "80"})
    result = runner.invoke(cli.app, arguments, input=TEXTS.encode(), prog_name="mrr")
    assert result.exit_code == (2 if "0" in words else 0), result.output
    if "--help" not in words:  # click writes UTF-8 where a locale knows nothing but ASCII
        assert set(result.output) - {"×"} <= {chr(code) for code in range(128)}  # latin-1 has that sign
    if "table" in words:
        assert "the panda ? ??" in result.stdout
