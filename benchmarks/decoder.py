"""A small decoder through the whole recipe: Qwen3 of random weights, trained from scratch on SQuAD's training part.

    python benchmarks/decoder.py --data ../shared/data --output runs/decoder

The tokenizer, a lower-casing BPE, is trained on the same paragraphs, so that a word is the same tokens everywhere. A
passage is the paragraph's sentence that shares most words with the question, and negatives are paragraphs drawn at
random: a model that starts from nothing learns nothing from BM25's, which share most words too. Prints each exit's
loss (labels, nats; chance is ln 8) in the first and in the last tenth of the first stage, and nDCG@10 on SQuAD's
dev500, the relevant paragraph among 19 drawn at random, beside that of a random order; then one JSON line. The
checkpoint is saved and opened again in between. Resumes.
"""

import argparse
import json
import platform
import random
import re
import statistics
from pathlib import Path
from typing import Any

import torch
import transformers
from mrr_model.evaluation.collections import Collection, read_corpus, read_json_lines
from mrr_model.evaluation.opening import open_collection
from mrr_model.training.finetune import finetune
from mrr_model.training.groups import Group, write_groups
from mrr_model.training.settings import FinetuneSettings
from quality import ndcg, scored
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from mrr_model import MatryoshkaReranker, __version__
from mrr_model.training import trainer as trainers_of

SETTINGS: tuple[tuple[int | None, float], ...] = ((None, 1.0), (3, 1.0), (2, 1.0), (None, 0.5), (3, 0.5), (2, 0.25))
NEGATIVES = 7
SHOWN = "labels/full width/exit "
"""How training logs each exit's loss that is shown, before the number of its layer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=Path("runs/decoder"))
    parser.add_argument("--steps", type=int, default=700, help="of the first stage; each adapter takes a fifth of it")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--groups", type=int, default=32, help="of eight passages in a step")
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--rows", type=int, default=12000)
    arguments = parser.parse_args()

    rows, model = arguments.output / "rows.jsonl.gz", arguments.output / "random"
    if not rows.exists():
        arguments.output.mkdir(parents=True, exist_ok=True)
        prepare(arguments, rows, model)
    losses: dict[int, dict[str, float]] = {}
    note_losses(losses, arguments.output / "losses.json")
    stage = {"max_steps": max(1, arguments.steps // 5), "learning_rate": 3e-4, "cascade_weight": 1.0,
             "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}}  # fmt: skip
    chosen = FinetuneSettings(
        model=str(model), train=(str(rows),), output=arguments.output / "trained", merge_layer=1, exits=None,
        bf16=True, length_parts=4, max_length=64, save_steps=100, freeze_embeddings=False,
        groups_per_step=arguments.groups,
        distill={"max_steps": arguments.steps, "learning_rate": arguments.learning_rate, "ratios": (1, 2, 4),
                 "default_merge_share": 0.5},
        vertical=stage, horizontal={**stage, "ratios": (2, 4)},
        trainer={"logging_steps": max(1, arguments.steps // 50)},
    )  # fmt: skip
    if not (chosen.output / "config.json").exists():
        finetune(chosen)

    reranker = MatryoshkaReranker(chosen.output, max_length=64)
    collection = drawn_candidates(open_collection(f"{arguments.data}/squad#dev500", limit=arguments.queries))
    quality = {
        f"depth {depth or reranker.num_layers}, keep ratio {ratio}": ndcg(
            collection,
            scored(
                collection,
                lambda pairs, d=depth, r=ratio: reranker.score_pairs(
                    [(query, snippet(query, text)) for query, text in pairs], depth=d, keep_ratio=r
                ),
            ),
        )
        for depth, ratio in SETTINGS
    }
    generator = random.Random(0)
    chance = statistics.mean(
        ndcg(collection, scored(collection, lambda pairs: [generator.random() for _ in pairs])) for _ in range(20)
    )
    logged = json.loads((arguments.output / "losses.json").read_text(encoding="utf-8"))
    tenth = max(1, len(logged) // 10)
    steps = sorted(logged, key=int)
    names = sorted(name for name in logged[steps[-1]] if name.startswith(SHOWN))
    print("| exit | loss at first | loss at last |\n| --- | ---: | ---: |")
    fall = {}
    for name in names:
        ends = [statistics.mean(logged[step][name] for step in part) for part in (steps[:tenth], steps[-tenth:])]
        fall[name.removeprefix(SHOWN)] = [round(end, 3) for end in ends]
        print(f"| {name.removeprefix('full_')} | {ends[0]:.3f} | {ends[1]:.3f} |")
    print("\n| setting | nDCG@10 |\n| --- | ---: |")
    print("\n".join(f"| {label} | {value:.3f} |" for label, value in quality.items()))
    print(f"| a random order | {chance:.3f} |")
    parameters = sum(p.numel() for p in reranker.model.parameters())
    print(
        json.dumps(
            {
                "benchmark": "decoder",
                "parameters": parameters,
                "steps": arguments.steps,
                "losses": fall,
                "nDCG@10": {label: round(value, 4) for label, value in quality.items()},
                "chance": round(chance, 4),
                "processor": platform.machine(),
                "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


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


def note_losses(losses: dict[int, dict[str, float]], file: Path) -> None:
    """Keep what the first stage logs, over interruptions too."""
    whole = trainers_of.RankingTrainer.log

    def noting(self: trainers_of.RankingTrainer, logs: dict[str, float], start_time: Any = None) -> None:
        whole(self, logs, start_time)
        entry = self.state.log_history[-1]
        if f"{SHOWN}1" in entry:
            known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
            file.write_text(json.dumps({**known, str(entry["step"]): entry}), encoding="utf-8")

    trainers_of.RankingTrainer.log = noting


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
