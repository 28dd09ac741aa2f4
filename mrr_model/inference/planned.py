"""Attention that cuDNN plans shape by shape: off on CUDA while calls run.

Where torch prefers cuDNN's attention (Hopper and later), every new shape makes it compile a plan, which takes tens of
milliseconds, often longer than the batch. Batches of new texts have new shapes. torch's other fused kernels need no
plan.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


class PlannedAttention:
    """Torch's flag for cuDNN's attention, which all threads share: as it was, once no call runs any more."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._calls, self._before = 0, True

    @contextmanager
    def off(self, device: torch.device) -> Iterator[None]:
        """Do without it inside, on CUDA.

        Args:
            device: Where the model runs.
        """
        if device.type != "cuda":
            yield
            return
        with self._lock:
            if not self._calls:
                self._before = bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
                torch.backends.cuda.enable_cudnn_sdp(False)
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if not self._calls:
                    torch.backends.cuda.enable_cudnn_sdp(self._before)


PLANNED = PlannedAttention()
"""The process's."""
