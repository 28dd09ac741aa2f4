"""BM25 as a first stage: bm25s over the whole corpus, as hard negatives are mined.

Lucene's variant with k1=0.9 and b=0.4, bm25s's English stop words, Snowball's English stemmer, over "title text".
Scores are bm25s's own. Documents of equal score stand by id, descending (trec_eval's rule), so that a ranking and where
it is cut do not depend on the order of the corpus. The index of a large corpus is kept on disk for the next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mrr_model.cache import cache_folder

logger = logging.getLogger(__name__)

PARAMETERS: dict[str, Any] = {"method": "lucene", "k1": 0.9, "b": 0.4}
"""What bm25s's index is made with."""
KEPT_FROM = 20_000
"""Indexes of fewer documents are not kept: making them anew takes a second or two."""


def bm25_run(queries: Mapping[str, str], corpus: Mapping[str, str], candidates: int) -> dict[str, dict[str, float]]:
    """The at most ``candidates`` best documents of each query with their scores, best first.

    A query finds the documents that share a word with it: none, where it holds stop words or unknown words alone.
    Raises ImportError without bm25s and PyStemmer.

    >>> found = bm25_run(
    ...     {"q": "what fell?", "none": "what is it"}, {"d1": "Rain falls.", "d2": "It fell."}, candidates=9
    ... )
    >>> {query: list(scores) for query, scores in found.items()}
    {'q': ['d2'], 'none': []}
    """
    found: dict[str, dict[str, float]] = {query: {} for query in queries}
    index = _index(corpus)
    if index is None:
        return found
    identifiers = list(corpus)
    for query, words in zip(queries, _tokenize(queries.values(), return_ids=False), strict=True):
        if known := [word for word in words if word in index.vocab_dict]:
            found[query] = _best(index.get_scores(known), identifiers, candidates)
    return found


def _best(scores: NDArray[np.float32], identifiers: Sequence[str], candidates: int) -> dict[str, float]:
    """Of all documents' scores, (N,), the best above 0."""
    places = np.flatnonzero(scores > 0)
    if len(places) > candidates:
        least = np.partition(scores[places], -candidates)[-candidates]
        places = places[scores[places] >= least]  # those that tie at the cut stay in until they are ordered
    ranked = sorted(((float(scores[place]), identifiers[place]) for place in places.tolist()), reverse=True)
    return {document: score for score, document in ranked[:candidates]}


def _index(corpus: Mapping[str, str]) -> Any:
    """The corpus's index, from the disk where it is kept there; None for a corpus without words."""
    bm25s, Stemmer = _libraries()
    large = len(corpus) >= KEPT_FROM
    folder = cache_folder() / "bm25s" / _key(corpus, bm25s.__version__, Stemmer.version()) if large else None
    if folder is not None and folder.is_dir():
        return bm25s.BM25.load(folder, mmap=True, show_progress=False)
    show = large and sys.stderr is not None and sys.stderr.isatty()
    tokens = _tokenize((text for _, text in corpus.items()), show_progress=show)
    if not any(tokens.ids):
        return None
    index = bm25s.BM25(**PARAMETERS)
    index.index(tokens, show_progress=show)
    if folder is not None:
        _keep(index, folder)
    return index


def _key(corpus: Mapping[str, str], *versions: str) -> str:
    """What an index depends on, as a name: each document in its place, the parameters and the libraries."""
    digest = hashlib.sha256(json.dumps([PARAMETERS, versions]).encode())
    for document in corpus.items():
        digest.update(json.dumps(document).encode())
    return digest.hexdigest()


def _keep(index: Any, folder: Path) -> None:
    """Write the index beside its place and move it there, so that no other process reads half of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            index.save(Path(made) / "index", show_progress=False)
            (Path(made) / "index").rename(folder)
    except OSError as error:
        logger.warning("the BM25 index could not be kept in %s, so the next run makes it anew: %s", folder, error)


def _tokenize(texts: Iterable[str], *, return_ids: bool = True, show_progress: bool = False) -> Any:
    """The stems of each text: lists of words, or numbers with their vocabulary."""
    bm25s, Stemmer = _libraries()
    stemmer = Stemmer.Stemmer("english")
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=return_ids, show_progress=show_progress)


def _libraries() -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise ImportError(
            f'BM25 needs bm25s and PyStemmer ({error}): pip install "matryoshka-reranker[eval]"; or give a TREC run'
        ) from error
    return bm25s, Stemmer
