"""Rotary positions of bidirectional encoders.

Shapes: B pairs, H heads, T tokens, d head size.
"""

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half


def token_positions(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """The positions of the tokens: those given, int64 (B, T), else 0 … T−1, (1, T)."""
    return torch.arange(hidden.shape[1], device=hidden.device)[None] if positions is None else positions


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys, in float32.

    Args:
        states: (B, H, T, d).
        cos: Of the tokens' angles, (1 or B, T, d).
        sin: The same.

    Returns:
        (B, H, T, d) in the dtype of `states`.

    Example:
        >>> states = torch.tensor([[[[1.0, 0.0]]]])
        >>> rotated(states, torch.zeros(1, 1, 2), torch.ones(1, 1, 2)).flatten().tolist()  # by a quarter turn
        [0.0, 1.0]
    """
    wide = states.float()
    turned: Tensor = wide * cos[:, None] + rotate_half(wide) * sin[:, None]
    return turned.to(states.dtype)
