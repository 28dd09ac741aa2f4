"""Rotary positions of bidirectional encoders, which transformers computes in float32.

Shapes: B pairs, H heads, T tokens, d head size.
"""

from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys, in float32.

    Args:
        states: (B, H, T, d).
        cos: Of the tokens' angles, (1 or B, T, d).
        sin: The same.

    Returns:
        (B, H, T, d) in the dtype of `states`.

    Example:
        >>> import torch
        >>> states = torch.tensor([[[[1.0, 0.0]]]])
        >>> rotated(states, torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).flatten().tolist()  # by a quarter turn
        [0.0, 1.0]
    """
    wide = states.float()
    turned: Tensor = wide * cos[:, None] + rotate_half(wide) * sin[:, None]
    return turned.to(states.dtype)
