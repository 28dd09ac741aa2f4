"""Training, calibrating and profiling runs that are killed at any moment end as if they had not been."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mrr_model.cli import app as cli
from mrr_model.files.locks import FolderInUseError, locked
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.recipe import finetune
from mrr_model.training.saves import MARK, is_complete, mark, newest_complete, remove_incomplete
from mrr_model.training.self_distill import self_distill

InAFork = Callable[..., int | None]
Contents = Callable[[Path], dict[str, bytes]]
STAGE = {"learning_rate": 3e-3, "max_steps": 3, "lora": {"rank": 2, "alpha": 4, "dropout": 0.1}}
EVERY_EVENT = "MRR_EVERY_KILL" in os.environ
"""Set it to kill at every file event, which takes minutes."""


def tuning(model: Path, rows: Path, output: Path) -> Callable[[], Path]:
    """A run of two stages with two saves each."""
    fields: dict[str, Any] = {
        "model": str(model), "train": (str(rows),), "output": output, "stages": ("distill", "vertical"),
        "train_group_size": 4, "max_length": 32, "save_steps": 2,
        "distill": {"learning_rate": 3e-3, "max_steps": 3, "ratios": (1, 2)}, "vertical": STAGE,
        "trainer": {"disable_tqdm": True},
    }  # fmt: skip
    return lambda: finetune(FinetuneConfig(**fields))


def self_distilling(model: Path, rows: Path, output: Path) -> Callable[[], Path]:
    """A run of two adapters with two saves each."""
    fields: dict[str, Any] = {
        "model": str(model), "texts": (str(rows),), "output": output, "train_group_size": 4, "max_length": 32,
        "save_steps": 2, "vertical": STAGE, "horizontal": {**STAGE, "ratios": (2,)}, "trainer": {"disable_tqdm": True},
    }  # fmt: skip
    return lambda: self_distill(SelfDistillConfig(**fields))


def quiet(run: Callable[[], Any]) -> Callable[[], Any]:
    """The run without output: the Trainer prints its losses."""

    def silent() -> Any:
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        return run()

    return silent


def sample(events: int, count: int) -> list[int]:
    """Events to kill at: `count` of them, evenly spread; the last is the run's last."""
    if EVERY_EVENT:
        return list(range(1, events + 1))
    return sorted({1 + index * (events - 1) // count for index in range(1, count + 1)})


@pytest.mark.parametrize(("recipe", "kills"), [("finetune", 3), ("self-distill", 2)])
def test_a_killed_run_ends_with_the_bytes_of_an_unbroken_one(
    recipe: str, kills: int, stock_encoder: Path, toy_classifier: Path, toy_file: Path, tmp_path: Path,
    in_a_fork: InAFork, contents: Contents,
) -> None:  # fmt: skip
    output = tmp_path / "out"
    make, model = (tuning, stock_encoder) if recipe == "finetune" else (self_distilling, toy_classifier)
    run = quiet(make(model, toy_file, output))
    events = in_a_fork(run, tmp_path)
    assert events is not None
    unbroken = contents(output)
    assert not [name for name in unbroken if name.startswith((".", "steps"))]
    for fatal in sample(events, kills):
        shutil.rmtree(output)
        assert in_a_fork(run, tmp_path, fatal, torn=fatal % 2 == 1) is None
        if (output / "config.json").exists() and not (output / "steps").exists() and not finishing(output):
            assert contents(output).keys() - {".lock"} == unbroken.keys()
            continue  # killed after its end
        in_a_fork(run, tmp_path)
        assert contents(output) == unbroken, f"killed before event {fatal} of {events}"


def test_a_full_disk_stops_a_run_with_an_error_that_names_the_save(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, in_a_fork: InAFork, contents: Contents
) -> None:
    output = tmp_path / "out"
    run = quiet(tuning(stock_encoder, toy_file, output))

    def on_a_full_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(OSError, match=r"a save in .*distill could not be written: .*too large"):
            run()

    assert in_a_fork(on_a_full_disk, tmp_path) is not None
    in_a_fork(run, tmp_path)
    resumed = contents(output)
    shutil.rmtree(output)
    in_a_fork(run, tmp_path)
    assert contents(output) == resumed


def finishing(output: Path) -> bool:
    return (output / ".finished-run.json").exists()


@pytest.fixture(scope="module")
def toy_classifier(stock_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock cross-encoder over the toy rows' words."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("classifier")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(stock_encoder, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(stock_encoder).save_pretrained(folder)
    return folder


# The Trainer's saves


def make_save(saves: Path, step: int, *files: str) -> Path:
    save = saves / f"checkpoint-{step}"
    save.mkdir(parents=True)
    for name in files:
        (save / name).write_text(f"{name} of {step}", encoding="utf-8")
    return save


@pytest.mark.parametrize("damage", ["no state", "short weights", "no mark", "torn mark", "an empty folder"])
def test_a_newest_save_that_is_not_whole_is_dropped(tmp_path: Path, damage: str) -> None:
    files = ("trainer_state.json", "model.safetensors", "optimizer.pt", "rng_state.pth")
    whole, newest = make_save(tmp_path, 9, *files), make_save(tmp_path, 10, *files)
    mark(whole)
    mark(newest)
    assert newest_complete(tmp_path) == str(newest)
    if damage == "no state":
        (newest / "trainer_state.json").unlink()
    elif damage == "short weights":
        (newest / "model.safetensors").write_text("mod", encoding="utf-8")
    elif damage == "no mark":
        (newest / MARK).unlink()
    elif damage == "torn mark":
        os.truncate(newest / MARK, 10)
    else:
        shutil.rmtree(newest)
        newest.mkdir()
    assert not is_complete(newest)
    assert newest_complete(tmp_path) == str(whole)
    remove_incomplete(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_there_is_nothing_to_resume_from_at_first(tmp_path: Path) -> None:
    assert newest_complete(tmp_path) is None
    make_save(tmp_path, 3, "trainer_state.json")
    assert newest_complete(tmp_path) is None


# One run per folder


def test_a_second_run_into_a_folder_stops_at_once_and_names_the_first(
    stock_encoder: Path, toy_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(output, "mrr finetune"):
            os.write(writing, b"held")
            signal.pause()
    os.read(reading, 4)
    try:
        with pytest.raises(FolderInUseError, match=rf"in use by mrr finetune \(process {child} on .*, since 20\d\d-"):
            tuning(stock_encoder, toy_file, output)()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert json.loads((output / ".lock").read_text("utf-8"))["pid"] == child
    with locked(output, "another"):  # the dead process's lock is taken over
        pass
    assert not (output / ".lock").exists()


def test_a_wrong_path_leaves_nothing(tmp_path: Path, toy_file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tuning(tmp_path / "absent", toy_file, tmp_path / "some" / "out")()
    assert not (tmp_path / "some").exists()


# Calibrating and profiling


@pytest.mark.parametrize("command", ["calibrate", "evaluate"])
def test_killed_measurements_are_made_as_if_they_had_not_been(
    command: str, saved_encoder: Path, toy_beir: Path, toy_file: Path, tmp_path: Path, in_a_fork: InAFork,
    contents: Contents,
) -> None:  # fmt: skip
    """A call stores the same in the checkpoint wherever the call before it was killed. Times are not compared."""
    model, output = tmp_path / "model", tmp_path / "out"
    words = [command, str(model), "--output", str(output), "--depth", "3,6", "--keep-ratio", "1,0.5"]
    words += ["--max-length", "64", "--dtype", "float32", "--limit-queries", "12"]
    if command == "evaluate":
        words += [str(toy_beir), "--save-profile", "--timing-pairs", "1", "--timing-repeats", "1"]
    else:
        words += ["--texts", str(toy_file)]

    @quiet
    def run() -> None:
        code = cli.app(words, standalone_mode=False)
        assert not code

    def stored() -> dict[str, Any]:
        files = {name: content for name, content in contents(model).items() if not name.startswith(".")}
        card = files.pop("README.md")
        profile = json.loads(files.pop("profile.json", "{}"))
        for time in ("measured_at", "noise"):
            profile.pop(time, None)
        for point in profile.get("points", ()):
            del point["seconds"]
        return {**files, "profile": profile, "sections": card.count(b"<!-- /")}

    shutil.copytree(saved_encoder, model)
    before = stored()
    events = in_a_fork(run, tmp_path)
    assert events is not None
    after = stored()
    assert after != before
    for fatal in sorted({*sample(events, 2), events - 4}):
        shutil.rmtree(model)
        shutil.rmtree(output)
        shutil.copytree(saved_encoder, model)
        assert in_a_fork(run, tmp_path, fatal, torn=fatal % 2 == 1) is None
        assert stored() in (before, after, {**after, "sections": before["sections"]})
        in_a_fork(run, tmp_path)
        assert stored() == after, f"killed before event {fatal} of {events}"
