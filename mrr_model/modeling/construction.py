"""Build models independently of the process's default dtype and device, and leave both alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FACTORIES = (
    torch.arange,
    torch.as_tensor,
    torch.empty,
    torch.full,
    torch.linspace,
    torch.ones,
    torch.rand,
    torch.randn,
    torch.tensor,
    torch.zeros,
)
"""The functions that make tensors, and use the process's defaults unless they are given a dtype and a device."""


class NamedTensors(TorchFunctionMode):
    """A context in which new tensors have a given dtype and device unless the code names others.

    Other threads are not affected.

    Args:
        dtype: Of new floating-point tensors.
        weights: The device of empty tensors, which models fill with weights later. On `"meta"` they take no memory and
            no time: for models that a checkpoint fills. All other tensors lie on the CPU.

    Example:
        >>> with NamedTensors(torch.bfloat16, weights="meta"):
        ...     print(torch.zeros(1).dtype, torch.empty(1).device)
        torch.bfloat16 meta
    """

    def __init__(self, dtype: torch.dtype, weights: str | torch.device = "cpu") -> None:
        super().__init__()
        self.dtype, self.weights = dtype, torch.device(weights)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func not in FACTORIES or named.get("out") is not None:
            return func(*args, **named)
        if named.get("device") is None:
            named["device"] = self.weights if func is torch.empty else torch.device("cpu")
        made = func(*args, **named)
        if named.get("dtype") is None and made.is_floating_point() and made.dtype != self.dtype:
            made = func(*args, **{**named, "dtype": self.dtype})  # from the values: the default may have rounded them
        return made
