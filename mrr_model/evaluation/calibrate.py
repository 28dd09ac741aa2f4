"""Calibrate a model: score a grid of settings on judged collections, or on unlabelled texts, and fit a map for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mrr_model.calibration.fit import calibrate, self_calibrate
from mrr_model.calibration.maps import Calibration
from mrr_model.calibration.reliability import CalibrationReport, cross_fitted_report, report
from mrr_model.compression import Plan
from mrr_model.data.texts import read_texts
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import Runs, open_collections, open_reranker, score_grid
from mrr_model.files.locks import locked
from mrr_model.reranker import MatryoshkaReranker

FOLDS = 5
"""So many times a part of the queries is held out, to measure what the maps are worth."""


@dataclass(frozen=True)
class Pairs:
    """Candidates of all collections, one after the other, with each setting's logits."""

    logits: dict[Plan, list[float]]
    targets: list[float]
    """1 for relevant, 0 for all others, judged or not."""
    groups: list[tuple[str, str]]
    """Each pair's collection and query."""


@dataclass(frozen=True)
class Calibrated:
    """The maps, and how reliable they make probabilities."""

    calibration: Calibration
    weights: str
    """The fingerprint of the weights and adapters that they were fitted with."""
    reports: dict[str, CalibrationReport]
    """By what was measured on: the data itself, every query held out once; and each collection held out whole."""


def calibrate_model(
    settings: EvaluateConfig,
    *,
    texts: Path | None = None,
    held_out: Sequence[str] = (),
    report_to: Callable[[str], object] = lambda _: None,
) -> Calibrated:
    """Fit a map for each setting of the grid.

    On the collections' judgements; or, with ``texts`` (JSON lines as `mrr self-distill` takes them), on full size's own
    probabilities, by its stored map where it has one. ``held_out``: collections to measure on that are not fitted on.
    Raises as :func:`~mrr_model.evaluation.evaluate.evaluate`, and ``ValueError`` for data that cannot be fitted.
    """
    with locked(settings.output, "mrr calibrate"):
        return _calibrated(settings, texts, held_out, report_to)


def _calibrated(
    settings: EvaluateConfig, texts: Path | None, held_out: Sequence[str], report_to: Callable[[str], object]
) -> Calibrated:
    reranker = open_reranker(settings)
    grid = settings.grid(reranker.exits, bool(reranker.merge_layers))
    reports: dict[str, CalibrationReport] = {}
    if texts is not None:
        unlabelled = _unlabelled(texts, settings)
        pairs = _pairs(reranker, score_grid(reranker, grid, {str(texts): unlabelled}, settings))
        full, known = next(iter(pairs.logits)), reranker.calibration
        made = self_calibrate(
            pairs.logits,
            full,
            pairs.groups,
            full_map=known.nearest(full).map if known else None,
            data=f"{texts.name}, by full size's own probabilities",
            seed=settings.seed,
        )
    else:
        collections = open_collections(settings, report_to)
        queries = sum(len(collection.queries) for collection in collections.values())
        if queries < FOLDS:
            raise ValueError(
                f"calibrating takes {FOLDS} judged queries at least, so that some can be held out; got {queries}."
            )
        pairs = _pairs(reranker, score_grid(reranker, grid, collections, settings))
        made = calibrate(pairs.logits, pairs.targets, pairs.groups, data=_described(collections), seed=settings.seed)
        reports[f"{made.data}, queries held out"] = cross_fitted_report(
            pairs.logits, pairs.targets, pairs.groups, folds=FOLDS, seed=settings.seed
        )
    if held_out:
        apart = {"collections": tuple(held_out), "run": None, "output": settings.output / "held-out"}
        others = settings.model_copy(update=apart)  # one folder's splits have one name
        for source, collection in open_collections(others, report_to).items():
            seen = _pairs(reranker, score_grid(reranker, grid, {source: collection}, others))
            reports[collection.name] = report(made, seen.logits, seen.targets)
    return Calibrated(made, reranker.fingerprint, reports)


def pairs_of(reranker: MatryoshkaReranker, collection: Collection, runs: Runs) -> Pairs:
    """One collection's candidates in the runs' order."""
    keys = [(query, document) for query, scores in next(iter(runs.values())).items() for document in scores]
    return Pairs(
        logits={
            reranker.plan(setting.depth, setting.keep_ratio): [run[query][document] for query, document in keys]
            for setting, run in runs.items()
        },
        targets=[float(collection.qrels.get(query, {}).get(document, 0) > 0) for query, document in keys],
        groups=[(collection.name, query) for query, _ in keys],
    )


def _pairs(reranker: MatryoshkaReranker, scored: Iterable[tuple[str, Collection, Runs]]) -> Pairs:
    logits: dict[Plan, list[float]] = {}
    targets: list[float] = []
    groups: list[tuple[str, str]] = []
    for _, collection, runs in scored:
        part = pairs_of(reranker, collection, runs)
        for plan, values in part.logits.items():
            logits.setdefault(plan, []).extend(values)
        targets += part.targets
        groups += part.groups
    return Pairs(logits, targets, groups)


def _described(collections: Mapping[str, Collection]) -> str:
    parts = [f"{collection.name} ({len(collection.queries)} queries)" for collection in collections.values()]
    return " and ".join(parts) if len(parts) < 3 else ", ".join(parts)


def _unlabelled(texts: Path, settings: EvaluateConfig) -> Collection:
    """Queries with documents as a collection without judgements."""
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    candidates: dict[str, list[str]] = {}
    identifiers: dict[str, str] = {}
    for number, group in enumerate(read_texts(str(texts))):
        if settings.limit_queries is not None and number >= settings.limit_queries:
            break
        documents = dict.fromkeys((*group.positives, *group.negatives))
        for text in documents:
            corpus[identifiers.setdefault(text, str(len(identifiers)))] = text
        queries[str(number)] = group.query
        candidates[str(number)] = [identifiers[text] for text in documents]
    if not queries:
        raise ValueError(f"{texts} holds no queries with documents.")
    return Collection(texts.name, corpus, queries, {}, candidates)
