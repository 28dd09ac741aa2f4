"""From rows to batches: what the Trainer's data loader needs.

Letters: G groups (queries), N passages of a group with the positive first.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from mrr_model.data.groups import Group
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.batch import collate


class GroupDataset(Dataset[Group]):
    """Groups in memory, each cut to ``passages`` passages, the positive first where there is one.

    Which of them is a function of (seed, row). Rows with fewer passages are left out; ``skipped`` counts them.
    """

    def __init__(self, groups: Sequence[Group], passages: int = 8, seed: int = 0) -> None:
        self.groups = [
            cut_group(group, passages, f"{seed}/{row}") for row, group in enumerate(groups) if _has(group, passages)
        ]
        self.skipped = len(groups) - len(self.groups)
        if not self.groups:
            raise ValueError(_too_few(passages))

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


class StreamedGroups(IterableDataset[Group]):
    """Groups read as they are needed, endlessly, shuffled within a buffer; the same cut as :class:`GroupDataset`.

    ``read`` starts the rows from the beginning. Their order is a function of (seed, buffer); the workers of a data
    loader share them out.
    """

    def __init__(
        self, read: Callable[[], Iterable[Group]], passages: int = 8, seed: int = 0, buffer: int = 10_000
    ) -> None:
        self.read = read
        self.passages = passages
        self.seed = seed
        self.buffer = buffer

    def __iter__(self) -> Iterator[Group]:
        worker = get_worker_info()
        return self._endless() if worker is None else islice(self._endless(), worker.id, None, worker.num_workers)

    def _endless(self) -> Iterator[Group]:
        epoch = 0
        while True:
            rows = (
                cut_group(group, self.passages, f"{self.seed}/{epoch}/{row}")
                for row, group in enumerate(self.read())
                if _has(group, self.passages)
            )
            group = None
            for group in _shuffled(rows, self.buffer, random.Random(f"{self.seed}/{epoch}")):
                yield group
            if group is None:
                raise ValueError(_too_few(self.passages))
            epoch += 1


class GroupCollator:
    """Groups of one number of passages to a step's inputs.

    ``batches``: the G · N pairs in ``parts`` padded batches of like lengths, so that little is padded; always as many,
    since the processes of a sharded model must run in step. ``places`` int64 (G · N,): where each pair's score lies
    among theirs. ``teacher`` (G, N): the external teacher's scores, NaN in rows that have none. ``labelled`` bool (G,).
    """

    def __init__(self, encoder: PairEncoder, pad_id: int, max_tokens: int | None = None, parts: int = 1) -> None:
        self.encoder = encoder
        self.pad_id = pad_id
        self.max_tokens = max_tokens
        self.parts = parts

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
        order = torch.tensor([len(pair.input_ids) for pair in pairs]).argsort(stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order))
        return {
            "batches": [
                collate([pairs[i] for i in part], self.pad_id, rounded=True, max_tokens=self.max_tokens)
                for part in order.tensor_split(min(self.parts, len(order)))
            ],
            "places": places,
            "teacher": torch.tensor(teacher),
            "labelled": torch.tensor([bool(group.positives) for group in groups]),
        }


def cut_group(group: Group, passages: int, seed: str) -> Group:
    """One positive, where there is one, and as many negatives as make ``passages``; a function of the seed.

    >>> cut_group(Group("q", ("a", "b"), ("c", "d", "e")), 3, "0/0").positives
    ('b',)
    """
    generator = random.Random(seed)
    positive = [generator.randrange(len(group.positives))] if group.positives else []
    negatives = sorted(generator.sample(range(len(group.negatives)), passages - len(positive)))
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
        place = generator.randrange(buffer)
        yield held[place]
        held[place] = row
    generator.shuffle(held)
    yield from held


def _has(group: Group, passages: int) -> bool:
    return min(len(group.positives), 1) + len(group.negatives) >= passages


def _too_few(passages: int) -> str:
    return f"no training group has {passages - 1} negatives; lower the number of passages or mine more negatives."
