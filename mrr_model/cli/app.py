"""The command line: ``mrr rerank | info | evaluate | calibrate | mine | finetune | self-distill``.

torch and transformers are imported inside the commands, so that ``mrr --help`` answers at once. What goes to stdout is
the result and nothing else. Wrong arguments and bad input are one line on stderr and exit code 2.
"""

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mrr_model.cli import evaluate as commands
from mrr_model.cli.command import ADVANCED, Command, Group, made_later
from mrr_model.cli.documents import Document, read_documents, well_formed, write_json_lines
from mrr_model.cli.reporting import need_output, reported, say

if TYPE_CHECKING:
    from rich.table import Table

    from mrr_model.checkpoint import Checkpoint
    from mrr_model.reranker import RankedDocument
    from mrr_model.selection.target import Target
    from mrr_model.training.config import RunConfig

TRAIN_EXTRA = 'pip install "matryoshka-reranker[train]"'
RATIOS = (1.0, 0.5, 0.25)
"""The keep ratios that ``mrr info`` compares."""

app = typer.Typer(
    name="mrr",
    help="Matryoshka Re-Ranker: one re-ranking model that runs at any depth and width.",
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
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


def rerank(
    query: Annotated[str, typer.Option("--query", "-q", help="What the documents are ranked for.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|-",
            show_default=False,
            help="One document per line, plain text or JSON objects; may be gzipped. - reads stdin, and so does "
            "leaving it out in a pipe.",
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="mini (shipped), a local folder or a hub id.")] = "mini",
    depth: Annotated[
        int | None, typer.Option(help="Run at most this many layers.", show_default="the model's, else all")
    ] = None,
    keep_ratio: Annotated[
        str | None,
        typer.Option(
            metavar="RATIO|LAYER:RATIO,…",
            help="Share of the passage tokens to keep: 0.5, or from each merge layer on: 8:0.5,16:0.25.",
            show_default="the model's, else 1",
        ),
    ] = None,
    keep_quality: Annotated[
        float | None,
        typer.Option(help="Instead of a setting: the fastest that keeps this share of quality.", show_default=False),
    ] = None,
    speedup: Annotated[
        float | None,
        typer.Option(help="Instead of a setting: the best that is this many times faster.", show_default=False),
    ] = None,
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="Instead of a setting: the best within this time on this device.", show_default=False),
    ] = None,
    if_unreachable: Annotated[
        str,
        typer.Option(metavar="raise|fastest", help="If no setting is fast enough: an error, or the fastest setting."),
    ] = "raise",
    refresh_timings: Annotated[
        bool, typer.Option("--refresh-timings", help="With --max-latency-ms: measure this device again.")
    ] = False,
    top_n: Annotated[int | None, typer.Option(help="Return at most this many.", show_default="all")] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Return only documents with at least this score.", show_default="all")
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help='Field of the JSON objects that is scored; their "title", if any, goes before it.',
            show_default="text",
        ),
    ] = None,
    input_format: Annotated[
        InputFormat,
        typer.Option(
            metavar="auto|text|jsonl", help="auto: JSON lines if the file's name or its first line looks like it."
        ),
    ] = InputFormat.AUTO,
    output_format: Annotated[
        OutputFormat,
        typer.Option("--format", metavar="auto|table|jsonl", help="auto: a table on a terminal, else JSON lines."),
    ] = OutputFormat.AUTO,
    explain: Annotated[bool, typer.Option("--explain", help="Say on stderr which setting runs, and why.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="Scores are raw logits, not probabilities.")] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="Instruction after the passage.",
            show_default="the model's, if it takes one",
            rich_help_panel=ADVANCED,
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens per pair.", show_default="the model's", rich_help_panel=ADVANCED)
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="auto|float32|bfloat16|float16", help="Number format of the model.", rich_help_panel=ADVANCED
        ),
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …", metavar="NAME", rich_help_panel=ADVANCED)
    ] = "auto",
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens per batch, padding counted.", show_default="by device", rich_help_panel=ADVANCED),
    ] = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help="Never ask the hub.", rich_help_panel=ADVANCED)
    ] = False,
) -> None:
    """Order documents from the best answer to the worst.

    Writes JSON lines: each input object plus "index" (its place in the input, from 0), "rank" (from 1) and "score".
    Fields of these names in the input come back as "input_index", "input_rank" and "input_score".
    """
    with reported():
        need_output()
        documents = read_documents(file, input_format.value, text_field)
        if not documents:
            say("warning", f"{'stdin' if file is None or str(file) == '-' else file} holds no documents.")
        from mrr_model.reranker import MatryoshkaReranker

        settings: dict[str, Any] = {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "target": _target(keep_quality, speedup, max_latency_ms, len(documents), if_unreachable, refresh_timings),
            "max_length": max_length,
            "prompt": None if prompt is None else well_formed(prompt),
            "batch_tokens": batch_tokens,
        }
        reranker = MatryoshkaReranker(
            model,
            device=device,
            dtype=dtype,
            normalize=not raw,
            local_files_only=local_files_only,
            **{name: value for name, value in settings.items() if value is not None},
        )
        if explain:
            typer.echo(str(reranker.explain()), err=True)
        texts = [document.text for document in documents]
        ranking = reranker.rank(well_formed(query), texts, top_n=top_n, min_score=min_score)
        if output_format is OutputFormat.TABLE or (output_format is OutputFormat.AUTO and sys.stdout.isatty()):
            _write_table(ranking, documents, f"{model}, {reranker.compression}")
        else:
            write_json_lines(ranking, documents)


