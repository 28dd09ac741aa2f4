"""The recipe, from settings to a checkpoint: what ``mrr finetune`` does.

A run's folder, while it runs, holds ``steps/``: the settings, each stage's own saves, and what finished stages made.
Every stage starts from files, so that a run that was cut short goes on where it was.
"""

import math
import random
import shutil
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from mrr_model import checkpoint
from mrr_model.checkpoint import is_classifier, is_reranker, journal, lora
from mrr_model.checkpoint.hub import locate
from mrr_model.compression import VERTICAL, horizontal_name
from mrr_model.data.groups import Group
from mrr_model.data.sources import read_source
from mrr_model.files.atomic import write_file
from mrr_model.files.locks import locked
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.compensation import Adapter, fold
from mrr_model.modeling.families import is_decoder
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import RELEASE_TEMPLATE
from mrr_model.training.arguments import check_trainer
from mrr_model.training.config import CompensationConfig, FinetuneConfig, RunConfig, StageConfig
from mrr_model.training.dataset import GroupCollator, GroupDataset, StreamedGroups
from mrr_model.training.initialize import RERANKER_LAYOUTS, from_pretrained_backbone, from_reranker
from mrr_model.training.lora import adapter_of, with_lora
from mrr_model.training.progress import is_main_process, tell
from mrr_model.training.saves import drop_torn, last_whole
from mrr_model.training.trainer import CompensationTrainer, DistillTrainer, Objective, RankingTrainer, Widths

if TYPE_CHECKING:
    from mrr_model.evaluation.dev import HeldOut

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def finetune(settings: FinetuneConfig) -> Path:
    """Run the stages of ``settings``, write the checkpoint to ``settings.output`` and return that folder.

    A run that was cut short resumes from its last save when it is called again with the same settings, and ends as it
    would have without the break. Raises ``FileExistsError`` where the folder holds a finished checkpoint, and
    ``ValueError`` where it holds an unfinished run with other settings.
    """
    return run_whole(Finetuning(settings))


def run_whole(recipe: "Recipe") -> Path:
    """Check what training does not need to load, run the recipe, and measure on the development collections."""
    settings = recipe.settings
    first = settings.run_stages[0]
    check_trainer(settings.trainer, lambda: recipe.arguments(first, getattr(settings, first), settings.seed))
    held_out = _held_out(settings)
    folder = recipe.run()
    if held_out is not None:
        tell(f"on held-out queries:\n\n{held_out.table(folder)}\n")
    return folder


def _held_out(settings: RunConfig) -> "HeldOut | None":
    """The development collections; of several processes, the one that speaks measures."""
    if not settings.dev or not is_main_process():
        return None
    from mrr_model.evaluation.dev import HeldOut

    return HeldOut(settings)


