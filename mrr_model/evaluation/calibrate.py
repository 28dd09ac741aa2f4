"""Calibrate a model: score a grid of settings on judged collections or unlabelled texts, and fit a map for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrr_model.calibration.fit import calibrate, self_calibrate
from mrr_model.calibration.maps import Calibration
from mrr_model.calibration.reliability import CalibrationReport, cross_fitted_report, report
from mrr_model.compression import Compression, Plan
from mrr_model.data.texts import read_texts
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import open_collections, open_reranker, score_collections
from mrr_model.evaluation.grid import CollectionLogits, Runs
from mrr_model.files.locks import locked
from mrr_model.reranker import MatryoshkaReranker

FOLDS = 5
"""Folds of the cross-validation that measures the maps on held-out queries."""


@dataclass(frozen=True)
class ScoredPairs:
    """The candidates of all collections in one list, with each setting's logits."""

    logits: dict[Plan, list[float]]
    targets: list[float]
    """1 for relevant, 0 for everything else, judged or not."""
    groups: list[tuple[str, str]]
    """Each pair's collection and query."""


@dataclass(frozen=True)
class CalibrationResult:
    """The maps, and how reliable the probabilities are."""

    calibration: Calibration
    weights: str
    """The fingerprint of the weights and adapters that the maps were fitted with."""
    reports: dict[str, CalibrationReport]
    """What was measured on -> reliability: the data itself by cross-validation, and each held-out collection."""


def calibrate_model(
    config: EvaluateConfig,
    *,
    texts: Path | None = None,
    held_out: Sequence[str] = (),
    report_to: Callable[[str], object] = lambda _: None,
) -> CalibrationResult:
    r"""Fit a map from logits to probabilities for each setting of the grid.

    The maps are fitted on the collections' judgements. With `texts` they need no labels: every setting learns full
    size's own probabilities (by full size's stored map, if it has one).

    Args:
        config: The model, the collections, the grid of settings and the protocol.
        texts: Unlabelled queries with documents to fit on instead, as JSON lines for `mrr self-distill`.
        held_out: Collections to measure reliability on without fitting on them.
        report_to: Called with one line before each long step.

    Returns:
        The calibration, and reliability reports if there are labels.

    Raises:
        ValueError: As `evaluate`, and for data that cannot be fitted.
        OSError: As `evaluate`.
        ImportError: As `evaluate`.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> texts, documents = folder / "texts.jsonl", ["Bees make honey.", "Pandas eat bamboo.", "Rain falls."]
        >>> queries = ["what do bees make?", "what do pandas eat?", "what falls?"]
        >>> lines = [json.dumps({"query": query, "documents": documents}) for query in queries]
        >>> _ = texts.write_text("\n".join(lines))
        >>> config = EvaluateConfig(collections=(str(texts),), depths=(4, 6), output=folder / "evaluation")
        >>> made = calibrate_model(config, texts=texts).calibration
        >>> made.pairs, str(made.settings[0])
        (9, 'depth 6, keep ratio 1')
    """
    with locked(config.output, "mrr calibrate"):
        return _calibrate(config, texts, held_out, report_to)


def _calibrate(
    config: EvaluateConfig, texts: Path | None, held_out: Sequence[str], report_to: Callable[[str], object]
) -> CalibrationResult:
    reranker = open_reranker(config)
    grid = config.grid(reranker.exits, bool(reranker.merge_layers))
    reports: dict[str, CalibrationReport] = {}
    if texts is not None:
        calibration = _fit_on_texts(reranker, grid, texts, config)
    else:
        calibration, reports = _fit_on_labels(reranker, grid, open_collections(config, report_to), config)
    if held_out:
        # A folder of its own: two splits of one collection have the same name.
        changes = {"collections": tuple(held_out), "run": None, "output": config.output / "held-out"}
        held_out_config = config.model_copy(update=changes)
        for source, collection in open_collections(held_out_config, report_to).items():
            pairs = _pairs(reranker, score_collections(reranker, grid, {source: collection}, held_out_config))
            reports[collection.name] = report(calibration, pairs.logits, pairs.targets)
    return CalibrationResult(calibration, reranker.fingerprint, reports)


def _fit_on_texts(
    reranker: MatryoshkaReranker, grid: Sequence[Compression], texts: Path, config: EvaluateConfig
) -> Calibration:
    collections = {str(texts): _unlabelled(texts, config.limit_queries)}
    pairs = _pairs(reranker, score_collections(reranker, grid, collections, config))
    full, known = next(iter(pairs.logits)), reranker.calibration
    return self_calibrate(
        pairs.logits,
        full,
        pairs.groups,
        full_map=known.nearest(full).map if known else None,
        data=f"{texts.name}, by full size's own probabilities",
        seed=config.seed,
    )


def _fit_on_labels(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    collections: Mapping[str, Collection],
    config: EvaluateConfig,
) -> tuple[Calibration, dict[str, CalibrationReport]]:
    queries = sum(len(collection.queries) for collection in collections.values())
    if queries < FOLDS:
        raise ValueError(
            f"collections must have at least {FOLDS} judged queries to calibrate on, because some are held out; got "
            f"{queries}."
        )
    pairs = _pairs(reranker, score_collections(reranker, grid, collections, config))
    calibration = calibrate(pairs.logits, pairs.targets, pairs.groups, data=_described(collections), seed=config.seed)
    cross_fitted = cross_fitted_report(pairs.logits, pairs.targets, pairs.groups, folds=FOLDS, seed=config.seed)
    return calibration, {f"{calibration.data}, queries held out": cross_fitted}


def scored_pairs(reranker: MatryoshkaReranker, collection: Collection, runs: Runs) -> ScoredPairs:
    """One collection's candidates in the runs' order."""
    keys = [(query, document) for query, scores in next(iter(runs.values())).items() for document in scores]
    return ScoredPairs(
        logits={
            reranker.plan(setting.depth, setting.keep_ratio): [run[query][document] for query, document in keys]
            for setting, run in runs.items()
        },
        targets=[float(collection.qrels.get(query, {}).get(document, 0) > 0) for query, document in keys],
        groups=[(collection.name, query) for query, _ in keys],
    )


def _pairs(reranker: MatryoshkaReranker, scored: Iterable[CollectionLogits]) -> ScoredPairs:
    """The candidates of all collections."""
    logits: dict[Plan, list[float]] = {}
    targets: list[float] = []
    groups: list[tuple[str, str]] = []
    for each in scored:
        part = scored_pairs(reranker, each.collection, each.runs)
        for plan, values in part.logits.items():
            logits.setdefault(plan, []).extend(values)
        targets += part.targets
        groups += part.groups
    return ScoredPairs(logits, targets, groups)


def _described(collections: Mapping[str, Collection]) -> str:
    parts = [f"{collection.name} ({len(collection.queries)} queries)" for collection in collections.values()]
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts)


def _unlabelled(texts: Path, limit: int | None) -> Collection:
    """Queries with documents as a collection without judgements."""
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    candidates: dict[str, list[str]] = {}
    identifiers: dict[str, str] = {}
    for number, group in enumerate(read_texts(str(texts))):
        if limit is not None and number >= limit:
            break
        documents = dict.fromkeys((*group.positives, *group.negatives))
        for text in documents:
            corpus[identifiers.setdefault(text, str(len(identifiers)))] = text
        queries[str(number)] = group.query
        candidates[str(number)] = [identifiers[text] for text in documents]
    if not queries:
        raise ValueError(f"texts={str(texts)!r} has no queries with documents.")
    return Collection(texts.name, corpus, queries, {}, candidates)
