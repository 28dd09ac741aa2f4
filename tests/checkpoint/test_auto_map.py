"""A checkpoint's configs name remote code: it is never run, and nobody is asked about it."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mrr_model import MatryoshkaReranker

FORMATS = ("mistral", "gemma2", "minicpm")

# Leaves a mark and stops, whether it is imported, executed or read for its classes.
REMOTE_CODE = """
from pathlib import Path
Path(__file__).with_name("REMOTE_CODE_RAN").touch()
raise SystemExit("remote code ran")
"""

# Scores a golden row's texts at every exit, and writes the scores to a file: standard output is checked for silence.
SCRIPT = """
import json, sys
from pathlib import Path
from mrr_model import MatryoshkaReranker

scores = {}
for folder in map(Path, sys.argv[2:]):
    row = json.loads((folder / "row.json").read_text())
    reranker = MatryoshkaReranker(folder, device="cpu", dtype="float32", normalize=False)
    scores[folder.name] = {
        depth: reranker.score(row["query"], [row["passage"]], depth=int(depth))[0] for depth in row["scores"]
    }
Path(sys.argv[1]).write_text(json.dumps(scores))
"""


TOKENIZERS = ["tokenization_remote.RemoteTokenizer", "tokenization_remote.RemoteTokenizerFast"]
AUTO_MAP = {
    "AutoConfig": "configuration_remote.RemoteConfig",
    "AutoModel": "modeling_remote.RemoteModel",
    "AutoModelForCausalLM": "modeling_remote.RemoteForCausalLM",
    "AutoModelForSequenceClassification": "modeling_remote.RemoteForSequenceClassification",
    "AutoTokenizer": TOKENIZERS,
}


def add_remote_code(folder: Path) -> None:
    """Name remote code wherever a checkpoint can, and put it there."""
    for module in ("configuration_remote", "modeling_remote", "tokenization_remote"):
        (folder / f"{module}.py").write_text(REMOTE_CODE, encoding="utf-8")
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"auto_map": AUTO_MAP},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": TOKENIZERS}, "tokenizer_class": "RemoteTokenizer"},
    }
    for file, change in changes.items():
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        (folder / file).write_text(json.dumps({**content, **change}), encoding="utf-8")


@pytest.fixture
def folders(reference: Path, saved_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """Copies with remote code of the reference checkpoints and of one in this project's own format; row.json holds the
    scores to expect: golden ones, and those of the same checkpoint without an `auto_map`.
    """
    made = []
    for name in FORMATS:
        golden = json.loads(gzip.decompress((reference / name / "golden.json.gz").read_bytes()))["base"]
        [row, *_] = [row for row in golden[1:] if not row["compress_layers"]]
        made.append(copy_with_row(reference / name / "model", tmp_path / name, row))
    clean = MatryoshkaReranker(saved_checkpoint, device="cpu", dtype="float32", normalize=False)
    scores = {depth: clean.score("what is it?", ["A passage."], depth=depth)[0] for depth in (1, 4, 6)}
    row = {"query": "what is it?", "passage": "A passage.", "scores": scores}
    return [*made, copy_with_row(saved_checkpoint, tmp_path / "own", row)]


def copy_with_row(source: Path, target: Path, row: dict[str, Any]) -> Path:
    shutil.copytree(source, target)
    add_remote_code(target)
    (target / "row.json").write_text(json.dumps(row), encoding="utf-8")
    return target


def test_no_remote_code_is_run_or_asked_about(folders: list[Path], tmp_path: Path) -> None:
    """In a process that cannot be asked anything; one for all formats, as starting it takes most of the time."""
    out = tmp_path / "scores.json"
    # A fresh home: no remote modules of earlier runs. One thread, as everywhere in these tests.
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(out), *map(str, folders)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, **home},
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    scores = json.loads(out.read_text(encoding="utf-8"))
    for folder in folders:
        row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
        assert scores[folder.name] == pytest.approx(row["scores"], abs=1e-4)
    assert not list(tmp_path.rglob("REMOTE_CODE_RAN"))
    assert not list(tmp_path.rglob("__pycache__"))
    assert not list((tmp_path / "home").rglob("*.py"))
