"""A job: its partitions, what is done of them, and the folder that says so.

    part-00000.parquet     the rows of partition 0 with their scores; or .jsonl, or .run
    _batch.json            the job: its inputs, its settings and its partitions
    _progress/00000.json   the counts of partition 0 and its bad rows, written after its part
    _progress/model.json   the weights that score
    _skipped.jsonl         at the end, if rows were left out: they, and why
    scored.run             at the end, if parts are runs: all of them

Names that begin with _ are hidden from what reads a folder of Parquet files.
"""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mrr_model.bulk.config import RAY_FIELDS, BatchConfig, flag_of
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

MANIFEST, PROGRESS, MODEL, SKIPPED, RUN = "_batch.json", "_progress", "model.json", "_skipped.jsonl", "scored.run"
VERSION = 1
ENDINGS = {"parquet": "parquet", "jsonl": "jsonl", "trec": "run"}
FREE = {
    "inputs", "output", "on_bad_row", "overwrite", "engine", *RAY_FIELDS, "device", "dtype", "local_files_only",
}  # fmt: skip
"""Fields of the config that may differ when a job is resumed: the inputs and the model are compared by themselves."""
Format = Literal["parquet", "jsonl", "trec"]
PART = re.compile(rf"part-\d{{5,}}\.({'|'.join(ENDINGS.values())})")
"""The names of parts."""
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
        return self.folder / f"part-{self._number(index)}.{ENDINGS[self.format]}"

    def pending(self) -> list[Partition]:
        """The partitions that are not done."""
        return [each for each in self.partitions if not self._is_done(each)]

    def record(self, partition: Partition, report: Report, bad: Iterable[BadRow]) -> None:
        """Note that a partition's part is written."""
        content = {"report": asdict(report), "skipped": [asdict(row) for row in bad]}
        write_file(self._record(partition), json.dumps(content))

    def done(self) -> Report:
        """The counts of all partitions that are done."""
        records = (_read(self._record(each)) for each in self.partitions if self._is_done(each))
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
        file = self.folder / PROGRESS / MODEL
        if not file.is_file():
            write_file(file, json.dumps(now))
        for name, value in _read(file).items():
            if now.get(name) != value:
                raise ValueError(
                    f"{str(self.folder)!r} has parts that were scored with {name} {value}, and now it is "
                    f"{now.get(name)}. Choose the same, another --output, or --overwrite."
                )

    def finish(self) -> Report:
        """Write the files that need all partitions; return the counts of the job.

        Raises:
            ValueError: If an input has changed since the job was planned.
        """
        inputs = _read(self.folder / MANIFEST)["inputs"]
        if changed := _changed(inputs, [_state(path) for path in self.source.paths]):
            raise ValueError(f"{changed} since the job was planned. Start again with --overwrite, or restore it.")
        (self.folder / PROGRESS / TEXTS).unlink(missing_ok=True)
        _remove_unfinished(self.folder)
        report = self.done()
        if report.skipped:
            with replacing(self.folder / SKIPPED) as unfinished, unfinished.open("w", encoding="utf-8") as file:
                for partition in self.partitions:
                    for row in _read(self._record(partition))["skipped"]:
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
        return self.folder / PROGRESS / f"{self._number(partition.index)}.json"

    def _number(self, index: int) -> str:
        """A partition's number, with as many digits as the last one's: names sort like numbers."""
        return str(index).zfill(max(5, len(str(len(self.partitions) - 1))))


def is_known(config: BatchConfig) -> bool:
    """Whether a config takes up the job in its output folder. If not, its inputs and its folder are checked first.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If the folder holds something else, or an input cannot be used.
    """
    known = (config.output / MANIFEST).is_file() and not config.overwrite
    if not known:
        _checked(config)
    return known


def open_job(config: BatchConfig, note: Callable[[str], object] = lambda _: None) -> Job:
    """Begin the job that a config describes, or take up the one in its output folder.

    Args:
        config: The job.
        note: Called with a message before long work.

    Raises:
        FileNotFoundError: If an input is missing.
        ValueError: If the folder holds something else, or an input cannot be used.
    """
    folder, source = _checked(config)
    manifest = folder / MANIFEST
    _remove_unfinished(folder)
    now = _identity(config, source)
    known = _read(manifest) if manifest.is_file() and not config.overwrite else None
    if known is not None and _has_parts(folder):
        _check_same(known, now, folder)
    elif known is None or any(known.get(name) != value for name, value in now.items()):
        note("dividing the inputs into partitions")
        (folder / PROGRESS).mkdir(parents=True, exist_ok=True)
        known = _planned(config, source, now, texts=folder / PROGRESS / TEXTS)
        _clear(folder)
        write_file(manifest, json.dumps(known))
    else:
        (folder / PROGRESS / MODEL).unlink(missing_ok=True)  # it has scored nothing yet
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


