"""Fine-tune a re-ranker on your own rows, stage by stage, and compare sizes before and after.

    python examples/finetune.py --train rows.jsonl --output runs/mine

Rows are JSON lines of {"query": …, "pos": [text], "neg": [text, …]}; `mrr mine` finds negatives for rows without any.
A stopped run resumes. `mrr finetune` does the same from a YAML file or flags.
"""

import argparse
from pathlib import Path

from mrr_model import MatryoshkaReranker
from mrr_model.data.groups import Group, read_groups
from mrr_model.training.config import (
    CompensationConfig,
    DistillConfig,
    FinetuneConfig,
    HorizontalConfig,
    LoraConfig,
)
from mrr_model.training.recipe import finetune


def main() -> None:
    """Train, then show how often the positive comes first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="rows to train on")
    parser.add_argument("--test", type=Path, help="rows to compare on (default: the training rows)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--model", default="mini", help="a checkpoint, or a plain encoder or causal model")
    parser.add_argument("--max-length", type=int, default=192, help="tokens of a pair (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="steps of each stage (default: %(default)s)")
    arguments = parser.parse_args()

    rows = list(read_groups(arguments.train))
    compensation = {"max_steps": arguments.steps, "learning_rate": 5e-4, "lora": LoraConfig(rank=16, alpha=32)}
    trained = finetune(
        FinetuneConfig(
            model=arguments.model,
            train=(str(arguments.train),),
            output=arguments.output,
            max_length=arguments.max_length,
            train_group_size=min(8, 1 + min(len(row.negatives) for row in rows)),
            distill=DistillConfig(max_steps=arguments.steps, learning_rate=5e-5, ratios=(1, 2, 4)),
            vertical=CompensationConfig(**compensation, cascade_weight=1.0),
            horizontal=HorizontalConfig(**compensation, cascade_weight=1.0, ratios=(2, 4)),
        )
    )
    test = list(read_groups(arguments.test or arguments.train))
    after = MatryoshkaReranker(trained, max_length=arguments.max_length)
    before = MatryoshkaReranker(max_length=arguments.max_length) if arguments.model == "mini" else None
    for depth, keep_ratio in ((None, 1.0), (4, 0.5), (3, 0.5), (2, 0.25)):
        shown = f"depth {depth or after.num_layers}, keep ratio {keep_ratio}: the positive comes first in "
        if before is not None:
            shown += f"{first(before, test, depth, keep_ratio):.0%} before, "
        print(f"{shown}{first(after, test, depth, keep_ratio):.0%} after")


def first(reranker: MatryoshkaReranker, rows: list[Group], depth: int | None, keep_ratio: float) -> float:
    """The share of rows whose best passage is a positive."""
    best = [
        reranker.rank(row.query, [*row.positives, *row.negatives], depth=depth, keep_ratio=keep_ratio)[0].text
        for row in rows
    ]
    return sum(text in row.positives for text, row in zip(best, rows, strict=True)) / len(rows)


if __name__ == "__main__":
    main()
