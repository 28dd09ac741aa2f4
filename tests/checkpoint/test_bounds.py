"""Numbers of settings are bounded where they are read, before a model is loaded or a row is read."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from mrr_model.cli import app as cli
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.initialize import from_pretrained_backbone

RUN: dict[str, Any] = {"model": "m", "output": "o", "train": ["rows.jsonl"]}
LABEL_FREE: dict[str, Any] = {"model": "m", "output": "o", "texts": ["t"], "max_length": 192}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("query_max_length", -5), ("query_max_length", 0), ("query_max_length", 192), ("max_length", -1),
        ("max_length", 10**12), ("merge_layer", 0), ("merge_layer", -1), ("merge_layer", 20_000_000), ("exits", [0, 2]),
        ("exits", [4, 2]), ("exits", [2, 2]), ("exits", []), ("exits", [20_000_000]), ("seed", -1), ("seed", 2**40),
        ("train_group_size", 1), ("train_group_size", 10**12), ("groups_per_step", 0), ("groups_per_step", 10**12),
        ("save_steps", 0),
        ("length_parts", 10**12), ("sample", float("nan")),
        ("distill", {"epochs": float("inf")}), ("distill", {"epochs": 1e300}), ("distill", {"max_steps": 10**30}),
        ("distill", {"learning_rate": float("inf")}), ("distill", {"ratios": [2000]}),
        ("distill", {"lora": {"rank": 10**9}}), ("horizontal", {"ratios": [10**9]}),
        ("horizontal", {"lora": {"alpha": float("inf")}}),
    ],
)  # fmt: skip
def test_a_recipes_number_is_bounded(name: str, value: Any) -> None:
    FinetuneConfig.model_validate(RUN)
    with pytest.raises(ValidationError, match=name):
        FinetuneConfig.model_validate({**RUN, name: value})
    if name != "distill":
        with pytest.raises(ValidationError, match=name):
            SelfDistillConfig.model_validate(
                {"model": "m", "output": "o", "texts": ["t"], "max_length": 192, name: value}
            )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates", 0), ("candidates", -1), ("limit_queries", 0), ("max_length", 0), ("max_length", -1),
        ("max_length", 10**12), ("query_max_length", 0), ("query_max_length", -5), ("batch_tokens", 0),
        ("batch_tokens", 10**30), ("timing_pairs", 0), ("timing_pairs", 10**12), ("timing_repeats", 0),
        ("timing_repeats", 10**9), ("depth", (0,)), ("depth", (-1,)), ("keep_ratio", (0.0,)), ("keep_ratio", (1.5,)),
    ],
)  # fmt: skip
def test_an_evaluations_number_is_bounded(name: str, value: Any) -> None:
    field = {"depth": "depths", "keep_ratio": "keep_ratios"}.get(name, name)
    with pytest.raises(ValidationError, match=name):
        EvaluateConfig(collections=("c",), **{field: value})


def test_a_query_must_leave_space() -> None:
    with pytest.raises(ValidationError, match="query_max_length must lie below max_length"):
        EvaluateConfig(collections=("c",), max_length=64, query_max_length=64)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--merge-layer", "99"], "merge_layer=99 do not fit a model of 4 layers"),
        (["--merge-layer", "4"], "merge_layer=4 do not fit a model of 4 layers"),
        (["--exits", "2,99"], r"exits=(2, 99)"),
        (["--merge-layer", "0"], "--merge-layer"),
        (["--exits", "0,2"], "--exits"),
        (["--query-max-length", "-5"], "--query-max-length"),
        (["--query-max-length", "0"], "--query-max-length"),
    ],
)
def test_finetuning_refuses_layers_that_the_model_lacks(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    arguments = ["finetune", "--model", stock_encoder, "--train", toy_file, "--output", tmp_path / "out", *flags]
    result = CliRunner().invoke(cli.app, [str(word) for word in arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1, result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_zero_is_no_default(stock_encoder: Path) -> None:
    with pytest.raises(ValueError, match="merge_layer=0"):
        from_pretrained_backbone(stock_encoder, merge_layer=0)
    with pytest.raises(ValueError, match="exits"):
        from_pretrained_backbone(stock_encoder, exits=())