class Recipe(ABC):
    """One run of the stages. What differs between runs: where the model and the rows come from."""

    command: str
    """What the user called."""

    def __init__(self, settings: RunConfig) -> None:
        self.settings = settings
        self.steps = settings.output / "steps"
        self.distilled = self.steps / "distilled"
        self.compensation = self.steps / "compensation"

    def run(self) -> Path:
        """Each stage that has not finished, then the checkpoint.

        Raises :class:`~mrr_model.files.locks.FolderInUseError` if another process writes to the output.
        """
        output = self.settings.output
        # Of several processes of one run, the first holds the folder for all.
        with locked(output, f"mrr {self.command}") if is_main_process() else nullcontext():
            if not self._has_finished():
                self._check_claim()
                self._run_stages()
            return self._finish()

    def _run_stages(self) -> None:
        settings = self.settings
        if "distill" in settings.run_stages and not journal.holds_checkpoint(self.distilled):
            self.distill()
        if "vertical" in settings.run_stages and VERTICAL not in self._adapters():
            self._compensate(VERTICAL, settings.vertical, None, seed=settings.seed + 1)
        for place, ratio in enumerate(settings.horizontal.ratios if "horizontal" in settings.run_stages else ()):
            name = horizontal_name(Fraction(1, ratio))
            if name not in self._adapters():
                self._compensate(name, settings.horizontal, ratio, seed=settings.seed + 2 + place)

    @abstractmethod
    def base(self) -> checkpoint.Checkpoint:
        """The model that the run starts from, in training's dtype."""

    @abstractmethod
    def groups(self) -> Iterator[Group]:
        """The training rows."""

    @abstractmethod
    def distill(self) -> None:
        """Train the whole model and write it to ``self.distilled``."""

    def _compensate(self, name: str, stage: CompensationConfig, ratio: int | None, seed: int) -> None:
        start = self.start()
        model, exits = start.model, start.model.matryoshka.exits
        shallow = tuple(exit_layer for exit_layer in exits if exit_layer < model.num_layers)
        if ratio is None and not shallow:
            raise ValueError("vertical compensation needs an exit below the last layer, and this model has none.")
        set_seed(seed)  # the LoRA is drawn before the Trainer sets it
        trained = with_lora(model, stage.lora, exits if ratio is not None else shallow)
        trainer = CompensationTrainer(
            trained,
            self.arguments(name, stage, seed),
            **self.data(start),
            objective=objective(stage),
            title=self.title(name),
            ratio=ratio,
            widths=Widths((ratio or 1,), stage.merge_probability, stage.default_merge_share),
            vertical=None if ratio is None else {**start.adapters, **self._adapters()}.get(VERTICAL),
        )
        state = self.train(trainer)
        if trainer.is_world_process_zero():
            lora.write_own({name: adapter_of(trained, state)}, self.compensation)
        trainer.accelerator.wait_for_everyone()

    def train(self, trainer: RankingTrainer) -> dict[str, torch.Tensor]:
        """Train from the last whole save, if there is one; the model's state dict, gathered where it is sharded."""
        self._note()
        saves = Path(str(trainer.args.output_dir))
        saves.mkdir(parents=True, exist_ok=True)  # of several processes, the Trainer lets one make it
        if trainer.is_world_process_zero():
            drop_torn(saves)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=last_whole(saves))
        state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state

    def start(self) -> checkpoint.Checkpoint:
        """The model that the next stage starts from."""
        if journal.holds_checkpoint(self.distilled):
            return checkpoint.load(self.distilled, dtype=DTYPES[self.settings.dtype])
        return self.base()

    def _adapters(self) -> dict[str, Adapter]:
        """What the compensation stages made so far."""
        return lora.read_own(self.compensation)

    def _all_adapters(self, start: checkpoint.Checkpoint) -> dict[str, Adapter]:
        """The adapters of this run, and those of the start that still fit."""
        made, earlier = self._adapters(), dict(start.adapters)
        left_out = sorted(earlier.keys() - made.keys() - {VERTICAL}) if VERTICAL in made else []
        if left_out:
            warnings.warn(
                f"the adapters {', '.join(left_out)} were trained beside the earlier vertical one, so they are left "
                "out. Train new ones with the stage horizontal.",
                UserWarning,
                stacklevel=2,
            )
        return {**{name: adapter for name, adapter in earlier.items() if name not in left_out}, **made}

    def _finish(self) -> Path:
        """Write the checkpoint, then remove the steps; again the same, wherever it was cut short."""
        processes = PartialState(cpu=_no_accelerator())
        if processes.is_main_process:
            output = self.settings.output
            if not journal.holds_checkpoint(output):
                start = self.start()
                # Calibration, profile and defaults are those of other weights or adapters.
                checkpoint.save(checkpoint.Checkpoint(start.model, start.tokenizer, self._all_adapters(start)), output)
            if self._noted.exists():
                self._noted.replace(self._finished)
            if self.steps.exists():
                shutil.rmtree(self.steps)
        processes.wait_for_everyone()  # no process may still ask whether the run has finished
        if processes.is_main_process:
            self._finished.unlink(missing_ok=True)
        return self.settings.output

    @property
    def _noted(self) -> Path:
        """The settings of the run, while it runs."""
        return self.steps / "settings.json"

    @property
    def _finished(self) -> Path:
        """The same, while the steps of a finished run are removed."""
        return self.settings.output / ".finished-run.json"

    def _described(self) -> str:
        """The settings that decide what the run makes: what it measures afterwards is not among them."""
        return self.settings.model_dump_json(indent=1, exclude={"dev", "dev_queries"})

    def _is_mine(self, noted: Path) -> bool:
        try:
            return noted.read_text(encoding="utf-8") == self._described()
        except FileNotFoundError:
            return False

    def _has_finished(self) -> bool:
        """Whether this run wrote its checkpoint, and was killed before it had removed its steps."""
        mine = self._is_mine(self._noted) or self._is_mine(self._finished)
        return mine and journal.holds_checkpoint(self.settings.output)

    def _check_claim(self) -> None:
        """Check that the output is free, or holds an unfinished run with the same settings."""
        output = self.settings.output
        if journal.holds_checkpoint(output):
            raise FileExistsError(f"output={str(output)!r} already holds a checkpoint. Choose another folder.")
        if self._noted.exists() and not self._is_mine(self._noted):
            raise ValueError(
                f"output={str(output)!r} holds an unfinished run with other settings ({self._noted}). Resume it with "
                "those, or choose another folder."
            )

    def _note(self) -> None:
        """Note the settings beside the saves; not before training begins, so that a wrong path leaves nothing."""
        if not self._is_mine(self._noted):
            self.steps.mkdir(parents=True, exist_ok=True)
            write_file(self._noted, self._described())

    def title(self, name: str) -> str:
        """How a stage is called in what training shows: its name and its place among the run's."""
        stages: list[str] = [stage for stage in self.settings.run_stages if stage != "horizontal"]
        if "horizontal" in self.settings.run_stages:
            stages += [horizontal_name(Fraction(1, ratio)) for ratio in self.settings.horizontal.ratios]
        shown = name.replace("_", " ", 1).replace("_", "/")
        return f"{shown}, {stages.index(name) + 1} of {len(stages)}"

    def arguments(self, name: str, stage: StageConfig, seed: int) -> TrainingArguments:
        """The Trainer's arguments for a stage: the recipe's, then whatever the settings' ``trainer`` says."""
        settings = self.settings
        chosen: dict[str, Any] = {
            "per_device_train_batch_size": settings.groups_per_step,
            "num_train_epochs": stage.epochs,
            "max_steps": stage.max_steps or -1,
            "learning_rate": stage.learning_rate,
            "warmup_steps": stage.warmup,
            "weight_decay": stage.weight_decay,
            "bf16": settings.bf16,
            "use_cpu": _no_accelerator(),
            "optim": "adamw_torch_fused",
            "save_steps": settings.save_steps,
            "save_total_limit": 1,
            "logging_steps": 20,
            "logging_nan_inf_filter": False,  # such a loss stops the run
            "report_to": "none",
            "disable_tqdm": not sys.stderr.isatty(),
            "ddp_broadcast_buffers": False,
            # Below the last exit, the last layer's LoRA has no gradient.
            "ddp_find_unused_parameters": name.startswith("horizontal"),
            **settings.trainer,
            # Batches hold more than tensors, so each process makes its own.
            "accelerator_config": {"dispatch_batches": False, **settings.trainer.get("accelerator_config", {})},
        }
        return TrainingArguments(
            output_dir=str(self.steps / name), seed=seed, remove_unused_columns=False, label_names=[], **chosen
        )

    def data(self, start: checkpoint.Checkpoint) -> dict[str, Any]:
        """The Trainer's data arguments."""
        settings, model = self.settings, start.model
        encoder = PairEncoder(
            start.tokenizer, model.matryoshka.template, settings.max_length, settings.query_max_length
        )
        pad_id, max_tokens = model.config.pad_token_id or 0, model.backbone.max_tokens
        dataset: Any
        if settings.stream:
            dataset = StreamedGroups(self.groups, settings.passages, settings.seed)
        else:
            dataset = GroupDataset(list(self.groups()), settings.passages, settings.seed)
        return {
            "train_dataset": dataset,
            "data_collator": GroupCollator(encoder, pad_id, max_tokens, settings.length_parts),
        }


