"""Training every exit of a CrossEncoder from one forward pass: the loss, and what its module stores of the pass.

Shapes: B pairs, T tokens, E exits.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from mrr_model.compression import KeepRatio, Plan
from mrr_model.reranker import MatryoshkaReranker as CoreReranker


@dataclass
class ForwardPass:
    """One forward pass of a loss, stored for the other exits."""

    input_ids: Tensor
    """(B, T)."""
    logits: Tensor
    """Of every exit, (B, E)."""
    random_state: Tensor
    """After the pass."""


@dataclass
class Replay:
    """Shows a loss one exit at a time, from forward passes that compute all exits at once."""

    plan: Plan
    passes: list[ForwardPass] = field(default_factory=list)
    exit_layer: int = 0
    index: int = 0

    def show(self, exit_layer: int) -> None:
        """Start over with the loss's first pass, and show this exit."""
        self.exit_layer, self.index = exit_layer, 0

    def logits(self, input_ids: Tensor, forward: Callable[[Plan], Tensor]) -> Tensor:
        """The logits of the exit that is shown, (B, 1): from the pass stored at this index, or from a new one."""
        stored = self.passes[self.index] if self.index < len(self.passes) else None
        if stored is None or not torch.equal(stored.input_ids, input_ids):
            stored = ForwardPass(input_ids, forward(self.plan), torch.get_rng_state())
            self.passes[self.index :] = [stored]
        else:
            torch.set_rng_state(stored.random_state)  # as after the pass: a loss that samples negatives repeats them
        self.index += 1
        column = self.plan.exits.index(self.exit_layer)
        return stored.logits[:, column : column + 1]


class ReplayingModule:
    """The part of `MatryoshkaModule` that `MultiExitLoss` needs."""

    reranker: CoreReranker
    replay: Replay | None = None

    @contextmanager
    def replaying(self, plan: Plan) -> Iterator[Replay]:
        """Inside this block, forward passes run the whole Plan once and show one exit at a time."""
        self.replay = Replay(plan)
        try:
            yield self.replay
        finally:
            self.replay = None


class MultiExitLoss(nn.Module):
    """Trains every exit at once with any CrossEncoder loss: the sum of the loss over exits, from one forward pass.

    For self-distillation between exits use `mrr finetune`.

    Args:
        model: A CrossEncoder whose module is a `MatryoshkaModule`, such as a `MatryoshkaCrossEncoder`.
        loss: A loss over that model. Cached losses are refused: they compute gradients in passes of their own.
        exits: The exits to train; None trains all.
        keep_ratios: The widths that each exit is trained at.
        weights: The weight of each exit's loss; None weights all by 1.

    Raises:
        TypeError: If the model or the loss is of another kind.
        ValueError: If the model lacks an exit or a width, or `weights` and `exits` differ in length.

    Example:
        >>> from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
        >>> from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder
        >>> model = MatryoshkaCrossEncoder("mini")
        >>> loss = MultiExitLoss(model, BinaryCrossEntropyLoss(model), keep_ratios=(1.0, 0.5))
        >>> loss.exits
        (2, 3, 4, 5, 6)
    """

    __module__ = "mrr_integrations.sentence_transformers"  # where users import it from: model cards name it

    def __init__(
        self,
        model: CrossEncoder,
        loss: nn.Module,
        *,
        exits: Sequence[int] | None = None,
        keep_ratios: Sequence[KeepRatio] = (1.0,),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        module = model[0]
        if not isinstance(module, ReplayingModule):
            raise TypeError(f"model must have a MatryoshkaModule, as MatryoshkaCrossEncoder does, got {module!r:.80}.")
        if type(loss).__name__.startswith("Cached"):
            raise TypeError(f"loss must not be a cached one: {type(loss).__name__} runs its own backward passes.")
        self.model = model
        self.loss = loss
        self._module = [module]  # in a list, so that it is not registered as a child of this loss again
        chosen = tuple(module.reranker.exits if exits is None else exits)
        if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(module.reranker.exits):
            raise ValueError(f"exits must be different exits out of {module.reranker.exits}, got {exits}.")
        given = [1.0] * len(chosen) if weights is None else list(weights)
        if len(given) != len(chosen):
            raise ValueError(f"weights must be one number for each of the {len(chosen)} exits, got {weights}.")
        self.exits, self.weights = zip(*sorted(zip(chosen, given, strict=True)), strict=True)
        self.keep_ratios = tuple(keep_ratios)
        for keep_ratio in self.keep_ratios:
            module.reranker.plan(None, keep_ratio)

    def forward(self, inputs: Any, labels: Any = None, prompt: str | None = None, task: str | None = None) -> Tensor:
        """The weighted sum of the inner loss over exits and widths, a scalar."""
        [module] = self._module
        given = {name: value for name, value in (("prompt", prompt), ("task", task)) if value is not None}
        total = torch.zeros((), device=module.reranker.device)
        for keep_ratio in self.keep_ratios:
            deepest = module.reranker.plan(self.exits[-1], keep_ratio)
            random_state = torch.get_rng_state()
            with module.replaying(Plan(self.exits, deepest.merges)) as replay:
                for exit_layer, weight in zip(self.exits, self.weights, strict=True):
                    torch.set_rng_state(random_state)
                    replay.show(exit_layer)
                    total = total + weight * self.loss(inputs, labels, **given)
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says about this loss."""
        return {
            "loss": type(self.loss).__name__,
            "exits": list(self.exits),
            "weights": list(self.weights),
            "keep_ratios": [str(ratio) for ratio in self.keep_ratios],
        }
