"""The Trainer's arguments for each stage, and the check of a config's `trainer` before anything is loaded."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

from mrr_model.training.config import RunConfig, StageConfig

PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""Packages of reporters whose name differs from the package's."""

WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""Types in plain words."""

LEAST = {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "max_grad_norm": 0}
"""Lower bounds that TrainingArguments does not check."""


def training_arguments(config: RunConfig, name: str, stage: StageConfig, seed: int, output: Path) -> TrainingArguments:
    """Make the Trainer's arguments for a stage: the recipe's own, overridden by `config.trainer`.

    Args:
        config: The run's config.
        name: The stage, or the adapter that it trains.
        stage: The stage's config.
        seed: The stage's seed.
        output: The folder of the stage's saves.
    """
    chosen: dict[str, Any] = {
        "per_device_train_batch_size": config.groups_per_step,
        "num_train_epochs": stage.epochs,
        "max_steps": stage.max_steps or -1,
        "learning_rate": stage.learning_rate,
        "warmup_steps": stage.warmup,
        "weight_decay": stage.weight_decay,
        "bf16": config.bf16,
        "use_cpu": no_accelerator(),
        "optim": "adamw_torch_fused",
        "save_steps": config.save_steps,
        "save_total_limit": 1,
        "logging_steps": 20,
        "logging_nan_inf_filter": False,  # such a loss stops the run
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),
        "ddp_broadcast_buffers": False,
        # Below the last exit, the last layer's LoRA has no gradient.
        "ddp_find_unused_parameters": name.startswith("horizontal"),
        **config.trainer,
        # Batches hold more than tensors, so each process makes its own.
        "accelerator_config": {"dispatch_batches": False, **config.trainer.get("accelerator_config", {})},
    }
    return TrainingArguments(output_dir=str(output), seed=seed, remove_unused_columns=False, label_names=[], **chosen)


def no_accelerator() -> bool:
    """Whether training runs on the CPU."""
    return not torch.accelerator.is_available()


def check_trainer(trainer: Mapping[str, Any], build: Callable[[], TrainingArguments]) -> None:
    """Check a config's `trainer`.

    Args:
        trainer: Names and values of training arguments.
        build: Makes the arguments of a stage from them.

    Raises:
        ValueError: For a name or value that TrainingArguments does not take.
        ImportError: For a reporter that is not installed.
    """
    known = {field.name: list(field.metadata.get("choices") or ()) for field in fields(TrainingArguments) if field.init}
    hints = {**get_type_hints(TrainingArguments), "accelerator_config": dict[str, Any]}  # the recipe adds to it
    for name, value in trainer.items():
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"trainer: {name!r} is not one of transformers' TrainingArguments.{hint}")
        _check_value(name, value, hints[name])
        if known[name] and value is not None and value not in known[name]:
            raise ValueError(f"trainer: {name} must be one of {', '.join(map(str, known[name]))}, got {value!r}.")
        if name in LEAST and value < LEAST[name]:
            raise ValueError(f"trainer: {name} must be at least {LEAST[name]}, got {value!r}.")
    check_reporters(trainer.get("report_to"))
    try:
        build()
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(f"trainer: {error}") from None


def check_reporters(report_to: str | list[str] | None) -> None:
    """Check reporters. Raises ValueError for an unknown one, ImportError if its package is not installed."""
    names = [report_to] if isinstance(report_to, str) else report_to or []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"trainer: report_to must be none, all, or one of {known}; got {name!r}.")
        # transformers does not list flyte, which only its own tasks set up.
        if name not in (*get_available_reporting_integrations(), "flyte"):
            package = PACKAGES.get(name, name)
            raise ImportError(
                f"trainer: report_to={name} needs the package {package}, which is not installed: pip install {package}"
            )


def _check_value(name: str, value: Any, kind: Any) -> None:
    """Check that the value has the field's type, which a dataclass does not check."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        shown = WORDS.get(kind) or (kind.__name__ if isinstance(kind, type) else str(kind))
        raise ValueError(f"trainer: {name} must be {shown}, got {value!r}.") from None
