"""Memory between batches: it stays with the process, up to `KEPT_BYTES`.

glibc, the C library of most Linux systems, returns the free top of its heap to the system whenever that exceeds a
threshold, and a few of a batch's tensors exceed it. The next batch then gets this memory again page by page, which
takes time; a cascade, whose states wait between batches, loses more. So the threshold is raised, once per process, at
the first scoring on the CPU. Nothing changes if one of glibc's own variables is set (`MALLOC_TRIM_THRESHOLD_`,
`GLIBC_TUNABLES` …), or with another allocator.
"""

import ctypes
import os

KEPT_BYTES = 256 << 20
"""Free memory at the top of the heap that stays with the process."""
MAPPED_BYTES = 32 << 20
"""Larger blocks are mapped apart, and returned as soon as they are freed; glibc allows no more."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""The names of both in `malloc.h`."""
VARIABLES = ("MALLOC_", "GLIBC_TUNABLES")
"""Beginnings of the environment variables that set them."""


class Allocator:
    """The C library's allocator, which can be set up once."""

    def __init__(self) -> None:
        self._set_up = False

    def keep_freed_memory(self) -> None:
        """Let the process keep the memory that a batch has freed for the next one."""
        if self._set_up:
            return
        self._set_up = True
        if any(name.startswith(VARIABLES) for name in os.environ):
            return
        try:
            library = ctypes.CDLL(None)
            mallopt, _ = library.mallopt, library.gnu_get_libc_version
        except (OSError, AttributeError, TypeError):  # not glibc; TypeError: Windows
            return
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


ALLOCATOR = Allocator()
"""That of this process."""
