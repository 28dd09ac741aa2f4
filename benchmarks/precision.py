"""What bfloat16 changes: `mini`'s ranking in bfloat16 against float32, with the same weights.

    python benchmarks/precision.py --data ../shared/data

nDCG@10 by ir_measures in both dtypes, and Kendall's tau-b of their orders, over each query's candidates by logit and
averaged over queries. Prints a table and writes benchmarks/results/precision.json.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from development import METRIC, Run, ndcg, opened, scored
from result_files import add_output_argument, write_result
from result_tables import precision as table
from scipy.stats import kendalltau

from mrr_model import MatryoshkaReranker

SETTINGS = ((6, 1.0), (4, 0.5), (3, 0.5), (2, 0.25))
DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--collections", nargs="+", default=["wikiqa#dev", "selqa#dev"])
    parser.add_argument("--limit-queries", type=int, default=100, help="queries per collection (seed 0)")
    add_output_argument(parser, "precision")
    arguments = parser.parse_args()
    rerankers = {dtype: MatryoshkaReranker("mini", dtype=dtype) for dtype in DTYPES}
    rows: list[dict[str, Any]] = []
    collections = opened(arguments)
    for name, collection in collections.items():
        for depth, keep_ratio in SETTINGS:
            runs = {
                dtype: scored(
                    collection,
                    lambda pairs, model=reranker, depth=depth, keep_ratio=keep_ratio: model.score_pairs(
                        pairs, depth=depth, keep_ratio=keep_ratio, normalize=False
                    ),
                )
                for dtype, reranker in rerankers.items()
            }
            metric = {dtype: round(ndcg(collection, run), 4) for dtype, run in runs.items()}
            tau = round(mean_tau(*runs.values()), 4)
            rows.append({"collection": name, "depth": depth, "keep_ratio": keep_ratio, **metric, "tau": tau})
    queries = {name: len(collection.queries) for name, collection in collections.items()}
    results = {"metric": METRIC, "queries": queries, "rows": rows}
    what = "mini's nDCG@10 and order in bfloat16 against float32, with the same weights."
    print(table(write_result(arguments.output, "precision", what, results, seeds=(0,))))


def mean_tau(one: Run, other: Run) -> float:
    """Kendall's tau-b of two runs, averaged over the queries whose candidates have an order."""
    return mean(
        float(kendalltau(list(scores.values()), [other[query][document] for document in scores]).statistic)
        for query, scores in one.items()
        if len(set(scores.values())) > 1
    )


if __name__ == "__main__":
    main()
