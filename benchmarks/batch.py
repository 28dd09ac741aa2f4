"""`mrr batch` on a million rows: whether memory grows, how fast all but the model is, and whether a killed run resumes.

    python benchmarks/batch.py                # about half an hour on two cores, 2 GB of temporary files
    python benchmarks/batch.py --rows 20000 --ray-rows 2000

Rows are made as they are written: a query of 4 to 12 words and a document of 20 to 100, all different. The model is a
BERT of one layer with random weights: most of the time goes to tokenizing. For JSON lines and Parquet:

- `mrr batch` runs as a process, and its resident memory is read 20 times a second from its start to its end;
- *the machinery alone*: `rerank_files` with a re-ranker that computes nothing and returns prepared numbers, timed in
  another process. What is left is dividing the file into partitions, reading it, gathering windows, writing the parts.

Then `mrr batch` on the first rows of the JSON lines is killed with SIGKILL when half of its parts are written, and run
again: the parts must have the bytes of the undisturbed run's. At last `mini` scores some rows embedded and with Ray on
this machine, two actors with one core each. Prints tables and writes benchmarks/results/batch.json.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

import psutil
from batch_tables import batch as table
from result_files import ROOT, add_output_argument, write_result
from stock_models import Shape
from workloads import passages

SEED = 0
QUERY_WORDS, DOCUMENT_WORDS = (4, 12), (20, 100)
CHUNK = 10_000
"""Rows of a Parquet file's row group."""
MODEL = Shape(
    "tiny", "bert", "mini",
    {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
)  # fmt: skip
DTYPE = "float32"
FORMATS = ("jsonl", "parquet")
TENTHS = 10
POLL_SECONDS = 0.05
RESUMED = 5
"""The run that is killed has this part of the rows: one in so many."""
RAY = {"model": "mini", "depth": 2, "keep_ratio": 0.25, "partition_rows": 500, "actors": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partition-rows", type=int, default=10_000)
    parser.add_argument("--ray-rows", type=int, default=20_000, help="0: leave Ray out")
    parser.add_argument("--machinery", nargs=2, type=Path, metavar=("FILE", "FOLDER"), help=argparse.SUPPRESS)
    add_output_argument(parser, "batch")
    arguments = parser.parse_args()
    if arguments.machinery:
        print(machinery(*arguments.machinery, arguments.partition_rows))
        return
    with tempfile.TemporaryDirectory(prefix="mrr-batch-") as name:
        results = measure(Path(name), arguments.rows, arguments.partition_rows, arguments.ray_rows)
    what = "mrr batch on many rows with a tiny model: memory over the run, speed without the model, resuming, and Ray."
    print(table(write_result(arguments.output, "batch", what, results, seeds=[SEED])))


def measure(folder: Path, count: int, partition_rows: int, ray_rows: int) -> dict[str, Any]:
    """All figures, by way of files in a folder."""
    MODEL.save(folder / "model")
    options = ["--model", folder / "model", "--dtype", DTYPE, "--partition-rows", partition_rows]
    found: dict[str, Any] = {
        "rows": count,
        "partition_rows": partition_rows,
        "query_words": QUERY_WORDS,
        "document_words": DOCUMENT_WORDS,
        "mean_document_words": round(sum(len(row["document"].split()) for row in rows(1000)) / 1000, 1),
        "dtype": DTYPE,
        "layers": MODEL.fields["num_hidden_layers"],
        "hidden_size": MODEL.fields["hidden_size"],
        "formats": [],
    }
    for kind in FORMATS:
        file, output = folder / f"rows.{kind}", folder / f"scored-{kind}"
        write(file, count)
        say(f"{file.name}: {size_mib(file)} MiB; mrr batch ...")
        run = run_batch(file, output, options)
        say(f"{run.seconds:.0f} s; the machinery alone ...")
        seconds = machinery_seconds(file, folder / "machinery", partition_rows)
        found["formats"].append(
            {
                "format": kind,
                "input_mib": size_mib(file),
                "seconds": round(run.seconds, 1),
                "rows_per_second": round(count / run.seconds, 1),
                "machinery_seconds": round(seconds, 2),
                "machinery_rows_per_second": round(count / seconds, 1),
                "rss_mib": run.tenths(len(parts(output))),
                "peak_mib": max(rss for _, rss in run.samples),
            }
        )
        if kind == "jsonl":
            say("a run that is killed, and resumed ...")
            found["resume"] = resumed(folder, output, max(2 * partition_rows, count // RESUMED), options)
        file.unlink()
        remove(output)
    found["ray"] = compare_engines(folder, ray_rows) if ray_rows else None
    return found


def rows(count: int) -> Iterator[dict[str, Any]]:
    """Rows of the words of the standard library's documentation; the number makes each document different."""
    words = [word for word in " ".join(passages().values()).split() if word.isalpha() and word.islower()]
    generator = random.Random(SEED)

    def text(lengths: tuple[int, int]) -> str:
        length = generator.randint(*lengths)
        start = generator.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    for number in range(count):
        yield {"id": number, "query": text(QUERY_WORDS), "document": f"{text(DOCUMENT_WORDS)} {number}"}


def write(file: Path, count: int) -> None:
    """Write rows as JSON lines or Parquet, never holding more than a chunk."""
    source = rows(count)
    if file.suffix == ".jsonl":
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in source)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("id", pa.int64()), ("query", pa.string()), ("document", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        while chunk := [*islice(source, CHUNK)]:
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


@dataclass
class Run:
    """A process of `mrr batch`.

    Attributes:
        seconds: From its start to its end.
        samples: Parts that were done and resident MiB, over its whole life.
        done: When another number of parts was first seen, and which.
    """

    seconds: float = 0.0
    samples: list[tuple[int, int]] = field(default_factory=list)
    done: list[tuple[float, int]] = field(default_factory=list)

    def tenths(self, count: int) -> list[int]:
        """The highest memory in each tenth of the parts."""
        highest = [0] * TENTHS
        for done, rss in self.samples:
            tenth = min(done * TENTHS // count, TENTHS - 1)
            highest[tenth] = max(highest[tenth], rss)
        return highest

    def rate(self, partition_rows: int) -> float:
        """Rows per second between the first and the last part that were seen, so without the start."""
        (begin, first), *_, (end, last) = self.done
        return (last - first) * partition_rows / (end - begin)


def run_batch(file: Path, output: Path, options: Sequence[object], *, kill_after: int | None = None) -> Run:
    """Run `mrr batch` and watch it.

    Args:
        file: The input.
        output: The output folder.
        options: More arguments.
        kill_after: The number of parts after which it is killed; None to let it end.
    """
    command = [sys.executable, "-m", "mrr_model", "batch", file, "--output", output, *options]
    run, begin = Run(), time.monotonic()
    process = psutil.Popen([str(word) for word in command], env=environment(), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        done = len(records(output))
        if done and (not run.done or done > run.done[-1][1]):
            run.done.append((time.monotonic(), done))
        try:
            run.samples.append((done, process.memory_info().rss >> 20))
        except psutil.Error:  # it has just ended
            break
        if kill_after is not None and done >= kill_after:
            process.kill()
            break
        time.sleep(POLL_SECONDS)
    process.wait()
    run.seconds = time.monotonic() - begin
    if kill_after is None and process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {process.returncode}")
    return run


def machinery_seconds(file: Path, output: Path, partition_rows: int) -> float:
    """What `machinery` measures, in a process of its own."""
    options = ["--machinery", file, output, "--partition-rows", partition_rows]
    command = [sys.executable, __file__, *map(str, options)]
    found = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout
    remove(output)
    return float(found)


def machinery(file: Path, output: Path, partition_rows: int) -> float:
    """Seconds of `rerank_files` with a re-ranker that computes nothing."""
    from mrr_model.batch import BatchConfig, rerank_files
    from mrr_model.reranker import MatryoshkaReranker

    config = BatchConfig(inputs=(file,), output=output, partition_rows=partition_rows)
    reranker = cast(MatryoshkaReranker, NoModel())
    begin = time.perf_counter()
    rerank_files(config, reranker=reranker)
    return time.perf_counter() - begin


class NoModel:
    """What `rerank_files` needs of a re-ranker, with random numbers for scores."""

    fingerprint, dtype = "none", "float32"

    def __init__(self) -> None:
        generator = random.Random(SEED)
        self._scores = [generator.random() for _ in range(CHUNK)]

    def plan(self) -> str:
        return "none"

    def score_pairs(self, pairs: Sequence[tuple[str, str]], *, normalize: bool) -> list[float]:
        repeated = self._scores * (len(pairs) // CHUNK + 1)
        return repeated[: len(pairs)]


def resumed(folder: Path, undisturbed: Path, count: int, options: Sequence[object]) -> dict[str, Any]:
    """Kill a run on the first rows, resume it, and compare its parts with those of the run on all rows."""
    file, output = folder / "first.jsonl", folder / "resumed"
    write(file, count)
    partition_rows = int(str(options[-1]))
    killed = run_batch(file, output, options, kill_after=count // partition_rows // 2)
    before = {part.name: part.stat().st_mtime_ns for part in parts(output)}
    kept = len(records(output))
    run_batch(file, output, options)
    after = parts(output)
    found = {
        "rows": count,
        "parts": len(after),
        "parts_at_kill": killed.done[-1][1],
        "parts_kept": sum(before.get(part.name) == part.stat().st_mtime_ns for part in after),
        "identical_parts": sum(part.read_bytes() == (undisturbed / part.name).read_bytes() for part in after),
    }
    if found["identical_parts"] != found["parts"] or found["parts_kept"] < kept:
        sys.exit(f"error: the resumed run differs: {found}")
    file.unlink()
    remove(output)
    return found


def compare_engines(folder: Path, count: int) -> dict[str, Any]:
    """`mini` on the same rows in one process with all cores, and in two actors of Ray."""
    file = folder / "few.jsonl"
    write(file, count)
    options: list[object] = ["--model", RAY["model"], "--dtype", DTYPE, "--partition-rows", RAY["partition_rows"]]
    options += ["--depth", RAY["depth"], "--keep-ratio", RAY["keep_ratio"]]
    engines, scores = [], []
    for engine, own in (("embedded", []), ("ray", ["--actors", RAY["actors"], "--cpus-per-actor", 1])):
        say(f"{count:,} rows with the engine {engine} ...")
        output = folder / engine
        run = run_batch(file, output, [*options, "--engine", engine, *own])
        rate = run.rate(int(str(RAY["partition_rows"])))
        engines.append(
            {"engine": engine, "seconds": round(run.seconds, 1), "pairs_per_second": round(rate, 1)}
        )  # fmt: skip
        lines = [json.loads(line) for part in parts(output) for line in part.read_text(encoding="utf-8").splitlines()]
        scores.append({row["id"]: row["score"] for row in lines})
        remove(output)
    one, other = scores
    if one.keys() != other.keys() or len(one) != count:
        sys.exit(f"error: of {count} rows, embedded has scored {len(one)} and Ray {len(other)}")
    return {**RAY, "rows": count, "engines": engines, "largest_difference": max(abs(one[i] - other[i]) for i in one)}


def parts(output: Path) -> list[Path]:
    """The parts of a job, in their order."""
    return sorted(output.glob("part-*"))


def records(output: Path) -> list[Path]:
    """What says that partitions are done."""
    return [*output.glob("_progress/[0-9]*.json")]


def remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """This checkout's package, offline."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


def size_mib(file: Path) -> int:
    return file.stat().st_size >> 20


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
