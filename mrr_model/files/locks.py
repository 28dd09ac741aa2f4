"""One writer per folder: a lock file names the process that holds it, and is released when that process dies."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
"""The lock file in a locked folder; it is removed with the lock."""
SAVE = "save"
"""The command of a holder that needs only moments: other processes wait for it instead of failing."""
PAUSE = 0.02
"""Seconds between two attempts to take a lock that is about to be free."""
PATIENCE = 250
"""Attempts to take a lock without a name, before its holder counts as one that never writes its name."""

_held: ContextVar[tuple[Path, ...]] = ContextVar("held", default=())
_handles: set[int] = set()
"""The open lock files of this process."""
_registered = False
"""Whether forked children close their copies."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a folder."""

    command: str
    """What it does there, such as `mrr finetune` or `save`."""
    host: str
    pid: int
    since: str
    """When it took the lock: UTC, ISO format."""

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since})"


class FolderInUseError(OSError):
    """Another process writes to the folder."""


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder inside the block; it is created if it is missing. A thread may hold a folder more than once.

    Waits for a holder that saves, and for no other. The lock of a dead process is taken over. Folders that were created
    for the lock and are still empty when the block ends are removed.

    Args:
        folder: The folder to hold.
        command: What the block does there, for the error that other processes get.

    Raises:
        FolderInUseError: If another process or thread holds the folder; the message names it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, locked(Path(name), "an example"):
        ...     holder_of(Path(name)).command
        'an example'
    """
    resolved = folder.resolve()
    if resolved in _held.get():
        yield
        return
    made = _make(folder)
    handle = _acquire(folder, command)
    token = _held.set((*_held.get(), resolved))
    try:
        yield
    finally:
        _held.reset(token)
        _release(folder / NAME, handle)
        for path in made:
            with suppress(OSError):  # it is not empty by now
                path.rmdir()


@contextmanager
def trying(folder: Path, command: str) -> Iterator[bool]:
    """Hold a folder as `locked` does, but yield False instead of waiting or raising if another holds it."""
    if folder.resolve() in _held.get():
        yield True
        return
    handle = _take(folder / NAME, command)
    if handle is None:
        yield False
        return
    try:
        yield True
    finally:
        _release(folder / NAME, handle)


def holder_of(folder: Path) -> Holder | None:
    """The holder in the folder's lock file; None if it is missing or cannot be read."""
    try:
        return Holder(**json.loads((folder / NAME).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _acquire(folder: Path, command: str) -> int:
    nameless = 0
    while True:
        handle = _take(folder / NAME, command)
        if handle is not None:
            return handle
        holder = holder_of(folder)
        nameless = nameless + 1 if holder is None else 0
        if nameless > PATIENCE or (holder is not None and holder.command != SAVE):
            who = holder or "a process that could not write its name, perhaps because the disk is full"
            raise FolderInUseError(
                f"{str(folder)!r} is in use by {who}. Wait until it ends, stop it, or choose another folder."
            )
        time.sleep(PAUSE)  # for a save, or for a holder that has not yet written its name


def _take(file: Path, command: str) -> int | None:
    """The open lock file, locked and with this process's name; None if another holds it."""
    handle = _open_locked(file)
    if handle is not None:
        _remember(handle)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        signed = json.dumps(asdict(Holder(command, socket.gethostname(), os.getpid(), now)))
        with suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(handle, 0)
            os.write(handle, signed.encode())
    return handle


def _open_locked(file: Path) -> int | None:
    if fcntl is None:
        return _open_exclusive(file)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a file system without locks
            os.close(handle)
            return _open_exclusive(file)
        if _is_at(handle, file):
            return handle
        os.close(handle)  # the previous holder removed the file that was opened


def _open_exclusive(file: Path) -> int | None:
    """The lock without the system's help: whoever creates the file holds it while its process lives."""
    for _ in range(2):
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if not _is_stale(file):
                return None
            with suppress(FileNotFoundError):
                file.unlink()
    return None


def _is_stale(file: Path) -> bool:
    """Whether the process that created a lock file is dead."""
    if os.name == "nt":
        try:
            file.unlink(missing_ok=True)  # an open file cannot be removed there
        except PermissionError:
            return False
        return True
    holder = holder_of(file.parent)
    if holder is None:  # another version's, or not written yet: its age decides
        try:
            found = file.stat()
        except FileNotFoundError:  # released by now
            return False
        return not found.st_size and time.time() - found.st_mtime > 60
    return holder.host == socket.gethostname() and not _alive(holder.pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _release(file: Path, handle: int) -> None:
    if handle not in _handles:  # in a forked child: the lock is the parent's
        return
    _handles.discard(handle)
    if os.name == "nt":
        os.close(handle)
        file.unlink(missing_ok=True)
        return
    file.unlink(missing_ok=True)  # while it is held: nobody else's file is removed
    os.close(handle)


def _make(folder: Path) -> list[Path]:
    """Create a folder; returns the folders that were missing, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remember(handle: int) -> None:
    """Remember an open lock file, so that forked children close their copy."""
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_the_parent)
        _registered = True
    _handles.add(handle)


def _leave_to_the_parent() -> None:
    """Close a forked child's copies of lock files, which would keep the locks until the child ends."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
