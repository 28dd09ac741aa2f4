"""`mrr serve`: what is wrong is said before or instead of serving."""

import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

Mrr = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shed", "queue>soon: speedup=2"], ["--shed", "queue>soon"]),
        (["--shed", "queue>1s: speedup=2; queue>1s: speedup=3"], ["--shed", "ascend"]),
        (["--allow-settings", "depth,width"], ["--allow-settings", "keep_ratio", "depth,width"]),
        (["--speedup", "2", "--keep-quality", "0.9"], ["--keep-quality and --speedup"]),
        (["--speedup", "2", "--cascade", "auto"], ["--speedup", "--cascade"]),
        (["--speedup", "2", "--depth", "3"], ["--speedup", "--depth"]),
        (["--depth", "0"], ["--depth 0"]),
        (["--keep-ratio", "3"], ["--keep-ratio 3"]),
        (["--speedup", "0.5"], ["speedup", "0.5"]),
        (["--cascade", "2:x"], ["--cascade"]),
        (["--port", "70000"], ["--port", "65535"]),
        (["--host", ""], ["--host"]),
        (["--timeout", "0"], ["--timeout"]),
    ],
)
def test_wrong_flags_are_one_line(mrr: Mrr, arguments: list[str], words: list[str]) -> None:
    error = mrr("serve", *arguments).error
    assert all(word in error for word in words), error


def test_a_wrong_key_is_not_shown(mrr: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    error = mrr("serve", "--api-key", "very secret").error
    assert "--api-key" in error
    assert "secret" not in error
    monkeypatch.setenv("MRR_API_KEY", "very secret")
    error = mrr("serve").error
    assert "MRR_API_KEY" in error
    assert "secret" not in error


def test_a_missing_extra_is_named(mrr: Mrr, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mrr_model.serving.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert 'pip install "matryoshka-reranker[serve]"' in mrr("serve").error


def test_a_port_in_use(mrr: Mrr) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        error = mrr("serve", "--port", port).error
    assert f"--port {port}: address already in use. Choose" in error


def test_a_model_that_does_not_open(mrr: Mrr, tmp_path: Any) -> None:
    outcome = mrr("serve", tmp_path, "--port", "0")
    assert outcome.exit_code == 2
    [line] = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert str(tmp_path) in line
    assert "Traceback" not in outcome.stderr
