"""Training's output: a line when a stage begins and ends, named losses, and in a terminal one bar per stage."""

import re
from pathlib import Path
from typing import Any

import pytest

from mrr_model.data.groups import Group, write_groups
from mrr_model.training import trainer as trainers
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.progress import tell
from mrr_model.training.recipe import finetune

FEW: dict[str, Any] = {"max_steps": 2}
NUMBER = r"\d[\d.e+-]*"


def run_config(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "train_group_size": 4, "max_length": 32,
        "save_steps": 1, "exits": (2, 4), "distill": {"max_steps": 4, "ratios": (2,)}, "vertical": FEW,
        "horizontal": FEW, "trainer": {"logging_steps": 2},
    }  # fmt: skip
    return FinetuneConfig(**{**fields, **changes})


def test_each_stage_prints_its_beginning_its_losses_and_its_end(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    finetune(run_config(stock_encoder, toy_file, tmp_path / "out"))
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    stages = ["distill", "vertical", "horizontal 1/2", "horizontal 1/4", "horizontal 1/8"]
    begins = [line for line in lines if line.endswith("steps on 48 rows")]
    assert begins == [
        f"{stage}, {number} of 5: {4 if stage == 'distill' else 2} steps on 48 rows"
        for number, stage in enumerate(stages, 1)
    ]
    ends = [line for line in lines if re.search(rf": done in 0:00:\d\d, mean loss {NUMBER}$", line)]
    assert [line.partition(",")[0] for line in ends] == stages
    exits = rf"exit 2 {NUMBER}, exit 4 {NUMBER}"
    parts = "; ".join(
        f"{part}/{width}: {exits}" for part in ("labels", "teacher") for width in ("full width", "narrow")
    )
    first = lines[lines.index(begins[0]) + 1]
    pattern = rf"distill, 1 of 5: step 2 of 4, 0:\d\d:\d\d left, loss {NUMBER}, learning rate {NUMBER}; {parts}"
    assert re.fullmatch(pattern, first), first
    assert not [line for line in lines if "{" in line or "%|" in line]


def test_a_terminal_shows_one_named_bar_for_each_stage(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = {"logging_steps": 2, "disable_tqdm": False}
    stages = ("distill", "vertical")
    finetune(run_config(stock_encoder, toy_file, tmp_path / "out", stages=stages, trainer=trainer))
    said = capfd.readouterr().err
    bars = re.findall(r"([^\r\n]*?)\s+\d+%\|", said)
    assert set(bars) == {"distill:", "vertical:"}
    assert "vertical, 2 of 2: 2 steps on 48 rows" in said


def test_left_out_rows_and_a_resumed_stage_are_printed(
    stock_encoder: Path,
    toy_rows: list[Group],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_groups(tmp_path / "rows.jsonl", [*toy_rows, Group("a runs", ("cat",))])
    whole = trainers.RankingTrainer.compute_loss

    def dies(self: trainers.RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    config = run_config(stock_encoder, tmp_path / "rows.jsonl", tmp_path / "out", stages=("distill",))
    with monkeypatch.context() as patch:
        patch.setattr(trainers.RankingTrainer, "compute_loss", dies)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    begins = "distill, 1 of 1: 4 steps on 48 rows (1 with too few passages left out)"
    assert begins in capfd.readouterr().err.splitlines()
    finetune(config)
    assert f"{begins}, resumed after step 3" in capfd.readouterr().err.splitlines()


def test_other_loggers_get_numbers(
    stock_encoder: Path, toy_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    whole = trainers.RankingTrainer.log

    def noting(self: trainers.RankingTrainer, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs)
        logged.append(self.state.log_history[-1])

    monkeypatch.setattr(trainers.RankingTrainer, "log", noting)
    horizontal = {**FEW, "ratios": (2,)}
    stages = ("distill", "horizontal")
    finetune(run_config(stock_encoder, toy_file, tmp_path / "out", stages=stages, horizontal=horizontal))
    assert all(isinstance(value, float | int) for line in logged for value in line.values())
    assert "labels/narrow/exit 4" in logged[0]


def test_only_the_main_process_prints(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    tell("nothing")
    monkeypatch.setenv("RANK", "0")
    tell("a line")
    assert capfd.readouterr().err == "a line\n"
