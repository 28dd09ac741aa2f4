"""The recipe, from a config to a checkpoint: what `mrr finetune` runs.

Its stages (arXiv 2501.16302): cascaded self-distillation trains the model at all exits and widths; vertical and
horizontal compensation then train adapters over the frozen model, for depth and for each merge ratio.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments, set_seed

from mrr_model import checkpoint
from mrr_model.checkpoint import Checkpoint, lora
from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.compression import VERTICAL, horizontal_name
from mrr_model.data.groups import Group
from mrr_model.data.sources import read_source
from mrr_model.files.locks import locked
from mrr_model.inference.device import DTYPES
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.compensation import Adapter, fold
from mrr_model.training.arguments import check_trainer, no_accelerator, training_arguments
from mrr_model.training.config import CompensationConfig, FinetuneConfig, RunConfig, StageConfig
from mrr_model.training.dataset import GroupCollator, GroupDataset, StreamedGroups, sampled
from mrr_model.training.lora import adapter_of, with_lora
from mrr_model.training.progress import is_main_process, stage_title, tell
from mrr_model.training.run_folder import RunFolder
from mrr_model.training.saves import newest_complete, remove_incomplete
from mrr_model.training.start import starting_model
from mrr_model.training.trainer import CompensationTrainer, DistillTrainer, Objective, RankingTrainer, Widths


def finetune(config: FinetuneConfig) -> Path:
    """Run the stages of a config and write the checkpoint.

    A run that was cut short resumes from its last save when it is called again with the same config, and ends as it
    would have without the break.

    Args:
        config: Model, data, output folder and stages.

    Returns:
        The output folder.

    Raises:
        FileExistsError: If the output folder holds a finished checkpoint.
        FileNotFoundError: If the model or the data does not exist.
        ValueError: If the folder holds an unfinished run with another config, the stages do not fit the model, a row
            cannot be read, or training diverges.
        ImportError: If a package that the config asks for is not installed.
        FolderInUseError: If another process writes to the output folder.

    Example:
        ```python
        folder = finetune(FinetuneConfig(model="bert-base-uncased", train=("rows.jsonl",), output="out"))
        reranker = MatryoshkaReranker(folder, depth=6)
        ```
    """
    return Finetuning(config).run()


class Recipe(ABC):
    """One run of the stages. Subclasses say where the model and the rows come from.

    Args:
        config: The run's config.
    """

    command: ClassVar[str]
    """What the user called."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.folder = RunFolder(config.output, config.model_dump_json(indent=1))

    def run(self) -> Path:
        """Run each stage that has not finished, then write the checkpoint; return its folder."""
        config = self.config
        first: StageConfig = getattr(config, config.run_stages[0])
        check_trainer(config.trainer, lambda: self.arguments(config.run_stages[0], first, config.seed))
        # Of several processes of one run, the first locks the folder for all.
        with locked(config.output, f"mrr {self.command}") if is_main_process() else nullcontext():
            if not self.folder.has_finished():
                self.folder.claim()
                self._run_stages()
            self._finish()
        return config.output

    def _run_stages(self) -> None:
        config, folder = self.config, self.folder
        if "distill" in config.run_stages and not folder.has_distilled():
            self.distill()
        if "vertical" in config.run_stages and VERTICAL not in folder.adapters():
            self._compensate(VERTICAL, config.vertical, None, seed=config.seed + 1)
        for index, ratio in enumerate(config.horizontal.ratios if "horizontal" in config.run_stages else ()):
            name = horizontal_name(Fraction(1, ratio))
            if name not in folder.adapters():
                self._compensate(name, config.horizontal, ratio, seed=config.seed + 2 + index)

    @abstractmethod
    def base(self) -> Checkpoint:
        """Open the model that the run starts from, in training's dtype."""

    @abstractmethod
    def groups(self) -> Iterator[Group]:
        """Read the training rows."""

    def defaults(self, start: Checkpoint) -> Defaults:
        """What the trained model runs at unless its user says otherwise; the start's settings are not its own."""
        return NO_DEFAULTS

    def distill(self) -> None:
        """Train the whole model and write it to `self.folder.distilled`; for recipes that have this stage."""
        raise NotImplementedError

    def _compensate(self, name: str, stage: CompensationConfig, ratio: int | None, seed: int) -> None:
        """Train one adapter: the vertical one if `ratio` is None, else the horizontal one of that merge ratio."""
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
            objective=Objective.of(stage),
            title=stage_title(self.config, name),
            ratio=ratio,
            widths=Widths.of(stage, (ratio or 1,)),
            vertical=None if ratio is None else {**start.adapters, **self.folder.adapters()}.get(VERTICAL),
        )
        state = self.train(trainer)
        if trainer.is_world_process_zero():
            lora.write_own({name: adapter_of(trained, state)}, self.folder.compensation)
        trainer.accelerator.wait_for_everyone()

    def start(self) -> Checkpoint:
        """Open the model that the next stage starts from."""
        if self.folder.has_distilled():
            return checkpoint.load(self.folder.distilled, dtype=DTYPES[self.config.dtype])
        return self.base()

    def train(self, trainer: RankingTrainer) -> dict[str, torch.Tensor]:
        """Train from the last whole save, if there is one; return the model's state dict, gathered if it is sharded."""
        self.folder.note_config()
        saves = Path(str(trainer.args.output_dir))
        saves.mkdir(parents=True, exist_ok=True)  # of several processes, the Trainer lets one make it
        if trainer.is_world_process_zero():
            remove_incomplete(saves)
        trainer.accelerator.wait_for_everyone()
        trainer.train(resume_from_checkpoint=newest_complete(saves))
        state: dict[str, torch.Tensor] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        return state

    def arguments(self, name: str, stage: StageConfig, seed: int) -> TrainingArguments:
        """Make the Trainer's arguments for a stage."""
        return training_arguments(self.config, name, stage, seed, output=self.folder.saves(name))

    def data(self, start: Checkpoint) -> dict[str, Any]:
        """Make the Trainer's data arguments."""
        config, model = self.config, start.model
        encoder = PairEncoder(start.tokenizer, model.matryoshka.template, config.max_length, config.query_max_length)
        pad_id, max_tokens = model.config.pad_token_id or 0, model.backbone.max_tokens
        dataset: GroupDataset | StreamedGroups
        if config.stream:
            dataset = StreamedGroups(self.groups, config.train_group_size, config.seed)
        else:
            dataset = GroupDataset(list(self.groups()), config.train_group_size, config.seed)
        return {
            "train_dataset": dataset,
            "data_collator": GroupCollator(encoder, pad_id, max_tokens, config.length_parts),
        }

    def _finish(self) -> None:
        """Write the checkpoint, then remove the steps; after a kill, the same is done again."""
        processes = PartialState(cpu=no_accelerator())
        if processes.is_main_process:
            if not self.folder.has_checkpoint():
                start = self.start()
                # Calibration and profile are left out: they belong to other weights or adapters.
                made = Checkpoint(
                    start.model, start.tokenizer, self._all_adapters(start), defaults=self.defaults(start)
                )
                checkpoint.save(made, self.config.output)
            self.folder.remove_steps()
        processes.wait_for_everyone()  # no process may still ask whether the run has finished
        if processes.is_main_process:
            self.folder.forget()

    def _all_adapters(self, start: Checkpoint) -> dict[str, Adapter]:
        """The adapters of this run, and those of the start that still fit."""
        made, earlier = self.folder.adapters(), dict(start.adapters)
        left_out = sorted(earlier.keys() - made.keys() - {VERTICAL}) if VERTICAL in made else []
        if left_out:
            warnings.warn(
                f"the adapters {', '.join(left_out)} were trained together with the earlier vertical one, so they are "
                "left out. Train new ones with the stage horizontal.",
                UserWarning,
                stacklevel=2,
            )
        return {**{name: adapter for name, adapter in earlier.items() if name not in left_out}, **made}


