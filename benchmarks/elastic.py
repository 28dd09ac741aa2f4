"""A re-ranker that was trained without this package, made elastic: what each size keeps, before and after training.

    python benchmarks/train_cross_encoder.py --data ../shared/data --output runs/cross-encoder
    python benchmarks/elastic.py --model runs/cross-encoder/model --data ../shared/data

First the model as it is: nDCG@10 through sentence-transformers' CrossEncoder and through this package, both in
float32, and at smaller widths, which need no training. Then `mrr self-distill` on unlabelled pairs, and the grid of
depths and widths with its adapters and without them: the same model cut, its one head read after fewer layers, or
narrowed. nDCG@10 by ir_measures over a sample of four development collections. Prints the tables and writes
benchmarks/results/elastic.json; a stopped run resumes from --work.
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from development import DEPTHS, METRIC, RATIOS, add_data_arguments, evaluated, ndcg, opened, scored
from result_files import add_output_argument, write_result
from result_tables import elastic as table
from train_cross_encoder import shortened

from mrr_model import MatryoshkaReranker
from mrr_model.data.beir import read_corpus
from mrr_model.data.jsonl import read_json_lines
from mrr_model.evaluation.report import Evaluation
from mrr_model.training.config import HorizontalSelfDistillConfig, SelfDistillConfig, SelfDistillStageConfig
from mrr_model.training.self_distill import self_distill

WIDTHS = (0.75, 0.5, 0.25, {1: 0.5}, {3: 0.5}, {4: 0.5})
"""Of all layers without training: at the default merge layer, 2, and with earlier and later merges."""
THIRD = 2
"""A third of the depth."""
TARGETS = {(4, 0.5): 0.97, (3, 0.5): 0.94}
"""(depth, keep_ratio) -> the share of full size's nDCG@10 that it should keep."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/cross-encoder/model", help="folder of the trained cross-encoder")
    add_data_arguments(parser, "runs/elastic", limit_queries=20)
    parser.add_argument("--equal-queries", type=int, default=20, help="queries per collection for both libraries")
    parser.add_argument("--rows", type=int, default=1600, help="unlabelled questions, eight passages each")
    parser.add_argument("--vertical-steps", type=int, default=200)
    parser.add_argument("--horizontal-steps", type=int, default=80, help="for each of the merge ratios 2 and 4")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument(
        "--third-ranks",
        type=int,
        nargs="+",
        help="ranks of the LoRA that trains a third of the depth alone (default: the same, and the full one)",
    )
    parser.add_argument("--seed", type=int, default=0)
    add_output_argument(parser, "elastic")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)

    folder, seconds = distilled(arguments, "distilled")
    both = in_both_libraries(arguments)
    narrow = grid(arguments, "narrow", arguments.model, depths=None, keep_ratios=WIDTHS)
    adapted = grid(arguments, "adapted", str(folder))
    plain = grid(arguments, "plain", str(folder), depths=DEPTHS[1:], without_compensation=True)

    full = narrow.profile.full.quality
    before = {each.setting: each.quality for each in (*narrow.profile.points, *plain.profile.points)}
    rows = [
        {
            "depth": each.depth,
            "keep_ratio": each.keep_ratio,
            "quality": round(each.quality, 4),
            "kept": round(each.quality / full, 4),
            "without": round(before[each.setting], 4),
            "kept_without": round(before[each.setting] / full, 4),
        }
        for each in adapted.profile.points
    ]
    results: dict[str, Any] = {
        "metric": METRIC,
        "collections": {each.name: {"queries": each.queries} for each in adapted.collections},
        "full": both,
        "widths": [
            {
                "keep_ratio": each.setting.keep_ratio_text,
                "quality": round(each.quality, 4),
                "kept": round(each.quality / full, 4),
                "flops": round(each.flops / narrow.profile.full.flops, 4),
            }
            for each in narrow.profile.points
        ],
        "training": {
            "rows": arguments.rows,
            "vertical_steps": arguments.vertical_steps,
            "horizontal_steps": arguments.horizontal_steps,
            "rank": arguments.rank,
            "seconds": round(seconds),
        },
        "settings": rows,
        "shallow": {"depth": THIRD, "variants": shallow(arguments, folder, full)},
        "targets": [
            {
                "depth": depth,
                "keep_ratio": ratio,
                "least": least,
                "kept": next(row["kept"] for row in rows if (row["depth"], row["keep_ratio"]) == (depth, ratio)),
            }
            for (depth, ratio), least in TARGETS.items()
        ],
    }
    what = (
        "nDCG@10 of a cross-encoder that sentence-transformers trained: through its own library and through this "
        "package, narrowed without training, and at twelve sizes after self-distillation on unlabelled pairs."
    )
    print(table(write_result(arguments.output, "elastic", what, results, seeds=(arguments.seed,))))