class Finetuning(Recipe):
    """What ``mrr finetune`` runs."""

    command = "finetune"

    def __init__(self, settings: FinetuneConfig) -> None:
        super().__init__(settings)
        self.settings: FinetuneConfig = settings
        self._told = False

    def base(self) -> checkpoint.Checkpoint:
        """The checkpoint or stock model that the settings name; compensation that it brings goes with it only as long
        as the weights that it repairs stay as they are.
        """
        settings = self.settings
        set_seed(settings.seed)  # fresh heads, and a LoRA over any, are drawn before the Trainer sets it
        folder, dtype = locate(settings.model), DTYPES[settings.dtype]
        config = checkpoint.read_config(folder)
        if is_reranker(config):
            if any(given is not None for given in (settings.exits, settings.merge_layer, settings.head)):
                raise ValueError(
                    f"exits, merge_layer and head are fixed in the checkpoint {settings.model!r}; leave them out."
                )
            return checkpoint.load(folder, dtype=dtype)
        if is_classifier(config) and settings.head is None:
            return self._over_classifier(folder)
        if "distill" not in settings.stages:
            raise ValueError(
                f"{settings.model!r} is no re-ranker yet: the stages {', '.join(settings.stages)} need one. Add the "
                "stage distill, or give a checkpoint that it made."
            )
        model, tokenizer = from_pretrained_backbone(
            folder,
            exits=settings.exits,
            merge_layer=settings.merge_layer,
            head=settings.head or "linear",
            dropout=settings.dropout,
            dtype=dtype,
        )
        self._tell_heads(_fresh_heads(model, config))
        return checkpoint.Checkpoint(model, tokenizer, {})

    def _over_classifier(self, folder: Path) -> checkpoint.Checkpoint:
        """A trained cross-encoder: it is a re-ranker already, and each exit starts from its classifier."""
        settings = self.settings
        family = checkpoint.read_config(folder).get("model_type")
        model, tokenizer = from_reranker(
            folder,
            exits=settings.exits,
            merge_layer=settings.merge_layer,
            template=RERANKER_LAYOUTS.get(str(family), RELEASE_TEMPLATE),
            dropout=settings.dropout,
            dtype=DTYPES[settings.dtype],
        )
        self._tell_heads("the model's own classifier")
        return checkpoint.Checkpoint(model, tokenizer, {})

    def _tell_heads(self, origin: str) -> None:
        if not self._told:  # the model is read again for the next stage
            tell(f"exits start from {origin}")
        self._told = True

    def groups(self) -> Iterator[Group]:
        for source in self.settings.train:
            yield from sampled(read_source(source, on_bad_row=self.settings.on_bad_row), source, self.settings)

    def distill(self) -> None:
        settings, stage = self.settings, self.settings.distill
        start = self.base()
        model = start.model
        model.model.get_input_embeddings().weight.requires_grad_(not settings.freeze_embeddings)
        trained: Any = model if stage.lora is None else with_lora(model, stage.lora, model.matryoshka.exits)
        trainer = DistillTrainer(
            trained,
            self.arguments("distill", stage, settings.seed),
            **self.data(start),
            objective=objective(stage, anchors=stage.cascade),
            title=self.title("distill"),
            widths=Widths(stage.ratios, stage.merge_probability, stage.default_merge_share),
        )
        state = self.train(trainer)
        if trainer.is_world_process_zero():
            if stage.lora is not None:
                model, state = fold(self.base().model, [adapter_of(trained, state)]), {}
            checkpoint.save(checkpoint.Checkpoint(model, start.tokenizer, {}), self.distilled, state=state)
        trainer.accelerator.wait_for_everyone()


