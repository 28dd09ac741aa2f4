"""The three stages as uses of the transformers Trainer: each says what one step computes, and nothing else.

Letters: G groups (queries), N passages of a group with the positive first, E exits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PrinterCallback, ProgressCallback

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling.compensation import Adapter, RunningAdapters
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.dataset import GroupDataset
from mrr_model.training.divergence import DivergenceGuard
from mrr_model.training.losses import Cascade, cascade_loss, distillation_loss, ranking_loss, teaching_exits
from mrr_model.training.progress import StageProgress
from mrr_model.training.sampling import draw_merges, draw_shallow
from mrr_model.training.saves import WholeSaves

FULL_WIDTH, NARROW = "full width", "narrow"
"""How a pass that merges nothing and one that merges are called in the log."""


@dataclass(frozen=True)
class Objective:
    """How much each part of the loss counts, and how teachers teach."""

    labels: float = 1.0
    """Weight of the hard labels' cross-entropy."""
    teacher: float = 1.0
    """Weight of the soft cross-entropy to an external teacher's scores, where a row has them."""
    teacher_temperature: float = 1.0
    """Divides the external teacher's scores."""
    cascade: float = 1.0
    """Weight of the distillation from deeper and wider passes of the model itself."""
    anchors: Cascade = "anchors"
    """Which exits teach the others."""


@dataclass(frozen=True)
class Widths:
    """From which merges a step draws."""

    ratios: tuple[int, ...] = (1, 2, 4, 8)
    probability: float = 0.5
    default_share: float = 0.0


