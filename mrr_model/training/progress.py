"""Training's output on stderr: a line when a stage begins and ends, its losses, and in a terminal a progress bar."""

import os
import sys
import time
from collections.abc import Mapping
from fractions import Fraction
from itertools import groupby
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrr_model.compression import horizontal_name
from mrr_model.training.config import RunConfig


def is_main_process() -> bool:
    """Whether this process prints: of several, the first."""
    return os.environ.get("RANK", "0") == "0"


def tell(line: str) -> None:
    """Write a line to stderr, above a progress bar; of several processes, only the main one writes."""
    if is_main_process():
        tqdm.write(line, file=sys.stderr)


def stage_title(config: RunConfig, name: str) -> str:
    """Name a stage, or the adapter that it trains, and count it among the run's: `horizontal 1/2, 3 of 5`."""
    names: list[str] = [stage for stage in config.run_stages if stage != "horizontal"]
    if "horizontal" in config.run_stages:
        names += [horizontal_name(Fraction(1, ratio)) for ratio in config.horizontal.ratios]
    shown = name.replace("_", " ", 1).replace("_", "/")
    return f"{shown}, {names.index(name) + 1} of {len(names)}"


class StageProgress(TrainerCallback):
    """A stage's lines and its progress bar, instead of the Trainer's own.

    Args:
        title: The stage and its number, such as `distill, 1 of 5`.
        rows: What it trains on, in words.
    """

    def __init__(self, title: str, rows: str) -> None:
        self.title = title
        self.rows = rows
        self._bar: Any = None
        self._began = 0.0
        self._first = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Print the length of the stage."""
        self._began, self._first = time.monotonic(), state.global_step
        resumed = f", resumed after step {state.global_step}" if state.global_step else ""
        tell(f"{self.title}: {state.max_steps} steps on {self.rows}{resumed}")
        if is_main_process() and not args.disable_tqdm:
            name = self.title.partition(",")[0]
            self._bar = tqdm(desc=name, total=state.max_steps, initial=self._first, unit="step", dynamic_ncols=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Print the stage's progress and losses; at its end, how long it took."""
        if logs and "loss" in logs:
            tell(f"{self.title}: step {state.global_step} of {state.max_steps}, {self._left(state)}{_losses(logs)}")
        elif logs and "train_loss" in logs:
            self.close()
            took = _duration(time.monotonic() - self._began)
            tell(f"{self.title}: done in {took}, mean loss {logs['train_loss']:.4g}")

    def close(self) -> None:
        """Remove the bar, however the stage ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _left(self, state: TrainerState) -> str:
        done = state.global_step - self._first
        if not done or state.global_step == state.max_steps:
            return ""
        left = (time.monotonic() - self._began) / done * (state.max_steps - state.global_step)
        return f"{_duration(left)} left, "


def _losses(logs: Mapping[str, float]) -> str:
    """The loss, the learning rate, and the exits' losses, grouped by name.

    >>> _losses({"loss": 1.5, "learning_rate": 2e-4, "labels/full width/exit 2": 0.75, "labels/full width/exit 4": 0.5})
    'loss 1.5, learning rate 0.0002; labels/full width: exit 2 0.75, exit 4 0.5'
    """
    parts = [f"loss {logs['loss']:.4g}"]
    if "learning_rate" in logs:
        parts.append(f"learning rate {logs['learning_rate']:.3g}")
    line = ", ".join(parts)
    of_exits = [name.rpartition("/") for name in logs if "/exit " in name]
    for shared, names in groupby(of_exits, key=lambda name: name[0]):
        values = ", ".join(f"{exit_name} {logs[f'{shared}/{exit_name}']:.4g}" for _, _, exit_name in names)
        line += f"; {shared}: {values}"
    return line


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(4210.4), _duration(9.7)
    ('1:10:10', '0:00:10')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
