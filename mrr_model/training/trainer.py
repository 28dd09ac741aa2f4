"""The training stages as subclasses of the transformers Trainer, each of which defines what one step computes.

Shapes: G groups (queries), N passages per group with the positive first, E exits.
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
from typing_extensions import Self

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling.compensation import Adapter, RunningAdapters
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.config import StageConfig
from mrr_model.training.dataset import GroupDataset
from mrr_model.training.divergence import DivergenceGuard
from mrr_model.training.losses import Cascade, cascade_loss, distillation_loss, ranking_loss, teaching_exits
from mrr_model.training.progress import StageProgress
from mrr_model.training.sampling import draw_merges, draw_shallow
from mrr_model.training.saves import WholeSaves

FULL_WIDTH, NARROW = "full width", "narrow"
"""Names in the log of a pass that merges nothing and of one that merges."""


@dataclass(frozen=True)
class Objective:
    """The weights of the loss's parts, and which exits teach."""

    labels: float = 1.0
    """Weight of the cross-entropy to the labels."""
    teacher: float = 1.0
    """Weight of the soft cross-entropy to an external teacher's scores, for rows that have them."""
    teacher_temperature: float = 1.0
    """Divisor of the external teacher's scores."""
    cascade: float = 1.0
    """Weight of the distillation from the model's own deeper and wider passes."""
    teachers: Cascade = "anchors"
    """Which exit teaches an exit."""

    @classmethod
    def of(cls, stage: StageConfig, teachers: Cascade = "anchors") -> Self:
        """Take the weights from a stage's config."""
        return cls(
            labels=stage.label_weight,
            teacher=stage.teacher_weight,
            teacher_temperature=stage.teacher_temperature,
            cascade=stage.cascade_weight,
            teachers=teachers,
        )


@dataclass(frozen=True)
class Widths:
    """The distribution of a step's merges, as in `mrr_model.training.sampling.draw_merges`."""

    ratios: tuple[int, ...] = (1, 2, 4, 8)
    probability: float = 0.5
    default_share: float = 0.0

    @classmethod
    def of(cls, stage: StageConfig, ratios: tuple[int, ...]) -> Self:
        """Take the shares from a stage's config."""
        return cls(ratios, stage.merge_probability, stage.default_merge_share)


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
    """Sort key: exits with the same name together, shallow ones first."""
    shared, _, exit_layer = name.rpartition("/exit ")
    return shared, int(exit_layer)


