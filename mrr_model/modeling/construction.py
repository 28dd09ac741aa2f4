"""Models are built alike whatever the process's default number format and device are, and leave both alone."""

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
"""What makes tensors, and asks for the process's defaults where it is given no number format or device."""


class NamedTensors(TorchFunctionMode):
    """Within it, floating tensors that are made without a number format have ``dtype``, and all that are made without
    a device lie on the CPU. Other threads see nothing of it.

    ``weights``: where empty tensors are made, which hold nothing yet. On the device ``"meta"`` they take no memory and
    no time: for models that a checkpoint fills.
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
