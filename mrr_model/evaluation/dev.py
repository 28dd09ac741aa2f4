"""What a trained checkpoint is worth on collections that it was not trained on: nDCG@10 at a few of its sizes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from mrr_model import checkpoint
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import FIRST_STAGE, open_collections, score_grid
from mrr_model.evaluation.metrics import measure, parsed
from mrr_model.inference.device import resolve_device, resolve_dtype
from mrr_model.reranker import MatryoshkaReranker
from mrr_model.training.config import RunConfig
from mrr_model.training.progress import tell

METRIC = "nDCG@10"
DEPTHS = 3
"""Exits to measure at, evenly spread."""
KEEP_RATIOS = (1.0, 0.5)


class HeldOut:
    """The development collections of a run, opened before training, so that what is wrong with them shows first.

    Raises ``ValueError``, ``OSError`` or ``ImportError`` for collections that cannot be opened or measured with.
    """

    def __init__(self, settings: RunConfig) -> None:
        parsed(METRIC)  # an error that names the extra, where it is not installed
        self.run = settings
        self.asked = EvaluateConfig(collections=settings.dev, limit_queries=settings.dev_queries, seed=settings.seed)
        self.collections = {
            source: _candidates_only(collection) for source, collection in open_collections(self.asked, tell).items()
        }

    def table(self, folder: Path) -> str:
        """Measure the checkpoint in ``folder``: a Markdown table with a row for each size, full size first."""
        reranker = _opened(folder, self.run)
        ratios = KEEP_RATIOS if reranker.merge_layers else KEEP_RATIOS[:1]
        asked = self.asked.model_copy(update={"depths": _spread(reranker.exits), "keep_ratios": ratios})
        grid = asked.grid(reranker.exits, bool(reranker.merge_layers))
        rows: dict[str, list[float]] = {FIRST_STAGE: []}
        with TemporaryDirectory() as scratch:
            asked = asked.model_copy(update={"output": Path(scratch)})
            for _, collection, runs in score_grid(reranker, grid, self.collections, asked):
                order = {
                    query: {document: float(-rank) for rank, document in enumerate(documents)}
                    for query, documents in collection.candidates.items()
                }
                rows[FIRST_STAGE].append(measure([METRIC], collection.qrels, order).mean[METRIC])
                for setting, run in runs.items():
                    name = "full size" if setting == grid[0] else str(setting)
                    rows.setdefault(name, []).append(measure([METRIC], collection.qrels, run).mean[METRIC])
        return _markdown([collection.name for collection in self.collections.values()], rows)


def _opened(folder: Path, settings: RunConfig) -> MatryoshkaReranker:
    """The checkpoint at training's lengths, as far as it has positions."""
    device = resolve_device("auto")
    loaded = checkpoint.load(folder, dtype=resolve_dtype("auto", device), device=device)
    max_length = min(settings.max_length, loaded.model.backbone.max_tokens or settings.max_length)
    return MatryoshkaReranker(loaded, max_length=max_length, query_max_length=settings.query_max_length)


def _candidates_only(collection: Collection) -> Collection:
    """The same without the texts that no query asks for: it waits in memory while the model is trained."""
    texts = {document: collection.corpus[document] for document in chain.from_iterable(collection.candidates.values())}
    return replace(collection, corpus=texts)


def _spread(exits: Sequence[int]) -> tuple[int, ...]:
    last = len(exits) - 1
    return tuple(sorted({exits[round(last * step / (DEPTHS - 1))] for step in range(DEPTHS)}, reverse=True))


def _markdown(names: Sequence[str], rows: dict[str, list[float]]) -> str:
    several = len(names) > 1
    lines = ["| " + " | ".join([METRIC, *names, *(["mean"] if several else [])]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(names) + several))
    for name, values in rows.items():
        shown = [*values, mean(values)] if several else values
        lines.append("| " + " | ".join([name, *(f"{value:.3f}" for value in shown)]) + " |")
    return "\n".join(lines)
