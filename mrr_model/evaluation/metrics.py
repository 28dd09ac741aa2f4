"""Retrieval metrics by ir_measures, over one explicit order: by score, then by document id, both descending.

That is trec_eval's rule. Ties are broken before a run is evaluated or written: see `mrr_model.data.run`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np

from mrr_model.data.run import Run, break_ties, run_lines
from mrr_model.files.atomic import write_file

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> relevance."""

EVAL_EXTRA = 'pip install "matryoshka-reranker[eval]"'


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of one run."""

    mean: dict[str, float]
    """Metric -> its mean over all judged queries. A query without documents counts as the metric defines, mostly 0."""
    by_query: dict[str, dict[str, float]]
    """Metric -> query id -> value."""


@dataclass(frozen=True)
class Comparison:
    """A run against another on the same queries."""

    difference: float
    """The mean of the differences."""
    p_value: float
    """Of a two-sided paired t-test; 1 if no query differs, NaN for fewer than two queries."""


def first_stage_run(candidates: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """The first stage's ranking as a run.

    >>> first_stage_run({"q": ["d2", "d1"]})
    {'q': {'d2': 0.0, 'd1': -1.0}}
    """
    return {
        query: {document: 0.0 - index for index, document in enumerate(documents)}
        for query, documents in candidates.items()
    }


def evaluate_run(metrics: Sequence[str], qrels: Qrels, run: Run) -> RunMetrics:
    """Compute metrics of a run with ir_measures.

    Args:
        metrics: Names in ir_measures; two names may stand for the same metric.
        qrels: Relevance judgements.
        run: Scores; queries without judgements are left out.

    Returns:
        The mean and each query's value, by the names given.

    Raises:
        ValueError: For a name that ir_measures does not know, and for ids that a metric cannot take.
        ImportError: If ir_measures is not installed.

    Example:
        >>> evaluate_run(["RR@10"], {"q": {"d1": 1}}, {"q": {"d1": 0.1, "d2": 0.9}}).mean
        {'RR@10': 0.5}
    """
    parsed = {name: parse_metric(name) for name in metrics}
    ranked = {query: scores for query, scores in break_ties(run).items() if scores}  # as in a run file
    try:
        results = _ir_measures().calc(list(dict.fromkeys(parsed.values())), qrels, ranked)
    except CalledProcessError as error:  # some metrics are computed by a script
        raise ValueError(
            f"metrics: one of {', '.join(metrics)} could not be computed: {error}. Its script may not take these ids "
            "(ERR: only queries with numeric ids); leave it out."
        ) from error
    values: dict[Any, dict[str, float]] = {each: {} for each in parsed.values()}
    for value in results.per_query:
        values[value.measure][value.query_id] = value.value
    return RunMetrics(
        {name: results.aggregated[each] for name, each in parsed.items()},
        {name: values[each] for name, each in parsed.items()},
    )


def parse_metric(name: str) -> Any:
    """The ir_measures object of a metric's name.

    Raises:
        ValueError: For a name that ir_measures does not know or cannot compute in this installation.
        ImportError: If ir_measures is not installed.
    """
    library = _ir_measures()
    try:
        found = library.parse_measure(name)
        supported = library.DefaultPipeline.supports(found)
    except (NameError, ValueError, AssertionError) as error:
        raise ValueError(
            f"metric {name!r} is unknown to ir_measures: {error}. Write nDCG@10, RR@10, AP or R@100, for example."
        ) from None
    if not supported:
        raise ValueError(
            f"metric {name!r} needs a library that ir_measures does not find here. Choose another, such as nDCG@10."
        )
    return found


def compare(values: Mapping[str, float], baseline: Mapping[str, float]) -> Comparison:
    """Compare one metric of two runs query by query with a paired t-test.

    Args:
        values: Query id -> value.
        baseline: The values of the run to compare with.

    Raises:
        ValueError: If the two were computed on different queries.

    Example:
        >>> compare({"a": 1.0, "b": 0.5, "c": 0.9}, {"a": 0.5, "b": 0.2, "c": 0.5}).p_value < 0.05
        True
    """
    import scipy.stats

    if values.keys() != baseline.keys():
        raise ValueError("values and baseline were computed on different queries.")
    differences = np.array([values[query] - baseline[query] for query in values])
    if len(differences) < 2:
        return Comparison(float(differences.sum()), math.nan)
    if np.ptp(differences) == 0:
        return Comparison(float(differences.mean()), 1.0 if differences[0] == 0 else 0.0)
    return Comparison(float(differences.mean()), float(scipy.stats.ttest_1samp(differences, 0.0).pvalue))


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write a TREC run, `qid Q0 docid rank score tag`: scores are float32 in full, and no two of a query are equal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(f"{line}\n" for line in run_lines(run, tag)))


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError(f"metrics need ir_measures: {EVAL_EXTRA}") from error
    return ir_measures
