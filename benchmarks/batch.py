"""`mrr batch` on a million rows: whether memory grows, how fast all but the model is, and whether a killed run resumes.

    python benchmarks/batch.py                # about 20 minutes on two cores, 2 GB of temporary files
    python benchmarks/batch.py --rows 20000 --ray-rows 2000

Rows are made as they are written: a query of 4 to 12 words and a document of 20 to 100, all different. The model is a
BERT of one layer with random weights: most of the time goes to tokenizing. For JSON lines and Parquet:

- `mrr batch` runs as a process, and its resident memory is read 20 times a second from its start to its end;
- *without a model*: `rerank_files` in another process with a re-ranker that computes nothing and returns prepared
  numbers. What is left is dividing the file into partitions, reading it, gathering windows, writing the parts.

Then `mrr batch` on the first fifth of the JSON lines is killed with SIGKILL when half of its parts are written, and run
again: the parts must have the bytes of the undisturbed run's. At last `mini` scores some rows embedded and with Ray on
this machine, two actors with one core each. Prints tables and writes benchmarks/results/batch.json.
"""

import argparse
import json
import os
import random
import shutil
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
LAYERS, HIDDEN_SIZE, DTYPE = 1, 16, "float32"
MODEL = Shape(
    "tiny", "bert", "mini",
    {"hidden_size": HIDDEN_SIZE, "intermediate_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 2},
)  # fmt: skip
FORMATS = ("jsonl", "parquet")
TENTHS = 10
POLL_SECONDS = 0.05
RAY_MODEL, RAY_DEPTH, RAY_KEEP_RATIO, RAY_PARTITION_ROWS, ACTORS = "mini", 2, 0.25, 500, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--partition-rows", type=int, default=10_000)
    parser.add_argument("--ray-rows", type=int, default=20_000, help="0: leave Ray out")
    parser.add_argument("--machinery", nargs=2, type=Path, help=argparse.SUPPRESS)
    add_output_argument(parser, "batch")
    arguments = parser.parse_args()
    if arguments.machinery:
        print(machinery(*arguments.machinery, arguments.partition_rows))
        return
    with tempfile.TemporaryDirectory(prefix="mrr-batch-") as name:
        results = measure(Path(name), arguments.rows, arguments.partition_rows)
        results["ray"] = compare_engines(Path(name), arguments.ray_rows) if arguments.ray_rows else None
    what = "mrr batch on many rows with a tiny model: memory over the run, speed without the model, resuming, and Ray."
    print(table(write_result(arguments.output, "batch", what, results, seeds=[SEED])))


def measure(folder: Path, count: int, partition_rows: int) -> dict[str, Any]:
    """Memory and speed for each format, and a run that is killed."""
    MODEL.save(folder / "model")
    options = ["--model", folder / "model", "--dtype", DTYPE, "--partition-rows", partition_rows]
    found: dict[str, Any] = {
        "rows": count, "partition_rows": partition_rows, "document_words": DOCUMENT_WORDS,
        "mean_document_words": round(sum(len(row["document"].split()) for row in rows(1000)) / 1000, 1),
        "dtype": DTYPE, "layers": LAYERS, "hidden_size": HIDDEN_SIZE, "formats": [],
    }  # fmt: skip
    for kind in FORMATS:
        file, output = folder / f"rows.{kind}", folder / f"scored-{kind}"
        write(file, count)
        run = run_batch(file, output, options)
        seconds = machinery_seconds(file, folder / "none", partition_rows)
        found["formats"].append(
            {
                "format": kind,
                "input_mib": file.stat().st_size >> 20,
                "seconds": round(run.seconds, 1),
                "rows_per_second": round(count / run.seconds, 1),
                "machinery_rows_per_second": round(count / seconds, 1),
                "rss_mib": run.tenths(len(parts(output))),
                "peak_mib": max(rss for _, rss in run.samples),
            }
        )
        if kind == "jsonl":
            found["resume"] = killed_and_resumed(folder, output, max(2 * partition_rows, count // 5), options)
        for path in (output, folder / "none"):
            shutil.rmtree(path)
        file.unlink()
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

    def parts_per_second(self) -> float:
        """Between the first and the last part, so without the start."""
        (begin, first), *_, (end, last) = self.done
        return (last - first) / (end - begin)


def run_batch(file: Path, output: Path, options: Sequence[object], *, kill_after: int | None = None) -> Run:
    """Run `mrr batch` and watch it; kill it after `kill_after` parts, if that is given."""
    words = [str(word) for word in ("batch", file, "--output", output, *options)]
    print("mrr", *words, file=sys.stderr, flush=True)
    run, begin = Run(), time.monotonic()
    process = psutil.Popen([sys.executable, "-m", "mrr_model", *words], env=environment(), stdout=subprocess.DEVNULL)
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
    if process.wait() and kill_after is None:
        sys.exit(f"error: it ended with {process.returncode}")
    run.seconds = time.monotonic() - begin
    return run


def machinery_seconds(file: Path, output: Path, partition_rows: int) -> float:
    """What `machinery` measures, in a process of its own."""
    command = [sys.executable, __file__, "--machinery", file, output, "--partition-rows", str(partition_rows)]
    return float(subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True).stdout)


def machinery(file: Path, output: Path, partition_rows: int) -> float:
    """Seconds of `rerank_files` with a re-ranker that computes nothing."""
    from mrr_model.batch import BatchConfig, rerank_files
    from mrr_model.reranker import MatryoshkaReranker

    config = BatchConfig(inputs=(file,), output=output, partition_rows=partition_rows)
    begin = time.perf_counter()
    rerank_files(config, reranker=cast(MatryoshkaReranker, NoModel()))
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
        return (self._scores * (len(pairs) // CHUNK + 1))[: len(pairs)]


def killed_and_resumed(folder: Path, undisturbed: Path, count: int, options: Sequence[object]) -> dict[str, Any]:
    """Kill a run on the first rows, resume it, and compare its parts with those of the run on all rows."""
    file, output = folder / "first.jsonl", folder / "resumed"
    write(file, count)
    killed = run_batch(file, output, options, kill_after=count // int(str(options[-1])) // 2)
    before = {path.name: path.stat().st_mtime_ns for path in parts(output)}
    run_batch(file, output, options)
    found = {
        "rows": count,
        "parts": len(parts(output)),
        "parts_at_kill": killed.done[-1][1],
        "parts_kept": sum(before.get(path.name) == path.stat().st_mtime_ns for path in parts(output)),
        "identical_parts": sum(path.read_bytes() == (undisturbed / path.name).read_bytes() for path in parts(output)),
    }
    if found["identical_parts"] != found["parts"] or found["parts_kept"] < found["parts_at_kill"]:
        sys.exit(f"error: the resumed run differs: {found}")
    return found


def compare_engines(folder: Path, count: int) -> dict[str, Any]:
    """`mini` on the same rows in one process with all cores, and in actors of Ray with a core each."""
    file = folder / "few.jsonl"
    write(file, count)
    options: list[object] = ["--model", RAY_MODEL, "--dtype", DTYPE, "--partition-rows", RAY_PARTITION_ROWS]
    options += ["--depth", RAY_DEPTH, "--keep-ratio", RAY_KEEP_RATIO, "--engine"]
    engines, scores = [], []
    for engine in (["embedded"], ["ray", "--actors", ACTORS, "--cpus-per-actor", 1]):
        output = folder / str(engine[0])
        run = run_batch(file, output, [*options, *engine])
        rate = run.parts_per_second() * RAY_PARTITION_ROWS
        engines.append(
            {"engine": engine[0], "seconds": round(run.seconds, 1), "pairs_per_second": round(rate, 1)}
        )  # fmt: skip
        lines = [json.loads(line) for path in parts(output) for line in path.read_text(encoding="utf-8").splitlines()]
        scores.append({row["id"]: row["score"] for row in lines})
        if len(lines) != count or len(scores[-1]) != count:
            sys.exit(f"error: of {count} rows, {engine[0]} has written {len(lines)}")
    difference = max(abs(one - other) for one, other in zip(*(each.values() for each in scores), strict=True))
    return {
        "model": RAY_MODEL, "depth": RAY_DEPTH, "keep_ratio": RAY_KEEP_RATIO, "rows": count, "actors": ACTORS,
        "engines": engines, "largest_difference": difference,
    }  # fmt: skip


def parts(output: Path) -> list[Path]:
    """The parts of a job, in their order."""
    return sorted(output.glob("part-*"))


def records(output: Path) -> list[Path]:
    """What says that partitions are done."""
    return [*output.glob("_progress/[0-9]*.json")]


def environment() -> dict[str, str]:
    """This checkout's package, offline."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}


if __name__ == "__main__":
    main()
