"""Whether the whole recipe trains a decoder: a small Qwen3 of random weights, at every size against a random order.

    python benchmarks/decoder.py --data ../shared/data      # about half an hour

It is trained from scratch on SQuAD's training part. Its tokenizer, a lower-casing BPE, is trained on the same
paragraphs, so that a word is the same tokens everywhere. A passage is the paragraph's sentence that shares most words
with the question, and negatives are paragraphs drawn at random: from BM25's, which share most words too, a model that
starts from nothing learns nothing. Reports each exit's loss (labels, nats; chance is ln 8) in the first and the last
tenth of the first stage, and nDCG@10 on SQuAD's dev500, the relevant paragraph among 19 drawn at random. Prints tables
and writes benchmarks/results/decoder.json; a stopped run resumes from --work.
"""

import argparse
import json
import random
import re
import statistics
from pathlib import Path
from typing import Any

import torch
from development import METRIC, ndcg, scored
from result_files import add_output_argument, write_result
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from mrr_model import MatryoshkaReranker
from mrr_model.data.beir import read_corpus
from mrr_model.data.groups import Group, write_groups
from mrr_model.data.jsonl import read_json_lines
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.recipe import finetune
from mrr_model.training.trainer import RankingTrainer

SETTINGS: tuple[tuple[int | None, float], ...] = ((None, 1.0), (3, 1.0), (2, 1.0), (None, 0.5), (3, 0.5), (2, 0.25))
NEGATIVES = 7
LOGGED_LOSS = "labels/full width/exit "
"""The prefix of an exit's loss in the training log, before the number of its layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder that holds squad")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/decoder"), help="folder from which a stopped run resumes"
    )
    parser.add_argument("--steps", type=int, default=700, help="steps of the first stage; an adapter takes a fifth")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--groups", type=int, default=32, help="groups of eight passages in a step")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--queries", type=int, default=500, help="queries to evaluate on")
    parser.add_argument("--rows", type=int, default=12000, help="questions to train on")
    add_output_argument(parser, "decoder")
    arguments = parser.parse_args()
    train(arguments)
    losses = first_and_last_losses(arguments.work / "losses.json")
    reranker = MatryoshkaReranker(arguments.work / "trained", max_length=64)
    collection = drawn_candidates(open_collection(f"{arguments.data}/squad#dev500", limit=arguments.queries))
    rows = [
        {
            "depth": depth or reranker.num_layers,
            "keep_ratio": keep_ratio,
            "value": round(ranked(reranker, collection, depth, keep_ratio), 4),
        }
        for depth, keep_ratio in SETTINGS
    ]
    generator = random.Random(0)
    chance = statistics.mean(
        ndcg(collection, scored(collection, lambda pairs: [generator.random() for _ in pairs])) for _ in range(20)
    )
    print("| exit | first loss | last loss |\n| --- | ---: | ---: |")
    print("\n".join(f"| {layer} | {first:.3f} | {last:.3f} |" for layer, (first, last) in losses.items()))
    print(f"\n| size | {METRIC} |\n| --- | ---: |")
    print("\n".join(f"| depth={row['depth']}, keep_ratio={row['keep_ratio']:g} | {row['value']:.3f} |" for row in rows))
    print(f"| random order | {chance:.3f} |")
    results = {
        "metric": METRIC,
        "parameters": sum(parameter.numel() for parameter in reranker.model.parameters()),
        "steps": arguments.steps,
        "losses": losses,
        "settings": rows,
        "random_order": round(chance, 4),
    }
    what = "Loss and nDCG@10 of a small decoder trained from scratch by the whole recipe, against a random order."
    write_result(arguments.output, "decoder", what, results, seeds=(0,))


def train(arguments: argparse.Namespace) -> None:
    """The whole recipe, unless --work holds its result."""
    rows, model = arguments.work / "rows.jsonl.gz", arguments.work / "random"
    if not rows.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        prepare(arguments, rows, model)
    keep_losses(arguments.work / "losses.json", last_exit=arguments.layers)
    adapter = {"max_steps": max(1, arguments.steps // 5), "learning_rate": 3e-4, "cascade_weight": 1.0,
               "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}}  # fmt: skip
    config = FinetuneConfig(
        model=str(model), train=(str(rows),), output=arguments.work / "trained", merge_layer=1, exits=None,
        bf16=True, length_parts=4, max_length=64, save_steps=100, freeze_embeddings=False,
        groups_per_step=arguments.groups,
        distill={"max_steps": arguments.steps, "learning_rate": arguments.learning_rate, "ratios": (1, 2, 4),
                 "default_merge_share": 0.5},
        vertical=adapter, horizontal={**adapter, "ratios": (2, 4)},
        trainer={"logging_steps": max(1, arguments.steps // 50)},
    )  # fmt: skip
    if not (config.output / "config.json").exists():
        finetune(config)


def ranked(reranker: MatryoshkaReranker, collection: Collection, depth: int | None, keep_ratio: float) -> float:
    """nDCG@10 at one size."""

    def scores(pairs: list[tuple[str, str]]) -> list[float]:
        snippets = [(query, snippet(query, text)) for query, text in pairs]
        return reranker.score_pairs(snippets, depth=depth, keep_ratio=keep_ratio)

    return ndcg(collection, scored(collection, scores))


def first_and_last_losses(file: Path) -> dict[str, list[float]]:
    """Each exit's mean loss in the first and in the last tenth of the first stage."""
    logged = json.loads(file.read_text(encoding="utf-8"))
    steps, tenth = sorted(logged, key=int), max(1, len(logged) // 10)
    return {
        name.removeprefix(LOGGED_LOSS): [
            round(statistics.mean(logged[step][name] for step in part), 3) for part in (steps[:tenth], steps[-tenth:])
        ]
        for name in sorted(logged[steps[-1]])
        if name.startswith(LOGGED_LOSS)
    }


def prepare(arguments: argparse.Namespace, rows: Path, model: Path) -> None:
    """Write the training rows, and a random model with a tokenizer of their words."""
    corpus = read_corpus(arguments.data / "squad")
    drawn = [row for _, row in read_json_lines(arguments.data / "squad" / "train.ids.jsonl.gz")][: arguments.rows]
    generator, documents = random.Random(0), list(corpus)
    groups = []
    for row in drawn:
        others = [other for other in generator.sample(documents, NEGATIVES + 5) if other not in row["pos"]]
        texts = [
            tuple(snippet(row["query"], corpus[document]) for document in ids)
            for ids in (row["pos"], others[:NEGATIVES])
        ]
        groups.append(Group(row["query"], *texts))
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        (text for group in groups for text in (group.query, *group.positives)),
        trainers.BpeTrainer(vocab_size=8000, special_tokens=["<pad>", "<s>", "<unk>"]),
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", unk_token="<unk>"
    ).save_pretrained(model)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=8000, hidden_size=arguments.hidden, intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers, num_attention_heads=6, num_key_value_heads=2,
        head_dim=arguments.hidden // 6, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=0,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    write_groups(rows, groups)


