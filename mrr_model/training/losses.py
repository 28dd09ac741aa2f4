"""The losses of cascaded self-distillation (arXiv 2501.16302, cascaded self-distillation), as pure functions of logits.

Shapes: G groups (queries), N passages per group with the positive first, E exits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mrr_model.training.config import Cascade as Cascade


def ranking_loss(logits: Tensor, labelled: Tensor | None = None) -> Tensor:
    """Cross-entropy of each group with its first passage as the answer, averaged over groups and exits.

    Args:
        logits: (G, N, E) float32.
        labelled: (G,) bool, or None for all. Groups without a label count as zero, so the mean over the groups of
            several processes is the mean over all.

    Returns:
        A scalar.

    Example:
        >>> ranking_loss(torch.zeros(3, 4, 2)).item() == torch.tensor(4.0).log().item()
        True
    """
    first = torch.zeros(logits.shape[0], logits.shape[2], dtype=torch.long, device=logits.device)
    losses = cross_entropy(logits, first, reduction="none")  # (G, E)
    return losses.mean() if labelled is None else (losses * labelled[:, None]).mean()


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Soft cross-entropy of each group to its teacher's scores, averaged over groups and exits.

    For logits z, teacher scores t and temperature τ it is −Σ softmax(t / τ) · log softmax(z).

    Args:
        logits: (G, N, E) float32.
        teacher: (G, N, E) float32, detached here. A group with a NaN has no teacher and counts as zero; an infinite
            score makes the loss NaN.
        temperature: τ. It divides only the teacher's scores, so logits take on the scale of t / τ.

    Returns:
        A scalar.

    Example:
        >>> z = torch.tensor([[[0.0], [1.0]]])
        >>> bool(distillation_loss(z, z) <= distillation_loss(-z, z))
        True
    """
    known = ~teacher.isnan().any(1)  # (G, E)
    scores = teacher.detach().masked_fill(~known[:, None], 0.0)
    losses = cross_entropy(logits, (scores / temperature).softmax(1), reduction="none")  # (G, E)
    return (losses * known).mean()


def anchor_layers(num_layers: int) -> tuple[int, ...]:
    """Return the layers that other layers learn from: the last layer of each quarter of the model.

    >>> anchor_layers(32), anchor_layers(6)
    ((8, 16, 24, 32), (2, 3, 5, 6))
    """
    return tuple(sorted({math.ceil(num_layers * quarter / 4) for quarter in (1, 2, 3, 4)}))


def teaching_exits(exits: Sequence[int], num_layers: int, cascade: Cascade = "anchors") -> tuple[int, ...] | None:
    """Return the exit that each exit learns from; the last exit's is itself.

    With `anchors` it is the first exit at or after the next deeper anchor layer, so each step of the cascade spans
    about a quarter of the model, for any number of layers.

    Args:
        exits: The model's exits, ascending.
        num_layers: The model's layers.
        cascade: Which exit teaches an exit.

    Returns:
        One exit per exit; None for the cascade `none`.

    Example:
        >>> teaching_exits((2, 3, 4, 5, 6), 6)
        (3, 5, 5, 6, 6)
        >>> teaching_exits((4, 7, 8, 24, 31, 32), 32)
        (8, 8, 24, 32, 32, 32)
        >>> teaching_exits((2, 4, 6), 6, "next"), teaching_exits((2, 4, 6), 6, "final")
        ((4, 6, 6), (6, 6, 6))
    """
    last = max(exits)
    if cascade == "none":
        return None
    if cascade == "final":
        return (last,) * len(exits)
    if cascade == "next":
        return (*exits[1:], last)
    nexts = (
        min((anchor for anchor in anchor_layers(num_layers) if anchor > exit_layer), default=last)
        for exit_layer in exits
    )
    return tuple(min((exit_layer for exit_layer in exits if exit_layer >= anchor), default=last) for anchor in nexts)


def cascade_loss(full: Tensor, narrow: Tensor | None, exits: Sequence[int], teachers: Sequence[int] | None) -> Tensor:
    """Distil every exit, at full width and in the narrow pass, from its teacher's detached full-width logits.

    At full width the last exit has no teacher and is left out; in the narrow pass it learns from itself at full width.

    Args:
        full: (G, N, E) float32, logits at full width.
        narrow: (G, N, E) float32, logits of the same exits in the narrow pass; None if the step merges nothing.
        exits: The E exits, ascending.
        teachers: As `teaching_exits` returns them; None for no teacher, whose loss is 0.

    Returns:
        A scalar.

    Example:
        >>> full = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> cascade_loss(full, None, (2, 4), (4, 4)) == distillation_loss(full[..., :1], full[..., 1:])
        tensor(True)
    """
    loss = full.new_zeros(())
    if teachers is None:
        return loss
    indices = torch.tensor([list(exits).index(teacher) for teacher in teachers], device=full.device)
    targets = full.detach()[..., indices]  # (G, N, E)
    if len(exits) > 1:
        loss = distillation_loss(full[..., :-1], targets[..., :-1])
    if narrow is not None:
        loss = loss + distillation_loss(narrow, targets)
    return loss
