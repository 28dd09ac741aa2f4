"""The config of `mrr batch`. Help is made from it: nothing here imports torch, pyarrow or ray."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from mrr_model.inference.config import InferenceConfig
from mrr_model.validation.config import Flag

Engine = Literal["embedded", "ray"]
OutputFormat = Literal["auto", "parquet", "jsonl", "trec"]
RAY_FIELDS = ("address", "actors", "gpus_per_actor", "cpus_per_actor")
"""Fields that go with Ray alone."""


class BatchConfig(InferenceConfig):
    """The config of `mrr batch`."""

    help_first: ClassVar[tuple[str, ...]] = ("inputs", "output", "model")

    inputs: Annotated[tuple[Path, ...], Flag(argument=True, required=True, metavar="INPUT…")] = ()
    """Parquet, JSON-lines or CSV files with the columns "query" and "document" or "documents", folders of them, or,
    with --collection, TREC runs."""
    output: Annotated[Path, Flag(metavar="FOLDER")]
    """Folder for the scored rows, a file per partition. The same command resumes from it."""
    model: str = "mini"
    """mini (shipped), a local folder or a hub id."""
    depth: Annotated[int | None, Flag(default="the model's, else all")] = None
    """Layers to run, at most."""
    keep_ratio: Annotated[str | None, Flag(metavar="RATIO|LAYER:RATIO,…", default="the model's, else 1")] = None
    """Share of the passage tokens to keep: 0.5, or from each merge layer on: 8:0.5,16:0.25."""
    long_documents: Literal["truncate", "max"] = "truncate"
    """Cut long documents, or score them by their best window."""
    window: Annotated[int | None, Flag(default="as many as fit")] = Field(default=None, ge=1)
    """With --long-documents max: tokens per window, at most."""
    stride: Annotated[int | None, Flag(default="half a window")] = Field(default=None, ge=1)
    """With --long-documents max: tokens after which the next window starts."""
    collection: Annotated[Path | None, Flag(metavar="FOLDER")] = None
    """BEIR folder with the texts of the inputs, which are TREC runs then."""
    query_column: Annotated[str | None, Flag(metavar="NAME", default="query")] = None
    """Column of the queries."""
    document_column: Annotated[str | None, Flag(metavar="NAME", default="document, else documents")] = None
    """Column of the documents: a text, or a list of them."""
    rank: bool = False
    """Rank single documents too, among neighbouring rows of one query."""
    format: OutputFormat = "auto"
    """auto: Parquet for Parquet, JSON lines for JSON lines and CSV, a TREC run for TREC runs."""
    raw: bool = False
    """Write raw logits, not probabilities. TREC runs always have them."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """Stop at a row that cannot be scored, or leave it out and write it to _skipped.jsonl."""
    partition_rows: Annotated[int | None, Flag(default="10000, with lists of documents 100")] = Field(
        default=None, ge=1
    )
    """Rows per partition: what a stopped run does again, and what is in memory."""
    overwrite: bool = False
    """Remove what an earlier run wrote to the output folder."""
    engine: Engine = "embedded"
    """This process, or Ray: on this machine, or on a cluster by --address."""
    address: Annotated[str | None, Flag(metavar="ADDRESS", default="a Ray on this machine")] = None
    """With --engine ray: the cluster, such as auto or HOST:6379."""
    actors: Annotated[int | None, Flag(default="1")] = Field(default=None, ge=1)
    """With --engine ray: processes that each hold the model."""
    gpus_per_actor: Annotated[float | None, Flag(default="0")] = Field(default=None, ge=0)
    """With --engine ray: GPUs per process; 0.5 lets two share one."""
    cpus_per_actor: Annotated[float | None, Flag(default="1")] = Field(default=None, gt=0)
    """With --engine ray: processor cores per process."""

    @field_validator("inputs", mode="before")
    @classmethod
    def _wrap_input(cls, inputs: object) -> object:
        """A single path needs no brackets."""
        return (inputs,) if isinstance(inputs, str | Path) else inputs

    @field_validator("output")
    @classmethod
    def _expand_output(cls, output: Path) -> Path:
        """`~` is the home folder, as it is in inputs."""
        return output.expanduser()

    @field_validator("model", mode="before")
    @classmethod
    def _write_model(cls, model: object) -> object:
        """A folder may be a path."""
        return str(model) if isinstance(model, Path) else model

    @field_validator("keep_ratio", mode="before")
    @classmethod
    def _write_ratio(cls, ratio: object) -> object:
        """Numbers and mappings are taken too, as everywhere in Python."""
        if isinstance(ratio, Mapping):
            return ",".join(f"{layer}:{share}" for layer, share in ratio.items())
        return str(ratio) if isinstance(ratio, int | float) else ratio

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not self.inputs:
            raise ValueError("INPUT is missing: give at least one file or folder")
        given = [name for name in RAY_FIELDS if getattr(self, name) is not None]
        if given and self.engine != "ray":
            raise ValueError(f"{flag_of(given[0])} goes with --engine ray. Leave it out")
        if self.format == "trec" and self.collection is None:
            raise ValueError("--format trec needs TREC runs as inputs, with --collection. Choose parquet or jsonl")
        given = [name for name in ("query_column", "document_column", "rank") if getattr(self, name)]
        if given and self.collection is not None:
            raise ValueError(
                f"{flag_of(given[0])} does not go with --collection: TREC runs have no columns, and are always ranked"
            )
        return self


def flag_of(field: str) -> str:
    """The flag of a field."""
    return f"--{field.replace('_', '-')}"
