"""One score head per exit: from the pooled token's normed state to a raw logit.

Shapes: B pairs, D hidden size.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from transformers.activations import ACT2FN
from typing_extensions import Self

HeadKind = Literal["linear", "yes_no", "similarity"]
"""What gives the logit, after the head's other layers. `linear`: one row. `yes_no`: two rows of a language-model head,
"yes" first, whose difference is the logit. `similarity`, for encoders: one row plus a bi-encoder's cosine between the
mean states of query and passage, both scaled.
"""
INITIAL_SCALE = 20.0
"""The scale of an untrained similarity, the usual one in losses over cosines."""


class HeadLayer(BaseModel):
    """One layer of a head before its last.

    A BERT pooler is one dense layer with tanh; ModernBERT's head is a dense layer with GELU, then a norm.

    Example:
        >>> HeadLayer(kind="dense", size=8, activation="tanh").bias
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dense", "norm"]
    """A linear layer, or a LayerNorm."""
    size: Annotated[int, Field(strict=True, gt=0)]
    """Its outputs; for a norm, its inputs too."""
    bias: bool = True
    """Whether it has a bias."""
    activation: str | None = None
    """The activation after it, by transformers' name (`ACT2FN`): `tanh`, `gelu`, `relu` …"""
    eps: float = 1e-12
    """A norm's epsilon."""

    @model_validator(mode="after")
    def _check_activation(self) -> Self:
        if self.activation is not None and self.activation not in ACT2FN:
            raise ValueError(f"activation must be one of {', '.join(sorted(ACT2FN))}; got {self.activation!r}")
        return self


class Dense(nn.Module):
    """A linear layer and an activation."""

    def __init__(self, inputs: int, layer: HeadLayer) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, layer.size, bias=layer.bias)
        self.activation = nn.Identity() if layer.activation is None else ACT2FN[layer.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, inputs) to (B, outputs)."""
        return cast(Tensor, self.activation(self.linear(hidden)))


class ScoreHead(nn.Module):
    """The head of one exit.

    Its weights are stock `nn.Linear` modules, so that PEFT can adapt them. It computes in its weights' dtype even under
    autocast: logits of a few tens need more than bfloat16's three digits.

    Args:
        hidden_size: D.
        kind: See `HeadKind`.
        bias: Whether the last layer has a bias.
        layers: The layers before the last.
        softcap: Bound of the logits (`soft_cap`); for the kind `yes_no`, of each of the two before their difference.

    Raises:
        ValueError: If a norm does not take what the layer before it gives.

    Example:
        >>> ScoreHead(8)(torch.zeros(2, 8)).tolist()
        [0.0, 0.0]
    """

    def __init__(
        self,
        hidden_size: int,
        kind: HeadKind = "linear",
        bias: bool = False,
        layers: Sequence[HeadLayer] = (),
        softcap: float | None = None,
    ) -> None:
        super().__init__()
        self.softcap = softcap
        self.layers = nn.ModuleList()
        size = hidden_size
        for index, layer in enumerate(layers):
            norm = layer.kind == "norm"
            if norm and layer.size != size:
                raise ValueError(f"head_layers[{index}] is a norm of size {layer.size} over states of size {size}")
            self.layers.append(nn.LayerNorm(size, layer.eps, bias=layer.bias) if norm else Dense(size, layer))
            size = layer.size
        self.linear = nn.Linear(size, 2 if kind == "yes_no" else 1, bias=bias)
        self.similarity = Similarity(hidden_size) if kind == "similarity" else None

    def forward(self, hidden: Tensor, means: Tensor | None = None) -> Tensor:
        """Logits of the pooled tokens.

        Args:
            hidden: Their states, (B, D) of any dtype.
            means: The mean states of query and passage, (B, 2, D); for the kind `similarity`.

        Returns:
            Float32 (B,).

        Raises:
            ValueError: If the kind is `similarity` and `means` is missing.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(_compute_dtype(self.linear))
            for layer in self.layers:
                hidden = layer(hidden)
            rows = self.linear(hidden).float()  # (B, 1) or (B, 2)
            if self.similarity is not None:
                if means is None:
                    raise ValueError("a similarity head needs the mean states of the query and of the passage")
                rows = self.similarity(rows[:, 0], means)[:, None]
            rows = soft_cap(rows, self.softcap)
        return rows[:, 0] if rows.shape[1] == 1 else rows[:, 0] - rows[:, 1]

    @torch.no_grad()
    def initialize(self, rows: Tensor | None = None) -> None:
        """Set fresh weights: small noise, or for the kind `similarity` a plain cosine.

        Args:
            rows: The last layer's weights, (1, D) or (2, D), instead of noise.
        """
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)
        for layer in self.layers:
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
        if self.similarity is not None:
            for weight in self.linear.parameters():
                nn.init.zeros_(weight)
            self.similarity.initialize()
        elif rows is not None:
            self.linear.weight.copy_(rows)


class Similarity(nn.Module):
    """A learned scale times the sum of the row's output and a cosine between mean states, the query's projected.

    A bi-encoder's score over the states of a cross-encoder. If the backbone was trained as a bi-encoder, it ranks from
    the first step on, while attention across both texts has yet to be learned. The scale lets the row over the pooled
    token's state grow beside it at the low learning rates that keep a bi-encoder's knowledge.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """Set a plain cosine times `INITIAL_SCALE`."""
        nn.init.eye_(self.projection.weight)
        nn.init.constant_(self.log_scale, math.log(INITIAL_SCALE))

    def forward(self, rows: Tensor, means: Tensor) -> Tensor:
        """Add the cosine to the row's output, (B,), and scale: float32 (B,). `means`: (B, 2, D), the query's first."""
        query, passage = means.to(_compute_dtype(self.projection)).unbind(1)
        # In float32 for weights of any dtype: in float16 the smallest divisor that cosines allow is 0.
        cosine = cosine_similarity(self.projection(query).float(), passage.float())
        return self.log_scale.float().exp() * (rows + cosine)


def _compute_dtype(module: nn.Linear) -> torch.dtype:
    """The dtype that a linear module computes in: its weight's, float32 if it is quantized."""
    weight: Any = module.weight
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else torch.float32


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Squash logits into (−cap, cap): cap · tanh(z / cap), as Gemma 2's `final_logit_softcapping`.

    Args:
        logits: Of any shape.
        cap: The bound; None leaves the logits unchanged.

    Returns:
        Of the same shape.

    Example:
        >>> soft_cap(torch.tensor([0.0, 1000.0]), 30.0).tolist()
        [0.0, 30.0]
    """
    return logits if cap is None else cap * (logits / cap).tanh()
