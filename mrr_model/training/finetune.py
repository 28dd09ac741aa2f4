"""One training run, from settings to a checkpoint: what ``mrr finetune`` does."""

import math
import random
import shutil
import sys
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from mrr_model import checkpoint
from mrr_model.checkpoint import native
from mrr_model.checkpoint.source import locate
from mrr_model.inputs import PairEncoder
from mrr_model.model import MatryoshkaModel
from mrr_model.training.backbones import from_pretrained_backbone
from mrr_model.training.groups import Group, read_groups
from mrr_model.training.trainer import GroupCollator, GroupDataset, LossWeights, RankingTrainer


class FinetuneSettings(BaseModel):
    """The settings of a run. Each is a flag of ``mrr finetune``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: str
    """A checkpoint of this project to go on from, or a stock encoder or causal model: a local folder or a hub id."""
    train: tuple[Path, ...]
    """Training files: JSON lines of query, pos, neg, and optionally pos_scores, neg_scores, prompt; plain or .gz."""
    output: Path
    """Where the trained checkpoint is written."""
    exits: tuple[int, ...] | None = None
    """Layers that get a head; only for a stock model."""
    merge_layer: int | None = None
    """Where a plain keep ratio merges; only for a stock model."""
    sample: float = Field(default=1.0, gt=0, le=1)
    """The part of each file's groups to train on, drawn by the seed."""
    passages: int = Field(default=8, ge=2)
    """Passages of a group: one positive and the rest hard negatives."""
    groups_per_step: int = Field(default=8, ge=1)
    """Groups in one optimizer step of one process."""
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float = Field(default=1.5e-4, gt=0)
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """The part of the steps over which the learning rate rises."""
    weight_decay: float = Field(default=0.01, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    max_length: int = Field(default=192, ge=8)
    query_max_length: int | None = None
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of the hard labels' cross-entropy."""
    teacher_weight: float = Field(default=1.0, ge=0)
    """Weight of the soft cross-entropy to pos_scores and neg_scores, where a row has them."""
    teacher_temperature: float = Field(default=1.0, gt=0)
    """Divides the teacher's scores: about 0.04 for cosines."""
    cascade_weight: float = Field(default=1.0, ge=0)
    """Weight of the distillation of shallower exits from deeper ones and of narrow passes from full-width ones."""
    ratios: tuple[int, ...] = (1, 2, 4, 8)
    """A step's merge ratio is drawn from these; 1 means full width alone."""
    merge_probability: float = Field(default=0.5, ge=0, le=1)
    """How likely each merge layer is on."""
    freeze_embeddings: bool = True
    bf16: bool = False
    """Train in bfloat16 autocast."""
    save_steps: int = Field(default=200, ge=1)
    seed: int = 0


def finetune(settings: FinetuneSettings) -> Path:
    """Train, write the checkpoint to ``settings.output`` and return that folder.

    A run that was cut short resumes from its last save when it is called again with the same settings, and ends as it
    would have without the break. Raises ``FileExistsError`` where the folder holds a finished checkpoint, and
    ``ValueError`` where it holds an unfinished run with other settings.
    """
    steps = settings.output / "steps"
    _claim(settings, steps)
    set_seed(settings.seed)  # fresh heads are drawn before the Trainer sets it
    model, tokenizer = _start(settings)
    model.model.get_input_embeddings().weight.requires_grad_(not settings.freeze_embeddings)
    dataset = GroupDataset(_read(settings), settings.passages, settings.seed)
    encoder = PairEncoder(tokenizer, model.matryoshka.layout, settings.max_length, settings.query_max_length)

    arguments = TrainingArguments(
        output_dir=str(steps),
        per_device_train_batch_size=settings.groups_per_step,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        bf16=settings.bf16,
        use_cpu=not torch.accelerator.is_available(),
        optim="adamw_torch_fused",
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=20,
        report_to="none",
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        seed=settings.seed,
    )
    trainer = RankingTrainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=GroupCollator(encoder, model.config.pad_token_id or 0, model.backbone.max_tokens),
        weights=LossWeights(settings.label_weight, settings.teacher_weight, settings.cascade_weight),
        teacher_temperature=settings.teacher_temperature,
        ratios=settings.ratios,
        merge_probability=settings.merge_probability,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(steps)))
    trained = checkpoint.Checkpoint(model.eval(), tokenizer, {})
    checkpoint.save(trained, settings.output)
    shutil.rmtree(steps)
    return settings.output


def _claim(settings: FinetuneSettings, steps: Path) -> None:
    """Make the folder of a run's saves and note its settings there, or check that they are the same."""
    if (settings.output / "config.json").exists():
        raise FileExistsError(
            f"output={str(settings.output)!r} already holds a checkpoint. Choose another folder or remove it."
        )
    noted, now = steps / "settings.json", settings.model_dump_json(indent=1)
    if noted.exists() and noted.read_text(encoding="utf-8") != now:
        raise ValueError(
            f"output={str(settings.output)!r} holds an unfinished run with other settings ({noted}). Resume it with "
            "those, choose another folder, or remove it."
        )
    steps.mkdir(parents=True, exist_ok=True)
    noted.write_text(now, encoding="utf-8")


def _start(settings: FinetuneSettings) -> tuple[MatryoshkaModel, PreTrainedTokenizerBase]:
    folder = locate(settings.model)
    config = checkpoint.read_config(folder)
    if native.SECTION in config or config.get("model_type") in checkpoint.PUBLISHED:
        if settings.exits is not None or settings.merge_layer is not None:
            raise ValueError(f"exits and merge_layer are fixed in the checkpoint {settings.model!r}; leave them out.")
        loaded = checkpoint.load(folder)
        return loaded.model, loaded.tokenizer
    return from_pretrained_backbone(
        folder, exits=settings.exits, merge_layer=settings.merge_layer, dropout=settings.dropout
    )


def _read(settings: FinetuneSettings) -> list[Group]:
    groups: list[Group] = []
    for file in settings.train:
        rows = list(read_groups(file))
        groups += random.Random(f"{settings.seed}/{file.name}").sample(rows, math.ceil(settings.sample * len(rows)))
    return groups
