"""Each size's share of full size's time, against its share of full size's FLOPs.

    python benchmarks/time_share.py

One query with the same passages at every (depth, keep_ratio) of a grid, in the dtype that `dtype="auto"` chooses here.
Sizes take turns and are compared within a turn: with full size, and full size with a large matrix product, which shows
how much of the processor's rate is reached. Prints a table for each workload (`benchmarks/workloads.py`) and writes
benchmarks/results/time-share.json.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from result_files import add_output_argument, write_result
from result_tables import time_share as table
from workloads import DEFAULT_DTYPE, DTYPES, QUERY, Workload, mean_tokens, median_ratio

from mrr_model.selection.stopwatch import in_turns

WORKLOADS = ("mini:60:100", "mini:200:40", "decoder:60:30")
DEPTHS = {"mini": (6, 4, 3, 2), "decoder": (12, 9, 6, 3)}
RATIOS = (1.0, 0.5, 0.25)
MATRIX_SIZE = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", type=Workload.parse, default=list(map(Workload.parse, WORKLOADS)))
    parser.add_argument("--repeats", type=int, default=9, help="turns of all sizes; medians are reported")
    add_output_argument(parser, "time-share")
    arguments = parser.parse_args()
    workloads = [measure(workload, arguments.repeats) for workload in arguments.workloads]
    what = "Each size's share of full size's time, against its share of full size's FLOPs."
    results = {"repeats": arguments.repeats, "workloads": workloads}
    print(table(write_result(arguments.output, "time-share", what, results, seeds=(0,))))


def measure(workload: Workload, repeats: int) -> dict[str, Any]:
    """Every size on one workload."""
    reranker, documents = workload.reranker(), workload.documents()
    pairs = [(QUERY, text) for text in documents]
    grid = [(depth, keep_ratio) for depth in DEPTHS[workload.model] for keep_ratio in RATIOS]
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(DTYPES[DEFAULT_DTYPE]) for _ in range(2))
    runs: dict[Any, Callable[[], Any]] = {
        "tokenizing": lambda: reranker.engine.token_counts(pairs),
        "warm-up": lambda: left @ right,
        "matmul": lambda: left @ right,
    }
    for depth, keep_ratio in grid:
        runs[depth, keep_ratio] = lambda depth=depth, keep_ratio=keep_ratio: reranker.score(
            QUERY, documents, depth=depth, keep_ratio=keep_ratio
        )
    taken = in_turns(runs, repeats)
    flops = {setting: reranker.engine.flops(pairs, reranker.plan(*setting)) for setting in grid}
    full, tokenizing = taken[grid[0]], taken["tokenizing"]
    settings = [
        {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "pairs_per_second": round(len(pairs) / statistics.median(taken[depth, keep_ratio]), 2),
            "time": round(median_ratio(lambda own, whole: own / whole, taken[depth, keep_ratio], full), 4),
            "model_time": round(median_ratio(share_of_model_time, taken[depth, keep_ratio], full, tokenizing), 4),
            "flops": round(flops[depth, keep_ratio] / flops[grid[0]], 4),
        }
        for depth, keep_ratio in grid
    ]

    def share_of_matmul(whole: float, texts: float, product: float) -> float:
        return flops[grid[0]] / (whole - texts) / (2 * MATRIX_SIZE**3 / product)

    return {
        **asdict(workload),
        "tokens": round(mean_tokens(reranker, documents), 1),
        "dtype": DEFAULT_DTYPE,
        "tokenizing": round(median_ratio(lambda texts, whole: texts / whole, tokenizing, full), 4),
        "share_of_matmul": round(median_ratio(share_of_matmul, full, tokenizing, taken["matmul"]), 4),
        "flops_per_second": round(
            median_ratio(lambda whole, texts: flops[grid[0]] / (whole - texts), full, tokenizing)
        ),
        "settings": settings,
    }


def share_of_model_time(own: float, full: float, tokenizing: float) -> float:
    """A size's time over full size's, both without tokenizing."""
    return (own - tokenizing) / (full - tokenizing)


if __name__ == "__main__":
    main()
