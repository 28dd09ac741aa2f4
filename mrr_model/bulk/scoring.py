"""A partition scored: windows in, a file with the same rows and their scores out."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, groupby
from typing import Any

from mrr_model.bulk.job import Job
from mrr_model.bulk.parts import open_part
from mrr_model.bulk.records import BadRow, BadRowError, Partition, Report
from mrr_model.bulk.windows import Window, windows
from mrr_model.files.atomic import naming
from mrr_model.inference.prefetch import prefetched
from mrr_model.reranker import MatryoshkaReranker


def score_partition(job: Job, partition: Partition, reranker: MatryoshkaReranker) -> Report:
    """Score a partition, and write its part and then the record that it is done.

    The same rows, model and device give the same bytes.

    Raises:
        BadRowError: For a row that cannot be scored, if the job leaves none out.
        ValueError: If the model gives a score that is no number, or a file has changed.
    """
    with closing(prefetched(windows(job.source, partition))) as own:
        return sum(score_windows(job, partition, reranker, own), Report())


def score_partitions(
    job: Job, partitions: Iterable[Partition], reranker: MatryoshkaReranker
) -> Generator[Report, None, None]:
    """Score partitions one after the other, each as `score_partition` does; the next window is read meanwhile.

    Yields:
        The counts of each window.
    """
    ahead = prefetched(window for partition in partitions for window in windows(job.source, partition))
    with closing(ahead):
        for partition, own in groupby(ahead, key=lambda window: window.partition):
            yield from score_windows(job, partition, reranker, own)


def score_windows(
    job: Job, partition: Partition, reranker: MatryoshkaReranker, own: Iterable[Window]
) -> Iterator[Report]:
    """Score a partition's windows and write them; yields the counts of each."""
    done, bad = Report(), list[BadRow]()
    with open_part(job, partition) as part:
        for window in own:
            if window.bad and job.on_bad_row == "fail":
                raise BadRowError(f"{window.bad[0]}. --on-bad-row skip leaves such rows out.")
            requests = window.requests()
            scores, ranks = _results(job, reranker, requests)
            start = 0
            for chunk in window.chunks:
                end = start + len(chunk.queries)
                with naming(job.part(partition.index)):
                    part.write(chunk.rows, scores[start:end], None if ranks is None else ranks[start:end])
                start = end
            report = Report(start, sum(len(documents) for _, documents in requests), len(window.bad))
            done, bad = done + report, bad + window.bad
            yield report
    job.record(partition, done, bad)


def _results(
    job: Job, reranker: MatryoshkaReranker, requests: list[tuple[str, list[str]]]
) -> tuple[list[Any], list[Any] | None]:
    """The scores of rows, or of their documents, in their order; and the ranks, or None if nothing is ranked."""
    if not job.ranked:
        pairs = [(query, document) for query, documents in requests for document in documents]
        return reranker.score_pairs(pairs, normalize=job.normalize), None
    scores, ranks = ranked_scores(reranker, requests, normalize=job.normalize)
    if job.source.lists:
        return scores, ranks
    return [*chain.from_iterable(scores)], [*chain.from_iterable(ranks)]


def ranked_scores(
    reranker: MatryoshkaReranker, requests: Sequence[tuple[str, list[str]]], **options: Any
) -> tuple[list[list[float]], list[list[int]]]:
    """The scores and the ranks of each request's documents, in the order of the documents.

    Args:
        reranker: The model.
        requests: Queries with their documents.
        options: Further arguments of `rank_many`.
    """
    scores, ranks = list[list[float]](), list[list[int]]()
    for (_, documents), ranking in zip(requests, reranker.rank_many(requests, **options), strict=True):
        scores.append([0.0] * len(documents))
        ranks.append([0] * len(documents))
        for rank, ranked in enumerate(ranking, 1):
            scores[-1][ranked.index], ranks[-1][ranked.index] = ranked.score, rank
    return scores, ranks
