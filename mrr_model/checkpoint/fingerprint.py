"""Fingerprints of weights and adapters, which tie measurements to what was measured."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from mrr_model.modeling.compensation import Adapter

LENGTH = 32
BLOCKS, BLOCK = 64, 64
"""Blocks, evenly spread, that are read of a large tensor, and their length: every tensor counts, few pages are read."""


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Distinguish one training of a model from another, by a sample of every tensor.

    Numbers count as float32, so that weights stored in bfloat16 and loaded in float32 have one fingerprint.

    Args:
        weights: By their names in the model.

    Returns:
        Hexadecimal digits.

    Example:
        >>> weights = {"a": torch.zeros(3)}
        >>> fingerprint(weights) == fingerprint({"a": torch.zeros(3, dtype=torch.bfloat16)})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        _add(digest, name, weights[name])
    return digest.hexdigest()[:LENGTH]


def with_adapters(base: str, adapters: Mapping[str, Adapter]) -> str:
    """The fingerprint of weights and adapters; `base`, the weights' own, if there are no adapters."""
    if not adapters:
        return base
    digest = hashlib.sha256(base.encode())
    for name in sorted(adapters):
        for module, low in sorted(adapters[name].items()):
            _add(digest, f"{name}/{module}/a/{low.scaling}", low.a)
            _add(digest, f"{name}/{module}/b", low.b)
    return digest.hexdigest()[:LENGTH]


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tuple(tensor.shape)}".encode())
    if not tensor.is_meta:  # offloaded by accelerate: nothing to read
        digest.update(sample(tensor.detach()).to("cpu", torch.float32).numpy().tobytes())


def sample(tensor: Tensor) -> Tensor:
    """A small tensor, flat; of a large one, evenly spread blocks, the first and the last numbers among them.

    >>> len(sample(torch.zeros(10, 10))), len(sample(torch.zeros(1000, 1000)))
    (100, 4096)
    """
    flat = tensor.flatten().contiguous()
    if len(flat) <= BLOCKS * BLOCK:
        return flat
    step = (len(flat) - BLOCK) // (BLOCKS - 1)
    return torch.cat([flat.as_strided((BLOCKS - 1, BLOCK), (step, 1)).flatten(), flat[-BLOCK:]])