def finetune() -> None:
    """Train a re-ranker on groups of passages, from a stock model or a checkpoint.

    Settings come from a YAML file, from flags, or from both. An interrupted run resumes when it is called again.
    """


def self_distill() -> None:
    """Teach an existing re-ranker every smaller size, by its own scores on unlabelled texts.

    Takes a sequence-classification cross-encoder or a yes/no causal re-ranker. At full size it scores as before.
    """


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
    negatives: Annotated[int, typer.Option(min=1, help="Negatives per query.")] = 7,
    depth: Annotated[int, typer.Option(min=1, help="Candidates per query that negatives are drawn from.")] = 30,
    margin: Annotated[
        float, typer.Option(help="Leave out passages whose cosine exceeds this share of the positive's.")
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random draw.")] = 0,
) -> None:
    """Find hard negatives with BM25 or with a bi-encoder.

    They come from the corpus of BEIR folders, and from all passages of other sources.
    """
    with reported():
        if on_bad_row not in ("fail", "skip"):
            raise ValueError(f"--on-bad-row must be fail or skip, got {on_bad_row!r}.")
        if output.exists():
            raise FileExistsError(f"--output {str(output)!r} exists. Choose another file or remove it.")
        if not output.parent.is_dir():
            raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}. Make it first.")
        from mrr_model.data.groups import write_groups
        from mrr_model.training.mining import MineConfig, mine_sources

        settings = MineConfig(encoder, negatives, depth, margin, scores, seed, keep_identical)
        mined = mine_sources(sources, settings, on_bad_row="skip" if on_bad_row == "skip" else "fail")
        unfinished = output.with_name(f"unfinished-{output.name}")
        try:
            written = write_groups(unfinished, mined)
            unfinished.replace(output)
        finally:
            unfinished.unlink(missing_ok=True)
        left_out = f"; the query itself was left out for {mined.identical} of them" if mined.identical else ""
        typer.echo(f"{written} rows with {negatives} mined negatives each are in {output}{left_out}")


def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="mini (shipped), a local folder or a hub id.")] = "mini",
    local_files_only: Annotated[bool, typer.Option("--local-files-only", help="Never ask the hub.")] = False,
) -> None:
    """Show what a checkpoint holds and what its sizes cost. Its weights are not loaded."""
    with reported():
        need_output()
        from rich.console import Console

        from mrr_model import checkpoint
        from mrr_model.checkpoint.hub import locate

        folder = locate(model, local_files_only=local_files_only)
        loaded = checkpoint.load_outline(folder)
        console = Console()
        console.print(_facts(model, folder, loaded))
        console.print()
        console.print(_cost_table(loaded))


