"""A job: its partitions, what is done of them, and the folder that says so.

    part-00000.parquet     the rows of partition 0 with their scores; or .jsonl, or .run
    _batch.json            the job: its inputs, its settings and its partitions
    _progress/00000.json   what became of partition 0, written after its part
    _progress/model.json   the weights that score
    _skipped.jsonl         at the end, if rows were left out: they, and why
    scored.run             at the end, if parts are runs: all of them

Names that begin with _ are hidden from what reads a folder of Parquet files.
"""

import base64
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mrr_model.bulk.config import BatchConfig
from mrr_model.bulk.records import BadRow, Partition, Report, Source
from mrr_model.bulk.sources import TEXTS, open_source
from mrr_model.bulk.tables import common_schema, result_fields
from mrr_model.data.jsonl import with_fields_kept
from mrr_model.files.atomic import replacing, write_file
from mrr_model.files.damage import read_json
from mrr_model.files.locks import NAME as LOCK

if TYPE_CHECKING:
    import pyarrow as pa

    from mrr_model.reranker import MatryoshkaReranker

MANIFEST, PROGRESS, SKIPPED, RUN = "_batch.json", "_progress", "_skipped.jsonl", "scored.run"
VERSION = 1
ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "trec": "run"}
FREE = {
    "inputs", "output", "on_bad_row", "overwrite", "engine", "address", "actors", "gpus_per_actor", "cpus_per_actor",
    "device", "dtype", "local_files_only",
}  # fmt: skip
"""Fields of the config that may differ when a job is resumed: the inputs and the model are compared by themselves."""
Format = Literal["parquet", "jsonl", "trec"]
FORMATS: dict[str, Format] = {"parquet": "parquet", "jsonl": "jsonl", "csv": "jsonl", "run": "trec"}
"""The format that an input's kind is written in, if none is chosen."""


@dataclass(frozen=True)
class Job:
    """A job. It pickles, and works in any process that sees the same files.

    Attributes:
        folder: The output folder, an absolute path.
        source: The inputs.
        partitions: All partitions, by their index.
        format: How parts are written.
        ranked: Whether documents are ranked.
        normalize: Whether scores are probabilities.
        on_bad_row: What to do with a row that cannot be scored.
        packed_schema: The schema of Parquet parts whose rows are no tables, as text.
    """

    folder: Path
    source: Source
    partitions: tuple[Partition, ...] = field(repr=False)
    format: Format
    ranked: bool
    normalize: bool
    on_bad_row: Literal["fail", "skip"]
    packed_schema: str | None = None

    @property
    def schema(self) -> "pa.Schema":
        """The schema of Parquet parts whose rows are no tables, with the columns for results."""
        import pyarrow as pa

        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(self.packed_schema or "")))

    def part(self, index: int) -> Path:
        """The file of a partition."""
        return self.folder / f"part-{index:05d}.{ENDINGS[self.format]}"

    def pending(self) -> list[Partition]:
        """The partitions that are not done."""
        return [
            each for each in self.partitions if not (self.part(each.index).is_file() and self._record(each).is_file())
        ]

    def record(self, partition: Partition, report: Report, bad: Iterable[BadRow]) -> None:
        """Note that a partition's part is written."""
        content = {"report": asdict(report), "skipped": [asdict(row) for row in bad]}
        write_file(self._record(partition), json.dumps(content))

    def done(self) -> Report:
        """What became of all partitions that are done."""
        records = (read_json(self._record(each)) for each in self.partitions if self._is_done(each))
        return sum((Report(**record["report"]) for record in records), Report())

    def check_model(self, reranker: "MatryoshkaReranker") -> None:
        """Check that a model is the one that scored the parts that exist.

        Raises:
            ValueError: If it is not.
        """
        now = {
            "weights": reranker.fingerprint,
            "setting": str(reranker.plan()),
            "dtype": str(reranker.dtype).removeprefix("torch."),
        }
        file = self.folder / PROGRESS / "model.json"
        if not file.is_file():
            write_file(file, json.dumps(now))
        for name, value in read_json(file).items():
            if now[name] != value:
                raise ValueError(
                    f"{str(self.folder)!r} has parts that were scored with {name} {value}, and now it is {now[name]}. "
                    "Choose the same, another --output, or --overwrite."
                )

    def finish(self) -> Report:
        """Write what is written at the end, and say what became of all rows."""
        (self.folder / PROGRESS / TEXTS).unlink(missing_ok=True)
        report = self.done()
        if report.skipped:
            with replacing(self.folder / SKIPPED) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                for partition in self.partitions:
                    for row in read_json(self._record(partition))["skipped"]:
                        file.write(json.dumps(row) + "\n")
        if self.format == "trec":
            with replacing(self.folder / RUN) as unfinished, unfinished.open("wb") as joined:
                for partition in self.partitions:
                    with self.part(partition.index).open("rb") as part:
                        shutil.copyfileobj(part, joined)
        return report

    def _is_done(self, partition: Partition) -> bool:
        return self.part(partition.index).is_file() and self._record(partition).is_file()

    def _record(self, partition: Partition) -> Path:
        return self.folder / PROGRESS / f"{partition.index:05d}.json"


