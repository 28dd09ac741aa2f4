"""Label-free self-distillation: a re-ranker that exists gets every smaller size, taught by its own full-size scores.

Its weights stay as they are, and so do its scores at full size. Exits below the last get copies of its head; the
compensation adapters, which full size never uses, learn to bring each of them, at each width, to the full model's
order of unlabelled passages.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mrr_model import checkpoint
from mrr_model.checkpoint.hub import locate
from mrr_model.data.beir import json_object, raw_lines
from mrr_model.data.groups import Group, OnBadRow, checked, group_of
from mrr_model.data.sources import read_source
from mrr_model.files.damage import reading
from mrr_model.template import InputTemplate
from mrr_model.training.config import SelfDistillConfig
from mrr_model.training.initialize import from_reranker
from mrr_model.training.recipe import DTYPES, Recipe, run_whole, sampled

FILLERS = 1000
"""Documents of earlier rows that are kept to fill up rows with too few."""


def self_distill(settings: SelfDistillConfig) -> Path:
    """Flatten ``settings.model``, write the checkpoint to ``settings.output`` and return that folder.

    Resumes as :func:`~mrr_model.training.recipe.finetune` does. Raises ``ValueError`` for a model that cannot be
    taken in (:func:`~mrr_model.training.initialize.from_reranker`).
    """
    return run_whole(SelfDistillation(settings))


class SelfDistillation(Recipe):
    """What ``mrr self-distill`` runs: the compensation stages over a re-ranker taken in as it is."""

    command = "self-distill"

    def __init__(self, settings: SelfDistillConfig) -> None:
        super().__init__(settings)
        self.settings: SelfDistillConfig = settings

    def base(self) -> checkpoint.Checkpoint:
        settings = self.settings
        template = None
        if settings.template is not None:
            with reading(settings.template, "See InputTemplate in mrr_model.inference.encode for its fields."):
                template = InputTemplate.model_validate_json(settings.template.read_text(encoding="utf-8-sig"))
        model, tokenizer = from_reranker(
            locate(settings.model),
            exits=settings.exits,
            merge_layer=settings.merge_layer,
            template=template,
            yes=settings.yes,
            no=settings.no or None,
            dtype=DTYPES[settings.dtype],
        )
        if model.matryoshka.exits[-1] != model.num_layers:
            raise ValueError(
                f"exits must end with the model's last layer, {model.num_layers}, whose scores teach the others; got "
                f"{model.matryoshka.exits}."
            )
        return checkpoint.Checkpoint(model, tokenizer, {})

    def groups(self) -> Iterator[Group]:
        rows = (
            row
            for source in self.settings.texts
            for row in sampled(read_texts(source, self.settings.on_bad_row), source, self.settings)
        )
        return filled(rows, self.settings.passages, self.settings.seed)

    def distill(self) -> None:
        raise AssertionError("self-distillation leaves the model's weights as they are")


def read_texts(source: str, on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Unlabelled rows of a source: JSON lines of ``query`` with ``documents``, a list, or ``document``, one text; or
    whatever :func:`~mrr_model.data.sources.read_source` reads, with its labels and scores left out.

    Lines of one query that follow each other, with one document each, become one row.
    """
    path = Path(source).expanduser()
    rows = read_source(source, on_bad_row=on_bad_row)
    if path.is_file() and ".json" in path.name:
        rows = _joined(checked(_json_rows(path), on_bad_row))
    for group in rows:
        yield Group(group.query, (), (*group.positives, *group.negatives), prompt=group.prompt)


def filled(groups: Iterable[Group], passages: int, seed: int) -> Iterator[Group]:
    """Rows of at least ``passages`` documents: where there are fewer, documents of earlier rows fill up.

    The first rows wait until there are enough. Which documents fill is a function of the rows and the seed.
    """
    generator = random.Random(seed)
    earlier: deque[str] = deque(maxlen=FILLERS)
    waiting: list[Group] = []
    for group in groups:
        earlier.extend(group.negatives)
        waiting.append(group)
        if len(set(earlier)) >= 2 * passages:
            yield from (_filled(one, passages, list(dict.fromkeys(earlier)), generator) for one in waiting)
            waiting = []
    known = list(dict.fromkeys(earlier))
    yield from (_filled(one, passages, known, generator) for one in waiting)


def _filled(group: Group, passages: int, earlier: list[str], generator: random.Random) -> Group:
    missing = passages - len(group.negatives)
    if missing <= 0:
        return group
    others = [text for text in earlier if text not in group.negatives]
    extra = generator.sample(others, min(missing, len(others)))
    return Group(group.query, (), (*group.negatives, *extra), prompt=group.prompt)


def _json_rows(path: Path) -> Iterator[tuple[str, Callable[[], Group]]]:
    return ((place, partial(_text_row, line)) for place, line in raw_lines(path))


def _text_row(line: str) -> Group:
    row = json_object(line)
    if "documents" in row or "document" in row:
        documents: Any = row["documents"] if "documents" in row else [row["document"]]
        return group_of({"query": row.get("query"), "pos": [], "neg": documents, "prompt": row.get("prompt")})
    if "neg" not in row and "pos" not in row:
        raise ValueError('expected "documents", a list of strings, or "document", a string')
    return group_of(row)


def _joined(groups: Iterable[Group]) -> Iterator[Group]:
    held: Group | None = None
    for group in groups:
        if held is None or held.query != group.query or held.prompt != group.prompt:
            if held is not None:
                yield held
            held = group
            continue
        passages = dict.fromkeys((*held.positives, *held.negatives, *group.positives, *group.negatives))
        held = Group(held.query, (), tuple(passages), prompt=held.prompt)
    if held is not None:
        yield held
