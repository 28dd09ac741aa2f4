"""`mrr evaluate` and `mrr calibrate`."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer
from pydantic import model_validator
from typing_extensions import Self

from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import say
from mrr_model.evaluation.config import CalibrateConfig, EvaluateConfig, GridConfig
from mrr_model.validation.config import Flag

if TYPE_CHECKING:
    from mrr_model.selection.profile import Profile
    from mrr_model.selection.target import Target


class EvaluateCommand(EvaluateConfig):
    """The flags of `mrr evaluate`: an evaluation, what to recommend, and what to store."""

    help_first: ClassVar[tuple[str, ...]] = (*EvaluateConfig.help_first, "keep_quality", "speedup")

    keep_quality: float | None = None
    """Recommend a setting that keeps this share of quality."""
    speedup: float | None = None
    """Recommend a setting that is this many times faster."""
    save_profile: bool = False
    """Store quality and time with the checkpoint, for Target(…)."""
    save_calibration: bool = False
    """Fit maps to probabilities and store them, as mrr calibrate does."""
    save_to: Annotated[Path | None, Flag(metavar="FOLDER", default="the model's own folder")] = None
    """Store with a copy of the checkpoint in this folder."""

    @model_validator(mode="after")
    def _check_stored(self) -> Self:
        stored = self.save_profile or self.save_calibration
        if self.save_to is not None and not stored:
            raise ValueError("--save-to says where to store: give --save-profile or --save-calibration with it")
        if self.without_compensation and stored:
            raise ValueError("--without-compensation measures what the checkpoint does not run: it cannot be stored")
        return self


class CalibrateCommand(CalibrateConfig):
    """The flags of `mrr calibrate`: a calibration, and where to store it."""

    help_first: ClassVar[tuple[str, ...]] = ("texts", "held_out", "output", "dry_run", "save_to")

    dry_run: bool = False
    """Fit and report, but store nothing."""
    save_to: Annotated[Path | None, Flag(metavar="FOLDER", default="the model's own folder")] = None
    """Store with a copy of the checkpoint in this folder."""


@flags_of(EvaluateCommand)
def evaluate(config: EvaluateCommand) -> None:
    """Evaluate, print the table and the recommendations, and store what the flags name."""
    from mrr_model.evaluation.evaluate import evaluate as run_evaluation
    from mrr_model.evaluation.store import checkpoint_folder
    from mrr_model.evaluation.store import save_profile as store_profile

    targets = _targets(config.keep_quality, config.speedup)
    folder = None
    if config.save_profile or config.save_calibration:
        folder = checkpoint_folder(config.model, config.save_to, local_files_only=config.local_files_only)
    with _resumable(config.output):
        result = run_evaluation(config, _note)
    typer.echo(result.markdown())
    typer.echo()
    for target in targets:
        typer.echo(_recommended(target, result.profile))
    typer.echo(f"runs, queries, results.json, table.md and frontier.png are in {config.output}")
    if config.save_profile and folder is not None:
        store_profile(folder, result.profile, result.markdown(), result.weights)
        _warn(result.profile.cautions)
        typer.echo(f"the profile is stored in {folder}")
    if config.save_calibration:
        given = config.model_dump(include=set(GridConfig.model_fields))
        with _resumable(config.output):
            _calibrate(CalibrateConfig(**given), folder, config)


@flags_of(CalibrateCommand)
def calibrate(config: CalibrateCommand) -> None:
    """Fit the maps, print how reliable they are, and store them."""
    from mrr_model.evaluation.store import checkpoint_folder

    folder = None
    if not config.dry_run:
        folder = checkpoint_folder(config.model, config.save_to, local_files_only=config.local_files_only)
    with _resumable(config.output):
        _calibrate(config, folder)


def _calibrate(config: CalibrateConfig, folder: Path | None, evaluation: EvaluateConfig | None = None) -> None:
    """Fit and report; store the maps if there is a folder for them. Logits of a given evaluation are used again."""
    from mrr_model.calibration.reliability import error_table
    from mrr_model.evaluation.calibrate import calibrate_model
    from mrr_model.evaluation.store import save_calibration

    scored = evaluation or _as_evaluation(config)
    made = calibrate_model(scored, texts=config.texts, held_out=config.held_out, report_to=_note)
    for name, report in made.reports.items():
        typer.echo(f"\n{name}\n\n{report.markdown()}")
    if made.reports:
        typer.echo("\nbefore / full size's map for all / own map; in brackets: pairs that reach the threshold")
    if folder is not None:
        table = error_table(made.reports) if made.reports else ""
        save_calibration(folder, made.calibration, table, made.weights)
        _warn(made.calibration.cautions)
        typer.echo(f"{len(made.calibration.settings)} maps are stored in {folder}")


def _as_evaluation(config: CalibrateConfig) -> EvaluateConfig:
    given = config.model_dump(include=set(GridConfig.model_fields))
    if config.texts is not None:
        given["collections"] = (str(config.texts),)
    return EvaluateConfig(**given)


@contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """Say how to resume after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        say("stopped", f"run the same command to resume from {output}.")
        raise


def _warn(cautions: tuple[str, ...]) -> None:
    for caution in cautions:
        say("warning", caution)


def _targets(keep_quality: float | None, speedup: float | None) -> "list[Target]":
    from mrr_model.selection.target import Target

    targets = [] if keep_quality is None else [Target(keep_quality=keep_quality)]
    return targets if speedup is None else [*targets, Target(speedup=speedup)]


def _recommended(target: "Target", profile: "Profile") -> str:
    from mrr_model.selection.choose import choose_by_profile

    try:
        chosen = choose_by_profile(target, profile)
    except ValueError as error:
        return f"{target!r}: {error}"
    return f"{target!r}: {chosen.setting}, {chosen.reason}"


def _note(message: str) -> None:
    """A line about progress, on a terminal only."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)
