"""One writer per folder: a lock file that names its holder, and that the system releases when the holder dies."""

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
"""The lock file inside a locked folder; it is removed with the lock."""
SAVE = "save"
"""A holder that is done in moments: others wait for it instead of stopping."""
PAUSE = 0.02
"""Seconds between two looks at a lock that is about to be free."""
PATIENCE = 250
"""Looks at a lock without a name before its holder counts as one that does not come to sign it."""

_held: ContextVar[tuple[Path, ...]] = ContextVar("held", default=())
_handles: set[int] = set()
"""The open lock files of this process."""
_registered = False
"""Whether forked children leave these to their parent."""


@dataclass(frozen=True)
class Holder:
    """Who holds a folder."""

    command: str
    """What it does there: ``mrr finetune`` or ``save``, for example."""
    host: str
    pid: int
    since: str
    """Its start in UTC, ISO format."""

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since})"


class FolderInUseError(OSError):
    """Another process writes to the folder."""


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold ``folder``, made if it is missing, inside the block; what this thread holds already it may hold again.

    Waits for a holder that saves, and for nobody else. A lock that a dead process left is taken over. If the block
    fails, folders that were made for the lock and are still empty are removed.

    Raises:
        FolderInUseError: Another process or thread holds the folder; the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, locked(Path(name), "an example"):
    ...     holder_of(Path(name)).command
    'an example'
    """
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    made = _make(folder)
    handle = _acquire(folder, command)
    token = _held.set((*_held.get(), place))
    try:
        yield
    finally:
        _held.reset(token)
        _release(folder / NAME, handle)
        for path in made:
            with suppress(OSError):  # it holds something by now
                path.rmdir()


@contextmanager
def trying(folder: Path, command: str) -> Iterator[bool]:
    """:func:`locked`, but gives False instead of waiting or raising if another holds the folder."""
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
    """Who wrote the folder's lock file, or None if there is none that can be read."""
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
            who = holder or "a process that could not write its name, on a full disk perhaps"
            raise FolderInUseError(
                f"{str(folder)!r} is in use by {who}. Wait until it ends, stop it, or choose another folder."
            )
        time.sleep(PAUSE)  # a save, or a holder that has not yet written its name


def _take(file: Path, command: str) -> int | None:
    """The open lock file, held and signed; None if another holds it."""
    handle = _open_locked(file)
    if handle is not None:
        _note(handle)
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
        os.close(handle)  # the holder before removed the file that was opened


def _open_exclusive(file: Path) -> int | None:
    """The lock without the system's help: whoever makes the file holds it, as long as its process lives."""
    for _ in range(2):
        try:
            return os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if not _left_behind(file):
                return None
            with suppress(FileNotFoundError):
                file.unlink()
    return None


def _left_behind(file: Path) -> bool:
    """Whether the process that made a lock file is dead."""
    if os.name == "nt":
        try:
            file.unlink(missing_ok=True)  # an open file cannot be removed there
        except PermissionError:
            return False
        return True
    holder = holder_of(file.parent)
    if holder is None:  # of another version, or being signed: its age tells
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
    """Make a folder; those that were missing, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _note(handle: int) -> None:
    """Remember an open lock file, so that forked children close their copies of it."""
    global _registered
    if not _registered and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_to_the_parent)
        _registered = True
    _handles.add(handle)


def _leave_to_the_parent() -> None:
    """Close a forked child's copies of lock files: the system would hold the locks until the child ends, too."""
    for handle in _handles:
        os.close(handle)
    _handles.clear()