@dataclass
class _Sums:
    """Losses since the last log line."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        self.totals[name] = self.totals.get(name, value.new_zeros(())) + value.detach()
        self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        names = sorted(self.totals, key=_order)
        means = {name: round(float(self.totals[name]) / self.counts[name], 4) for name in names}
        self.totals, self.counts = {}, {}
        return means


def _order(name: str) -> tuple[str, int]:
    """Exits of one name stand together, shallow ones first."""
    shared, _, exit_layer = name.rpartition("/exit ")
    return shared, int(exit_layer)


class RankingTrainer(WholeSaves):
    """The transformers Trainer over groups of passages (:class:`~mrr_model.training.dataset.GroupCollator`).

    ``title`` names the stage in what is shown; without one, it is the name of the folder of its saves. Training stops
    with :class:`~mrr_model.training.divergence.DivergenceError` where it leaves the finite numbers.
    """

    def __init__(self, *args: Any, objective: Objective, title: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        self.title = title or Path(str(self.args.output_dir)).name
        groups = getattr(self.train_dataset, "groups", None)  # None where rows are streamed
        self._labelled = groups is None or any(group.positives for group in groups)
        self._taught = groups is None or any(group.negative_scores is not None for group in groups)
        self._sums = _Sums()
        self._guard = DivergenceGuard(self)
        self._progress = StageProgress(self.title, _described(self.train_dataset))
        for replaced in (PrinterCallback, ProgressCallback):
            self.remove_callback(replaced)
        for callback in (self._guard, self._progress):
            self.add_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the progress bar goes whatever happens."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One batch, forward and backward; its loss is noted for the check before the update."""
        loss = super().training_step(*args, **kwargs)
        self._guard.note(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch of groups; there are no outputs to return beside it."""
        loss = self.step_loss(model, inputs)
        return (loss, {}) if return_outputs else loss

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """What one step of the stage computes."""
        raise NotImplementedError

    def core(self, model: nn.Module) -> MatryoshkaModel:
        """The re-ranker inside accelerate's and PEFT's wrappers."""
        unwrapped = self.accelerator.unwrap_model(model)
        return cast(MatryoshkaModel, unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped)

    def full(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Logits of every exit at full width, (G, N, E)."""
        return self.logits(model, inputs, Plan(self.core(model).matryoshka.exits))

    def logits(self, model: nn.Module, inputs: dict[str, Any], plan: Plan) -> Tensor:
        """Logits of the batch's pairs, (G, N, E), from one forward pass for each of its parts."""
        device = self.core(model).device
        parts = [model(part.to(device), plan) for part in inputs["batches"]]  # each (pairs, E)
        in_order = torch.cat(parts)[inputs["places"].to(device)]  # (G · N, E)
        return in_order.view(*inputs["teacher"].shape, -1)

    def drawn_merges(self, widths: Widths, core: MatryoshkaModel, exits: Sequence[int]) -> dict[int, Fraction]:
        """The merges of this step for a pass that reads ``exits``."""
        return draw_merges(
            self.args.seed,
            self.state.global_step,
            merge_layers=[layer for layer in core.matryoshka.merge_layers if layer < exits[-1]],
            ratios=widths.ratios,
            probability=widths.probability,
            default_layer=core.matryoshka.default_merge_layer,
            default_share=widths.default_share,
        )

    def supervised(self, width: str, logits: Tensor, exits: Sequence[int], inputs: dict[str, Any]) -> Tensor:
        """Labels and the external teacher, weighted; each exit's part is logged, as ``labels/WIDTH/exit N`` and
        ``teacher/WIDTH/exit N``, where the rows have such.
        """
        labelled, teacher = inputs["labelled"].to(logits.device), inputs["teacher"].to(logits.device)
        if self.objective.labels and self._labelled:
            self.note_exits(f"labels/{width}", exits, logits, lambda one: ranking_loss(one, labelled))
        loss = self.objective.labels * ranking_loss(logits, labelled)
        if self.objective.teacher:
            scores, temperature = teacher[..., None], self.objective.teacher_temperature
            if self._taught:
                self.note_exits(
                    f"teacher/{width}", exits, logits, lambda one: distillation_loss(one, scores, temperature)
                )
            loss = loss + self.objective.teacher * distillation_loss(logits, scores.expand_as(logits), temperature)
        return loss

    @torch.no_grad()
    def note_exits(self, name: str, exits: Sequence[int], logits: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
        """Keep the loss of each exit's logits, (G, N, 1) of (G, N, E), for the next log line."""
        for exit_layer, one in zip(exits, torch.split(logits, 1, dim=-1), strict=True):
            self._sums.add(f"{name}/exit {exit_layer}", loss(one))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds each exit's losses to the Trainer's own log lines."""
        super().log({**logs, **self._sums.means()} if "loss" in logs else logs, start_time)


class DistillTrainer(RankingTrainer):
    """Cascaded self-distillation: every exit at full width, and again in a narrow pass whose merges are drawn from
    (seed, step) (arXiv 2501.16302, cascaded self-distillation).

    Gradients flow through the merge weights. They are a row of the reading token's attention, and the loss after a
    merge is the only signal that tells the layers before it which tokens the merged ones should resemble; a detached
    row would still be moved by what attention does elsewhere, blind to the merge. It costs one row a merge.
    """

    def __init__(self, *args: Any, widths: Widths, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.widths = widths

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Labels, teacher and cascade over all exits at both widths."""
        core = self.core(model)
        exits = core.matryoshka.exits
        merges = self.drawn_merges(self.widths, core, exits)
        full = self.full(model, inputs)  # (G, N, E)
        loss = self.supervised(FULL_WIDTH, full, exits, inputs)
        narrow = None
        if merges:
            narrow = self.logits(model, inputs, Plan(exits, merges))
            loss = loss + self.supervised(NARROW, narrow, exits, inputs)
        if self.objective.cascade:
            teachers = teaching_exits(exits, core.num_layers, self.objective.anchors)
            loss = loss + self.objective.cascade * cascade_loss(full, narrow, exits, teachers)
        return loss


class CompensationTrainer(RankingTrainer):
    """One compensation adapter, a PEFT LoRA over the frozen model (arXiv 2501.16302, factorized compensation).

    With ``ratio`` None it is the vertical one: full width, the exits below the last layer, which are those that use
    it. Else the horizontal one of that step ratio: random subsets of the merge layers. A horizontal adapter is trained
    as it will be used: where the exits lie below the last layer, the vertical one is on.
    """

    def __init__(
        self, *args: Any, ratio: int | None, widths: Widths, vertical: Adapter | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ratio = ratio
        self.widths = widths
        core = self.core(cast(nn.Module, self.model))
        self._vertical = RunningAdapters(core, {VERTICAL: vertical or {}}, every_thread=True)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step; the vertical adapter stays on until gradients are computed, since checkpointing runs blocks
        again.
        """
        shallow = self._exits()[-1] < self.core(cast(nn.Module, self.model)).num_layers
        with self._vertical.active([VERTICAL] if shallow and self.ratio is not None else []):
            return super().training_step(*args, **kwargs)

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Labels, external teacher, and the frozen model's own full-size scores."""
        core = self.core(model)
        exits = self._exits()
        plan = Plan(exits, {} if self.ratio is None else self.drawn_merges(self.widths, core, exits))
        logits = self.logits(model, inputs, plan)  # (G, N, E)
        width = NARROW if plan.merges else FULL_WIDTH
        loss = self.supervised(width, logits, exits, inputs)
        if self.objective.cascade:
            full_size = self._full_size(model, inputs)  # (G, N, 1)
            self.note_exits(f"own full size/{width}", exits, logits, lambda one: distillation_loss(one, full_size))
            loss = loss + self.objective.cascade * distillation_loss(logits, full_size.expand_as(logits))
        return loss

    def _exits(self) -> tuple[int, ...]:
        """Those of this step: below the last layer, where the vertical adapter is on, or at the last."""
        core = self.core(cast(nn.Module, self.model))
        exits = core.matryoshka.exits
        shallow = tuple(exit_layer for exit_layer in exits if exit_layer < core.num_layers)
        if self.ratio is None or shallow == exits:
            return shallow
        return shallow if shallow and draw_shallow(self.args.seed, self.state.global_step) else exits[-1:]

    @torch.no_grad()
    def _full_size(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Logits of the model without any adapter, all layers, full width: (G, N, 1)."""
        peft_model = cast(PeftModel, self.accelerator.unwrap_model(model))
        plan = Plan(self.core(model).matryoshka.exits[-1:])
        with peft_model.disable_adapter(), self._vertical.active([]):
            return self.logits(model, inputs, plan)


def _described(dataset: object) -> str:
    """What a stage trains on, in words."""
    if not isinstance(dataset, GroupDataset):
        return "streamed rows"
    left_out = f" ({dataset.skipped} with too few passages left out)" if dataset.skipped else ""
    return f"{len(dataset)} rows{left_out}"
