"""The files that a job writes, one per partition: Parquet, JSON lines or TREC runs."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mrr_model.bulk.job import Job
from mrr_model.bulk.records import Partition, Rows
from mrr_model.bulk.tables import as_table, result_fields, with_results
from mrr_model.data.jsonl import with_fields_kept
from mrr_model.data.run import run_lines
from mrr_model.files.atomic import naming, replacing

if TYPE_CHECKING:
    import pyarrow as pa

TAG = "mrr"
"""The last column of the runs that are written."""


class Part(Protocol):
    """A file that is being written."""

    def write(self, rows: Rows, scores: Sequence[Any], ranks: Sequence[Any] | None) -> None:
        """Add rows with their scores and, if anything is ranked, their ranks."""

    def finish(self) -> None:
        """Write what is left to write."""

    def close(self) -> None:
        """Close the file."""


@contextmanager
def open_part(job: Job, partition: Partition) -> Iterator[Part]:
    """Write a partition's file. It appears when the block ends without an error."""
    with replacing(job.part(partition.index)) as unfinished:
        part = PARTS[job.format](unfinished, job)
        try:
            yield part
            with naming(job.part(partition.index)):
                part.finish()
        finally:
            with naming(job.part(partition.index)):
                part.close()


class JsonLinesPart(Part):
    """Rows as JSON lines, in UTF-8."""

    def __init__(self, file: Path, job: Job) -> None:
        self._file = file.open("wb")

    def write(self, rows: Rows, scores: Sequence[Any], ranks: Sequence[Any] | None) -> None:
        for row in merged(rows if isinstance(rows, list) else _as_dicts(rows), scores, ranks):
            # Half a surrogate pair stays an escape.
            self._file.write(f"{_line(row)}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self._file.close()


class ParquetPart(Part):
    """Rows as Parquet, a row group per chunk."""

    def __init__(self, file: Path, job: Job) -> None:
        self._file, self._job = file, job
        self._writer: Any = None

    def write(self, rows: Rows, scores: Sequence[Any], ranks: Sequence[Any] | None) -> None:
        import pyarrow.parquet as pq

        if isinstance(rows, list):
            table = as_table(merged(rows, scores, ranks), self._job.schema)
        else:
            fields = result_fields(lists=self._job.source.lists, ranked=ranks is not None)
            table = with_results(rows, fields, [scores] if ranks is None else [scores, ranks])
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class RunPart(Part):
    """The ranking of each query, as a TREC run."""

    def __init__(self, file: Path, job: Job) -> None:
        self._file = file
        self._run: dict[str, dict[str, float]] = {}

    def write(self, rows: Rows, scores: Sequence[Any], ranks: Sequence[Any] | None) -> None:
        for row, score in zip(rows, scores, strict=True):
            self._run.setdefault(row["query_id"], {})[row["document_id"]] = score

    def finish(self) -> None:
        self._file.write_text("".join(f"{line}\n" for line in run_lines(self._run, TAG)), encoding="utf-8")


PARTS: dict[str, type[JsonLinesPart | ParquetPart | RunPart]] = {
    "jsonl": JsonLinesPart,
    "parquet": ParquetPart,
    "trec": RunPart,
}


def merged(rows: Sequence[dict[str, Any]], scores: Sequence[Any], ranks: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Rows with their results; fields of the same names are kept under others.

    >>> merged([{"query": "q", "score": 7}], [0.5], None)
    [{'query': 'q', 'input_score': 7, 'score': 0.5}]
    """
    if ranks is None:
        return [{**with_fields_kept(row, ("score",)), "score": score} for row, score in zip(rows, scores, strict=True)]
    return [
        {**with_fields_kept(row, ("score", "rank")), "score": score, "rank": rank}
        for row, score, rank in zip(rows, scores, ranks, strict=True)
    ]


def _as_dicts(table: "pa.Table") -> list[dict[str, Any]]:
    """A table's rows. Raises ValueError that names a column that comes twice, or whose values Python cannot hold."""
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if name in columns:
            raise ValueError(f"JSON cannot hold two columns {name!r}. Choose --format parquet.")
        try:
            columns[name] = column.to_pylist()
        except (ValueError, OverflowError) as error:
            raise ValueError(f"column {name!r} cannot be written as JSON: {error}. Choose --format parquet.") from None
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _line(row: dict[str, Any]) -> str:
    """A row as JSON. Raises ValueError that names the column for which JSON has no form."""
    try:
        return json.dumps(row, ensure_ascii=False, default=_as_json)
    except TypeError:
        for column, value in row.items():
            try:
                json.dumps(value, default=_as_json)
            except TypeError as error:
                raise ValueError(f"column {column!r}: {error}. Choose --format parquet.") from None
        raise


def _as_json(value: object) -> str:
    """What Parquet can hold and JSON cannot."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    raise TypeError(f"JSON has no form for {type(value).__name__}")
