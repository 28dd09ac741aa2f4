"""`mini`'s quality at each compressed size with its compensation adapters, against the same without them.

    python benchmarks/adapters.py --data ../shared/data

nDCG@10 by ir_measures, averaged over a sample of four development collections. Prints a table and writes
benchmarks/results/adapters.json; a stopped run resumes from --work.
"""

import argparse
from statistics import mean

from development import METRIC, add_data_arguments, evaluated
from result_files import add_output_argument, write_result
from result_tables import adapters as table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    add_data_arguments(parser, "runs/adapters", limit_queries=60)
    add_output_argument(parser, "adapters")
    arguments = parser.parse_args()
    measured, bare = (
        evaluated(
            arguments,
            arguments.collections,
            arguments.work / ("without" if without else "with"),
            model=arguments.model,
            without_compensation=without,
            timing_pairs=1,
            timing_repeats=1,
        )
        for without in (False, True)
    )
    rows = [
        {
            "depth": own.depth,
            "keep_ratio": own.keep_ratio,
            "with": round(own.quality, 4),
            "without": round(other.quality, 4),
            "difference": round(own.quality - other.quality, 4),
        }
        for own, other in zip(measured.profile.points[1:], bare.profile.points[1:], strict=True)
    ]
    results = {
        "metric": METRIC,
        "collections": {each.name: {"queries": each.queries} for each in measured.collections},
        "full": {"depth": measured.profile.full.depth},
        "settings": rows,
        "mean": {
            "settings": len(rows),
            **{key: round(mean(row[key] for row in rows), 4) for key in ("with", "without")},
        },
    }
    what = "nDCG@10 of mini's compressed sizes with its compensation adapters, against the same without them."
    print(table(write_result(arguments.output, "adapters", what, results, seeds=(0,))))


if __name__ == "__main__":
    main()
