"""The tables about batch jobs: what `batch.py` measured, and how many pairs an hour of a core or a GPU scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markdown_tables import markdown
from result_files import BenchmarkResult

FORMATS = {"jsonl": "JSON lines", "parquet": "Parquet"}
SIZES = ("full size", "`keep_ratio=0.5`", "2/3 of the layers, `keep_ratio=0.5`", "1/3, `keep_ratio=0.25`")
Row = Mapping[str, Any]


def batch(result: BenchmarkResult) -> str:
    """Memory, speed, resuming, and Ray beside one process."""
    found = result.results
    heads = ["rows as", "input", "rows/s", "rows/s without a model", "memory, first tenth", "last tenth", "peak"]
    formats = markdown(
        heads,
        [
            [
                FORMATS[row["format"]],
                f"{row['input_mib']:,} MiB",
                f"{row['rows_per_second']:,.0f}",
                f"{row['machinery_rows_per_second']:,.0f}",
                *(f"{mib:,} MiB" for mib in (row["rss_mib"][0], row["rss_mib"][-1], row["peak_mib"])),
            ]
            for row in found["formats"]
        ],
    )
    least, most = found["document_words"]
    resume = found["resume"]
    parts = [
        formats,
        f"{found['rows']:,} pairs with documents of {least} to {most} words (mean {found['mean_document_words']:.0f}), "
        f"in partitions of {found['partition_rows']:,}; a random model of {found['layers']} layer and hidden size "
        f"{found['hidden_size']}, {found['dtype']}. Rows/s: of the whole process. Without a model: with a re-ranker "
        "that returns prepared numbers, so that dividing the file, reading and writing are left. Memory: the highest "
        "resident memory in the first and the last tenth of the rows.",
        f"Of a run on {resume['rows']:,} rows, killed after {resume['parts_at_kill']} of {resume['parts']} parts and "
        f"resumed, {resume['parts_kept']} parts were kept, and {resume['identical_parts']} of {resume['parts']} have "
        "the bytes of an undisturbed run's.",
    ]
    if found["ray"] is not None:
        parts += _engines(found["ray"], found["dtype"])
    return "\n\n".join(parts)


def _engines(ray: Row, dtype: str) -> list[str]:
    rows = [[row["engine"], f"{row['pairs_per_second']:,.0f}", f"{row['seconds']:,.0f}"] for row in ray["engines"]]
    return [
        markdown(["engine", "pairs/s", "seconds, start included"], rows),
        f"`{ray['model']}` at `depth={ray['depth']}, keep_ratio={ray['keep_ratio']:g}`, {dtype}, on {ray['rows']:,} "
        f"such pairs: one process on all cores, and Ray on the same machine with {ray['actors']} actors of one core "
        f"each. Pairs/s count from the first part. Scores differ by at most {ray['largest_difference']:.0e}.",
    ]


@dataclass(frozen=True)
class Sizing:
    """Pairs per hour of a core or a GPU at each of `SIZES`; None where nothing was measured."""

    model: str
    words: str
    dtype: str
    hourly: tuple[float | None, ...]


def sizing(
    time_share: BenchmarkResult, speed: BenchmarkResult, speed_models: BenchmarkResult, gpu: BenchmarkResult
) -> str:
    """Pairs per hour of a core and of a GPU, and what that means for a million pairs."""
    processor = [*_of_time_share(time_share), *_of_speed(speed), *_of_speed_models(speed_models)]
    gpus = [*_of_gpu(gpu)]
    return (
        f"Pairs per **core-hour**, in thousands:\n\n{_table(processor, SIZES)}\n\n"
        f"Pairs per **GPU-hour** ({gpu.results['device']['name']}), in thousands; shapes with random weights:\n\n"
        f"{_table(gpus, (SIZES[0], *SIZES[2:]))}\n\n"
        f"So a million pairs take {_million(processor[0], 'core-hours')}; {_million(gpus[0], 'GPU-hours')}; "
        f"{_million(gpus[-1], 'GPU-hours')}."
    )


def _table(rows: Sequence[Sizing], sizes: Sequence[str]) -> str:
    cells = [
        [row.model, row.words, row.dtype, *("" if each is None else _thousands(each) for each in row.hourly)]
        for row in rows
    ]
    return markdown(["model", "words", "dtype", *sizes], cells, numbers=range(3, 3 + len(sizes)))


def _million(row: Sizing, unit: str) -> str:
    """The hours of a million pairs at full size."""
    full = row.hourly[0]
    assert full is not None
    return f"{1e6 / full:.2g} {unit} with {row.model}, {row.words} words, {row.dtype}, at full size"


def _thousands(value: float) -> str:
    """Thousands, with three digits at most before they are rounded.

    >>> _thousands(277_234), _thousands(12_345), _thousands(58_156_920)
    ('277', '12.3', '58,200')
    """
    rounded = float(f"{value / 1000:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _hourly(result: BenchmarkResult, rates: Sequence[float | None]) -> tuple[float | None, ...]:
    """From pairs per second of a machine to pairs per hour of one of its cores."""
    return tuple(None if rate is None else rate * 3600 / result.machine.cores for rate in rates)


def _of_time_share(result: BenchmarkResult) -> Iterator[Sizing]:
    for workload in result.results["workloads"]:
        rates = {(row["depth"], row["keep_ratio"]): row["pairs_per_second"] for row in workload["settings"]}
        depth = workload["settings"][0]["depth"]
        sizes = ((depth, 1.0), (depth, 0.5), (depth * 2 / 3, 0.5), (depth / 3, 0.25))
        hourly = _hourly(result, [rates.get(size) for size in sizes])
        yield Sizing(workload["model"], str(workload["words"]), workload["dtype"], hourly)


def _of_speed(result: BenchmarkResult) -> Iterator[Sizing]:
    """The dtype that `_of_time_share` has not."""
    for workload in result.results["workloads"]:
        for row in workload["contenders"]:
            if row["name"] == "this package" and row["dtype"] == "float32":
                hourly = _hourly(result, [row["pairs_per_second"], None, None, None])
                yield Sizing(workload["model"], str(workload["words"]), row["dtype"], hourly)


def _of_speed_models(result: BenchmarkResult) -> Iterator[Sizing]:
    found = result.results
    for model in found["models"]:
        for row in model["dtypes"]:
            rates = row["pairs_per_second"]
            hourly = _hourly(result, [rates["full"], rates["narrow"], None, None])
            yield Sizing(model["like"], f"{found['mean_words']:.0f} (mean)", row["dtype"], hourly)


def _of_gpu(result: BenchmarkResult) -> Iterator[Sizing]:
    for workload in result.results["speed"]:
        if "mixed" not in workload["name"]:
            hourly = tuple(row["pairs_per_second"] * 3600 for row in workload["settings"])
            yield Sizing(workload["like"], str(workload["words"]), workload["dtype"], hourly)
