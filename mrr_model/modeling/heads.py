"""One score head per exit: from the reading token's normed state to a raw logit.

Letters: B pairs, D hidden size.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

HeadKind = Literal["linear", "classifier", "yes_no", "similarity"]
"""``linear``: one row; ``classifier``: a dense layer, tanh, then one row (a BERT pooler and classifier, an XLM-R
classification head); ``yes_no``: two rows of a language-model head, "yes" first, whose difference is the logit;
``similarity``, for encoders: one row plus a bi-encoder's cosine, between the mean states of query and passage, both
scaled.
"""
FIRST_SCALE = 20.0
"""What an untrained similarity is multiplied with, as losses over cosines usually are."""


class ScoreHead(nn.Module):
    """The head of one exit. ``forward`` takes states (B, D) of any dtype and gives logits (B,) in float32; of the kind
    ``similarity`` also the mean states of both spans (B, 2, D), the query's first.

    Its weights are stock ``nn.Linear`` modules, so that PEFT can adapt them. It computes in its weights' dtype even
    under autocast: logits of a few tens need more than bfloat16's three digits.
    """

    def __init__(self, hidden_size: int, kind: HeadKind = "linear", bias: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size) if kind == "classifier" else None
        self.linear = nn.Linear(hidden_size, 2 if kind == "yes_no" else 1, bias=bias)
        self.similarity = Similarity(hidden_size) if kind == "similarity" else None

    def forward(self, hidden: Tensor, means: Tensor | None = None) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(_format(self.linear))
            if self.dense is not None:
                hidden = self.dense(hidden).tanh()
            rows = self.linear(hidden).float()  # (B, 1) or (B, 2)
            logits: Tensor = rows[:, 0] if rows.shape[1] == 1 else rows[:, 0] - rows[:, 1]
            if self.similarity is not None:
                if means is None:
                    raise ValueError("a similarity head needs the mean states of the query and of the passage")
                logits = self.similarity(logits, means)
        return logits

    @torch.no_grad()
    def initialize(self, rows: Tensor | None = None) -> None:
        """Fresh weights: ``rows`` for the last layer where given, small noise elsewhere; of the kind ``similarity`` a
        plain cosine.
        """
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.02)
        if self.similarity is not None:
            for weight in self.linear.parameters():
                nn.init.zeros_(weight)
            self.similarity.initialize()
        elif rows is not None:
            self.linear.weight.copy_(rows)


class Similarity(nn.Module):
    """Cosine of the passage's mean state and the query's, projected; it and what it is added to times a learned scale.

    A bi-encoder's score over the states of a cross-encoder. Where the backbone was trained as a bi-encoder, it ranks
    from the first step on, while attention across both texts is yet to learn. The scale lets the row over the reading
    token's state grow beside it at the low learning rates that keep a bi-encoder's knowledge. ``forward`` takes rows
    (B,) and mean states (B, 2, D), the query's first, and gives (B,) in float32.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, hidden_size, bias=False)
        self.log_scale = nn.Parameter(torch.empty(1))
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """A plain cosine times ``FIRST_SCALE``."""
        nn.init.eye_(self.projection.weight)
        nn.init.constant_(self.log_scale, math.log(FIRST_SCALE))

    def forward(self, rows: Tensor, means: Tensor) -> Tensor:
        query, passage = means.to(_format(self.projection)).unbind(1)
        # In float32 whatever the weights are: in float16 the smallest divisor that cosines allow is 0.
        cosine = cosine_similarity(self.projection(query).float(), passage.float())
        return self.log_scale.float().exp() * (rows + cosine)


def _format(module: nn.Linear) -> torch.dtype:
    """The number format that a linear module computes in: its weight's, float32 if it is quantized."""
    weight: Any = module.weight
    return weight.dtype if isinstance(weight, Tensor) and weight.is_floating_point() else torch.float32


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Squash logits into (−cap, cap): cap · tanh(z / cap), as Gemma 2's ``final_logit_softcapping``; unchanged for
    ``None``.

    >>> soft_cap(torch.tensor([0.0, 1000.0]), 30.0).tolist()
    [0.0, 30.0]
    """
    return logits if cap is None else cap * (logits / cap).tanh()
