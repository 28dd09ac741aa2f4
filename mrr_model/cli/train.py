"""`mrr mine`, `mrr finetune` and `mrr self-distill`."""

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from pydantic import Field

from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import say
from mrr_model.training.config import FinetuneConfig, MineConfig, RunConfig, SelfDistillConfig
from mrr_model.validation.config import Config, Flag

if TYPE_CHECKING:
    from mrr_model.evaluation.dev import HeldOut

TRAIN_EXTRA = 'pip install "matryoshka-reranker[train]"'

AnyRun = TypeVar("AnyRun", bound=RunConfig)


class DevConfig(Config):
    """Collections to measure on after training."""

    dev: Annotated[tuple[str, ...], Flag(metavar="COLLECTION")] = ()
    """Print nDCG@10 on this collection after training, at full size and at smaller sizes; in any form that mrr evaluate
    takes. Repeatable."""
    dev_queries: Annotated[int | None, Flag(default="all")] = Field(default=None, ge=1)
    """Queries to sample from each such collection."""


class FinetuneCommand(DevConfig, FinetuneConfig):
    """The flags of `mrr finetune`: the run's config, and what to measure on after it."""


class SelfDistillCommand(DevConfig, SelfDistillConfig):
    """The flags of `mrr self-distill`: the run's config, and what to measure on after it."""


@flags_of(MineConfig)
def mine(config: MineConfig) -> None:
    """Mine negatives for the rows of all sources and write them to one file."""
    output = config.output
    assert output is not None  # the command requires it
    if output.exists():
        raise FileExistsError(f"--output {str(output)!r} exists. Choose another file or remove it.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}. Make it first.")
    from mrr_model.data.groups import write_groups
    from mrr_model.training.mining import mine_sources

    mined = mine_sources(config.sources, config, on_bad_row=config.on_bad_row)
    unfinished = output.with_name(f"unfinished-{output.name}")
    try:
        written = write_groups(unfinished, mined)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    left_out = f"; the query itself was left out for {mined.identical} of them" if mined.identical else ""
    typer.echo(f"{written} rows with {config.negatives} mined negatives each are in {output}{left_out}")


@flags_of(FinetuneCommand, file=True)
def finetune(config: FinetuneCommand) -> None:
    """Train, then measure on the development collections."""
    _check_train_extra()
    from mrr_model.training import recipe

    _train(config, lambda: recipe.finetune(_run(config, FinetuneConfig)))


@flags_of(SelfDistillCommand, file=True)
def self_distill(config: SelfDistillCommand) -> None:
    """Train by the model's own scores, then measure on the development collections."""
    _check_train_extra()
    from mrr_model.training import self_distill

    _train(config, lambda: self_distill.self_distill(_run(config, SelfDistillConfig)))


def _check_train_extra() -> None:
    if find_spec("accelerate") is None:
        raise ValueError(f"training needs accelerate, which is not installed: {TRAIN_EXTRA}")


def _run(config: FinetuneCommand | SelfDistillCommand, run: type[AnyRun]) -> AnyRun:
    """The run's own config: what is measured after it must not keep a run from being resumed."""
    return run.model_validate(config.model_dump(exclude_unset=True, exclude=set(DevConfig.model_fields)))


def _train(config: FinetuneCommand | SelfDistillCommand, run: Callable[[], Path]) -> None:
    try:
        with redirect_stdout(sys.stderr):  # the Trainer prints its losses
            held_out = _held_out(config)
            folder = run()
            table = None if held_out is None else held_out.table(folder)
    except KeyboardInterrupt:
        say("stopped", f"run the same command to resume from the last save in {config.output}.")
        raise
    if table is not None:
        typer.echo(f"{table}\n")
    from mrr_model.training.progress import is_main_process

    if is_main_process():
        typer.echo(f"The trained re-ranker is in {folder}")


def _held_out(config: FinetuneCommand | SelfDistillCommand) -> "HeldOut | None":
    """The development collections, opened before training so that errors show first; in the main process only."""
    from mrr_model.training.progress import is_main_process

    if not config.dev or not is_main_process():
        return None
    from mrr_model.evaluation.dev import HeldOut

    return HeldOut(
        config.dev,
        limit_queries=config.dev_queries,
        seed=config.seed,
        max_length=config.max_length,
        query_max_length=config.query_max_length,
    )
