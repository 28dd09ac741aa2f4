"""`mrr info`: what a checkpoint holds and what its sizes cost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Mrr = Callable[..., Any]


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
    assert "holds no config.json" in mrr("info", tmp_path).error