def in_both_libraries(arguments: argparse.Namespace) -> dict[str, Any]:
    """nDCG@10 of each collection by either library, in float32, and the largest difference of two logits."""
    from sentence_transformers import CrossEncoder

    file = arguments.work / "both.json"
    if file.exists():
        return dict(json.loads(file.read_text(encoding="utf-8")))
    theirs = CrossEncoder(str(arguments.model), device="cpu")
    ours = MatryoshkaReranker(str(arguments.model), dtype="float32", device="cpu")
    found: dict[str, Any] = {"queries": arguments.equal_queries, "largest_difference": 0.0}
    sample = argparse.Namespace(**{**vars(arguments), "limit_queries": arguments.equal_queries})
    for name, collection in opened(sample).items():
        runs = {
            "cross_encoder": scored(
                collection, lambda pairs: theirs.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
            ),
            "this_package": scored(collection, lambda pairs: ours.score_pairs(pairs, normalize=False)),
        }
        for library, run in runs.items():
            found.setdefault(library, {})[name] = round(ndcg(collection, run), 4)
        differences = [
            abs(score - runs["this_package"][query][document])
            for query, scores in runs["cross_encoder"].items()
            for document, score in scores.items()
        ]
        found["largest_difference"] = float(f"{max(found['largest_difference'], *differences):.1e}")
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def grid(arguments: argparse.Namespace, name: str, model: str, **more: Any) -> Evaluation:
    """A model's grid of depths and widths, timed no more than it must be."""
    return evaluated(
        arguments,
        arguments.collections,
        arguments.work / name,
        **{"model": model, "timing_pairs": 1, "timing_repeats": 1, **more},
    )


def shallow(arguments: argparse.Namespace, folder: Path, full: float) -> list[dict[str, Any]]:
    """What a third of the depth keeps at full width: of all exits' adapter, and of one for this exit alone."""
    hidden = MatryoshkaReranker(str(arguments.model), device="cpu").model.config.hidden_size
    found = [{"exits": "all", "rank": arguments.rank, "kept": at_depth(arguments, "adapted", folder, full)}]
    for rank in arguments.third_ranks or (arguments.rank, hidden):
        name = f"exit-{THIRD}-rank-{rank}"
        alone, _ = distilled(arguments, name, exits=(THIRD, DEPTHS[0]), rank=rank, horizontal_steps=1)
        kept = at_depth(arguments, f"{name}-grid", alone, full)
        found.append({"exits": str(THIRD), "rank": rank, "kept": kept})
    return found


def at_depth(arguments: argparse.Namespace, name: str, folder: Path, full: float) -> float:
    """The share of full size's quality at a third of the depth."""
    depths = DEPTHS if name == "adapted" else (THIRD,)
    points = grid(arguments, name, str(folder), depths=depths, keep_ratios=RATIOS if name == "adapted" else (1.0,))
    [point] = [each for each in points.profile.points if (each.depth, each.keep_ratio) == (THIRD, 1.0)]
    return round(point.quality / full, 4)


def distilled(
    arguments: argparse.Namespace,
    name: str,
    *,
    exits: tuple[int, ...] | None = None,
    rank: int | None = None,
    horizontal_steps: int | None = None,
) -> tuple[Path, float]:
    """The folder of a self-distilled model, and the seconds that it took to make."""
    texts, folder, clock = (arguments.work / file for file in ("texts.jsonl", name, f"{name}-seconds.txt"))
    if not texts.exists():
        write_texts(texts, arguments)
    if not (folder / "config.json").exists():
        started = time.perf_counter()
        rank = rank or arguments.rank
        lora = {"rank": rank, "alpha": 2.0 * rank, "dropout": 0.0}
        self_distill(
            SelfDistillConfig(
                model=str(arguments.model),
                texts=(str(texts),),
                output=folder,
                exits=exits,
                max_length=192,
                bf16=True,
                seed=arguments.seed,
                length_parts=2,
                vertical=SelfDistillStageConfig(lora=lora, max_steps=arguments.vertical_steps),
                horizontal=HorizontalSelfDistillConfig(
                    lora=lora, max_steps=horizontal_steps or arguments.horizontal_steps, ratios=(2, 4)
                ),
            )
        )
        clock.write_text(str(time.perf_counter() - started), encoding="utf-8")
    return folder, float(clock.read_text(encoding="utf-8"))


def write_texts(file: Path, arguments: argparse.Namespace) -> None:
    """Questions and passages without labels: eight passages of SQuAD each, in random order."""
    corpus, rng = read_corpus(arguments.data / "squad"), random.Random(arguments.seed)
    rows = [row for _, row in read_json_lines(arguments.data / "squad" / "train.ids.jsonl.gz")]
    with file.open("w", encoding="utf-8") as out:
        for row in rng.sample(rows, arguments.rows):
            documents = [shortened(corpus[each]) for each in (*row["pos"], *row["neg"])]
            rng.shuffle(documents)
            out.write(json.dumps({"query": row["query"], "documents": documents}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
