"""The development collections that the benchmarks of quality share: where they are, and how a ranking is measured."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import evaluate
from mrr_model.evaluation.metrics import evaluate_run
from mrr_model.evaluation.report import Evaluation

COLLECTIONS = ("squad#dev500", "selqa#dev", "mlquestions#dev500", "wikiqa#dev")
"""Folders of --data in BEIR form, with their split; their own candidates are re-ranked."""
DEPTHS, RATIOS = (6, 4, 3, 2), (1.0, 0.5, 0.25)
METRIC = "nDCG@10"
Run = dict[str, dict[str, float]]
"""Query -> document -> score."""
Scorer = Callable[[list[tuple[str, str]]], list[float]]


def add_data_arguments(parser: argparse.ArgumentParser, work: str, limit_queries: int | None = None) -> None:
    """Give a benchmark the flags for its data: `--data`, `--collections`, `--limit-queries` and `--work`."""
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS), help="folders of --data, with #SPLIT")
    parser.add_argument("--limit-queries", type=int, default=limit_queries, help="queries per collection (seed 0)")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder from which a stopped run resumes")


def name_of(collection: str) -> str:
    """A collection without its split."""
    return collection.partition("#")[0]


def opened(arguments: argparse.Namespace) -> dict[str, Collection]:
    """The collections of `--collections` by name."""
    return {
        name_of(name): open_collection(f"{arguments.data}/{name}", limit=arguments.limit_queries)
        for name in arguments.collections
    }


def evaluate_config(
    arguments: argparse.Namespace, collections: list[str], work: Path, **more: object
) -> EvaluateConfig:
    """`mrr evaluate`'s config for the grid of DEPTHS and RATIOS, or of those in `more`."""
    return EvaluateConfig(
        collections=tuple(f"{arguments.data}/{name}" for name in collections),
        output=work,
        metrics=(METRIC,),
        limit_queries=arguments.limit_queries,
        **{"depths": DEPTHS, "keep_ratios": RATIOS, **more},
    )


def evaluated(arguments: argparse.Namespace, collections: list[str], work: Path, **more: object) -> Evaluation:
    """`mini`, or another `model`, evaluated at the grid of DEPTHS and RATIOS."""
    return evaluate(evaluate_config(arguments, collections, work, **more))


def scored(collection: Collection, scorer: Scorer) -> Run:
    """Every candidate's score."""
    keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
    scores = scorer([(collection.queries[query], collection.corpus[document]) for query, document in keys])
    run: Run = {}
    for (query, document), score in zip(keys, scores, strict=True):
        run.setdefault(query, {})[document] = score
    return run


def ndcg(collection: Collection, run: Mapping[str, Mapping[str, float]]) -> float:
    """nDCG@10 of a run, averaged over the collection's queries."""
    return evaluate_run([METRIC], collection.qrels, run).mean[METRIC]
