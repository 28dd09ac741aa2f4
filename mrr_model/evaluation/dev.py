"""nDCG@10 of a trained checkpoint at a few of its sizes, on collections that it was not trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from mrr_model import checkpoint
from mrr_model.compression import DEFAULT_KEEP_RATIOS, evenly_spread
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import open_collections
from mrr_model.evaluation.grid import score_grid
from mrr_model.evaluation.metrics import evaluate_run, first_stage_run, parse_metric
from mrr_model.evaluation.report import FIRST_STAGE, FULL_SIZE
from mrr_model.inference.device import resolve_device, resolve_dtype
from mrr_model.reranker import MatryoshkaReranker

METRIC = "nDCG@10"
DEPTHS = 3
"""Exits to evaluate at, evenly spread."""
KEEP_RATIOS = DEFAULT_KEEP_RATIOS[:2]


class HeldOut:
    r"""Development collections, opened before training so that errors in them show before it, and evaluated after it.

    Args:
        collections: Sources, as `open_collection` takes them.
        limit_queries: Queries to draw from each collection; None for all.
        seed: Seed of the draw.
        max_length: Tokens per pair, at most; a model with fewer positions takes fewer.
        query_max_length: Tokens per query; None for the template's rule.

    Raises:
        ValueError: For a collection that cannot be used.
        OSError: For one that is missing or cannot be read.
        ImportError: If a library is missing; the message has the command that installs it.

    Example:
        >>> import tempfile
        >>> from mrr_model.checkpoint.hub import locate
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "qrels.txt").write_text("q1 0 d1 1")
        >>> _ = (folder / "queries.tsv").write_text("q1\twhat do bees make?")
        >>> _ = (folder / "corpus.tsv").write_text("d1\tBees make honey.\nd2\tBears make noise.")
        >>> dev = HeldOut([f"qrels={folder}/qrels.txt,queries={folder}/queries.tsv,corpus={folder}/corpus.tsv"])
        >>> print(dev.table(locate("mini")).splitlines()[3])
        | full size | 1.000 |
    """

    def __init__(
        self,
        collections: Sequence[str],
        *,
        limit_queries: int | None = None,
        seed: int = 0,
        max_length: int = 512,
        query_max_length: int | None = None,
    ) -> None:
        parse_metric(METRIC)  # an error that names the extra if it is not installed
        self._config = EvaluateConfig(collections=tuple(collections), limit_queries=limit_queries, seed=seed)
        self._max_length, self._query_max_length = max_length, query_max_length
        self.collections: Mapping[str, Collection] = {
            source: _with_candidates_only(collection) for source, collection in open_collections(self._config).items()
        }

    def table(self, folder: Path) -> str:
        """Evaluate a checkpoint.

        Args:
            folder: The checkpoint.

        Returns:
            A Markdown table: the first stage, full size, and a row for each smaller size.
        """
        reranker = self._open(folder)
        ratios = KEEP_RATIOS if reranker.merge_layers else KEEP_RATIOS[:1]
        config = self._config.model_copy(
            update={"depths": evenly_spread(reranker.exits, DEPTHS), "keep_ratios": ratios}
        )
        grid = config.grid(reranker.exits, bool(reranker.merge_layers))
        rows: dict[str, list[float]] = {FIRST_STAGE: []}
        with TemporaryDirectory() as scratch:
            for scored in score_grid(reranker, grid, self.collections, Path(scratch)):
                rows[FIRST_STAGE].append(_ndcg(scored.collection, first_stage_run(scored.collection.candidates)))
                for setting, run in scored.runs.items():
                    name = FULL_SIZE if setting == grid[0] else str(setting)
                    rows.setdefault(name, []).append(_ndcg(scored.collection, run))
        return _markdown([collection.name for collection in self.collections.values()], rows)

    def _open(self, folder: Path) -> MatryoshkaReranker:
        device = resolve_device("auto")
        loaded = checkpoint.load(folder, dtype=resolve_dtype("auto", device), device=device)
        max_length = min(self._max_length, loaded.model.backbone.max_tokens or self._max_length)
        return MatryoshkaReranker(loaded, max_length=max_length, query_max_length=self._query_max_length)


def _ndcg(collection: Collection, run: Mapping[str, Mapping[str, float]]) -> float:
    return evaluate_run([METRIC], collection.qrels, run).mean[METRIC]


def _with_candidates_only(collection: Collection) -> Collection:
    """Drop the texts that are no candidates: the collection stays in memory while the model is trained."""
    texts = {document: collection.corpus[document] for document in chain.from_iterable(collection.candidates.values())}
    return replace(collection, corpus=texts)


def _markdown(names: Sequence[str], rows: Mapping[str, Sequence[float]]) -> str:
    several = len(names) > 1
    lines = ["| " + " | ".join([METRIC, *names, *(["mean"] if several else [])]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(names) + several))
    for name, values in rows.items():
        shown = [*values, mean(values)] if several else values
        lines.append("| " + " | ".join([name, *(f"{value:.3f}" for value in shown)]) + " |")
    return "\n".join(lines)
