"""What bfloat16 changes: Kendall's tau and nDCG@10 against float32, on a development collection's candidates.

    python benchmarks/precision.py --data ../shared/data

The same weights in both formats, at each of SETTINGS. Tau-b is taken over each query's candidates by logit and averaged
over queries. Prints a Markdown table, then one JSON line.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import mean

import torch
from mrr_model.evaluation.measures import measure
from mrr_model.evaluation.opening import open_collection
from scipy.stats import kendalltau

from mrr_model import Compression, MatryoshkaReranker, __version__

SETTINGS = (Compression(), Compression(4, 0.5), Compression(3, 0.5), Compression(2, 0.25))
DTYPES = ("float32", "bfloat16")
MEASURE = "nDCG@10"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--collections", nargs="+", default=["wikiqa#dev", "selqa#dev"])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit-queries", type=int)
    arguments = parser.parse_args()

    rerankers = {dtype: MatryoshkaReranker(arguments.model, dtype=dtype) for dtype in DTYPES}
    rows = []
    for name in arguments.collections:
        collection = open_collection(f"{arguments.data}/{name}", limit=arguments.limit_queries)
        keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
        pairs = [(collection.queries[query], collection.corpus[document]) for query, document in keys]
        for setting in SETTINGS:
            runs: dict[str, dict[str, dict[str, float]]] = {dtype: {} for dtype in DTYPES}
            for dtype, reranker in rerankers.items():
                logits = reranker.score_pairs(
                    pairs, depth=setting.depth, keep_ratio=setting.keep_ratio, normalize=False
                )
                for (query, document), logit in zip(keys, logits, strict=True):
                    runs[dtype].setdefault(query, {})[document] = logit
            values = {dtype: measure([MEASURE], collection.qrels, run).mean[MEASURE] for dtype, run in runs.items()}
            rows.append({"collection": name, "setting": str(setting), "tau": tau(*runs.values()), **values})

    print("| collection | setting | Kendall's tau | float32 | bfloat16 | moves by |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        moved = row["bfloat16"] - row["float32"]
        print(
            f"| {row['collection']} | {row['setting']} | {row['tau']:.4f} | {row['float32']:.4f} | "
            f"{row['bfloat16']:.4f} | {moved:+.4f} |"
        )
    facts = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__, "mrr": __version__}
    print(json.dumps({"benchmark": "precision", "measure": MEASURE, "rows": rows, **facts}))


def tau(one: dict[str, dict[str, float]], other: dict[str, dict[str, float]]) -> float:
    """Kendall's tau-b of two runs, averaged over the queries that have candidates to order."""
    return mean(
        float(kendalltau(list(scores.values()), [other[query][document] for document in scores]).statistic)
        for query, scores in one.items()
        if len(set(scores.values())) > 1
    )


if __name__ == "__main__":
    main()
