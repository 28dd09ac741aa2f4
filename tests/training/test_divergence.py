"""A run whose loss, gradients or weights are no longer finite ends with an error and keeps its last good state."""

import json
import multiprocessing
import os
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from mrr_model.data.groups import Group
from mrr_model.training import trainer as trainers
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.divergence import DivergenceError
from mrr_model.training.losses import distillation_loss
from mrr_model.training.recipe import finetune
from mrr_model.training.self_distill import self_distill

STAGE: dict[str, Any] = {"learning_rate": 1e-3, "lora": {"rank": 2, "alpha": 4, "dropout": 0.0}}


def run_config(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "stages": ("distill",), "train_group_size": 4,
        "groups_per_step": 8, "max_length": 32, "save_steps": 2, "freeze_embeddings": False, "vertical": STAGE,
        "horizontal": {**STAGE, "ratios": (2,)},
    }  # fmt: skip
    return FinetuneConfig(**{**fields, **changes})


def saved(output: Path) -> list[str]:
    """The run's saves and the results of its stages."""
    files = [*output.rglob("checkpoint-*"), *(output / "steps").rglob("*.safetensors"), *output.glob("config.json")]
    return sorted({str(file.relative_to(output)) for file in files if "optimizer" not in file.name})


def all_finite(folder: Path) -> bool:
    tensors = [tensor for file in folder.rglob("*.safetensors") for tensor in load_file(file).values()]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`spoil(stage, step, how)`: after `step` updates, `how` changes the stage's loss."""
    whole = trainers.RankingTrainer.compute_loss

    def choose(stage: str, step: int, how: Any) -> None:
        def spoiled(self: trainers.RankingTrainer, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = whole(self, model, *args, **kwargs)
            at = Path(str(self.args.output_dir)).name == stage and self.state.global_step >= step
            return how(loss, model) if at else loss

        monkeypatch.setattr(trainers.RankingTrainer, "compute_loss", spoiled)

    return choose


class BadGradient(torch.autograd.Function):
    """A finite number whose gradient is not."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * torch.inf


def spoil_a_weight(loss: Tensor, model: Any) -> Tensor:
    """The embedding of a word that no row holds: losses and gradients stay finite."""
    model.model.get_input_embeddings().weight.data[-1] = torch.nan
    return loss


@pytest.mark.parametrize(
    ("part", "how"),
    [
        ("loss is", lambda loss, _: loss * torch.nan),
        ("loss is", lambda loss, _: loss * torch.inf),
        ("gradients are", lambda loss, _: BadGradient.apply(loss)),
        ("weights are", spoil_a_weight),
    ],
)
def test_the_run_stops_and_keeps_its_last_good_state(
    part: str, how: Any, stock_encoder: Path, toy_file: Path, tmp_path: Path, spoil: Any
) -> None:
    spoil("distill", 3, how)
    with pytest.raises(DivergenceError) as error:
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out"))
    assert f"distill, 1 of 1: training diverged at step 4 of 6: the {part} not finite" in str(error.value)
    assert "the last good state is" in str(error.value)
    assert "lower --distill-learning-rate (now 0.0002)" in str(error.value)
    assert [name for name in saved(tmp_path / "out") if name.endswith("2")] == ["steps/distill/checkpoint-2"]
    assert not list((tmp_path / "out").rglob("checkpoint-4"))
    assert not (tmp_path / "out" / "steps" / "distilled").exists()
    assert all_finite(tmp_path / "out")
    with pytest.raises(DivergenceError, match="diverged at step 4 of 6"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out"))


@pytest.mark.parametrize("stage", ["vertical", "horizontal_1_2"])
def test_a_later_stage_that_diverges_leaves_the_finished_ones(
    stage: str, stock_encoder: Path, toy_file: Path, tmp_path: Path, spoil: Any
) -> None:
    spoil(stage, 3, lambda loss, _: loss * torch.nan)
    with pytest.raises(DivergenceError, match=f"--{stage.split('_')[0]}-learning-rate"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out", stages=("distill", "vertical", "horizontal")))
    kept = saved(tmp_path / "out")
    assert "steps/distilled/model.safetensors" in kept
    assert ("steps/compensation/vertical.safetensors" in kept) == (stage != "vertical")
    assert f"steps/{stage}/checkpoint-2" in kept
    assert all_finite(tmp_path / "out")


@pytest.mark.parametrize("changes", [{"bf16": True}, {"trainer": {"gradient_accumulation_steps": 2}}])
def test_a_learning_rate_without_bounds_is_no_success(
    changes: dict[str, Any], stock_encoder: Path, toy_file: Path, tmp_path: Path
) -> None:
    high = {"learning_rate": 1e30, "warmup": 0.0}
    with pytest.raises(DivergenceError, match="training diverged at step"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out", distill=high, **changes))
    assert not (tmp_path / "out" / "config.json").exists()
    assert all_finite(tmp_path / "out")


def test_one_batch_of_an_update_is_enough(stock_encoder: Path, toy_file: Path, tmp_path: Path, spoil: Any) -> None:
    calls: list[int] = []

    def third(loss: Tensor, _: Any) -> Tensor:
        calls.append(0)
        return loss * torch.nan if len(calls) == 3 else loss

    spoil("distill", 0, third)
    with pytest.raises(DivergenceError, match="at step 2 of"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "o", trainer={"gradient_accumulation_steps": 2}))


def test_a_model_that_is_not_finite_is_named_as_the_cause(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, spoil: Any
) -> None:
    spoil("distill", 0, lambda loss, _: loss * torch.nan)
    with pytest.raises(DivergenceError, match=r"step 1 of 6.*saved nothing yet.*It was the first step"):
        finetune(run_config(stock_encoder, toy_file, tmp_path / "out"))


def test_self_distillation_stops_too(toy_rows: list[Group], tmp_path: Path, spoil: Any, cross_encoder: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    rows = [{"query": row.query, "documents": [*row.positives, *row.negatives]} for row in toy_rows]
    texts.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    spoil("vertical", 2, lambda loss, _: loss * torch.nan)
    fields: dict[str, Any] = {"train_group_size": 4, "max_length": 32, "save_steps": 1, "vertical": STAGE}
    config = SelfDistillConfig(
        model=str(cross_encoder), texts=(str(texts),), output=tmp_path / "out", **fields,
    )  # fmt: skip
    with pytest.raises(DivergenceError, match="vertical, 1 of 4: training diverged at step 3 of 5"):
        self_distill(config)
    assert all_finite(tmp_path / "out")


def test_an_infinite_teacher_is_not_taken_for_none() -> None:
    logits, teacher = torch.zeros(1, 2, 1), torch.tensor([[[torch.inf], [0.0]]])
    assert distillation_loss(logits, teacher).isnan()
    assert distillation_loss(logits, teacher.masked_fill(teacher.isinf(), torch.nan)) == 0


def train_as(rank: int, port: int, config: FinetuneConfig, message: Path) -> None:
    """One of two processes of a run; only the second one's loss becomes NaN."""
    warnings.simplefilter("default")  # torch and accelerate warn about each other
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    whole = trainers.RankingTrainer.compute_loss

    def spoiled(self: trainers.RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = whole(self, *args, **kwargs)
        return loss * torch.nan if rank == 1 and self.state.global_step == 1 else loss

    trainers.RankingTrainer.compute_loss = spoiled  # type: ignore[method-assign]
    try:
        finetune(config)
    except DivergenceError as error:
        message.write_text(str(error), "utf-8")


def test_all_processes_stop_if_one_diverges(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = run_config(stock_encoder, toy_file, tmp_path / "out", groups_per_step=4, trainer={"ddp_backend": "gloo"})
    context = multiprocessing.get_context("fork")
    messages = [tmp_path / f"message-{rank}" for rank in (0, 1)]
    processes = [
        context.Process(target=train_as, args=(rank, port, config, file)) for rank, file in enumerate(messages)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [file.read_text("utf-8").partition(". ")[0] for file in messages] == [
        "distill, 1 of 1: training diverged at step 2 of 6: the loss is not finite"
    ] * 2
