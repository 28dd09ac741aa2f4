"""A config's `trainer`: faults are one line that names them, before a model or a row is read."""

from pathlib import Path
from typing import Any

import pytest
from transformers.integrations import integration_utils

from mrr_model.training import arguments
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.recipe import Finetuning, finetune


def run_config(output: Path, **trainer: Any) -> FinetuneConfig:
    return FinetuneConfig(model="/not/there", train=("nor.jsonl",), output=output, trainer=trainer)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (
            {"gradient_acumulation_steps": 2},
            "'gradient_acumulation_steps' is not one.*mean gradient_accumulation_steps",
        ),
        ({"nonsense": 2}, r"'nonsense' is not one of transformers' TrainingArguments\.$"),
        ({"gradient_accumulation_steps": "x"}, "gradient_accumulation_steps must be a whole number, got 'x'"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"tf32": 1}, "tf32 must be bool"),
        ({"log_level": "loud"}, "log_level must be one of detail, debug.*got 'loud'"),
        ({"optim": "adamx"}, "adamx is not a valid OptimizerNames"),
        ({"accelerator_config": "file.json"}, "accelerator_config must be dict"),
        ({"accelerator_config": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ({"report_to": "nobody"}, "report_to must be none, all, or one of .*tensorboard.*got 'nobody'"),
    ],
)
def test_a_fault_is_named_before_anything_is_loaded(trainer: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        finetune(run_config(tmp_path / "out", **trainer))
    assert str(error.value).startswith("trainer: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", ["wandb", ["none", "wandb"]])
def test_a_reporter_that_is_not_installed_names_its_package(
    asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", list)
    with pytest.raises(ImportError, match=r"report_to=wandb needs the package wandb.*pip install wandb"):
        finetune(run_config(tmp_path / "out", report_to=asked))


def test_every_reporter_of_transformers_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    known = sorted(integration_utils.INTEGRATION_TO_CALLBACK)
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: known)
    arguments.check_reporters(known)
    arguments.check_reporters("all")
    arguments.check_reporters(None)


def test_trainer_overrides_the_recipes_defaults(tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"optim": "sgd", "logging_steps": 3, "save_total_limit": 2, "disable_tqdm": True}
    run = Finetuning(run_config(tmp_path, **chosen, accelerator_config={"split_batches": True}))
    made = run.arguments("distill", run.config.distill, 0)
    assert {name: getattr(made, name) for name in chosen} == chosen
    assert (made.accelerator_config.split_batches, made.accelerator_config.dispatch_batches) == (True, False)
