"""Files that are whole or not there: written beside their place, brought to the disk, then renamed."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside ``file`` to write to, which takes the place of ``file`` when the block ends without an error.

    A process that is killed, or a disk that is full, leaves ``file`` as it was. The new file has the mode of the one
    that it replaces, or what the umask allows.

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
    """Write a whole file, text as UTF-8, in the way of :func:`replacing`."""
    with replacing(file) as unfinished:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that a power cut does not undo it."""
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
    """The mode of a file; if it is missing, what the umask allows."""
    if file.exists():
        return file.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
