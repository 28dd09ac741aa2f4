"""From rows to batches: the Trainer's data sets and collator.

Shapes: G groups (queries), N passages per group with the positive first.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mrr_model.data.groups import Group
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.training.config import RunConfig


class GroupDataset(Dataset[Group]):
    """Groups in memory, each cut to the same number of passages, with a positive first if the row has any.

    Which passages are taken is a function of (seed, row). Rows with fewer passages are left out; `skipped` counts them.

    Args:
        groups: The rows.
        train_group_size: Passages per group.
        seed: Seed of the draw.

    Raises:
        ValueError: If no row has enough passages.
    """

    def __init__(self, groups: Sequence[Group], train_group_size: int = 8, seed: int = 0) -> None:
        self.groups = [
            cut_group(group, train_group_size, f"{seed}/{row}")
            for row, group in enumerate(groups)
            if _fills(group, train_group_size)
        ]
        self.skipped = len(groups) - len(self.groups)
        if not self.groups:
            raise ValueError(_too_few(train_group_size))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


class StreamedGroups(IterableDataset[Group]):
    """Groups that are read while training, endlessly, shuffled within a buffer and cut as in `GroupDataset`.

    Their order is a function of (seed, buffer). The workers of a data loader share the rows.

    Args:
        read: Reads the rows from the beginning; called once per epoch.
        train_group_size: Passages per group.
        seed: Seed of the draws.
        buffer: Rows in memory to draw the next one from.
    """

    def __init__(
        self, read: Callable[[], Iterable[Group]], train_group_size: int = 8, seed: int = 0, buffer: int = 10_000
    ) -> None:
        self.read = read
        self.train_group_size = train_group_size
        self.seed = seed
        self.buffer = buffer

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()
        return self._endless() if worker is None else islice(self._endless(), worker.id, None, worker.num_workers)

    def _endless(self) -> Iterator[Group]:
        epoch = 0
        while True:
            rows = (
                cut_group(group, self.train_group_size, f"{self.seed}/{epoch}/{row}")
                for row, group in enumerate(self.read())
                if _fills(group, self.train_group_size)
            )
            group = None
            for group in _shuffled(rows, self.buffer, random.Random(f"{self.seed}/{epoch}")):
                yield group
            if group is None:
                raise ValueError(_too_few(self.train_group_size))
            epoch += 1


class GroupCollator:
    """Makes one step's inputs from groups of the same size.

    A step's inputs are a dict:

    - `batches`: the G · N pairs in `parts` padded batches of similar lengths, which keeps padding small. Their number
      is always the same, since the processes of a sharded model must run in step.
    - `positions` int64 (G · N,): where each pair's score stands among those of the batches.
    - `teacher` float32 (G, N): the external teacher's scores, NaN in rows without any.
    - `labelled` bool (G,): whether the first passage is a positive.

    Args:
        encoder: Tokenizes pairs.
        pad_id: The token id to pad with.
        max_tokens: The model's positions; None if it sets no limit.
        parts: Batches per step.
    """

    def __init__(self, encoder: PairEncoder, pad_id: int, max_tokens: int | None = None, parts: int = 1) -> None:
        self.encoder = encoder
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.parts = parts

    def __call__(self, groups: list[Group]) -> dict[str, Any]:
        pairs: list[EncodedPair] = []
        for group in groups:
            passages = (*group.positives, *group.negatives)
            pairs += self.encoder.encode([(group.query, passage) for passage in passages], group.prompt)
        teacher = [
            [*group.positive_scores, *group.negative_scores]
            if group.positive_scores is not None and group.negative_scores is not None
            else [float("nan")] * (len(group.positives) + len(group.negatives))
            for group in groups
        ]
        order = torch.tensor([len(pair.input_ids) for pair in pairs]).argsort(stable=True)
        positions = torch.empty_like(order)
        positions[order] = torch.arange(len(order))
        return {
            "batches": [
                collate([pairs[i] for i in part], self.pad_id, rounded=True, max_tokens=self.max_tokens)
                for part in order.tensor_split(min(self.parts, len(order)))
            ],
            "positions": positions,
            "teacher": torch.tensor(teacher),
            "labelled": torch.tensor([bool(group.positives) for group in groups]),
        }


def sampled(rows: Iterator[Group], source: str, config: RunConfig) -> Iterator[Group]:
    """Draw the share of a source's rows that `config.sample` asks for, by the config's seed."""
    if config.sample == 1:
        return rows
    if config.stream:
        generator = random.Random(f"{config.seed}/{source}")
        return (row for row in rows if generator.random() < config.sample)
    held = list(rows)
    count = math.ceil(config.sample * len(held))
    return iter(random.Random(f"{config.seed}/{Path(source).name}").sample(held, count))


def cut_group(group: Group, train_group_size: int, seed: str) -> Group:
    """Cut a group to one positive, if it has any, and negatives up to `train_group_size` passages, drawn by the seed.

    >>> cut_group(Group("q", ("a", "b"), ("c", "d", "e")), 3, "0/0").positives
    ('b',)
    """
    generator = random.Random(seed)
    positive = [generator.randrange(len(group.positives))] if group.positives else []
    negatives = sorted(generator.sample(range(len(group.negatives)), train_group_size - len(positive)))
    scores = group.positive_scores, group.negative_scores
    return replace(
        group,
        positives=tuple(group.positives[i] for i in positive),
        negatives=tuple(group.negatives[i] for i in negatives),
        positive_scores=None if scores[0] is None else tuple(scores[0][i] for i in positive),
        negative_scores=None if scores[1] is None else tuple(scores[1][i] for i in negatives),
    )


def _shuffled(rows: Iterable[Group], buffer: int, generator: random.Random) -> Iterator[Group]:
    held: list[Group] = []
    for row in rows:
        if len(held) < buffer:
            held.append(row)
            continue
        index = generator.randrange(buffer)
        yield held[index]
        held[index] = row
    generator.shuffle(held)
    yield from held


def _fills(group: Group, train_group_size: int) -> bool:
    return min(len(group.positives), 1) + len(group.negatives) >= train_group_size


def _too_few(train_group_size: int) -> str:
    return f"no training group has {train_group_size - 1} negatives; lower train_group_size or mine more negatives."
