"""``mrr evaluate`` and ``mrr calibrate``. What they need is imported inside, so that ``mrr --help`` answers at once."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mrr_model.cli.command import ADVANCED
from mrr_model.cli.reporting import reported, say

if TYPE_CHECKING:
    from mrr_model.evaluation.config import EvaluateConfig
    from mrr_model.selection.profile import Profile

NAMES = {
    "model": "MODEL",
    "collections": "COLLECTION",
    "depths": "--depth",
    "keep-ratios": "--keep-ratio",
    "metrics": "--measure",
}
"""What the settings are called on the command line, where it is not their own name."""

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="mini (shipped), a local folder or a hub id.", show_default=False)
]
Collections = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="COLLECTION…",
        show_default=False,
        help="BEIR folders (FOLDER or FOLDER#SPLIT), names (beir/scifact/test, BeIR/scifact) or TREC files "
        "(qrels=FILE,queries=FILE,corpus=FILE,run=FILE).",
    ),
]
Depth = Annotated[
    str | None, typer.Option(metavar="N,N,…", help="Depths of the grid.", show_default="up to five of the exits")
]
KeepRatio = Annotated[
    list[str] | None,
    typer.Option(
        metavar="R,R,…|LAYER:R,…",
        help="Keep ratios of the grid: 1,0.5,0.25; or one with several merges, 8:0.5,16:0.25. Repeatable.",
        show_default="1,0.5,0.25",
    ),
]
Grid = Annotated[
    Path | None,
    typer.Option("--settings", help="YAML list of {depth, keep_ratio}, instead of the grid.", show_default=False),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        metavar="msmarco-passage|msmarco-document|beir",
        help="Measures, first stage and lengths of a published protocol.",
        show_default=False,
    ),
]
Stage = Annotated[
    str | None,
    typer.Option(metavar="auto|given|bm25", help="Where candidates come from.", show_default="auto: given, else bm25"),
]
GivenRun = Annotated[
    Path | None,
    typer.Option("--run", help="TREC run with the candidates, for a single collection.", show_default=False),
]
Candidates = Annotated[int | None, typer.Option(help="Candidates to re-rank per query.", show_default="100")]
Limit = Annotated[int | None, typer.Option(help="Queries to sample from each collection.", show_default="all")]
KeepIdentical = Annotated[
    bool,
    typer.Option("--keep-identical-ids", help="Keep a candidate whose id is its query's own; BEIR leaves it out."),
]
Seed = Annotated[int, typer.Option(help="Seed of the random draws.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens per pair.", show_default="512", rich_help_panel=ADVANCED)]
QueryMaxLength = Annotated[
    int | None, typer.Option(help="Tokens per query.", show_default="the template's rule", rich_help_panel=ADVANCED)
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="Instruction after the passage.", show_default="the preset's or the model's", rich_help_panel=ADVANCED
    ),
]
Dtype = Annotated[
    str,
    typer.Option(metavar="auto|float32|bfloat16|float16", help="Number format of the model.", rich_help_panel=ADVANCED),
]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps …", rich_help_panel=ADVANCED)]
BatchTokens = Annotated[
    int | None, typer.Option(help="Tokens per batch.", show_default="by device", rich_help_panel=ADVANCED)
]
Local = Annotated[
    bool, typer.Option("--local-files-only", help="Never ask the hub for the model.", rich_help_panel=ADVANCED)
]
SaveTo = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Store it with a copy of the checkpoint in this folder.",
        show_default="the model's own folder",
    ),
]


def evaluate(
    model: Model,
    collections: Collections = None,
    output: Annotated[
        Path, typer.Option(help="Folder for runs, tables and pictures; the same command resumes from it.")
    ] = Path("evaluation"),
    depth: Depth = None,
    keep_ratio: KeepRatio = None,
    settings: Grid = None,
    preset: PresetName = None,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,…",
            help="Names in ir_measures; the first one is drawn in the frontier.",
            show_default="nDCG@10, or the preset's",
        ),
    ] = None,
    first_stage: Stage = None,
    run: GivenRun = None,
    candidates: Candidates = None,
    limit_queries: Limit = None,
    keep_identical_ids: KeepIdentical = False,
    seed: Seed = 0,
    keep: Annotated[
        float | None, typer.Option(help="Recommend a setting that keeps this share of quality.", show_default=False)
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Recommend a setting that is this many times faster.", show_default=False)
    ] = None,
    save_profile: Annotated[
        bool, typer.Option("--save-profile", help="Store quality and time with the checkpoint, for Target(…).")
    ] = False,
    save_calibration: Annotated[
        bool, typer.Option("--save-calibration", help="Fit maps to probabilities and store them, as mrr calibrate.")
    ] = False,
    save_to: SaveTo = None,
    max_length: MaxLength = None,
    query_max_length: QueryMaxLength = None,
    prompt: Prompt = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    timing_pairs: Annotated[int, typer.Option(help="Pairs to time each setting on, at least.")] = 200,
    timing_repeats: Annotated[int, typer.Option(help="Repetitions; the median is reported.")] = 5,
    retime: Annotated[
        bool, typer.Option("--retime", help="Time again, even if the output folder has the settings' times.")
    ] = False,
    without_compensation: Annotated[
        bool, typer.Option("--without-compensation", help="Leave the adapters off.")
    ] = False,
    local_files_only: Local = False,
) -> None:
    """Measure what each depth and width keeps and costs, and draw the frontier.

    Writes TREC runs, each query's measures, results.json, table.md and frontier.png to the output folder. Call it
    again to resume an evaluation that was stopped.
    """
    with reported():
        from mrr_model.evaluation.evaluate import evaluate as run_evaluation
        from mrr_model.evaluation.store import checkpoint_folder
        from mrr_model.evaluation.store import save_profile as store_profile

        targets = _targets(keep, speedup)
        asked = _settings(
            model=model, collections=tuple(collections or ()), output=output, depths=_depths(depth),
            keep_ratios=_ratios(keep_ratio), settings=settings, preset=preset, metrics=_names(measure),
            first_stage=first_stage, run=run, candidates=candidates, limit_queries=limit_queries, seed=seed,
            max_length=max_length, query_max_length=query_max_length, prompt=prompt, dtype=dtype, device=device,
            batch_tokens=batch_tokens, timing_pairs=timing_pairs, timing_repeats=timing_repeats,
            without_compensation=without_compensation, local_files_only=local_files_only,
            ignore_identical_ids=False if keep_identical_ids else None, retime=retime,
        )  # fmt: skip
        if save_to is not None and not (save_profile or save_calibration):
            raise ValueError("--save-to names where to store: give --save-profile or --save-calibration with it.")
        if without_compensation and (save_profile or save_calibration):
            raise ValueError("--without-compensation measures what the checkpoint does not run: it cannot be stored.")
        folder = None
        if save_profile or save_calibration:
            folder = checkpoint_folder(model, save_to, local_files_only=local_files_only)
        try:
            result = run_evaluation(asked, _note)
        except KeyboardInterrupt:
            say("stopped", f"run the same command to resume from what is in {output}.")
            raise
        typer.echo(result.markdown())
        typer.echo()
        for target in targets:
            typer.echo(_recommended(target, result.profile))
        typer.echo(f"runs, queries, results.json, table.md and frontier.png are in {output}")
        if save_profile and folder is not None:
            store_profile(folder, result.profile, result.markdown(), result.weights)
            _warn(result.profile.cautions)
            typer.echo(f"the profile is stored in {folder}")
        if save_calibration:
            _calibrate(asked, folder, None, ())


def calibrate(
    model: Model,
    collections: Collections = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Unlabelled pairs in the collections' place, as mrr self-distill takes them: every setting learns "
            "full size's probabilities.",
            show_default=False,
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(metavar="COLLECTION", help="Measure on it too, without fitting on it. Repeatable."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for what is scored; the same command resumes from it.")] = Path(
        "evaluation"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Fit and report, but store nothing.")] = False,
    save_to: SaveTo = None,
    depth: Depth = None,
    keep_ratio: KeepRatio = None,
    settings: Grid = None,
    preset: PresetName = None,
    first_stage: Stage = None,
    run: GivenRun = None,
    candidates: Candidates = None,
    limit_queries: Limit = None,
    keep_identical_ids: KeepIdentical = False,
    seed: Seed = 0,
    max_length: MaxLength = None,
    query_max_length: QueryMaxLength = None,
    prompt: Prompt = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    batch_tokens: BatchTokens = None,
    local_files_only: Local = False,
) -> None:
    """Fit a map from logits to probabilities for each setting, so that one min_score means the same at all of them.

    Stores the maps in the checkpoint and prints how reliable the probabilities are: the raw logits', full size's map
    for all, each setting's own.
    """
    with reported():
        from mrr_model.evaluation.store import checkpoint_folder

        if (texts is None) == (not collections and preset is None):
            raise ValueError("give collections with judgements, or --texts without, and not both.")
        folder = None if dry_run else checkpoint_folder(model, save_to, local_files_only=local_files_only)
        asked = _settings(
            model=model, collections=tuple(collections or () if texts is None else (str(texts),)), output=output,
            depths=_depths(depth), keep_ratios=_ratios(keep_ratio), settings=settings, preset=preset,
            first_stage=first_stage, run=run, candidates=candidates, limit_queries=limit_queries, seed=seed,
            max_length=max_length, query_max_length=query_max_length, prompt=prompt, dtype=dtype, device=device,
            batch_tokens=batch_tokens, local_files_only=local_files_only,
            ignore_identical_ids=False if keep_identical_ids else None,
        )  # fmt: skip
        try:
            _calibrate(asked, folder, texts, tuple(held_out or ()))
        except KeyboardInterrupt:
            say("stopped", f"run the same command to resume from what is in {output}.")
            raise


def _calibrate(asked: "EvaluateConfig", folder: Path | None, texts: Path | None, held_out: tuple[str, ...]) -> None:
    from mrr_model.calibration.reliability import error_table
    from mrr_model.evaluation.calibrate import calibrate_model
    from mrr_model.evaluation.store import save_calibration

    made = calibrate_model(asked, texts=texts, held_out=held_out, report_to=_note)
    for name, report in made.reports.items():
        typer.echo(f"\n{name}\n\n{report.markdown()}")
    if made.reports:
        typer.echo("\nbefore / full size's map for all / own map; in brackets how many pairs reach the threshold")
    if folder is not None:
        table = error_table(made.reports) if made.reports else ""
        save_calibration(folder, made.calibration, table, made.weights)
        _warn(made.calibration.cautions)
        typer.echo(f"{len(made.calibration.settings)} maps are stored in {folder}")


def _warn(cautions: tuple[str, ...]) -> None:
    for caution in cautions:
        say("warning", caution)


def _settings(**given: Any) -> "EvaluateConfig":
    """Raises ``ConfigError`` with a line for each fault, by the flags' names."""
    from pydantic import ValidationError

    from mrr_model.evaluation.config import EvaluateConfig
    from mrr_model.validation.config_errors import ConfigError, lines_of

    try:
        return EvaluateConfig(**given)
    except ValidationError as error:
        raise ConfigError(lines_of(error, name=_flag)) from None


