"""How reliable `mini`'s probabilities are: each size's own map, against full size's map and the logistic function.

    python benchmarks/calibration.py --data ../shared/data

What `mrr calibrate` does: maps are fitted on the first of --collections and measured on queries that they have not
seen, its own by cross-fitting, and those of the other collections. Reports the expected calibration error, and how far
the precision of what reaches a threshold differs between sizes. Prints tables and writes
benchmarks/results/calibration.json; a stopped run resumes from --work.
"""

import argparse
import math
from typing import Any

from development import DEPTHS, add_data_arguments, evaluate_config, name_of, opened
from result_files import add_output_argument, write_result
from result_tables import calibration as table

from mrr_model.calibration.reliability import CalibrationReport
from mrr_model.evaluation.calibrate import calibrate_model

THRESHOLDS = (0.2,)
WAYS = {"plain": "before", "shared": "shared", "own": "after"}
"""This file's name of a way to a probability -> the report's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    add_data_arguments(parser, "runs/calibration")
    add_output_argument(parser, "calibration")
    arguments = parser.parse_args()
    fitted_on, *held_out = arguments.collections
    config = evaluate_config(arguments, [fitted_on], arguments.work, model=arguments.model)
    made = calibrate_model(config, held_out=[f"{arguments.data}/{name}" for name in held_out])
    names = [name_of(name) for name in arguments.collections]
    reports = dict(zip(names, made.reports.values(), strict=True))
    grid = config.grid(sorted(DEPTHS), merges=True)
    first = opened(arguments)[names[0]]
    results = {
        "fitted_on": {
            "collection": names[0],
            "queries": len(first.queries),
            "pairs": made.calibration.pairs,
            "relevant": made.calibration.relevant_share,
        },
        "collections": names,
        "settings": [
            {
                "depth": setting.depth,
                "keep_ratio": setting.keep_ratio,
                "error": {name: errors(report, index) for name, report in reports.items()},
            }
            for index, setting in enumerate(grid)
        ],
        "thresholds": [
            {"threshold": threshold, "spread": {name: spread(report, threshold) for name, report in reports.items()}}
            for threshold in THRESHOLDS
        ],
    }
    what = (
        "Calibration error of mini's probabilities by each size's own map, full size's map and the logistic function."
    )
    print(table(write_result(arguments.output, "calibration", what, results, seeds=(0,))))


def errors(report: CalibrationReport, index: int) -> dict[str, float]:
    """The expected calibration error of the grid's setting at `index`, by way."""
    return {way: round(list(getattr(report, name).values())[index].error, 4) for way, name in WAYS.items()}


def spread(report: CalibrationReport, threshold: float) -> dict[str, Any]:
    """The greatest less the smallest precision at a threshold, by way; None if too few pairs reach it."""
    values = dict(zip(WAYS, report.spread(threshold), strict=True))
    return {way: None if math.isnan(value) else round(value, 4) for way, value in values.items()}


if __name__ == "__main__":
    main()
