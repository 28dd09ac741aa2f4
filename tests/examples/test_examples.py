"""The examples: fine-tuning on a toy model, one per framework, and the scripts that made `mini`."""

import random
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.data.groups import Group, write_groups

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = spec_from_file_location(f"{name.replace('/', '_')}_example", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def finetuning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return example("finetune", monkeypatch)


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch, toy_rows: list[Group], tmp_path: Path) -> list[str]:
    write_groups(tmp_path / "rows.jsonl", [row for row in toy_rows if row.positives])
    given = ["finetune.py", "--train", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", given)
    return given


def test_it_trains_all_stages_and_compares_sizes(
    finetuning: ModuleType,
    arguments: list[str],
    stock_encoder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments += ["--model", str(stock_encoder), "--steps", "2", "--max-length", "64"]
    finetuning.main()
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("depth")]
    assert len(shown) == 4
    assert shown[0].startswith("depth 4, keep ratio 1.0: the positive comes first in ")
    adapters = {path.stem for path in (tmp_path / "out" / "compensation").iterdir()}
    assert adapters == {"vertical", "horizontal_1_2", "horizontal_1_4"}
    assert MatryoshkaReranker(tmp_path / "out", max_length=64, dtype="float32").exits == (1, 2, 3, 4)


@pytest.mark.parametrize("name", ["langchain_rag", "llama_index_query_engine", "sentence_transformers_rerank"])
def test_a_frameworks_example_shows_two_settings(name: str) -> None:
    run = subprocess.run([sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=True)
    settings = [line for line in run.stdout.splitlines() if line.startswith(("precise ", "fast "))]
    assert [line.split()[0] for line in settings] == ["precise", "fast"]
    assert all(line.endswith(" ms") for line in settings)
    scores = [float(line.split()[0]) for line in run.stdout.splitlines() if line.startswith("  0.")]
    assert len(scores) == 6
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert run.stderr == ""


def test_the_mean_of_weights_is_written_once(
    saved_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = example("mini/train", monkeypatch)
    folders = [str(saved_encoder)]
    for index in (1, 2):
        other = checkpoint.load(saved_encoder, dtype=torch.float32)
        for parameter in other.model.parameters():
            parameter.data += 3 * index
        checkpoint.save(other, tmp_path / str(index))
        folders.append(str(tmp_path / str(index)))

    own = checkpoint.load(saved_encoder, dtype=torch.float32).model
    for given in (folders, folders[:1]):  # a resumed run leaves the existing mean
        mean = checkpoint.load(Path(training.averaged(given, tmp_path / "mean")), dtype=torch.float32).model
        for (name, before), after in zip(own.named_parameters(), mean.parameters(), strict=True):
            torch.testing.assert_close(after, before + 3, msg=name, atol=1e-5, rtol=0)  # of +0, +3 and +6


def test_made_questions_take_two_terms_of_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    making = example("mini/data", monkeypatch)
    pool = [f"{animal} eats {food}" for animal in ("Horse", "Camel") for food in ("grass", "thorns", "oats")]
    made = making.made_questions(pool, 40, random.Random(0))
    assert len(made) == len(set(made)) == 40
    assert made == making.made_questions(pool, 40, random.Random(0))
    assert made != making.made_questions(pool, 40, random.Random(1))
    for question in made:  # no window speaks of both animals, or of two foods
        assert not ("Horse" in question and "Camel" in question)
        assert sum(food in question for food in ("grass", "thorns", "oats")) <= 1