def open_job(config: BatchConfig, note: Callable[[str], object] = lambda _: None) -> Job:
    """Begin the job that a config describes, or take up the one in its output folder.

    Args:
        config: The job.
        note: Is told what takes long.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If the folder holds something else, or an input cannot be used.
    """
    folder = config.output.resolve()
    manifest = folder / MANIFEST
    if config.overwrite:
        _clear(folder)
    elif not manifest.is_file():
        _check_unused(folder)
    source = open_source(config, folder / PROGRESS)
    now = _identity(config, source)
    (folder / PROGRESS).mkdir(parents=True, exist_ok=True)
    if manifest.is_file():
        known = read_json(manifest)
        _check_same(known, now, folder)
    else:
        note("dividing the inputs into partitions")
        partitions = list(source.partitions(config.partition_rows))
        ranked = config.rank or source.lists or config.collection is not None
        schema = None
        if now["format"] == "parquet" and source.kind != "parquet":
            source.prepare()
            schema = _packed_schema(source, partitions, ranked=ranked)
        known = {**now, "ranked": ranked, "schema": schema, "partitions": [astuple(each) for each in partitions]}
        write_file(manifest, json.dumps(known))
    return Job(
        folder=folder,
        source=source,
        partitions=tuple(Partition(*values) for values in known["partitions"]),
        format=known["format"],
        ranked=known["ranked"],
        normalize=not config.raw and known["format"] != "trec",
        on_bad_row=config.on_bad_row,
        packed_schema=known["schema"],
    )


def _identity(config: BatchConfig, source: Source) -> dict[str, Any]:
    """What must be the same when a job is resumed."""
    return {
        "version": VERSION,
        "format": FORMATS[source.kind] if config.format == "auto" else config.format,
        "settings": config.model_dump(mode="json", exclude=FREE),
        "inputs": [_state(file) for file in source.paths],
    }


def _state(file: Path) -> list[Any]:
    found = file.stat()
    return [str(file.resolve()), found.st_size, found.st_mtime_ns]


def _check_same(known: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Check that a folder holds the job that a config describes."""
    differences = [
        f"--{name.replace('_', '-')} was {known['settings'].get(name)} and is {value}"
        for name, value in now["settings"].items()
        if known["settings"].get(name) != value
    ]
    if known["inputs"] != now["inputs"]:
        before = {file: state for file, *state in known["inputs"]}
        changed = [file for file, *state in now["inputs"] if before.get(file) != state]
        differences.append(f"the input {changed[0]} has changed" if changed else "other files were the inputs")
    if known["version"] != now["version"]:
        differences.append("another version of this package wrote it")
    if differences:
        raise ValueError(
            f"{str(folder)!r} holds another job: {differences[0]}. Choose another --output, or --overwrite."
        )


def _check_unused(folder: Path) -> None:
    if folder.is_dir() and (others := sorted({path.name for path in folder.iterdir()} - {PROGRESS, LOCK})):
        raise ValueError(f"{str(folder)!r} holds other files, such as {others[0]!r}. Choose an empty folder.")


def _clear(folder: Path) -> None:
    """Remove what a job has written."""
    shutil.rmtree(folder / PROGRESS, ignore_errors=True)
    for name in (MANIFEST, SKIPPED, RUN, *(f"part-*.{ending}" for ending in ENDINGS.values())):
        for file in folder.glob(name):
            file.unlink()


def _packed_schema(source: Source, partitions: Iterable[Partition], *, ranked: bool) -> str:
    """The schema of all rows with their results, as text."""
    import pyarrow as pa

    results = result_fields(lists=source.lists, ranked=ranked)
    names = [field.name for field in results]
    chunks = (chunk.rows for partition in partitions for chunk in source.chunks(partition))
    own = common_schema([with_fields_kept(row, names) for row in rows] for rows in chunks if isinstance(rows, list))
    return base64.b64encode(pa.schema([*own, *results]).serialize().to_pybytes()).decode()
