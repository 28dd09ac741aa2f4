"""A checkpoint folder is saved whole or not at all, also if the process is killed or the disk is full.

A save (1) writes every file to a hidden sub-folder and syncs it to the disk; (2) renames that sub-folder to `.saved`:
from here on the save counts; (3) moves the files into place, config.json last. A kill before (2) leaves the checkpoint
as it was. A save killed in (3) is completed by whoever opens the folder next (`settle`).
"""

import itertools
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from typing_extensions import Self

from mrr_model.files.atomic import mode_of, sync
from mrr_model.files.locks import PAUSE, SAVE, locked, trying

UNFINISHED = ".unfinished-"
SAVED = ".saved"
MANIFEST = "files.json"
"""In `.saved`: the names of all files of the save."""
CONFIG = "config.json"
"""Removed before the other files move and moved after them: a folder that has it is whole."""

OWNED = re.compile(
    r"config\.json|model\.safetensors|model\.safetensors\.index\.json|embeddings\.safetensors"
    r"|compensation/(vertical|horizontal_\d+_\d+)\.safetensors|calibration\.json|profile\.json|modules\.json"
    r"|config_sentence_transformers\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.jinja|README\.md"
)
"""What a save replaces or removes; other files in the folder are the user's."""

PATIENCE = 2
"""Reads that saves may disturb before the reader locks the folder."""

Loaded = TypeVar("Loaded")


@contextmanager
def saving(folder: Path) -> Iterator[Path]:
    """A sub-folder to write a checkpoint to; its files replace the checkpoint in `folder` if the block succeeds.

    Raises:
        OSError: If writing fails; the earlier checkpoint stays in place.
        FolderInUseError: If a run writes to the folder.
    """
    with locked(folder, SAVE):
        settle(folder)
        sweep(folder)
        unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            yield unfinished
            _sync_all(unfinished)
            unfinished.rename(folder / SAVED)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # it is gone if it was renamed
        sync(folder)
        _move_into_place(folder)


def settle(folder: Path) -> None:
    """Complete a save that was cut short after it counted, if `folder` holds one.

    Raises:
        OSError: If the folder cannot be written to; says what to do.
    """
    while (folder / SAVED).exists():
        try:
            with trying(folder, SAVE) as held:
                if held:
                    _move_into_place(folder)
        except OSError as error:
            raise type(error)(
                f"{folder} holds a save that was cut short, and completing it failed ({error.strerror}). Open it once "
                "where it can be written to."
            ) from error
        if not held:
            time.sleep(PAUSE)  # another process is completing it


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a whole checkpoint, after completing a save that was cut short."""
    settle(folder)
    return (folder / CONFIG).is_file()


def undisturbed(folder: Path, load: Callable[[], Loaded]) -> Loaded:
    """What `load` reads from `folder`, read again if a save happened meanwhile: old and new files never mix."""
    for attempt in itertools.count():
        settle(folder)
        with _locked_if_possible(folder) if attempt > PATIENCE else nullcontext(), _SaveWatch(folder) as watch:
            loaded = load()
        if not watch.disturbed:
            return loaded
    raise AssertionError("counting does not end")


def sweep(folder: Path) -> None:
    """Remove what killed saves left unfinished. The caller must hold the folder's lock."""
    for path in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.unfinished"):
        if OWNED.fullmatch(path.name[1:].rsplit(".", 2)[0]):
            path.unlink(missing_ok=True)


def _sync_all(folder: Path) -> None:
    """List the files in the manifest, and sync them all."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / MANIFEST).write_text(json.dumps(names) + "\n", encoding="utf-8")
    for name in names:
        (folder / name).chmod(mode_of(folder.parent / name))
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def _move_into_place(folder: Path) -> None:
    """Step (3), from the point where it was cut short, if it was."""
    saved = folder / SAVED
    if (saved / CONFIG).exists():
        names = json.loads((saved / MANIFEST).read_text(encoding="utf-8"))
        (folder / CONFIG).unlink(missing_ok=True)
        sync(folder)
        for name in sorted(set(names) - {CONFIG}):
            if (saved / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (saved / name).replace(folder / name)
        for path in [*folder.iterdir(), *folder.glob("compensation/*")]:
            name = path.relative_to(folder).as_posix()
            if path.is_file() and OWNED.fullmatch(name) and name not in names:
                path.unlink()
        with suppress(OSError):  # it is missing, or holds files
            (folder / "compensation").rmdir()
        for part in {(folder / name).parent for name in names}:
            sync(part)
        (saved / CONFIG).replace(folder / CONFIG)
        sync(folder)
    if saved.exists():
        shutil.rmtree(saved)


@contextmanager
def _locked_if_possible(folder: Path) -> Iterator[None]:
    """Keep savers out: between saves that follow each other closely no read would finish."""
    with ExitStack() as stack:
        with suppress(PermissionError):
            stack.enter_context(trying(folder, SAVE))
        yield


class _SaveWatch:
    """Notices whether a save happened during the block; if one did, what the block raises is dropped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disturbed = False
        self._handle: int | None = None
        self._before: os.stat_result | None = None

    def __enter__(self) -> Self:
        with suppress(FileNotFoundError, NotADirectoryError):
            handle = os.open(self.folder / CONFIG, os.O_RDONLY)
            self._before = os.fstat(handle)
            if os.name == "nt":
                os.close(handle)  # an open file could not be replaced there
            else:
                self._handle = handle  # stays open, so that no other file can take its number
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self.disturbed = not self._is_same()
        if self._handle is not None:
            os.close(self._handle)
        return self.disturbed and isinstance(error, Exception)

    def _is_same(self) -> bool:
        try:
            now = (self.folder / CONFIG).stat()
        except (FileNotFoundError, NotADirectoryError):
            return self._before is None and not (self.folder / SAVED).exists()
        before = self._before
        return before is not None and os.path.samestat(now, before) and now.st_mtime_ns == before.st_mtime_ns