def _checked(config: BatchConfig) -> tuple[Path, Source]:
    """The output folder and the inputs of a job."""
    folder = config.output.resolve()
    if not (folder / MANIFEST).is_file():
        _check_unused(folder)
    source = open_source(config, folder / PROGRESS)
    _check_outside(folder, source)
    return folder, source


def _planned(config: BatchConfig, source: Source, now: dict[str, Any], texts: Path) -> dict[str, Any]:
    """What the manifest says of a new job."""
    if now["format"] == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401  # before much is read
        except ImportError as error:
            raise ImportError(
                f'--format parquet needs pyarrow ({error}): pip install "matryoshka-reranker[batch]"'
            ) from error
    texts.unlink(missing_ok=True)  # another job's
    partitions = list(source.partitions(config.partition_rows))
    ranked = config.rank or source.lists or config.collection is not None
    schema = None
    if now["format"] == "parquet" and source.kind != "parquet":
        source.prepare()
        schema = _packed_schema(source, partitions, ranked=ranked)
    return {**now, "ranked": ranked, "schema": schema, "partitions": [astuple(each) for each in partitions]}


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


def _read(file: Path) -> dict[str, Any]:
    return read_json(file, advice="Choose another --output, or --overwrite.")


def _check_same(known: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Check that a folder holds the job that a config describes."""
    differences = [] if known.get("version") == VERSION else ["another version of this package wrote it"]
    settings = known.get("settings", {})
    differences += [
        f"{flag_of(name)} was {settings.get(name)} and is {value}"
        for name, value in now["settings"].items()
        if settings.get(name) != value
    ]
    if known.get("inputs") != now["inputs"]:
        differences.append(_changed(known.get("inputs", []), now["inputs"]) or "other files were the inputs")
    if differences:
        raise ValueError(
            f"{str(folder)!r} holds another job: {differences[0]}. Choose another --output, or --overwrite."
        )


def _changed(before: list[Any], now: list[Any]) -> str | None:
    """What is not as it was, of files that are still given; None if nothing is."""
    states = {file: state for file, *state in before}
    for file, *state in now:
        if states.get(file) != state:
            return f"the input {file} {'has changed' if file in states else 'is new'}"
    return None


def _check_outside(folder: Path, source: Source) -> None:
    """Check that no input would be among the files that a job writes and removes."""
    for path in source.paths:
        if folder in (path.parent.resolve(), path.resolve().parent):
            raise ValueError(f"the input {path} is in the output folder {str(folder)!r}. Choose another --output.")


def _check_unused(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if others := sorted(names - {PROGRESS, LOCK} - {path.name for path in _unfinished(folder)}):
        raise ValueError(f"{str(folder)!r} holds other files, such as {others[0]!r}. Choose an empty folder.")


def _clear(folder: Path) -> None:
    """Remove what a job has written, except its manifest: without that the folder would be no job's."""
    written = [path for path in folder.iterdir() if PART.fullmatch(path.name) or path.name in (SKIPPED, RUN)]
    records = [folder / PROGRESS / MODEL, *(folder / PROGRESS).glob("[0-9]*.json")]
    for file in (*written, *records):
        file.unlink(missing_ok=True)


def _has_parts(folder: Path) -> bool:
    return any(PART.fullmatch(path.name) for path in folder.iterdir())


def _unfinished(folder: Path) -> list[Path]:
    """What processes that were killed were writing to the folder."""
    return [path for name in ("part-*", "_*", RUN) for path in folder.glob(f".{name}.*.unfinished")]


def _remove_unfinished(folder: Path) -> None:
    for file in (*_unfinished(folder), *(folder / PROGRESS).glob(".*.unfinished")):
        file.unlink(missing_ok=True)


def _packed_schema(source: Source, partitions: Iterable[Partition], *, ranked: bool) -> str:
    """The schema of all rows with their results, as text."""
    import pyarrow as pa

    results = result_fields(lists=source.lists, ranked=ranked)
    names = [field.name for field in results]
    chunks = (chunk.rows for partition in partitions for chunk in source.chunks(partition))
    own = common_schema([with_fields_kept(row, names) for row in rows] for rows in chunks if isinstance(rows, list))
    return base64.b64encode(pa.schema([*own, *results]).serialize().to_pybytes()).decode()
