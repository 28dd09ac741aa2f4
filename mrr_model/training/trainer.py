"""RankingTrainer: the transformers Trainer over groups of passages, with a sub-network drawn for every step.

Letters: G groups (queries), N passages of a group with the positive first, E exits.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer

from mrr_model.compression import Plan
from mrr_model.inputs import PairEncoder, collate
from mrr_model.model import MatryoshkaModel
from mrr_model.training.groups import Group
from mrr_model.training.losses import cascade_loss, distillation_loss, ranking_loss
from mrr_model.training.sampling import draw_merges


@dataclass(frozen=True)
class LossWeights:
    """How much each part counts: hard labels, an external teacher's scores, and the cascade from deeper and wider
    passes.
    """

    labels: float = 1.0
    teacher: float = 1.0
    cascade: float = 1.0


class GroupDataset(Dataset[Group]):
    """Groups in memory, each cut to one positive and ``passages`` − 1 negatives.

    Which positive and which negatives is a function of (seed, row). Rows with fewer negatives are left out;
    ``skipped`` counts them.
    """

    def __init__(self, groups: Sequence[Group], passages: int = 8, seed: int = 0) -> None:
        self.groups = [
            _cut(group, passages, f"{seed}/{row}")
            for row, group in enumerate(groups)
            if len(group.negatives) >= passages - 1
        ]
        self.skipped = len(groups) - len(self.groups)
        if not self.groups:
            raise ValueError(
                f"no training group has {passages - 1} negatives; lower the number of passages or mine more negatives."
            )

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


class GroupCollator:
    """Groups to one padded batch of G · N pairs, group by group, and the teacher's scores (G, N), NaN where a row has
    none.
    """

    def __init__(self, encoder: PairEncoder, pad_id: int, max_tokens: int | None = None) -> None:
        self.encoder = encoder
        self.pad_id = pad_id
        self.max_tokens = max_tokens

    def __call__(self, groups: list[Group]) -> dict[str, Any]:
        pairs = []
        for group in groups:
            passages = (*group.positives, *group.negatives)
            pairs += self.encoder.encode([(group.query, passage) for passage in passages], group.prompt)
        teacher = [
            [*group.positive_scores, *group.negative_scores]
            if group.positive_scores is not None and group.negative_scores is not None
            else [float("nan")] * (len(group.positives) + len(group.negatives))
            for group in groups
        ]
        return {
            "batch": collate(pairs, self.pad_id, rounded=True, max_tokens=self.max_tokens),
            "teacher": torch.tensor(teacher),
        }


class RankingTrainer(Trainer):
    """Trains every exit at full width, and again in a narrow pass whose merges are drawn from (seed, step)."""

    def __init__(
        self,
        *args: Any,
        weights: LossWeights,
        teacher_temperature: float,
        ratios: Sequence[int],
        merge_probability: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weights = weights
        self.teacher_temperature = teacher_temperature
        self.ratios = tuple(ratios)
        self.merge_probability = merge_probability

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The step's loss: labels, teacher and cascade over all exits, at full width and in the narrow pass."""
        core = cast(MatryoshkaModel, self.accelerator.unwrap_model(model))
        exits = core.matryoshka.exits
        merges = draw_merges(
            self.args.seed,
            self.state.global_step,
            merge_layers=[layer for layer in core.matryoshka.merge_layers if layer < exits[-1]],
            ratios=self.ratios,
            probability=self.merge_probability,
        )
        batch, teacher = inputs["batch"].to(core.device), inputs["teacher"]  # teacher (G, N)
        full = model(batch, Plan(exits)).unflatten(0, teacher.shape)  # (G, N, E)
        narrow = model(batch, Plan(exits, merges)).unflatten(0, teacher.shape) if merges else None

        loss = self.weights.cascade * cascade_loss(full, narrow, exits, core.num_layers)
        for logits in (full,) if narrow is None else (full, narrow):
            loss = loss + self._supervised(logits, teacher)
        return (loss, {"logits": full}) if return_outputs else loss

    def _supervised(self, logits: Tensor, teacher: Tensor) -> Tensor:
        loss = self.weights.labels * ranking_loss(logits)
        known = ~teacher.isnan().any(1)  # (G,)
        if self.weights.teacher and bool(known.any()):
            targets = teacher[known, :, None].expand(-1, -1, logits.shape[2])
            share = known.float().mean()
            loss = loss + self.weights.teacher * share * distillation_loss(
                logits[known], targets, self.teacher_temperature
            )
        return loss


def _cut(group: Group, passages: int, seed: str) -> Group:
    generator = random.Random(seed)
    positive = generator.randrange(len(group.positives))
    negatives = sorted(generator.sample(range(len(group.negatives)), passages - 1))
    return Group(
        group.query,
        (group.positives[positive],),
        tuple(group.negatives[index] for index in negatives),
        None if group.positive_scores is None else (group.positive_scores[positive],),
        None if group.negative_scores is None else tuple(group.negative_scores[index] for index in negatives),
        group.prompt,
    )
