"""Files that are complete or absent: written under another name, synced to the disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Replace a file when the block ends without an error; yields a path beside it to write to.

    If the process is killed or the disk is full, the file stays as it was. The new file gets the mode of the old one,
    or what the umask allows.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "a.txt"
        ...     with replacing(file) as unfinished:
        ...         _ = unfinished.write_text("whole")
        ...     [path.read_text() for path in Path(folder).iterdir()]
        ['whole']
    """
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".unfinished", dir=file.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(mode_of(file))
        sync(unfinished)
        unfinished.replace(file)
        sync(file.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file as `replacing` does; text is encoded as UTF-8."""
    with naming(file), replacing(file) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name a file in errors about writing that name none: a full disk is reported so.

    Example:
        >>> with naming(Path("a.txt")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'a.txt'
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk, so that a power cut does not undo it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError:  # some file systems sync no folders
        if not path.is_dir():
            raise
    finally:
        os.close(handle)


def mode_of(file: Path) -> int:
    """The mode of a file, or of a new one if it is missing."""
    if file.exists():
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
