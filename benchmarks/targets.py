"""Whether a setting that a target chooses keeps its promise on a new collection.

    python benchmarks/targets.py --data ../shared/data

Each collection is held out once: a profile is made of the others, each target chooses from it, and the choice is
measured on the held-out collection, against full size: the share of nDCG@10 kept, or how much faster it is there. A
choice may miss by one point of nDCG or by a tenth of the speedup. Prints a table and writes
benchmarks/results/targets.json. Logits that `quality.py` left in --work are used again.
"""

import argparse
from typing import Any

from development import METRIC, add_data_arguments, evaluated, name_of
from result_files import add_output_argument, write_result
from result_tables import targets as table

from mrr_model import Target
from mrr_model.selection.choose import choose_by_profile
from mrr_model.selection.profile import Profile

ASKED = {"keep_quality": (0.98, 0.95, 0.9), "speedup": (1.5, 2.0, 3.0)}
QUALITY_MARGIN, SPEEDUP_MARGIN = 0.01, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    add_data_arguments(parser, "runs/quality")
    add_output_argument(parser, "targets")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for held_out in arguments.collections:
        others = [name for name in arguments.collections if name != held_out]
        profile, own = (
            evaluated(arguments, names, arguments.work, model=arguments.model).profile for names in (others, [held_out])
        )
        for target, values in ASKED.items():
            rows += [outcome(name_of(held_out), target, value, profile, own) for value in values]
    results = {
        "metric": METRIC,
        "margin": {"keep_quality": "0.01 nDCG@10", "speedup": "a tenth of the speedup"},
        "collections": [name_of(name) for name in arguments.collections],
        "summary": [summary(target, rows) for target in ASKED],
        "rows": rows,
    }
    what = "Whether a setting that a target chose from a profile of other collections keeps its promise on a new one."
    print(table(write_result(arguments.output, "targets", what, results, seeds=(0,))))


def outcome(collection: str, target: str, value: float, profile: Profile, own: Profile) -> dict[str, Any]:
    """What a choice promised in the profile, and what it gave on the held-out collection."""
    setting = choose_by_profile(Target(**{target: value}, if_unreachable="fastest"), profile).setting
    there, here = (next(point for point in each.points if point.setting == setting) for each in (profile, own))
    if target == "keep_quality":
        promised, got, least = there.min_kept, here.kept, value - QUALITY_MARGIN / own.full.quality
    else:
        promised, got, least = profile.speedup(there), own.speedup(here), value / (1 + SPEEDUP_MARGIN)
    return {
        "collection": collection,
        "target": target,
        "value": value,
        "depth": there.depth,
        "keep_ratio": there.keep_ratio,
        "promised": round(promised, 4),
        "got": round(got, 4),
        "met": got >= least,
    }


def summary(target: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of a target's choices met it, and those that did not."""
    own = [row for row in rows if row["target"] == target]
    missed = [{key: row[key] for key in ("collection", "value", "got")} for row in own if not row["met"]]
    counts = {"choices": len(own), "met": len(own) - len(missed)}
    return {"target": target, "values": list(ASKED[target]), **counts, "missed": missed}


if __name__ == "__main__":
    main()
