"""Exits that are read on the way to a plan's last one, while the batches change."""

import math

import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch


def logits_on_the_way(
    model: MatryoshkaModel,
    pairs: list[EncodedPair],
    plan: Plan,
    exits: tuple[int, ...],
    *,
    stopping: tuple[int, ...] = (),
    prefix: SharedPrefix | None = None,
    rounded: bool = True,
) -> Tensor:
    """Logits of exits that are read on the way to the plan's last, (B, E); NaN for those that a pair does not reach.

    The pairs start in two batches. After each exit the batches change: some pairs are selected in another order, joined
    and parted. Pair `stopping[i]` stops at the i-th exit.
    """
    logits = torch.full((len(pairs), len(exits) + 1), math.nan)
    pad_id, start = model.config.pad_token_id or 0, 0 if prefix is None else prefix.length
    rows = [[0], list(range(1, len(pairs)))]
    left: list[int] = list(range(len(pairs)))
    with torch.inference_mode():
        batches = [
            model.embed(collate([pairs[row] for row in part], pad_id, rounded=rounded, prefix_length=start), prefix)
            for part in rows
        ]
        for column, exit_layer in enumerate((*exits, plan.last_layer)):
            for index in range(len(batches)):
                while batches[index].layer < exit_layer - 1:
                    batches[index] = model.run_layers(batches[index], plan, exit_layer - 1)
                if exit_layer == plan.last_layer:
                    pooled = model.pool_last_exit(batches[index], plan)
                else:
                    pooled, batches[index] = model.read_exit(batches[index], plan, exit_layer)
                logits[rows[index], column] = model.score_pooled(pooled, exit_layer)[:, -1]
            left = [row for row in left if row not in stopping[column : column + 1]]
            everyone, order = [row for part in rows for row in part], [*left[1:], left[0]]
            selected = HiddenBatch.joined(batches).select([everyone.index(row) for row in order])
            halves = (slice(len(left) // 2), slice(len(left) // 2, None))
            batches, rows = [selected.part(half) for half in halves], [order[half] for half in halves]
            assert all(len(batch) == len(part) for batch, part in zip(batches, rows, strict=True))
    return logits
