"""Memory between batches: it stays with the process, up to 64 MiB.

glibc, the C library of most Linux systems, returns the free top of its heap to the system whenever that exceeds a
threshold, which is smaller than a batch's tensors. Every batch then gets its memory back page by page: with `mini` and
100 documents some 6,000 pages, 3 to 7 % of the time, and twice as many in a cascade, whose states wait between
batches. The threshold is twice the largest block, up to 32 MiB, that was mapped apart and freed (`mallopt(3)`, on
M_MMAP_THRESHOLD), so one such block that nobody writes to is enough to raise it. Other allocators ignore it.
"""

import torch

LARGEST_BLOCK = (32 << 20) - (8 << 10)
"""Bytes of the largest block that counts, with space for what the allocator adds."""


class Allocator:
    """Raises the threshold once per process."""

    def __init__(self) -> None:
        self._raised = False

    def keep_freed_memory(self) -> None:
        """Let the process keep memory that a batch has freed for the next one."""
        if not self._raised:
            self._raised = True
            torch.empty(LARGEST_BLOCK, dtype=torch.uint8, device="cpu")  # freed at once


ALLOCATOR = Allocator()
"""That of this process."""
