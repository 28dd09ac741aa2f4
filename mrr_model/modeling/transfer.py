"""From the host to the model's device, without waiting for what runs there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors on a device; the tensors themselves if it is the CPU.

    All of them travel together. On CUDA they are copied from pinned memory, and the host does not wait for the copy,
    nor for the work that was queued before it.

    Args:
        tensors: On the CPU, of one dtype.
        device: The device.

    Example:
        >>> [each.tolist() for each in to_device([torch.tensor([1]), torch.tensor([[2, 3]])], torch.device("cpu"))]
        [[1], [[2, 3]]]
    """
    if device.type == "cpu":
        return list(tensors)
    sizes = [tensor.numel() for tensor in tensors]
    block = torch.empty(sum(sizes), dtype=tensors[0].dtype, device="cpu", pin_memory=device.type == "cuda")
    torch.cat([tensor.flatten() for tensor in tensors], out=block)
    parts = torch.split(block.to(device, non_blocking=True), sizes)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
