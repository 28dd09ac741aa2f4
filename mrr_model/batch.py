"""Re-rank files of any size: on this machine with `rerank_files`, on a cluster with it or with `rerank_dataset`."""

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from mrr_model.bulk.config import BatchConfig
from mrr_model.bulk.dataset import rerank_dataset
from mrr_model.bulk.job import Job, is_known, open_job
from mrr_model.bulk.records import BadRowError, Report
from mrr_model.bulk.scoring import score_partitions
from mrr_model.files.locks import locked
from mrr_model.opening import open_model
from mrr_model.reranker import MatryoshkaReranker

__all__ = ["BadRowError", "BatchConfig", "BatchReport", "rerank_dataset", "rerank_files"]


@dataclass(frozen=True)
class BatchReport:
    """What a job has done, earlier runs included.

    Attributes:
        output: The output folder.
        parts: Files of scored rows in it.
        rows: Rows that were written with their scores.
        pairs: (query, document) pairs that were scored.
        skipped: Rows that could not be scored; they are in `_skipped.jsonl`.
    """

    output: Path
    parts: int
    rows: int
    pairs: int
    skipped: int


def rerank_files(
    config: BatchConfig,
    *,
    reranker: MatryoshkaReranker | None = None,
    note: Callable[[str], object] = lambda _: None,
) -> BatchReport:
    r"""Score the rows of files, and write the same rows with their scores to a folder.

    Each partition of the input becomes one file there. Call it again to resume: partitions that are done are not scored
    again, and the others give the same bytes as in a run that was not stopped. A progress bar shows in a terminal.

    Args:
        config: The inputs, the output, the model and its setting; the flags of `mrr batch`.
        reranker: The model, already loaded, for `engine="embedded"`; its own setting holds, and the config's fields
            about models have no effect. None opens what the config says.
        note: Called with a message before long work.

    Returns:
        What is in the output folder.

    Raises:
        BadRowError: For a row that cannot be scored, with `on_bad_row="fail"`; names its file and line.
        FileNotFoundError: If an input or the model is missing.
        ValueError: If an input, the output folder or the model cannot be used.
        TypeError: If an argument is of the wrong type.
        ImportError: If a library is missing; the message has the command that installs it.

    Example:
        >>> import json, tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = [{"query": "who wrote Faust?", "document": text} for text in ("Goethe did.", "Bees make honey.")]
        >>> _ = (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        >>> config = BatchConfig(inputs=folder / "pairs.jsonl", output=folder / "scored", depth=4, keep_ratio=0.5)
        >>> rerank_files(config).pairs
        2
        >>> one, other = map(json.loads, (folder / "scored" / "part-00000.jsonl").read_text().splitlines())
        >>> one["score"] > other["score"]
        True
    """
    if not isinstance(config, BatchConfig):
        raise TypeError(f"config must be a BatchConfig, got {type(config).__name__}.")
    if reranker is not None and not hasattr(reranker, "fingerprint"):
        raise TypeError(f"reranker must be a MatryoshkaReranker or None, got {type(reranker).__name__}.")
    with locked(config.output, "mrr batch"):
        if reranker is None and config.engine == "embedded" and not is_known(config):
            reranker = open_model(config)  # before the inputs are divided and an old result is removed
        job = open_job(config, note)
        pending = job.pending()
        if done := len(job.partitions) - len(pending):
            note(f"{done} of {len(job.partitions)} partitions are done already")
        if pending:
            job.source.prepare()
            _show(job, _reports(job, config, reranker))
        total = job.finish()
    return BatchReport(config.output, len(job.partitions), total.rows, total.pairs, total.skipped)


def _reports(job: Job, config: BatchConfig, reranker: MatryoshkaReranker | None) -> Generator[Report, None, None]:
    """Score the pending partitions; the counts come as rows are done."""
    if config.engine == "ray":
        if reranker is not None:
            raise ValueError(
                "reranker cannot be sent to Ray's actors: they open config.model themselves. Leave it out."
            )
        from mrr_model.bulk.on_ray import run_on_ray

        return run_on_ray(job, config)
    if reranker is None:
        reranker = open_model(config)
    job.check_model(reranker)
    return score_partitions(job, job.pending(), reranker)


def _show(job: Job, reports: Generator[Report, None, None]) -> None:
    """Run to the end, with a bar of rows, pairs per second and time left."""
    rows = sum(partition.rows for partition in job.partitions)
    before, pairs, begin = job.done(), 0, time.monotonic()
    done = before.rows + before.skipped
    with closing(reports), tqdm(total=rows, initial=done, desc=job.folder.name, unit="row", disable=None) as bar:
        for report in reports:
            pairs += report.pairs
            bar.set_postfix_str(f"{pairs / (time.monotonic() - begin):,.1f} pairs/s", refresh=False)
            bar.update(report.rows + report.skipped)
