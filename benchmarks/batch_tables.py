"""The tables about batch jobs: what `batch.py` measured, and how many pairs an hour of a core or a GPU scores."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markdown_tables import markdown
from result_files import BenchmarkResult

FORMATS = {"jsonl": "JSON lines", "parquet": "Parquet"}
SIZES = ("full size", "`keep_ratio=0.5`", "2/3 of the layers, `keep_ratio=0.5`", "1/3, `keep_ratio=0.25`")
Row = Mapping[str, Any]


def batch(result: BenchmarkResult) -> str:
    """Memory, speed, resuming, and Ray beside one process."""
    found = result.results
    formats = markdown(
        ["rows as", "input", "rows/s", "rows/s without a model", "memory, first tenth", "last tenth", "peak"],
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
    text = (
        f"{formats}\n\n{found['rows']:,} pairs with documents of {least} to {most} words (mean "
        f"{found['mean_document_words']:.0f}) in partitions of {found['partition_rows']:,}; random weights, "
        f"{found['layers']} layer of hidden size {found['hidden_size']}, {found['dtype']}. Rows/s count from the start "
        "of the process. Without a model: a re-ranker returns prepared numbers, and dividing the file, reading and "
        "writing are left. Memory: the highest resident memory in the first and the last tenth of the rows.\n\n"
        f"Of a run on {resume['rows']:,} rows, killed after {resume['parts_at_kill']} of {resume['parts']} parts and "
        f"resumed, {resume['parts_kept']} parts were kept, and {resume['identical_parts']} of {resume['parts']} have "
        "the bytes of an undisturbed run's."
    )
    ray = found["ray"]
    if ray is None:
        return text
    rows = [[row["engine"], f"{row['pairs_per_second']:,.0f}", f"{row['seconds']:,.0f}"] for row in ray["engines"]]
    return (
        f"{text}\n\n{markdown(['engine', 'pairs/s', 'seconds, start included'], rows)}\n\n`{ray['model']}` at "
        f"`depth={ray['depth']}, keep_ratio={ray['keep_ratio']:g}`, {found['dtype']}, on {ray['rows']:,} such pairs: "
        f"one process on all cores, and Ray on the same machine with {ray['actors']} actors of one core each. Pairs/s "
        f"count from the first part. Scores differ by at most {ray['largest_difference']:.0e}."
    )


class Sizing(NamedTuple):
    """Pairs per hour of a core or a GPU at some of `SIZES`; None where nothing was measured."""

    model: str
    words: str
    dtype: str
    hourly: Sequence[float | None]


def sizing(
    time_share: BenchmarkResult, speed: BenchmarkResult, speed_models: BenchmarkResult, gpu: BenchmarkResult
) -> str:
    """Pairs per hour of a core and of a GPU, and what that means for a million pairs."""
    processor = [*_of_time_share(time_share), *_of_speed(speed), *_of_speed_models(speed_models)]
    gpus = [
        Sizing(
            workload["like"],
            f"{workload['words']:g}",
            workload["dtype"],
            [row["pairs_per_second"] * 3600 for row in workload["settings"]],
        )
        for workload in gpu.results["speed"]
        if "mixed" not in workload["name"]
    ]
    return (
        f"Pairs per **core-hour**, in thousands:\n\n{_table(processor, SIZES)}\n\n"
        f"Pairs per **GPU-hour** ({gpu.results['device']['name']}), in thousands; shapes with random weights:\n\n"
        f"{_table(gpus, (SIZES[0], *SIZES[2:]))}\n\n"
        f"So a million pairs take {_million(processor[0], 'core-hours')}; {_million(gpus[0], 'GPU-hours')}; "
        f"{_million(gpus[-1], 'GPU-hours')}."
    )


def _of_time_share(result: BenchmarkResult) -> Iterator[Sizing]:
    for workload in result.results["workloads"]:
        rates = {(row["depth"], row["keep_ratio"]): row["pairs_per_second"] for row in workload["settings"]}
        depth = workload["settings"][0]["depth"]
        sizes = ((depth, 1.0), (depth, 0.5), (depth * 2 / 3, 0.5), (depth / 3, 0.25))
        hourly = _hourly(result, *map(rates.get, sizes))
        yield Sizing(workload["model"], str(workload["words"]), workload["dtype"], hourly)


def _of_speed(result: BenchmarkResult) -> Iterator[Sizing]:
    """The dtype that `_of_time_share` lacks."""
    for workload in result.results["workloads"]:
        for row in workload["contenders"]:
            if row["name"] == "this package" and row["dtype"] == "float32":
                hourly = _hourly(result, row["pairs_per_second"], None, None, None)
                yield Sizing(workload["model"], str(workload["words"]), row["dtype"], hourly)


def _of_speed_models(result: BenchmarkResult) -> Iterator[Sizing]:
    words = f"{result.results['mean_words']:.0f} (mean)"
    for model in result.results["models"]:
        for row in model["dtypes"]:
            rates = row["pairs_per_second"]
            yield Sizing(
                model["like"], words, row["dtype"], _hourly(result, rates["full"], rates["narrow"], None, None)
            )


def _hourly(result: BenchmarkResult, *rates: float | None) -> list[float | None]:
    """From pairs per second of a machine to pairs per hour of one of its cores."""
    return [rate and rate * 3600 / result.machine.cores for rate in rates]


def _table(rows: Sequence[Sizing], sizes: Sequence[str]) -> str:
    cells = [[*row[:3], *("" if each is None else _thousands(each) for each in row.hourly)] for row in rows]
    return markdown(["model", "words", "dtype", *sizes], cells, numbers=range(3, 3 + len(sizes)))


def _thousands(value: float) -> str:
    """Thousands, rounded to three digits."""
    rounded = float(f"{value / 1000:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _million(row: Sizing, unit: str) -> str:
    """The hours of a million pairs at full size."""
    full = row.hourly[0]
    assert full is not None
    return f"{1e6 / full:.2g} {unit} with {row.model}, {row.words} words, {row.dtype}, at full size"
