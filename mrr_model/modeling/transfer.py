"""From the host to the model's device, without waiting for what runs there."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor's copy on a device; the tensor itself if it is there already.

    On CUDA the host does not wait for the copy, nor for the work that was queued before it.

    Args:
        tensor: On the CPU.
        device: The device.

    Example:
        >>> to_device(torch.ones(2), torch.device("cpu")).tolist()
        [1.0, 1.0]
    """
    return tensor.to(device, non_blocking=True)
