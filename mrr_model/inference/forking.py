"""Scores in forked processes: an error where torch would hang.

GNU OpenMP, which torch's Linux wheels use, keeps worker threads for each thread that runs parallel work. A fork copies
the thread that forks and no worker, so that the child's next parallel work can wait for one for ever; and the worker of
another thread may hold a lock of the matrix library as it vanishes. Other OpenMP libraries start new workers in the
child.
"""

import os
from pathlib import Path

import torch

LOADED_LIBRARIES = Path("/proc/self/maps")
"""Where Linux lists what a process has loaded."""


class ThreadPool:
    """Remembers which process has started torch's thread pool."""

    def __init__(self) -> None:
        self._process: int | None = None

    def use(self) -> None:
        """Note that parallel work is about to run here. Raises ``RuntimeError`` if it has run before a fork, in the
        parent, and would hang for that.
        """
        if torch.get_num_threads() == 1:
            return
        if self._process not in (None, os.getpid()) and _loses_workers():
            raise RuntimeError(
                "this process was forked from one that had scored before, and torch's thread pool does not survive a "
                "fork: scoring here could wait for ever. Load in the parent and score in child processes only, start "
                "them with the 'spawn' or 'forkserver' method, or call torch.set_num_threads(1) first in each child."
            )
        self._process = os.getpid()


POOL = ThreadPool()
"""This process's; a fork copies it."""


def _loses_workers() -> bool:
    return LOADED_LIBRARIES.is_file() and "libgomp" in LOADED_LIBRARIES.read_text(encoding="utf-8", errors="replace")
