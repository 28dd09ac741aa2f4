"""The command line as a whole: usage errors, the version, and what `mrr --help` imports."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mrr_model import __version__

Mrr = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rerank", "x"], "Missing option '--query' / '-q'. See mrr rerank --help."),
        (["rerank", "-q"], "Option '-q' requires an argument."),
        (
            ["rerank", "-q", "x", "--top-m", "1"],
            "No such option: --top-m. Did you mean --top-n? See mrr rerank --help.",
        ),
        (["rerank", "-q", "x", "--dept", "1"], "No such option: --dept. Did you mean --depth? See mrr rerank --help."),
        (["rerank", "-q", "x", "a", "b"], "Got unexpected extra argument"),
        (["evaluate"], "Missing argument 'MODEL'. See mrr evaluate --help."),
        (["rernk"], "No such command 'rernk'. Did you mean 'rerank'? See mrr --help."),
    ],
)
def test_usage_errors_are_one_line(mrr: Mrr, arguments: list[str], message: str) -> None:
    assert mrr(*arguments).error.startswith(f"error: {message}")


@pytest.mark.slow
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
    assert all(command in run.stdout for command in ("rerank", "serve", "finetune", "self-distill", "mine", "info"))


def test_version(mrr: Mrr) -> None:
    assert mrr("--version").stdout == f"mrr {__version__}\n"
