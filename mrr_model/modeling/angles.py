"""A decoder's rotary angles: of each kind of layer, and of each row where they depend on the length of the input.

transformers scales all rows of a batch by the longest of them (LongRoPE, dynamic NTK), and keeps the result for the
next batch. Here each row gets the frequencies of its own length, as if it were alone.

Shapes: B pairs, T tokens, d rotated part of a head.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import rotate_half

Angles = tuple[Tensor, Tensor]
"""Cosines and sines, (B or 1, T, d) each."""

SCALED_BY_LENGTH = ("longrope", "dynamic")
"""The kinds of rotary embedding whose frequencies depend on the length of the input."""


class Rotary:
    """The rotary embedding of a stock decoder.

    Args:
        module: The stock model's own, `rotary_emb`.
        layer_types: Each layer's type, if the types have frequencies of their own; None if all layers share theirs.
    """

    def __init__(self, module: nn.Module, layer_types: list[str] | None = None) -> None:
        self.module = cast(Any, module)
        self.layer_types = layer_types
        kinds = self.module.rope_type
        scaled = {kind for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]) if kind in SCALED_BY_LENGTH}
        if scaled and layer_types is not None:
            raise ValueError(
                f"config.json: rope_type {scaled.pop()!r} is not supported in rope_parameters of single layer types; "
                "'default', 'linear' and the other types that do not depend on an input's length are."
            )
        self.kind = scaled.pop() if scaled else None

    @property
    def fixed_length(self) -> int | None:
        """The longest input whose frequencies do not depend on its length; None if none's do."""
        if self.kind is None:
            return None
        config = self.module.config
        longrope = self.kind == "longrope"
        return int(
            config.rope_parameters["original_max_position_embeddings"] if longrope else config.max_position_embeddings
        )

    def angles(self, hidden: Tensor, positions: Tensor, lengths: Tensor) -> dict[str, Angles]:
        """The angles of every type of layer, for `of_layer`.

        Args:
            hidden: Any tensor of the states' device and dtype.
            positions: Int64 (B or 1, T).
            lengths: Tokens of each row, int64 (B,), on the CPU.

        Returns:
            Cosines and sines by type of layer; under `""` if all layers share theirs.
        """
        if self.kind is not None:
            return {"": self._scaled(hidden, positions, lengths)}
        if self.layer_types is None:
            return {"": self.module(hidden, position_ids=positions)}
        return {kind: self.module(hidden, positions, kind) for kind in sorted(set(self.layer_types))}

    def of_layer(self, layer: int, angles: dict[str, Angles]) -> Angles:
        """The angles of layer `layer`."""
        return angles["" if self.layer_types is None else self.layer_types[layer - 1]]

    def _scaled(self, hidden: Tensor, positions: Tensor, lengths: Tensor) -> Angles:
        """The angles by frequencies that depend on each row's length."""
        fixed = cast(int, self.fixed_length)
        if int(lengths.max()) <= fixed:
            frequencies = self.module.original_inv_freq.to(hidden.device)[None]  # (1, d/2)
        else:
            # LongRoPE has one set of frequencies for all inputs that are longer.
            longest = fixed + 1 if self.kind == "longrope" else int(lengths.max())
            of_length = ROPE_INIT_FUNCTIONS[cast(str, self.kind)]
            rows = lengths.clamp(fixed, longest).tolist()
            each = {n: of_length(self.module.config, hidden.device, seq_len=n)[0] for n in set(rows)}
            frequencies = torch.stack([each[n] for n in rows])  # (B, d/2)
        half = positions[..., None].float() * frequencies[:, None].float()
        angles = torch.cat((half, half), -1)  # (B or 1, T, d)
        scale = self.module.attention_scaling
        return (angles.cos() * scale).to(hidden.dtype), (angles.sin() * scale).to(hidden.dtype)


def rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of the first d dimensions of each head.

    Args:
        states: Queries or keys, (B, heads, T, head size).
        cos: (B or 1, T, d).
        sin: (B or 1, T, d).

    Returns:
        Of the shape of `states`.
    """
    cos, sin = cos[:, None], sin[:, None]
    size = cos.shape[-1]
    first = states[..., :size]
    turned = first * cos + rotate_half(first) * sin
    return turned if size == states.shape[-1] else torch.cat((turned, states[..., size:]), -1)
