"""Running `mrr` in this process, and its outcome."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mrr_model import checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.cli import app as cli


@dataclass(frozen=True)
class Outcome:
    """What a command returned and wrote."""

    exit_code: int
    stdout: str
    stderr: str
    output: str
    stdout_bytes: bytes

    @property
    def error(self) -> str:
        """The one line on stderr, with nothing on stdout and exit code 2."""
        assert (self.exit_code, self.stdout) == (2, ""), self.output
        [line] = self.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        assert self.exit_code == 0, self.output
        return [json.loads(line) for line in self.stdout.split("\n") if line]


Mrr = Callable[..., Outcome]


@pytest.fixture
def mrr() -> Mrr:
    """`mrr("rerank", ..., stdin="...")` in this process; its streams are no terminal."""

    def run(*arguments: object, stdin: str | bytes = "", columns: int = 200, charset: str = "utf-8") -> Outcome:
        runner = CliRunner(charset=charset, env={"COLUMNS": str(columns)})
        result = runner.invoke(cli.app, [str(word) for word in arguments], input=stdin, prog_name="mrr")
        return Outcome(result.exit_code, result.stdout, result.stderr, result.output, result.stdout_bytes)

    return run


@pytest.fixture(scope="session")
def encoder(make_checkpoint: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny BERT without adapters."""
    folder = tmp_path_factory.mktemp("checkpoints") / "encoder"
    checkpoint.save(make_checkpoint("bert", adapters=False), folder)
    return folder
