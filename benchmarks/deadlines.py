"""How late a ranking with a deadline returns, and what it keeps: `rank(…, deadline_ms=…)`, one request at a time.

    python benchmarks/deadlines.py --data ../shared/data

Random queries of mlquestions with 100 BM25 candidates each, `mini` at full size. For each deadline the overshoot, the
time after the deadline at which the call returns, as percentiles over queries; the share of documents by the exit that
they were read at; and nDCG@10 beside that of BM25's order and of full size, in the same run. Prints a table and writes
benchmarks/results/deadlines.json.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from development import METRIC, Run, ndcg
from result_files import add_output_argument, write_result
from result_tables import deadlines as table

from mrr_model import MatryoshkaReranker, Ranking
from mrr_model.evaluation.collection import Collection, open_collection

COLLECTION = "mlquestions#dev500"
DEADLINES = (10.0, 30.0, 100.0)
PERCENTILES = (50, 95, 99)
WARM_UP = 5
"""Queries that are ranked before any is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--queries", type=int, default=200, help="random queries (seed 0)")
    parser.add_argument("--deadlines", type=float, nargs="+", default=DEADLINES, help="milliseconds")
    add_output_argument(parser, "deadlines")
    arguments = parser.parse_args()
    reranker = MatryoshkaReranker(arguments.model)
    collection = open_collection(str(arguments.data / COLLECTION), limit=arguments.queries, seed=0)
    queries = list(collection.queries)
    for query in queries[:WARM_UP]:
        for deadline in (*arguments.deadlines, None):
            ranked(reranker, collection, query, deadline)
    taken: dict[float | None, list[tuple[Ranking, float]]] = {each: [] for each in (*arguments.deadlines, None)}
    for query in queries:
        for deadline, runs in taken.items():
            runs.append(ranked(reranker, collection, query, deadline))
    first_stage: Run = {
        query: {document: -float(at) for at, document in enumerate(documents)}
        for query, documents in collection.candidates.items()
    }
    results = {
        "metric": METRIC,
        "model": arguments.model,
        "dtype": str(reranker.dtype).removeprefix("torch."),
        "collection": collection.name,
        "queries": len(queries),
        "candidates": round(mean(len(collection.candidates[query]) for query in queries), 1),
        "first_stage": round(ndcg(collection, first_stage), 4),
        "deadlines": [row(collection, queries, deadline, runs) for deadline, runs in taken.items()],
    }
    what = "How late rank(…, deadline_ms=…) returns, how deep it read by then, and nDCG@10 of its ranking."
    print(table(write_result(arguments.output, "deadlines", what, results, seeds=(0,))))


def ranked(
    reranker: MatryoshkaReranker, collection: Collection, query: str, deadline: float | None
) -> tuple[Ranking, float]:
    """A ranking, and the milliseconds that it took."""
    texts = [collection.corpus[document] for document in collection.candidates[query]]
    begin = time.perf_counter()
    ranking = reranker.rank(collection.queries[query], texts, deadline_ms=deadline)
    return ranking, 1000 * (time.perf_counter() - begin)


def row(
    collection: Collection, queries: Sequence[str], deadline: float | None, runs: Sequence[tuple[Ranking, float]]
) -> dict[str, Any]:
    """One deadline; None: full size without any."""
    run: Run = {
        query: {collection.candidates[query][document.index]: -float(at) for at, document in enumerate(ranking)}
        for query, (ranking, _) in zip(queries, runs, strict=True)
    }
    exits = sorted({exit_layer for ranking, _ in runs for exit_layer in ranking.shares}, reverse=True)
    shares = {str(each): round(mean(ranking.shares.get(each, 0.0) for ranking, _ in runs), 4) for each in exits}
    times = [taken for _, taken in runs]
    late = {} if deadline is None else {"overshoot_ms": percentiles([taken - deadline for taken in times])}
    return {
        "deadline_ms": deadline,
        "ms": percentiles(times),
        **late,
        "complete": round(mean(ranking.complete for ranking, _ in runs), 4),
        "shares": shares,
        "quality": round(ndcg(collection, run), 4),
    }


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{each}": round(float(np.percentile(values, each)), 2) for each in PERCENTILES}


if __name__ == "__main__":
    main()
