"""Does a setting chosen by need do on a new collection what was asked for?

    python benchmarks/targets.py --data ../shared/data --output runs/quality

For each collection of --held-out: a profile is made of the others, each target chooses from it, and what comes of the
choice is measured on the held-out collection: the share of full size's nDCG@10 (all queries), and times against
full size on its own texts. Logits that an evaluation kept in --output are used again. Prints a Markdown table, then one
JSON line.
"""

import argparse
import json
from pathlib import Path

import torch
from mrr_model.evaluation.settings import EvaluateSettings
from mrr_model.profile import Profile
from mrr_model.target import choose
from quality import COLLECTIONS, DEPTHS, MEASURE, RATIOS

from mrr_model import Compression, Target, __version__
from mrr_model.evaluation.evaluate import Evaluation, evaluate

TARGETS = (
    Target(keep_quality=0.98), Target(keep_quality=0.95), Target(keep_quality=0.9),
    Target(speedup=1.5), Target(speedup=2), Target(speedup=3),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--held-out", nargs="+", default=list(COLLECTIONS), choices=list(COLLECTIONS))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--limit-queries", type=int)
    arguments = parser.parse_args()

    rows = []
    for name in arguments.held_out:
        others = measured(arguments, *(other for other in COLLECTIONS if other != name))
        own = measured(arguments, name)
        for target in TARGETS:
            setting = choose(target, others.profile).setting
            made = outcome(target, setting, others.profile, own.profile)
            rows.append({"collection": name.partition("#")[0], **made})

    print("| held out | target | chosen | in the profile | on the held-out collection | within the margin |")
    print("| --- | --- | --- | ---: | ---: | --- |")
    for row in rows:
        print(
            f"| {row['collection']} | `{row['target']}` | {row['setting']} | {row['promised']:.3f} | "
            f"{row['got']:.3f} | {'yes' if row['honoured'] else 'no'} |"
        )
    facts = {"threads": torch.get_num_threads(), "torch": torch.__version__, "mrr": __version__}
    print(json.dumps({"benchmark": "targets", "measure": MEASURE, "rows": rows, **facts}))


def outcome(target: Target, setting: Compression, profile: Profile, own: Profile) -> dict[str, object]:
    """What a choice promised and what it gave; it may miss by one point of nDCG, or by a tenth of the time."""
    there, here = (next(point for point in each.points if point.setting == setting) for each in (profile, own))
    if target.keep_quality is not None:
        promised, got = there.least, here.kept
        honoured = got >= target.keep_quality - 0.01 / own.full.quality
    else:
        assert target.speedup is not None
        promised, got = profile.speedup(there), own.speedup(here)
        honoured = got >= target.speedup / 1.1
    return {"target": repr(target), "setting": str(setting), "promised": promised, "got": got, "honoured": honoured}


def measured(arguments: argparse.Namespace, *names: str) -> Evaluation:
    return evaluate(
        EvaluateSettings(
            model=arguments.model,
            collections=tuple(f"{arguments.data}/{name}" for name in names),
            output=arguments.output,
            depths=DEPTHS,
            keep_ratios=RATIOS,
            measures=(MEASURE,),
            limit_queries=arguments.limit_queries,
        )
    )


if __name__ == "__main__":
    main()
