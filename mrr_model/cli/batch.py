"""`mrr batch`: files of rows in, the same rows with scores out."""

import sys

import typer

from mrr_model.bulk.config import BatchConfig
from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import say
from mrr_model.opening import check_setting


@flags_of(BatchConfig)
def batch(config: BatchConfig) -> None:
    """Score the rows, and say what is in the output folder."""
    check_setting(config)
    from mrr_model.batch import rerank_files

    try:
        report = rerank_files(config, note=_note)
    except KeyboardInterrupt:
        command = "the same command without --overwrite" if config.overwrite else "the same command"
        say("stopped", f"run {command} to resume from {config.output}.")
        raise
    if not report.parts:
        say("warning", "the inputs hold no rows.")
    if report.skipped:
        left = "1 row was" if report.skipped == 1 else f"{report.skipped:,} rows were"
        say("warning", f"{left} left out; {config.output}/_skipped.jsonl says which and why.")
    typer.echo(f"{report.rows:,} rows with {report.pairs:,} scores are in {config.output}")


def _note(message: str) -> None:
    """A line about progress, on a terminal only."""
    if sys.stderr.isatty():
        typer.echo(message, err=True)