def _target(
    keep_quality: float | None,
    speedup: float | None,
    max_latency_ms: float | None,
    documents: int,
    if_unreachable: str,
    refresh: bool,
) -> "Target | None":
    if if_unreachable not in ("raise", "fastest"):
        raise ValueError(f"--if-unreachable must be raise or fastest, got {if_unreachable!r}.")
    if not refresh and (keep_quality, speedup, max_latency_ms) == (None, None, None):
        if if_unreachable != "raise":
            raise ValueError("--if-unreachable goes with --speedup or --max-latency-ms. Leave it out.")
        return None
    needs = {"--keep-quality": keep_quality, "--speedup": speedup, "--max-latency-ms": max_latency_ms}
    given = [flag for flag, value in needs.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each choose a setting. Give only one of them.")
    if refresh and max_latency_ms is None:
        raise ValueError("--refresh-timings goes with --max-latency-ms: nothing else is timed. Leave it out.")
    from mrr_model.selection.target import Target

    of_request: dict[str, Any] = {} if max_latency_ms is None else {"documents": max(1, documents)}
    or_fastest: Literal["raise", "fastest"] = "fastest" if if_unreachable == "fastest" else "raise"
    return Target(keep_quality, speedup, max_latency_ms, if_unreachable=or_fastest, refresh=refresh, **of_request)


def _write_table(ranking: "Sequence[RankedDocument]", documents: Sequence[Document], title: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    named = any("id" in document.row or "_id" in document.row for document in documents)
    table = Table(title=Text(title), title_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("id" if named else "index", justify="left" if named else "right", no_wrap=True)
    table.add_column("text")
    for rank, ranked in enumerate(ranking, 1):
        row = documents[ranked.index].row
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


def _finetune_flags() -> Callable[..., None]:
    from mrr_model.cli.flags import flags_of
    from mrr_model.training.config import FinetuneConfig

    def run(settings: FinetuneConfig) -> None:
        _check_train_extra()
        from mrr_model.training import recipe

        _train(settings, lambda: recipe.finetune(settings))

    return flags_of(FinetuneConfig, run)


def _self_distill_flags() -> Callable[..., None]:
    from mrr_model.cli.flags import flags_of
    from mrr_model.training.config import SelfDistillConfig

    def run(settings: SelfDistillConfig) -> None:
        _check_train_extra()
        from mrr_model.training import self_distill as self_distilling

        _train(settings, lambda: self_distilling.self_distill(settings))

    return flags_of(SelfDistillConfig, run, leading="model")


def _train(settings: "RunConfig", run: "Callable[[], Path]") -> None:
    try:
        with redirect_stdout(sys.stderr):  # the Trainer prints its losses
            folder = run()
    except KeyboardInterrupt:
        say("stopped", f"run the same command to resume from the last save in {settings.output}.")
        raise
    if os.environ.get("RANK", "0") == "0":  # of several processes, one says so
        typer.echo(f"The trained re-ranker is in {folder}")


def _facts(name: str, folder: Path, loaded: "Checkpoint") -> "Table":
    from rich.table import Table
    from rich.text import Text

    model, matryoshka = loaded.model, loaded.model.matryoshka
    template = matryoshka.template
    pieces = [
        piece if "{" in piece else repr(piece) for piece in (*template.query, *template.passage, *template.prompt)
    ]
    facts = {
        "model": name if Path(name) == folder else f"{name} ({folder})",
        "backbone": f"{model.config.model_type}, hidden size {model.config.hidden_size}",
        "layers": str(model.num_layers),
        "exits": _listed(matryoshka.exits),
        "merge layers": _listed(matryoshka.merge_layers),
        "default merge layer": str(matryoshka.default_merge_layer) if matryoshka.merge_layers else "none",
        "merge weights": matryoshka.merge_weights,
        "head": f"{matryoshka.head}, one per exit",
        "template": " ".join(pieces),
        "prompt": template.default_prompt or "none",
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
    full = reranker.flops(depth=None, keep_ratio=1.0)
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
        shares = [reranker.flops(depth=depth, keep_ratio=ratio) / full for ratio in ratios]
        table.add_row(str(depth), *(f"{share:.0%}" for share in shares))
    return table


# In the order of use.
app.command(cls=Command)(rerank)
app.command(cls=Command)(info)
app.command(cls=Command)(commands.evaluate)
app.command(cls=Command)(commands.calibrate)
app.command(cls=Command)(mine)
app.command(cls=made_later(_finetune_flags))(finetune)
app.command(cls=made_later(_self_distill_flags))(self_distill)
