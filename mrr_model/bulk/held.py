"""The file that a source read last, kept open for the partition after it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Generic, Protocol, TypeVar


class _Closes(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closes)


class Held(Generic[T]):
    """One open file, or none. A pickled one is empty.

    Whoever uses the file owns it for that time, so readers that overlap do not move each other's position.
    """

    def __init__(self) -> None:
        self._files: list[tuple[str, T]] = []

    @contextmanager
    def using(self, path: str, opener: Callable[[str], T]) -> Iterator[T]:
        """Use the held file, or open another; it is held again if the block ends, and closed if the block is left."""
        with ExitStack() as stack:
            file = self._take(path) or opener(path)
            stack.callback(file.close)
            yield file
            stack.pop_all()
        self.close()
        self._files.append((path, file))

    def close(self) -> None:
        """Close the file that is held."""
        while self._files:
            self._files.pop()[1].close()

    def _take(self, path: str) -> T | None:
        try:
            held, file = self._files.pop()
        except IndexError:
            return None
        if held == path:
            return file
        file.close()
        return None

    def __getstate__(self) -> dict[str, object]:
        return {"_files": []}

    def __del__(self) -> None:
        self.close()
