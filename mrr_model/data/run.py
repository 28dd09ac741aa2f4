"""TREC runs in one explicit order: by score, then by document id, both descending, as trec_eval orders them.

Tools break ties in different ways, and some compare scores in float32. So ties are broken here: a score that is not
below the previous one is lowered to the next smaller float32.
"""

from collections.abc import Iterator, Mapping

import numpy as np

Run = Mapping[str, Mapping[str, float]]
"""Query id -> document id -> score."""


def break_ties(run: Run) -> dict[str, dict[str, float]]:
    """The same order as strictly descending float32 scores, each query's documents best first.

    >>> break_ties({"q": {"d1": 0.5, "d2": 1.0, "d3": 0.5}})["q"].keys()
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


def run_lines(run: Run, tag: str) -> Iterator[str]:
    """The lines of a run, `qid Q0 docid rank score tag`: scores are float32 in full, and no two of a query are equal.

    >>> list(run_lines({"q": {"d1": 0.5, "d2": 1.0}}, "mine"))
    ['q Q0 d2 1 1.0 mine', 'q Q0 d1 2 0.5 mine']
    """
    for query, scores in break_ties(run).items():
        for rank, (document, score) in enumerate(scores.items(), 1):
            yield f"{query} Q0 {document} {rank} {np.float32(score)!s} {tag}"