def _flag(path: tuple[str, ...]) -> str:
    name = ".".join(path).replace("_", "-")
    return NAMES.get(name, f"--{name}")


def _targets(keep: float | None, speedup: float | None) -> list[Any]:
    from mrr_model.selection.target import Target

    targets = [] if keep is None else [Target(keep_quality=keep)]
    return targets if speedup is None else [*targets, Target(speedup=speedup)]


def _recommended(target: Any, profile: "Profile") -> str:
    from mrr_model.selection.choose import choose_by_profile

    try:
        chosen = choose_by_profile(target, profile)
    except ValueError as error:
        return f"{target!r}: {error}"
    return f"{target!r}: {chosen.setting}, {chosen.reason}"


def _depths(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--depth takes whole numbers, separated by commas; got {text!r}.") from None


def _ratios(texts: list[str] | None) -> tuple[str, ...] | None:
    """Each value is a list of plain ratios, or one ratio with several merges."""
    if not texts:
        return None
    return tuple(part for text in texts for part in ([text] if ":" in text else text.split(",")))


def _names(text: str | None) -> tuple[str, ...]:
    """Split at commas outside of brackets: measures may have arguments."""
    import re

    return tuple(part.strip() for part in re.split(r",(?![^()]*\))", text)) if text else ()


def _note(message: str) -> None:
    import sys

    if sys.stderr.isatty():
        typer.echo(message, err=True)