class RankingTrainer(WholeSaves):
    """The transformers Trainer over groups of passages, as `mrr_model.training.dataset.GroupCollator` makes them.

    Args:
        objective: The weights of the loss's parts.
        title: The stage's name in the output; by default, the name of the folder of its saves.
        *args: The Trainer's own arguments.
        **kwargs: The Trainer's own arguments.

    Raises:
        DivergenceError: In `train`, if the loss, gradients or weights are not finite.
    """

    def __init__(self, *args: Any, objective: Objective, title: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: Objective = objective
        self.title = title or Path(str(self.args.output_dir)).name
        groups = getattr(self.train_dataset, "groups", None)  # None if rows are streamed
        self._labelled = groups is None or any(group.positives for group in groups)
        self._taught = groups is None or any(group.negative_scores is not None for group in groups)
        self._sums = _Sums()
        self._guard = DivergenceGuard(self, self.title)
        self._progress = StageProgress(self.title, _described(self.train_dataset))
        for replaced in (PrinterCallback, ProgressCallback):
            self.remove_callback(replaced)
        for callback in (self._guard, self._progress):
            self.add_callback(callback)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the progress bar is removed however it ends."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._progress.close()

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run one batch forward and backward; its loss is noted for the check before the update."""
        loss = super().training_step(*args, **kwargs)
        self._guard.note(loss)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of one batch of groups; outputs are an empty dict."""
        loss = self.step_loss(model, inputs)
        return (loss, {}) if return_outputs else loss

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Compute the loss of one step of the stage."""
        raise NotImplementedError

    def core(self, model: nn.Module) -> MatryoshkaModel:
        """Return the re-ranker inside accelerate's and PEFT's wrappers."""
        unwrapped = self.accelerator.unwrap_model(model)
        return cast(MatryoshkaModel, unwrapped.get_base_model() if isinstance(unwrapped, PeftModel) else unwrapped)

    def full(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Compute the logits of every exit at full width, (G, N, E)."""
        return self.logits(model, inputs, Plan(self.core(model).matryoshka.exits))

    def logits(self, model: nn.Module, inputs: dict[str, Any], plan: Plan) -> Tensor:
        """Compute the logits of a step's pairs, (G, N, E), by one forward pass per batch."""
        device = self.core(model).device
        parts = [model(batch.to(device), plan) for batch in inputs["batches"]]  # each (pairs, E)
        in_order = torch.cat(parts)[inputs["positions"].to(device)]  # (G · N, E)
        return in_order.view(*inputs["teacher"].shape, -1)

    def drawn_merges(self, widths: Widths, core: MatryoshkaModel, exits: Sequence[int]) -> dict[int, Fraction]:
        """Draw this step's merges for a pass that scores `exits`."""
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
        """Compute the weighted loss of labels and external teacher.

        Each exit's part is logged as `labels/WIDTH/exit N` and `teacher/WIDTH/exit N`, if the rows have labels and
        teacher scores.
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
        """Store the loss of each exit's logits, (G, N, 1) of (G, N, E), for the next log line."""
        for exit_layer, one in zip(exits, torch.split(logits, 1, dim=-1), strict=True):
            self._sums.add(f"{name}/exit {exit_layer}", loss(one))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log each exit's losses with the Trainer's own."""
        super().log({**logs, **self._sums.means()} if "loss" in logs else logs, start_time)


class DistillTrainer(RankingTrainer):
    """Cascaded self-distillation (arXiv 2501.16302, cascaded self-distillation).

    A step trains every exit at full width, and again in a narrow pass whose merges are drawn from (seed, step).

    Gradients flow through the merge weights, which are the pooled token's attention row. The loss after a merge is the
    only signal from which the layers before it can learn which tokens the merged ones should resemble. A detached row
    would still change with the attention around it, but without regard to the merge. This costs one row per merge.

    Args:
        widths: The distribution of the narrow pass's merges.
        *args: As in `RankingTrainer`.
        **kwargs: As in `RankingTrainer`.
    """

    def __init__(self, *args: Any, widths: Widths, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.widths = widths

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Compute the loss of labels, teacher and cascade over all exits at both widths."""
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
            teachers = teaching_exits(exits, core.num_layers, self.objective.teachers)
            loss = loss + self.objective.cascade * cascade_loss(full, narrow, exits, teachers)
        return loss


class CompensationTrainer(RankingTrainer):
    """One compensation adapter, a PEFT LoRA over the frozen model (arXiv 2501.16302, factorized compensation).

    The vertical adapter is trained at full width, at the exits below the last layer, which are those that use it. A
    horizontal adapter is trained in passes that merge at random merge layers, as it will be used: at exits below the
    last layer with the vertical adapter on.

    Args:
        ratio: The horizontal adapter's merge ratio; None for the vertical adapter.
        widths: The distribution of a step's merges.
        vertical: The vertical adapter, if the model has one.
        *args: As in `RankingTrainer`.
        **kwargs: As in `RankingTrainer`.
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
        """Run one step; the vertical adapter stays on during backward, since checkpointing runs blocks again."""
        shallow = self._exits()[-1] < self.core(cast(nn.Module, self.model)).num_layers
        with self._vertical.active([VERTICAL] if shallow and self.ratio is not None else []):
            return super().training_step(*args, **kwargs)

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """Compute the loss of labels, external teacher and the frozen model's own full-size scores."""
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
        """The exits of this step: those below the last layer, with the vertical adapter on, or the last one."""
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
    """The rows that a stage trains on, in words."""
    if not isinstance(dataset, GroupDataset):
        return "streamed rows"
    left_out = f" ({dataset.skipped} with too few passages left out)" if dataset.skipped else ""
    return f"{len(dataset)} rows{left_out}"
