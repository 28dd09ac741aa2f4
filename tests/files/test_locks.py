"""Locks on folders: one named holder, which its process's death frees."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mrr_model.checkpoint import journal
from mrr_model.evaluation import evaluate as evaluating
from mrr_model.evaluation.calibrate import calibrate_model
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.files import locks
from mrr_model.files.locks import SAVE, FolderInUseError, holder_of, locked, trying
from mrr_model.training.progress import is_main_process


@contextmanager
def another_process(folder: Path, command: str) -> Iterator[int]:
    """A process that holds the folder."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder, command):
            os.write(writing, b"held")
            signal.pause()
    os.read(reading, 4)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.fixture(params=["flock", "exclusive"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The system's locks, and their replacement on file systems without locks."""
    if request.param == "exclusive":
        monkeypatch.setattr(locks, "fcntl", None)
    return str(request.param)


def test_the_holder_is_named_and_its_death_frees_the_folder(kind: str, tmp_path: Path) -> None:
    with another_process(tmp_path / "out", "mrr finetune") as child:
        for _ in range(2):
            with (
                pytest.raises(
                    FolderInUseError,
                    match=rf"in use by mrr finetune \(process {child} on {socket.gethostname()}, since 20\S+\)\. Wait",
                ),
                locked(tmp_path / "out", "mrr evaluate"),
            ):
                pass
        with trying(tmp_path / "out", SAVE) as held:
            assert not held
    assert (tmp_path / "out" / ".lock").exists()
    with locked(tmp_path / "out", "another"):
        assert holder_of(tmp_path / "out").pid == os.getpid()  # type: ignore[union-attr]
    assert not (tmp_path / "out").joinpath(".lock").exists()


def test_a_lock_is_not_taken_from_the_living(kind: str, tmp_path: Path) -> None:
    """Not even by a holder that removes its own lock file while another waits for it."""
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with locked(tmp_path, SAVE):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_same_thread_may_hold_a_folder_twice(kind: str, tmp_path: Path) -> None:
    with locked(tmp_path, "mrr finetune"), locked(tmp_path / "..", "other"), locked(tmp_path, SAVE):
        assert holder_of(tmp_path).command == "mrr finetune"  # type: ignore[union-attr]
        with trying(tmp_path, SAVE) as held:
            assert held


def test_a_process_of_another_host_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "fcntl", None)
    with another_process(tmp_path, "mrr finetune"):
        pass
    text = (tmp_path / ".lock").read_text("utf-8")
    (tmp_path / ".lock").write_text(text.replace(socket.gethostname(), "elsewhere"), "utf-8")
    with pytest.raises(FolderInUseError, match="on elsewhere"), locked(tmp_path, "mine"):
        pass


def test_folders_created_for_a_lock_are_removed_with_it_if_they_stay_empty(kind: str, tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b", "mine"):
        pass
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b", "mine"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_save_into_a_running_output_is_refused(tmp_path: Path, saved_encoder: Path) -> None:
    with (
        another_process(tmp_path, "mrr finetune"),
        pytest.raises(FolderInUseError, match="in use by mrr finetune"),
        journal.saving(tmp_path),
    ):
        pass


def test_evaluations_share_no_output(toy_beir: Path, saved_encoder: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(model=str(saved_encoder), collections=(str(toy_beir),), output=tmp_path)
    with another_process(tmp_path, "mrr evaluate"):
        for run in (evaluating.evaluate, calibrate_model):
            with pytest.raises(FolderInUseError, match="in use by mrr evaluate"):
                run(config)


def test_a_forked_child_does_not_keep_a_dead_process_s_lock(tmp_path: Path) -> None:
    """A data loader's workers outlive a killed trainer by seconds."""
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(tmp_path, "mrr finetune"):
            worker = os.fork()
            if worker:
                os.write(writing, str(worker).encode())
            signal.pause()
    worker = int(os.read(reading, 20))
    try:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with locked(tmp_path, "another"):
            assert holder_of(tmp_path).pid == os.getpid()  # type: ignore[union-attr]
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_does_not_release_the_lock(tmp_path: Path) -> None:
    with locked(tmp_path, "mrr finetune"):
        child = -1
        try:
            with locked(tmp_path / "inner", "mrr evaluate"):
                child = os.fork()
                if child:
                    os.waitpid(child, 0)
                    assert (tmp_path / "inner" / ".lock").exists()
        finally:
            if child == 0:
                os._exit(0)


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("1", False), ("0", True)])
def test_the_first_process_of_a_run_holds_the_folder_for_all(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, first: bool
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() == first


def test_a_holder_without_a_name_is_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 3)
    with locked(tmp_path, SAVE):
        (tmp_path / ".lock").write_bytes(b"")
        failures: list[BaseException] = []

        def ask() -> None:  # in a thread that holds nothing yet
            try:
                with locked(tmp_path, "mrr finetune"):
                    pass
            except FolderInUseError as error:
                failures.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()
    assert "in use by a process that could not write its name" in str(failures[0])