def sampled(rows: Iterator[Group], source: str, settings: RunConfig) -> Iterator[Group]:
    """The part of a source's rows that the settings' ``sample`` and seed draw."""
    if settings.sample == 1:
        return rows
    if settings.stream:
        generator = random.Random(f"{settings.seed}/{source}")
        return (row for row in rows if generator.random() < settings.sample)
    held = list(rows)
    count = math.ceil(settings.sample * len(held))
    return iter(random.Random(f"{settings.seed}/{Path(source).name}").sample(held, count))


def objective(stage: StageConfig, **fields: Any) -> Objective:
    """A stage's weights as the Trainer takes them."""
    return Objective(
        labels=stage.label_weight,
        teacher=stage.teacher_weight,
        teacher_temperature=stage.teacher_temperature,
        cascade=stage.cascade_weight,
        **fields,
    )


def _fresh_heads(model: MatryoshkaModel, config: dict[str, Any]) -> str:
    """What the heads of a stock model start from, in words."""
    if is_decoder(model.config.model_type):
        return 'its language model\'s row for "Yes"'
    instead = ", not from the model's own classifier" if is_classifier(config) else ""
    return f"fresh {model.matryoshka.head} heads{instead}"


def _no_accelerator() -> bool:
    return not torch.accelerator.is_available()
