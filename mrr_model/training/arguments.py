"""What ``trainer`` may hold: checked against transformers' TrainingArguments before anything is loaded."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import TrainingArguments
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)

PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet-ml", "flyte": "flytekit"}
"""The package of a reporter that is not called as it is."""

WORDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
"""Types in plain words."""

LEAST = {"gradient_accumulation_steps": 1, "dataloader_num_workers": 0, "max_grad_norm": 0}
"""What TrainingArguments takes without looking, and training does not survive."""


def check_trainer(trainer: Mapping[str, Any], build: Callable[[], TrainingArguments]) -> None:
    """Raise ``ValueError`` for names and values that TrainingArguments does not take, and ``ImportError`` for a
    reporter that is not installed. ``build`` makes the arguments of a stage.
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


def check_reporters(asked: str | list[str] | None) -> None:
    """Raise where a reporter is not known, or the package that it needs is not installed."""
    names = [asked] if isinstance(asked, str) else asked or []
    for name in names:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"trainer: report_to must be none, all or of {known}; got {name!r}.")
        # transformers lists no availability for flyte, which only its own tasks set up.
        if name not in (*get_available_reporting_integrations(), "flyte"):
            package = PACKAGES.get(name, name)
            raise ImportError(
                f"trainer: report_to={name} needs the package {package}, which is not installed: pip install {package}"
            )


def _check_value(name: str, value: Any, kind: Any) -> None:
    """Whether the value is of the field's type as it stands: a dataclass takes anything."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True, strict=True))
    try:
        adapter.validate_python(value)
    except ValidationError:
        shown = WORDS.get(kind) or (kind.__name__ if isinstance(kind, type) else str(kind))
        raise ValueError(f"trainer: {name} must be {shown}, got {value!r}.") from None
