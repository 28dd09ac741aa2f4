"""Measures by ir_measures, over one explicit order: by score, then by docid, both descending (trec_eval's rule).

Tools break ties each in a way of its own, and some compare scores in float32. So ties are broken here, before a run is
measured or written: a score that does not lie below the one before it is lowered to the next float32 that does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

import numpy as np

Run = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""
Qrels = Mapping[str, Mapping[str, int]]

EVAL_EXTRA = 'pip install "matryoshka-reranker[eval]"'


@dataclass(frozen=True)
class Measured:
    """One run's values of some measures."""

    mean: dict[str, float]
    """Measure -> its mean over all judged queries; a query without documents counts as the measure says, mostly 0."""
    by_query: dict[str, dict[str, float]]
    """Measure -> query id -> value."""


@dataclass(frozen=True)
class Comparison:
    """A run against another on the same queries."""

    difference: float
    """The mean of the differences."""
    p_value: float
    """Two-sided, of a paired t-test; 1 where no query differs, NaN for fewer than two queries."""


def distinct(run: Run) -> dict[str, dict[str, float]]:
    """The same order as strictly descending float32 scores, each query's documents best first.

    >>> distinct({"q": {"d1": 0.5, "d2": 1.0, "d3": 0.5}})["q"].keys()
    dict_keys(['d2', 'd3', 'd1'])
    """
    ordered: dict[str, dict[str, float]] = {}
    for query, scores in run.items():
        best_first = sorted(sorted(scores, reverse=True), key=lambda document: -scores[document])
        ordered[query], above = {}, np.float32(np.inf)
        for document in best_first:
            above = min(np.float32(scores[document]), np.nextafter(above, np.float32(-np.inf)))
            ordered[query][document] = float(above)
    return ordered


def measure(names: Sequence[str], qrels: Qrels, run: Run) -> Measured:
    """The measures' values for a run, as ir_measures computes them. Two names may stand for one measure.

    Raises ``ValueError`` for a name that :func:`parsed` does not take, and for ids that a measure does not.

    >>> measure(["RR@10"], {"q": {"d1": 1}}, {"q": {"d1": 0.1, "d2": 0.9}}).mean
    {'RR@10': 0.5}
    """
    measures = {name: parsed(name) for name in names}
    found = {query: scores for query, scores in distinct(run).items() if scores}  # as a run that was written has them
    try:
        results = _library().calc(list(dict.fromkeys(measures.values())), qrels, found)
    except CalledProcessError as error:  # a script that computes some of them
        raise ValueError(
            f"one of {', '.join(names)} could not be computed: {error}. Its script may take other ids than these (ERR: "
            "queries by number only); leave it out."
        ) from error
    values: dict[Any, dict[str, float]] = {each: {} for each in measures.values()}
    for metric in results.per_query:
        values[metric.measure][metric.query_id] = metric.value
    return Measured(
        {name: results.aggregated[each] for name, each in measures.items()},
        {name: values[each] for name, each in measures.items()},
    )


def parsed(name: str) -> Any:
    """ir_measures' object of that name. Raises ``ValueError`` for one that it does not know or cannot compute here."""
    library = _library()
    try:
        found = library.parse_measure(name)
        supported = library.DefaultPipeline.supports(found)
    except (NameError, ValueError, AssertionError) as error:
        raise ValueError(
            f"{name!r} is no measure of ir_measures: {error}. Write nDCG@10, RR@10, AP or R@100, for example."
        ) from None
    if not supported:
        raise ValueError(f"{name!r} needs more than ir_measures has here. Choose another, such as nDCG@10.")
    return found


def compare(values: Mapping[str, float], others: Mapping[str, float]) -> Comparison:
    """One measure of two runs, query by query (paired).

    >>> compare({"a": 1.0, "b": 0.5, "c": 0.9}, {"a": 0.5, "b": 0.2, "c": 0.5}).p_value < 0.05
    True
    """
    import scipy.stats

    if values.keys() != others.keys():
        raise ValueError("the two runs were measured on different queries.")
    differences = np.array([values[query] - others[query] for query in values])
    if len(differences) < 2:
        return Comparison(float(differences.sum()), math.nan)
    if np.ptp(differences) == 0:
        return Comparison(float(differences.mean()), 1.0 if differences[0] == 0 else 0.0)
    return Comparison(float(differences.mean()), float(scipy.stats.ttest_1samp(differences, 0.0).pvalue))


def write_run(path: Path, run: Run, tag: str) -> None:
    """A TREC run: qid Q0 docid rank score tag; scores are float32 in full, and no two of a query are equal."""
    lines = [
        f"{query} Q0 {document} {rank} {np.float32(score)!s} {tag}"
        for query, scores in distinct(run).items()
        for rank, (document, score) in enumerate(scores.items(), 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"unfinished-{path.name}")
    unfinished.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    unfinished.replace(path)


def _library() -> Any:
    try:
        import ir_measures
    except ImportError as error:
        raise ImportError(f"measures need ir_measures: {EVAL_EXTRA}") from error
    return ir_measures