class Finetuning(Recipe):
    """The run of `finetune`.

    Args:
        config: The run's config.
    """

    command = "finetune"

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        self.config: FinetuneConfig = config
        self._announced = False

    def base(self) -> Checkpoint:
        """Open the checkpoint or stock model that the config names."""
        set_seed(self.config.seed)  # fresh heads, and a LoRA over any, are drawn before the Trainer sets it
        start, heads_from = starting_model(self.config)
        if heads_from and not self._announced:  # the model is opened again for the next stage
            tell(f"exits start from {heads_from}")
            self._announced = True
        return start

    def groups(self) -> Iterator[Group]:
        """Read the rows of all sources."""
        for source in self.config.train:
            yield from sampled(read_source(source, on_bad_row=self.config.on_bad_row), source, self.config)

    def distill(self) -> None:
        """Train the whole model, or a LoRA that is merged into it, and write it to `self.folder.distilled`."""
        config, stage = self.config, self.config.distill
        start = self.base()
        model = start.model
        model.model.get_input_embeddings().weight.requires_grad_(not config.freeze_embeddings)
        trained: Any = model if stage.lora is None else with_lora(model, stage.lora, model.matryoshka.exits)
        trainer = DistillTrainer(
            trained,
            self.arguments("distill", stage, config.seed),
            **self.data(start),
            objective=Objective.of(stage, stage.cascade),
            title=stage_title(config, "distill"),
            widths=Widths.of(stage, stage.ratios),
        )
        state = self.train(trainer)
        if trainer.is_world_process_zero():
            if stage.lora is not None:
                model, state = fold(self.base().model, [adapter_of(trained, state)]), {}
            checkpoint.save(Checkpoint(model, start.tokenizer, {}), self.folder.distilled, state=state)
        trainer.accelerator.wait_for_everyone()
