"""The command line: `mrr rerank | serve | batch | info | evaluate | calibrate | mine | finetune | self-distill`.

Each command here holds its help and returns its function, which is loaded when the command is called: `mrr --help`
imports neither torch nor pydantic, and a command's help no torch. Only results go to stdout. Wrong arguments and bad
input are one line on stderr and exit code 2.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from mrr_model.cli.command import Group, loaded_later

Flags = Callable[..., None]
"""A function for typer with the flags of a command."""

app = typer.Typer(
    name="mrr",
    help="Matryoshka Re-Ranker: one re-ranking model that runs at any depth and width.",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    app(prog_name="mrr")


def _print_version(wanted: bool) -> None:
    if wanted:
        from mrr_model import __version__

        typer.echo(f"mrr {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def _command(load: Callable[[], Flags]) -> Callable[[], Flags]:
    """Add a command. Help lists commands in the order of their use, which is the order here."""
    app.command(cls=loaded_later(load))(load)
    return load


@_command
def rerank() -> Flags:
    """Order documents from the best answer to the worst.

    Writes JSON lines: each input object plus "index" (its position in the input, from 0), "rank" (from 1) and "score".
    With a cascade or a deadline, "depth" is the exit that the score was read at; with --long-documents max, "span" has
    the characters of the text in the best window. Fields with these names in the input come back as "input_index",
    "input_rank" and so on.
    """
    from mrr_model.cli import rerank

    return rerank.rerank


@_command
def serve() -> Flags:
    """Serve a model over HTTP to the clients of Cohere, Jina, Voyage, vLLM and text-embeddings-inference.

    A page to try it is at /, the routes at /docs. Ctrl-C and SIGTERM finish the requests that were accepted; a second
    Ctrl-C does not. The environment variable MRR_API_KEY holds keys with commas between them and, unlike --api-key,
    does not show in the list of processes.
    """
    from mrr_model.cli import serve

    return serve.serve


@_command
def batch() -> Flags:
    """Score files of millions of pairs, on this machine or on a Ray cluster.

    Writes the input's rows with "score", and with "rank" where documents are ranked, to the output folder, a file per
    partition. Fields with these names in the input come back as "input_score" and "input_rank". Call it again to resume
    a run that was stopped.
    """
    from mrr_model.cli import batch

    return batch.batch


@_command
def info() -> Flags:
    """Show how a model opens, what it holds and what its sizes cost. Its weights are not loaded."""
    from mrr_model.cli import info

    return info.info


@_command
def evaluate() -> Flags:
    """Measure what each depth and width keeps and costs, and draw the frontier.

    Writes TREC runs, each query's metrics, results.json, table.md and frontier.png to the output folder. Call it again
    to resume an interrupted evaluation.
    """
    from mrr_model.cli import evaluate

    return evaluate.evaluate


@_command
def calibrate() -> Flags:
    """Fit a map from logits to probabilities for each setting, so that one min_score means the same at all of them.

    Stores the maps in the checkpoint. Prints how reliable the probabilities are with the raw logits, with full size's
    map for all settings, and with each setting's own map.
    """
    from mrr_model.cli import evaluate

    return evaluate.calibrate


@_command
def mine() -> Flags:
    """Find hard negatives with BM25 or with a bi-encoder.

    They come from the corpus of a BEIR folder, and from all passages of any other source.
    """
    from mrr_model.cli import train

    return train.mine


@_command
def finetune() -> Flags:
    """Train a re-ranker on groups of passages, from a stock model or a checkpoint.

    Options come from a YAML file, from flags, or from both. Call it again to resume an interrupted run.
    """
    from mrr_model.cli import train

    return train.finetune


@_command
def self_distill() -> Flags:
    """Give an existing re-ranker smaller sizes, taught by its own scores. No labels needed.

    Takes any re-ranker that opens. At full size it scores as before.
    """
    from mrr_model.cli import train

    return train.self_distill
