"""Checkpoint folders under kills, full disks and readers beside writers: old or new, never a mixture."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import Checkpoint, journal
from mrr_model.evaluation.store import save_calibration, save_profile
from mrr_model.selection.profile import Profile

InAFork = Callable[..., int | None]
Contents = Callable[[Path], dict[str, bytes]]

NOTES = "notes.txt"
"""A file of the user's in the checkpoint's folder."""


@pytest.fixture(scope="module")
def old(make_checkpoint: Callable[..., Checkpoint], toy_calibration: Calibration, toy_profile: Profile) -> Checkpoint:
    """With everything that a checkpoint can have."""
    return replace(make_checkpoint("bert", seed=1), calibration=toy_calibration, profile=toy_profile)


@pytest.fixture(scope="module")
def new(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    """Other weights, and fewer files."""
    made = make_checkpoint("bert", seed=2)
    return replace(made, adapters={"vertical": made.adapters["vertical"]})


@pytest.fixture
def folder(old: Checkpoint, tmp_path: Path) -> Path:
    """The folder of `old`, and of a user's file."""
    checkpoint.save(old, tmp_path / "model", embeddings_apart=True, model_card="old")
    (tmp_path / "model" / NOTES).write_text("mine", encoding="utf-8")
    return tmp_path / "model"


def save_new(new: Checkpoint, folder: Path) -> None:
    checkpoint.save(new, folder, model_card="new")


def visible(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith(".")}


def restored(folder: Path, files: dict[str, bytes]) -> None:
    """The folder as it was, whatever a kill made of it."""
    shutil.rmtree(folder)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_a_kill_at_any_moment_leaves_the_old_checkpoint_or_the_new(
    folder: Path, new: Checkpoint, tmp_path: Path, in_a_fork: InAFork, contents: Contents
) -> None:
    before = contents(folder)
    events = in_a_fork(lambda: save_new(new, folder), folder)
    assert events is not None
    after = contents(folder)
    assert not [name for name in after if name.startswith(".")]
    assert after.keys() - before.keys() == set()
    assert before.keys() - after.keys() == {
        "embeddings.safetensors", "model.safetensors.index.json", "calibration.json", "profile.json",
        "compensation/horizontal_1_2.safetensors", "compensation/horizontal_1_4.safetensors",
    }  # fmt: skip
    assert after[NOTES] == b"mine"
    seen = set()
    moving = events - 30  # the files' moves into place are tried one by one
    for fatal in [*range(1, moving, 16), *range(moving, events + 1, 2)]:
        restored(folder, before)
        assert in_a_fork(lambda: save_new(new, folder), folder, fatal, torn=fatal % 2 == 1) is None
        loaded = checkpoint.load(folder)  # completes what counts
        found = visible(contents(folder))
        assert found in (before, after), f"killed before event {fatal} of {events}"
        assert len(loaded.adapters) == (3 if found == before else 1)
        seen.add(found == before)
        if fatal % 4 == 1:
            save_new(new, folder)
            assert contents(folder) == after, "the next save removes what a killed one left"
    assert seen == {True, False}


def test_a_kill_while_a_folder_is_first_saved_leaves_nothing_or_a_checkpoint(
    new: Checkpoint, tmp_path: Path, in_a_fork: InAFork, contents: Contents
) -> None:
    folder = tmp_path / "made" / "model"
    events = in_a_fork(lambda: save_new(new, folder), tmp_path)
    assert events is not None
    after = contents(folder)
    for fatal in range(1, events + 1, 12):
        shutil.rmtree(folder.parent)
        assert in_a_fork(lambda: save_new(new, folder), tmp_path, fatal) is None
        assert journal.holds_checkpoint(folder) == bool(visible(contents(folder)))
        save_new(new, folder)
        assert contents(folder) == after


def test_a_full_disk_leaves_the_old_checkpoint(
    folder: Path, new: Checkpoint, in_a_fork: InAFork, contents: Contents
) -> None:
    before = contents(folder)
    size = max(map(len, before.values()))

    def save_under(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r"(?i)too large|os error 27"):
            save_new(new, folder)

    for limit in (0, 100, 3000, size // 2, size - 10_000):
        in_a_fork(lambda limit=limit: save_under(limit), folder)
        assert contents(folder) == before, f"files of at most {limit} bytes"


@pytest.mark.parametrize("kind", ["calibration", "profile"])
def test_a_kill_while_measurements_are_stored_leaves_whole_files(
    kind: str, folder: Path, old: Checkpoint, in_a_fork: InAFork, contents: Contents
) -> None:
    assert old.profile is not None
    assert old.calibration is not None
    profile = old.profile.model_copy(update={"queries": 20})
    calibration = old.calibration.model_copy(update={"pairs": 109})
    weights = checkpoint.load(folder).fingerprint or ""

    def store() -> None:
        if kind == "profile":
            save_profile(folder, profile, "| a table |", weights)
        else:
            save_calibration(folder, calibration, "| a table |", weights)

    before = contents(folder)
    events = in_a_fork(store, folder)
    assert events is not None
    after = contents(folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {f"{kind}.json", "README.md"}
    for fatal in range(1, events + 1, 2):
        restored(folder, before)
        assert in_a_fork(store, folder, fatal, torn=fatal % 2 == 1) is None
        found = visible(contents(folder))
        assert found.keys() == after.keys()
        assert all(found[name] in (before[name], after[name]) for name in found)
        assert checkpoint.load(folder).profile is not None
        store()
        assert contents(folder) == after


@pytest.mark.slow
def test_readers_beside_savers_see_one_checkpoint_each_time(folder: Path, old: Checkpoint, new: Checkpoint) -> None:
    """Savers take turns as fast as they can; old and new differ in weights and in adapters."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                save_new(new, folder)
                checkpoint.save(old, folder, embeddings_apart=True, model_card="old")
        finally:
            os._exit(1)
    try:
        wanted = {
            len(one.adapters): one.model.heads["6"].linear.weight  # type: ignore[union-attr]
            for one in (old, new)
        }
        found = set()
        for reads in range(1, 401):
            loaded = checkpoint.load(folder)
            weight = loaded.model.heads["6"].linear.weight  # type: ignore[union-attr]
            assert weight.equal(wanted[len(loaded.adapters)])  # type: ignore[operator, arg-type]
            assert (loaded.calibration is None) == (loaded.profile is None) == (len(loaded.adapters) == 1)
            found.add(len(loaded.adapters))
            if reads >= 8 and found == {1, 3}:
                break
        assert found == {1, 3}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_save_that_cannot_be_completed_says_what_to_do(
    folder: Path, toy_profile: Profile, contents: Contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / journal.SAVED).mkdir()
    (folder / "config.json").rename(folder / journal.SAVED / "config.json")
    names = [*contents(folder), "config.json"]
    (folder / journal.SAVED / journal.MANIFEST).write_text(json.dumps(names), encoding="utf-8")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("mrr_model.files.locks.os.open", refuse)
    with pytest.raises(PermissionError, match=r"holds a save that was cut short.*Open it once where it can be written"):
        checkpoint.load(folder)
    monkeypatch.undo()
    assert MatryoshkaReranker(folder, max_length=64).profile == toy_profile
    assert not (folder / journal.SAVED).exists()
