"""`mrr rerank`: documents in, the same ranked out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer
from pydantic import Field, model_validator
from typing_extensions import Self

from mrr_model.cascade import By
from mrr_model.cli.documents import Document, Format, read_documents, write_json_lines
from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import need_output, say
from mrr_model.inference.config import InferenceConfig
from mrr_model.opening import cascade_of, check_needs, needs_of, open_model
from mrr_model.selection.target import IfUnreachable
from mrr_model.validation.config import Flag

if TYPE_CHECKING:
    from mrr_model.reranker import MatryoshkaReranker, Ranking
    from mrr_model.selection.target import Target


class RerankConfig(InferenceConfig):
    """The config of `mrr rerank`."""

    help_first: ClassVar[tuple[str, ...]] = ("query", "file", "model")

    query: Annotated[str, Flag(short="-q")]
    """What the documents are ranked for."""
    file: Annotated[Path | None, Flag(argument=True, metavar="FILE|-")] = None
    """One document per line, plain text or JSON objects; may be gzipped. - reads stdin; so does a pipe without FILE."""
    model: str = "mini"
    """mini (shipped), a local folder or a hub id."""
    depth: Annotated[int | None, Flag(default="the model's, else all")] = None
    """Layers to run, at most."""
    keep_ratio: Annotated[str | None, Flag(metavar="RATIO|LAYER:RATIO,…", default="the model's, else 1")] = None
    """Share of the passage tokens to keep: 0.5, or from each merge layer on: 8:0.5,16:0.25."""
    keep_quality: float | None = None
    """Instead of a setting: the fastest that keeps this share of quality, with a cascade if that is faster."""
    speedup: float | None = None
    """Instead of a setting: the best that is this many times faster."""
    max_latency_ms: float | None = None
    """Instead of a setting: the best within this time on this device."""
    if_unreachable: IfUnreachable = "raise"
    """If no setting is fast enough: an error, or the fastest setting."""
    refresh_timings: bool = False
    """With --max-latency-ms: measure this device again."""
    cascade: Annotated[str | None, Flag(metavar="auto|EXIT:NUMBER,…")] = None
    """Exits at which unpromising documents stop: auto for the model's own, or 2:3,4:1."""
    cascade_by: Annotated[By | None, Flag(default="margin")] = None
    """What a cascade's numbers are: logits below the best documents, or how many survive."""
    deadline_ms: Annotated[float | None, Flag(metavar="MS")] = Field(default=None, ge=0)
    """Time to rank in, loading aside; then the best ranking known is returned."""
    long_documents: Literal["truncate", "max"] = "truncate"
    """Cut long documents, or score them by their best window."""
    window: Annotated[int | None, Flag(default="as many as fit")] = Field(default=None, ge=1)
    """With --long-documents max: tokens per window, at most."""
    stride: Annotated[int | None, Flag(default="half a window")] = Field(default=None, ge=1)
    """With --long-documents max: tokens after which the next window starts."""
    top_n: Annotated[int | None, Flag(default="all")] = None
    """Documents to return, at most."""
    min_score: Annotated[float | None, Flag(default="all")] = None
    """Return only documents with at least this score."""
    text_field: Annotated[str | None, Flag(metavar="NAME", default="text")] = None
    """Field of the JSON objects to score; their "title", if any, goes before it."""
    input_format: Format = "auto"
    """auto: JSON lines if the file's name or its first line looks like it."""
    output_format: Annotated[Literal["auto", "table", "jsonl"], Flag("--format")] = "auto"
    """auto: a table on a terminal, else JSON lines."""
    explain: bool = False
    """Say on stderr which setting runs, and why."""
    raw: bool = False
    """Return raw logits, not probabilities."""

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_needs(self)
        if self.refresh_timings and self.max_latency_ms is None:
            raise ValueError("--refresh-timings goes with --max-latency-ms: nothing else is timed. Leave it out")
        if self.if_unreachable != "raise" and not needs_of(self):
            raise ValueError("--if-unreachable goes with --speedup or --max-latency-ms. Leave it out")
        if self.cascade_by is not None and self.cascade in (None, "auto"):
            raise ValueError("--cascade-by goes with --cascade EXIT:NUMBER. Leave it out")
        return self


@flags_of(RerankConfig)
def rerank(config: RerankConfig) -> None:
    """Read documents, rank them and write them."""
    need_output()
    documents = read_documents(config.file, config.input_format, config.text_field)
    if not documents:
        source = "stdin" if config.file is None or str(config.file) == "-" else config.file
        say("warning", f"{source} holds no documents.")
    reranker = open_model(
        config, _target(config, len(documents)), cascade_of(config.cascade, config.cascade_by), normalize=not config.raw
    )
    if config.explain:
        typer.echo(str(reranker.explain()), err=True)
    texts = [document.text for document in documents]
    ranking = reranker.rank(
        config.query, texts, top_n=config.top_n, min_score=config.min_score, deadline_ms=config.deadline_ms
    )
    if not ranking.complete:
        say("warning", f"--deadline-ms {config.deadline_ms:g} cut the ranking short: {_reached(ranking)}.")
    staged = reranker.cascade is not None or config.deadline_ms is not None
    if config.output_format == "table" or (config.output_format == "auto" and sys.stdout.isatty()):
        _write_table(ranking, documents, _title(config, reranker), with_depth=staged)
    else:
        write_json_lines(ranking, documents, with_depth=staged, with_spans=config.long_documents == "max")


def _reached(ranking: "Ranking") -> str:
    """How deep the documents of a ranking were read, in words."""
    parts = [
        (f"{share:.0%}", f"reached exit {depth}" if depth else "were not read")
        for depth, share in ranking.shares.items()
    ]
    [first, *others] = parts
    return ", ".join([" of the documents ".join(first), *map(" ".join, others)])


def _title(config: RerankConfig, reranker: "MatryoshkaReranker") -> str:
    """What ran."""
    parts = [config.model, str(reranker.compression)]
    if reranker.cascade is not None:
        parts.append("the profile's cascade" if reranker.cascade == "auto" else f"cascade of {reranker.cascade}")
    if config.deadline_ms is not None:
        parts.append(f"deadline {config.deadline_ms:g} ms")
    if config.long_documents == "max":
        parts.append("best windows")
    return ", ".join(parts)


def _target(config: RerankConfig, documents: int) -> "Target | None":
    from mrr_model.selection.target import Target

    needs = needs_of(config)
    if not needs:
        return None
    if "max_latency_ms" in needs:
        needs["documents"] = max(1, documents)
    return Target(**needs, if_unreachable=config.if_unreachable, refresh=config.refresh_timings)


def _write_table(ranking: "Ranking", documents: Sequence[Document], title: str, *, with_depth: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    named = any("id" in document.row or "_id" in document.row for document in documents)
    table = Table(title=Text(title), title_justify="left")
    table.add_column("rank", justify="right", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    if with_depth:
        table.add_column("depth", justify="right", no_wrap=True)
    table.add_column("id" if named else "index", justify="left" if named else "right", no_wrap=True)
    table.add_column("text")
    for rank, ranked in enumerate(ranking, 1):
        row = documents[ranked.index].row
        identifier = row.get("_id", row.get("id", ranked.index))
        start = ranked.passage[: 4 * console.width]
        shown = " ".join("".join(character if character.isprintable() else " " for character in start).split())
        depth = [str(ranked.depth)] if with_depth else []
        text = Text(shown, no_wrap=True, overflow="ellipsis")
        table.add_row(str(rank), f"{ranked.score:.4f}", *depth, Text(str(identifier)), text)
    console.print(table)
