"""Scoring in forked processes: an error instead of a hang.

GNU OpenMP, which torch's Linux wheels use, keeps worker threads for each thread that runs parallel work. A fork copies
the forking thread but no workers, so the child's next parallel work can wait for them forever. A worker of another
thread may also hold a lock of the matrix library when it vanishes. Other OpenMP libraries start new workers in the
child.
"""

import os
from pathlib import Path

import torch

LOADED_LIBRARIES = Path("/proc/self/maps")
"""Where Linux lists the libraries that a process has loaded."""


class ThreadPool:
    """Remembers which process has started torch's thread pool."""

    def __init__(self) -> None:
        self._process: int | None = None

    def use(self) -> None:
        """Record that parallel work is about to run in this process.

        Raises:
            RuntimeError: If parallel work ran in the parent before the fork, so that it could hang here.
        """
        if torch.get_num_threads() == 1:
            return
        if self._process not in (None, os.getpid()) and _loses_workers():
            raise RuntimeError(
                "this process was forked from one that had scored before, and torch's thread pool does not survive a "
                "fork: scoring here could hang. Load in the parent and score only in child processes, start "
                "them with the 'spawn' or 'forkserver' method, or call torch.set_num_threads(1) first in each child."
            )
        self._process = os.getpid()


POOL = ThreadPool()
"""The pool of this process; a fork copies it."""


def _loses_workers() -> bool:
    return LOADED_LIBRARIES.is_file() and "libgomp" in LOADED_LIBRARIES.read_text(encoding="utf-8", errors="replace")
