"""The losses of cascaded self-distillation (arXiv 2501.16302, cascaded self-distillation), as pure functions of scores.

Letters: G groups (queries), N passages of a group with the positive first, E exits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def ranking_loss(logits: Tensor) -> Tensor:
    """Cross-entropy of each group with its first passage as the answer, averaged over groups and exits.

    ``logits`` float32 (G, N, E). Returns a scalar.

    >>> ranking_loss(torch.zeros(3, 4, 2)).item() == torch.tensor(4.0).log().item()
    True
    """
    return cross_entropy(logits, torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.long, device=logits.device))


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft cross-entropy of each group to its teacher's scores: −Σ softmax(t / τ) · log softmax(z), averaged over
    groups and exits.

    ``logits`` (G, N, E); ``teacher`` (G, N, E), detached here; ``temperature`` τ divides the teacher's scores alone:
    logits take on the scale of teacher / τ.

    >>> z = torch.tensor([[[0.0], [1.0]]])
    >>> bool(distillation_loss(z, z) <= distillation_loss(-z, z))
    True
    """
    return cross_entropy(logits, (teacher.detach() / temperature).softmax(1))


def anchor_layers(num_layers: int) -> tuple[int, ...]:
    """The layers that others learn from: the ends of the four quarters of the model.

    >>> anchor_layers(32), anchor_layers(6)
    ((8, 16, 24, 32), (2, 3, 5, 6))
    """
    return tuple(sorted({math.ceil(num_layers * quarter / 4) for quarter in (1, 2, 3, 4)}))


def anchor_exits(exits: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """For each exit the exit it learns from: the first at or after the next deeper anchor layer; the last exit's is
    itself.

    >>> anchor_exits((2, 3, 4, 5, 6), 6)
    (3, 5, 5, 6, 6)
    >>> anchor_exits((4, 7, 8, 24, 31, 32), 32)
    (8, 8, 24, 32, 32, 32)
    """
    last = max(exits)
    nexts = (
        min((anchor for anchor in anchor_layers(num_layers) if anchor > exit_layer), default=last)
        for exit_layer in exits
    )
    return tuple(min((exit_layer for exit_layer in exits if exit_layer >= anchor), default=last) for anchor in nexts)


def cascade_loss(full: Tensor, narrow: Tensor | None, exits: Sequence[int], num_layers: int) -> Tensor:
    """Distil every exit, at full width and in the narrow pass, from its anchor's detached full-width logits.

    ``full`` and ``narrow`` (G, N, E), the same exits at two widths; ``narrow`` is None where the step merges nothing.
    At full width the last exit has no deeper anchor and is left out; in the narrow pass it learns from itself at full
    width.
    """
    anchors = torch.tensor(
        [list(exits).index(anchor) for anchor in anchor_exits(exits, num_layers)], device=full.device
    )
    teacher = full.detach()[..., anchors]
    loss = full.new_zeros(())
    if len(exits) > 1:
        loss = distillation_loss(full[..., :-1], teacher[..., :-1])
    if narrow is not None:
        loss = loss + distillation_loss(narrow, teacher)
    return loss
