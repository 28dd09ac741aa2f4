"""The command line: ``mrr rerank | evaluate | calibrate | finetune | flatten | mine | info``.

torch and transformers are imported inside the commands, so that ``mrr --help`` answers at once. What goes to stdout is
the result and nothing else. Wrong arguments and bad input are one line on stderr and exit code 2.
"""

import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mrr_model import __version__
from mrr_model.evaluation import commands
from mrr_model.reporting import reported, say

if TYPE_CHECKING:
    from rich.table import Table

    from mrr_model.checkpoint import Checkpoint
    from mrr_model.reranker import RankedDocument
    from mrr_model.training.settings import RunSettings

FREE_ARGUMENTS = {"allow_extra_args": True, "ignore_unknown_options": True}
TRAIN_EXTRA = 'pip install "matryoshka-reranker[train]"'
RATIOS = (1.0, 0.5, 0.25)
"""The keep ratios that ``mrr info`` compares."""

Settings = TypeVar("Settings", bound="RunSettings")

app = typer.Typer(
    name="mrr",
    help="Matryoshka Re-Ranker: one re-ranking model that runs at any depth and width.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class InputFormat(str, Enum):
    """How ``mrr rerank`` reads documents."""

    AUTO = "auto"
    TEXT = "text"
    JSONL = "jsonl"


class OutputFormat(str, Enum):
    """How ``mrr rerank`` writes the ranking."""

    AUTO = "auto"
    TABLE = "table"
    JSONL = "jsonl"


app.command()(commands.evaluate)
app.command()(commands.calibrate)


def main() -> None:
    """What the ``mrr`` script calls."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mrr {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def rerank(
    query: Annotated[str, typer.Option("--query", "-q", help="What the documents are ranked for.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|-",
            show_default=False,
            help='One document a line: plain texts, or JSON objects with "text" and, if you like, "title". '
            "- reads stdin, and so does leaving it out in a pipe.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="mini (shipped), a local folder or a hub id.")] = "mini",
    depth: Annotated[int | None, typer.Option(help="Run at most this many layers.", show_default="all layers")] = None,
    keep_ratio: Annotated[
        str,
        typer.Option(
            metavar="RATIO|LAYER:RATIO,…",
            help="The part of the passage tokens to keep: 0.5, or from each merge layer on: 8:0.5,16:0.25.",
        ),
    ] = "1.0",
    keep_quality: Annotated[
        float | None,
        typer.Option(help="In place of a setting: the quickest that keeps this share of quality.", show_default=False),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="In place of a setting: the best that is so many times as quick.", show_default=False),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="In place of a setting: the best that is done in time, on this device.", show_default=False),
    ] = None,
    refresh_timings: Annotated[
        bool, typer.Option("--refresh-timings", help="With --max-latency-ms: measure this device again.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say on stderr which setting runs, and why.")] = False,
    top_n: Annotated[int | None, typer.Option(help="Give at most this many.", show_default="all")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Give only what scores at least this.", show_default="all")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Instruction after the passage.", show_default="the model's, if it takes one")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Tokens of a pair.")] = 512,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a batch, padding counted.", show_default="by device")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Scores are raw logits, not probabilities.")] = False,
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")] = False,
    input_format: Annotated[
        InputFormat,
        typer.Option(help="auto: JSON lines if the file's name or its first line looks like it, else plain texts."),
    ] = InputFormat.AUTO,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="auto: a table on a terminal, JSON lines elsewhere.")
    ] = OutputFormat.AUTO,
) -> None:
    """Order documents from the best answer to the worst.

    JSON lines out are the input objects plus "index" (place in the input, from 0), "rank" (from 1) and "score".
    """
    with reported():
        documents = _read_documents(file, input_format)
        from mrr_model.reranker import MatryoshkaReranker
        from mrr_model.target import Target

        target = None
        if refresh_timings or (keep_quality, speedup, max_latency_ms) != (None, None, None):
            of_request: dict[str, Any] = {"refresh": refresh_timings}
            if max_latency_ms is not None:
                of_request["documents"] = max(1, len(documents))
            target = Target(keep_quality, speedup, max_latency_ms, **of_request)
        reranker = MatryoshkaReranker(
            model,
            depth=depth,
            keep_ratio=keep_ratio,
            target=target,
            device=device,
            dtype=dtype,
            max_length=max_length,
            prompt=prompt,
            normalize=not raw,
            batch_tokens=batch_tokens,
            local_files_only=local_files_only,
        )
        if explain:
            typer.echo(str(reranker.explain()), err=True)
        ranking = reranker.rank(query, [_text(row) for row in documents], top_n=top_n, min_score=min_score)
        if output_format is OutputFormat.TABLE or (output_format is OutputFormat.AUTO and sys.stdout.isatty()):
            _write_table(ranking, documents, f"{model}, {reranker.compression}")
        else:
            _write_json_lines(ranking, documents)


@app.command(add_help_option=False, context_settings=FREE_ARGUMENTS)
def finetune(context: typer.Context) -> None:
    """Train a re-ranker on groups of passages, from a stock model or a checkpoint: the whole recipe or some stages.

    Settings come from a YAML file, from flags, or from both. A run that was stopped goes on when it is called again.
    """
    with reported():
        _check_train_extra()
        from mrr_model.training import finetune as recipe
        from mrr_model.training.settings import FinetuneSettings

        _run_settings(context, FinetuneSettings, lambda settings: recipe.finetune(settings), "train")


@app.command(add_help_option=False, context_settings=FREE_ARGUMENTS)
def flatten(context: typer.Context) -> None:
    """Give a re-ranker that exists every smaller size, taught by its own scores on unlabelled texts.

    Takes a sequence-classification cross-encoder or a yes/no causal re-ranker. At full size it scores as before.
    """
    with reported():
        _check_train_extra()
        from mrr_model.training import flatten as flattening
        from mrr_model.training.settings import FlattenSettings

        _run_settings(context, FlattenSettings, lambda settings: flattening.flatten(settings), "texts", "model")


@app.command()
def mine(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE…", help="Rows of queries with positives, in any form that mrr finetune reads."),
    ],
    output: Annotated[Path, typer.Option(help="JSON-lines file to write, gzipped where it ends in .gz.")],
    encoder: Annotated[
        str | None,
        typer.Option(help="A bi-encoder for sentence-transformers: a folder or a hub id.", show_default="BM25"),
    ] = None,
    negatives: Annotated[int, typer.Option(help="Negatives of each query.")] = 7,
    depth: Annotated[int, typer.Option(help="They are drawn from the best so many.")] = 30,
    margin: Annotated[
        float, typer.Option(help="Leave out passages whose cosine is above this part of the positive's.")
    ] = 0.95,
    scores: Annotated[bool, typer.Option("--scores", help="Write the bi-encoder's cosines as teacher scores.")] = False,
    keep_identical: Annotated[
        bool,
        typer.Option(
            "--keep-identical", help="Let a query's own text, or its own id in a BEIR folder, be its negative."
        ),
    ] = False,
    on_bad_row: Annotated[
        str, typer.Option(metavar="fail|skip", help="What to do with a row that cannot be read.")
    ] = "fail",
    seed: Annotated[int, typer.Option(help="Decides the draw.")] = 0,
) -> None:
    """Find hard negatives with BM25 or with a bi-encoder.

    They come from the corpus of BEIR folders, and from all passages of other sources.
    """
    with reported():
        if on_bad_row not in ("fail", "skip"):
            raise ValueError(f"--on-bad-row must be fail or skip, got {on_bad_row!r}.")
        if output.exists():
            raise FileExistsError(f"output={str(output)!r} exists. Choose another file or remove it.")
        from mrr_model.training.groups import write_groups
        from mrr_model.training.mining import MiningSettings, mine_sources

        settings = MiningSettings(encoder, negatives, depth, margin, scores, seed, keep_identical)
        mined = mine_sources(sources, settings, on_bad_row="skip" if on_bad_row == "skip" else "fail")
        unfinished = output.with_name(f"unfinished-{output.name}")
        try:
            written = write_groups(unfinished, mined)
            unfinished.replace(output)
        finally:
            unfinished.unlink(missing_ok=True)
        left_out = f"; the query itself was left out for {mined.identical} of them" if mined.identical else ""
        typer.echo(f"{written} rows with {negatives} mined negatives each are in {output}{left_out}")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="mini (shipped), a local folder or a hub id.")] = "mini",
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")] = False,
) -> None:
    """Show what a checkpoint holds and what its sizes cost. Its weights are not loaded."""
    with reported():
        from rich.console import Console

        from mrr_model import checkpoint
        from mrr_model.checkpoint.source import locate

        folder = locate(model, local_files_only=local_files_only)
        loaded = checkpoint.load_outline(folder)
        console = Console()
        console.print(_facts(model, folder, loaded))
        console.print()
        console.print(_cost_table(loaded))


def _read_documents(file: Path | None, input_format: InputFormat) -> list[dict[str, Any]]:
    """The documents as JSON objects that hold "text"; blank lines are skipped."""
    if file is None and sys.stdin.isatty():
        raise ValueError("no documents: give a FILE, or pipe one document a line to stdin.")
    path = None if file is None or str(file) == "-" else file
    name = str(path or "stdin")
    try:
        content = sys.stdin.buffer.read() if path is None else path.read_bytes()
        lines = io.StringIO(content.decode("utf-8-sig"), newline=None)  # only line feeds and carriage returns end lines
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is no UTF-8 text: {error}.") from None
    numbered = [(f"{name}:{number}", line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]
    if input_format is InputFormat.AUTO:
        as_json = Path(name).suffix in (".json", ".jsonl") or (bool(numbered) and _is_json_object(numbered[0][1]))
    else:
        as_json = input_format is InputFormat.JSONL
    return [_json_document(place, line) if as_json else {"text": line} for place, line in numbered]


def _is_json_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def _json_document(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: expected one JSON object a line, but this is not JSON: {error}.") from None
    if not isinstance(row, dict):
        raise ValueError(f"{place}: expected one JSON object a line, got {type(row).__name__}.")
    if not isinstance(row.get("text"), str):
        raise ValueError(
            f'{place}: expected a string under "text"; the keys are {", ".join(map(repr, row)) or "none"}.'
        )
    if not isinstance(row.get("title"), str | None):
        raise ValueError(f'{place}: expected a string under "title", got {type(row["title"]).__name__}.')
    return row


def _text(document: dict[str, Any]) -> str:
    """What is scored: title and text joined by one space, the one alone where the other is empty."""
    return " ".join(part for part in (document.get("title"), document["text"]) if part)


def _write_json_lines(ranking: "Sequence[RankedDocument]", documents: Sequence[dict[str, Any]]) -> None:
    for rank, ranked in enumerate(ranking, 1):
        row = {**documents[ranked.index], "index": ranked.index, "rank": rank, "score": ranked.score}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        # JSON is UTF-8, whatever the terminal's encoding; half a surrogate pair stays the escape that it came as.
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace"))


def _write_table(ranking: "Sequence[RankedDocument]", documents: Sequence[dict[str, Any]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    named = any("id" in row or "_id" in row for row in documents)
    table = Table(title=Text(title), title_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id" if named else "index", justify="left" if named else "right", no_wrap=True)
    table.add_column("text")
    for rank, ranked in enumerate(ranking, 1):
        row = documents[ranked.index]
        identifier = row.get("_id", row.get("id", ranked.index))
        start = ranked.text[: 4 * console.width]
        shown = " ".join("".join(letter if letter.isprintable() else " " for letter in start).split())
        table.add_row(
            str(rank), f"{ranked.score:.4f}", Text(str(identifier)), Text(shown, no_wrap=True, overflow="ellipsis")
        )
    console.print(table)


def _check_train_extra() -> None:
    if find_spec("accelerate") is None:
        raise ValueError(f"training needs accelerate, which is not installed: {TRAIN_EXTRA}")


def _run_settings(
    context: typer.Context,
    settings: "type[Settings]",
    run: "Callable[[Settings], Path]",
    repeated: str,
    leading: str | None = None,
) -> None:
    """Run a command whose flags are the fields of ``settings``.

    The settings lie beside torch: flags are made once the command is chosen.
    """
    from mrr_model.flags import flags_of

    def train(checked: "Settings") -> None:
        try:
            with redirect_stdout(sys.stderr):  # the Trainer prints its losses
                folder = run(checked)
        except KeyboardInterrupt:
            say("stopped", f"the same command goes on from the last save in {checked.output}.")
            raise typer.Exit(130) from None
        if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
            typer.echo(f"The trained re-ranker is in {folder}")

    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    command.command(help=context.command.help)(
        flags_of(settings, train, lambda line: say("error", line), repeated, leading)
    )
    raise typer.Exit(command(context.args, prog_name=context.command_path, standalone_mode=False) or 0)


def _facts(name: str, folder: Path, loaded: "Checkpoint") -> "Table":
    from rich.table import Table
    from rich.text import Text

    model, matryoshka = loaded.model, loaded.model.matryoshka
    layout = matryoshka.layout
    pieces = [piece if "{" in piece else repr(piece) for piece in (*layout.query, *layout.passage, *layout.prompt)]
    facts = {
        "model": name if Path(name) == folder else f"{name} ({folder})",
        "backbone": f"{model.config.model_type}, hidden size {model.config.hidden_size}",
        "layers": str(model.num_layers),
        "exits": _listed(matryoshka.exits),
        "merge layers": _listed(matryoshka.merge_layers),
        "default merge layer": str(matryoshka.default_merge_layer) if matryoshka.merge_layers else "none",
        "merge weights": matryoshka.merge_weights,
        "head": f"{matryoshka.head}, one per exit",
        "layout": " ".join(pieces),
        "prompt": layout.default_prompt or "none",
        "adapters": ", ".join(loaded.adapters) or "none",
        "weights": _stored_weights(folder),
        "profile": _profile_fact(loaded),
        "calibration": _calibration_fact(loaded),
    }
    table = Table.grid(padding=(0, 2))
    for label, fact in facts.items():
        table.add_row(Text(label, style="bold"), Text(fact))
    return table


def _profile_fact(loaded: "Checkpoint") -> str:
    profile = loaded.profile
    if profile is None:
        return "none: mrr evaluate MODEL COLLECTION --save-profile"
    return f"{len(profile.points)} settings on {', '.join(profile.collections)}, timed on {profile.device}"


def _calibration_fact(loaded: "Checkpoint") -> str:
    calibration = loaded.calibration
    if calibration is None:
        return "none: mrr calibrate MODEL COLLECTION"
    return f"{len(calibration.settings)} settings on {calibration.data}"


def _stored_weights(folder: Path) -> str:
    """How many numbers of which format the checkpoint's files hold, by their headers."""
    from math import prod

    from mrr_model.checkpoint.weights import read_headers

    counts: dict[str, int] = {}
    for stored in read_headers(folder).values():
        counts[stored.format] = counts.get(stored.format, 0) + prod(stored.shape)
    return ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items())


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _cost_table(loaded: "Checkpoint") -> "Table":
    """The share of full-size computation at up to five exits and three keep ratios."""
    from rich.table import Table

    from mrr_model.reranker import MatryoshkaReranker

    reranker = MatryoshkaReranker(loaded, max_length=min(512, loaded.model.backbone.max_tokens or 512))
    last = len(reranker.exits) - 1
    depths = sorted({reranker.exits[round(last * step / 4)] for step in range(5)}, reverse=True)
    ratios = RATIOS if reranker.merge_layers else RATIOS[:1]
    full = reranker.cost(depth=None, keep_ratio=1.0)
    table = Table(
        title="share of full-size computation",
        title_justify="left",
        caption=f"full size: {full / 1e9:.2f} GFLOP a pair of 32 + 192 tokens",
        caption_justify="left",
    )
    table.add_column("depth", justify="right")
    for ratio in ratios:
        table.add_column(f"keep ratio {ratio:g}", justify="right")
    for depth in depths:
        shares = [reranker.cost(depth=depth, keep_ratio=ratio) / full for ratio in ratios]
        table.add_row(str(depth), *(f"{share:.0%}" for share in shares))
    return table
