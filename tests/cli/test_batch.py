"""`mrr batch`: what it says, and what is wrong with its flags."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROWS = [{"query": "the panda ?", "document": "is the panda eating"[:end], "id": end} for end in range(20)]


def test_the_command_says_what_it_wrote(mrr: Callable[..., Any], tmp_path: Path, saved_encoder: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ("batch", file, "--output", tmp_path / "scored", "--model", saved_encoder, "--max-length", 64)
    outcome = mrr(*words, "--depth", 4, "--dtype", "float32")
    assert (outcome.exit_code, outcome.stdout) == (0, f"20 rows with 20 scores are in {tmp_path / 'scored'}\n")
    assert "--depth was 4 and is 2" in mrr(*words, "--depth", 2, "--dtype", "float32").error
    assert "--depth 0" in mrr(*words, "--depth", 0).error
    assert "--actors goes with --engine ray" in mrr(*words, "--actors", 2).error
    assert "missing.jsonl" in mrr("batch", tmp_path / "missing.jsonl", "--output", tmp_path / "none").error
    assert "--output" in mrr("batch", file).error
    assert not (tmp_path / "none").exists()
    before = (tmp_path / "scored" / "part-00000.jsonl").read_bytes()
    assert "nowhere" in mrr(*words[:4], "--overwrite", "--model", tmp_path / "nowhere").error
    assert (tmp_path / "scored" / "part-00000.jsonl").read_bytes() == before  # a wrong model costs no result
