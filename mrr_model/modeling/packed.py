"""Packed projections: one linear module whose outputs are queries, then keys, then values.

At an exit all tokens need keys and values, and the pooled token alone needs a query. A part of the weights computes
either. If a module is quantized, or adapted as it runs, only the module itself knows its outputs: then one product
makes all of them, and the queries are kept with the keys and values until they are needed.

Shapes: D hidden size, Q outputs that are queries, N outputs that are keys, and as many that are values.
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear


def has_parts(module: Any) -> bool:
    """Whether some of a module's outputs can be computed alone.

    Example:
        >>> module = nn.Linear(2, 6)
        >>> _ = module.register_forward_hook(lambda module, inputs, output: 2 * output)
        >>> has_parts(nn.Linear(2, 6)), has_parts(module)
        (True, False)
    """
    plain = type(module) is nn.Linear and type(module.weight) is nn.Parameter  # else quantized or wrapped
    return plain and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def queries(module: Any, states: Tensor, size: int) -> Tensor:
    """The queries of states, (…, D) to (…, Q), of a module that has parts; `size`: Q."""
    return _outputs(module, states, 0, size)


def keys_values(module: Any, states: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys and the values of states, (…, D) to (…, N) each; and the queries, if they cannot be left out."""
    if has_parts(module):
        key, value = _outputs(module, states, size, None).chunk(2, -1)
        return key, value, None
    whole = module(states)  # (…, Q + 2N)
    key, value = whole[..., size:].chunk(2, -1)
    return key, value, whole[..., :size]


def _outputs(module: nn.Linear, states: Tensor, start: int, stop: int | None) -> Tensor:
    return linear(states, module.weight[start:stop], None if module.bias is None else module.bias[start:stop])
