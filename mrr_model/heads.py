"""One score head per exit: from the reading token's normed state to a raw logit.

Letters: B pairs, D hidden size.
"""

from typing import Literal

import torch
from torch import Tensor, nn

HeadKind = Literal["linear", "classifier", "yes_no"]
"""``linear``: one row; ``classifier``: a dense layer, tanh, then one row (a BERT pooler and classifier, an XLM-R
classification head); ``yes_no``: two rows of a language-model head, "yes" first, whose difference is the logit.
"""


class ScoreHead(nn.Module):
    """The head of one exit. ``forward`` takes states (B, D) of any dtype and gives logits (B,) in float32.

    Its weights are a stock ``nn.Linear`` or two, so that PEFT can adapt them. It computes in its weights' dtype even
    under autocast: logits of a few tens need more than bfloat16's three digits.
    """

    def __init__(self, hidden_size: int, kind: HeadKind = "linear", bias: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size) if kind == "classifier" else None
        self.linear = nn.Linear(hidden_size, 2 if kind == "yes_no" else 1, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = hidden.to(self.linear.weight.dtype)
            if self.dense is not None:
                hidden = self.dense(hidden).tanh()
            rows = self.linear(hidden).float()  # (B, 1) or (B, 2)
        logits: Tensor = rows[:, 0] if rows.shape[1] == 1 else rows[:, 0] - rows[:, 1]
        return logits


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Squash logits into (−cap, cap): cap · tanh(z / cap), as Gemma 2's ``final_logit_softcapping``; unchanged for
    ``None``.

    >>> soft_cap(torch.tensor([0.0, 1000.0]), 30.0).tolist()
    [0.0, 30.0]
    """
    return logits if cap is None else cap * (logits / cap).tanh()