def snippet(query: str, text: str) -> str:
    """The sentence that shares most words with the query, the first of equal ones."""
    words = set(re.findall(r"\w+", query.lower()))
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return max(sentences, key=lambda sentence: len(words & set(re.findall(r"\w+", sentence.lower()))))


def keep_losses(file: Path, last_exit: int) -> None:
    """Write what the first stage logs to a file, over interruptions too: the only stage that trains the last exit."""
    log = RankingTrainer.log

    def keeping(self: RankingTrainer, logs: dict[str, float], start_time: Any = None) -> None:
        log(self, logs, start_time)
        entry = self.state.log_history[-1]
        if f"{LOGGED_LOSS}{last_exit}" in entry:
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            file.write_text(json.dumps({**known, str(entry["step"]): entry}), encoding="utf-8")

    RankingTrainer.log = keeping


def drawn_candidates(collection: Collection, count: int = 20) -> Collection:
    """A query's relevant document among others drawn at random, as in training."""
    generator, documents = random.Random(0), list(collection.corpus)
    candidates = {}
    for query in collection.candidates:
        relevant = [document for document, grade in collection.qrels[query].items() if grade > 0][:1]
        others = [document for document in generator.sample(documents, count + 5) if document not in relevant]
        candidates[query] = generator.sample([*relevant, *others[: count - 1]], count)
    return Collection(collection.name, collection.corpus, collection.queries, collection.qrels, candidates)


if __name__ == "__main__":
    main()
