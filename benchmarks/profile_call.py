"""Where the time of one call goes: tokenizing against the model, and the model's operators against each other.

    python benchmarks/profile_call.py                      # one query with 20 passages of 100 words, mini
    python benchmarks/profile_call.py --workload decoder:100:20 --depth 6 --keep-ratio 0.5

Medians of warm calls for the parts, torch's profiler for the operators. Prints tables and writes
benchmarks/results/profile-call.json.
"""

import argparse
import statistics

from result_files import add_output_argument, write_result
from torch.profiler import ProfilerActivity, profile
from workloads import DEFAULT_DTYPE, QUERY, Workload, median_ratio

from mrr_model.selection.stopwatch import in_turns

CALLS, PROFILED_CALLS = 30, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=Workload.parse, default=Workload("mini", words=100, passages=20))
    parser.add_argument("--depth", type=int, help="default: all layers")
    parser.add_argument("--keep-ratio", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=15, help="operators to show")
    add_output_argument(parser, "profile-call")
    arguments = parser.parse_args()
    reranker, documents = arguments.workload.reranker(), arguments.workload.documents()
    pairs = [(QUERY, text) for text in documents]

    def call() -> None:
        reranker.score(QUERY, documents, depth=arguments.depth, keep_ratio=arguments.keep_ratio)

    taken = in_turns({"whole call": call, "tokenizing": lambda: reranker.engine.token_counts(pairs)}, CALLS)
    seconds = {name: statistics.median(turns) for name, turns in taken.items()}
    seconds["all else"] = median_ratio(lambda whole, texts: whole - texts, taken["whole call"], taken["tokenizing"])
    print("| part | milliseconds |\n| --- | ---: |")
    print("\n".join(f"| {name} | {1000 * value:.1f} |" for name, value in seconds.items()))

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    operators = [
        {
            "name": event.key,
            "share": round(event.self_cpu_time_total / total, 4),
            "calls": event.count // PROFILED_CALLS,
        }
        for event in events[: arguments.rows]
    ]
    print("\n| operator | share of the call | calls |\n| --- | ---: | ---: |")
    print("\n".join(f"| {row['name']} | {row['share']:.1%} | {row['calls']} |" for row in operators))
    results = {
        "workload": str(arguments.workload),
        "depth": arguments.depth,
        "keep_ratio": arguments.keep_ratio,
        "dtype": DEFAULT_DTYPE,
        "seconds": {name: round(value, 6) for name, value in seconds.items()},
        "operators": operators,
    }
    what = "Where the time of one warm call goes: tokenizing against the model, and the model's operators."
    write_result(arguments.output, "profile-call", what, results, seeds=(0,))


if __name__ == "__main__":
    main()
