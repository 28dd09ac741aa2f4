"""BM25 over a whole corpus, by bm25s: the first stage of an evaluation, and where hard negatives are mined.

Lucene's variant with k1=0.9 and b=0.4, bm25s's English stop words, Snowball's English stemmer. Equal scores are ordered
by id, descending (trec_eval's rule), so a ranking and its cut do not depend on the order of the corpus. The index of a
large corpus is cached on disk and loaded the next time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from mrr_model.cache import cache_folder

logger = logging.getLogger(__name__)

PARAMETERS: dict[str, Any] = {"method": "lucene", "k1": 0.9, "b": 0.4}
"""Parameters of bm25s's index."""
CACHED_FROM = 20_000
"""Indexes of fewer documents are not cached: they are built in a second or two."""

Id = TypeVar("Id", str, int)


class BM25Index(Generic[Id]):
    """A BM25 index of a corpus.

    Args:
        corpus: Id -> text. Ids are strings or, for a plain list, indices: `dict(enumerate(texts))`.

    Raises:
        ImportError: If bm25s or PyStemmer is not installed.

    Example:
        >>> index = BM25Index({"d1": "Rain falls.", "d2": "It fell."})
        >>> [list(found) for found in index.search(["what fell?", "what is it"], top_k=9)]
        [['d2'], []]
    """

    def __init__(self, corpus: Mapping[Id, str]) -> None:
        self._ids: list[Id] = list(corpus)
        self._index = _load_or_build(corpus)

    def search(self, queries: Iterable[str], top_k: int) -> list[dict[Id, float]]:
        """Find the best documents of each query.

        Args:
            queries: The queries.
            top_k: Documents per query, at most.

        Returns:
            Per query, document id -> score, best first. Only documents that share a word with the query are found: none
            if it has only stop words or unknown words.
        """
        return [self._best(scores, top_k) for scores in map(self._scores, tokenize(queries))]

    def scores(self, query: str) -> NDArray[np.float32]:
        """Score every document for one query: (N,), in the order of the corpus."""
        [words] = tokenize([query])
        return self._scores(words)

    def _scores(self, words: Sequence[str]) -> NDArray[np.float32]:
        known = [word for word in words if self._index is not None and word in self._index.vocab_dict]
        scores: NDArray[np.float32] = (
            self._index.get_scores(known) if known else np.zeros(len(self._ids), dtype=np.float32)
        )
        return scores  # (N,)

    def _best(self, scores: NDArray[np.float32], top_k: int) -> dict[Id, float]:
        indices = np.flatnonzero(scores > 0)
        if 0 < top_k < len(indices):
            least = np.partition(scores[indices], -top_k)[-top_k]
            indices = indices[scores[indices] >= least]  # those that tie at the cut stay in until they are ordered
        ranked = sorted(((float(scores[index]), self._ids[index]) for index in indices.tolist()), reverse=True)
        return {document: score for score, document in ranked[:top_k]}


def bm25_run(queries: Mapping[str, str], corpus: Mapping[str, str], candidates: int) -> dict[str, dict[str, float]]:
    """Search a corpus once: query id -> document id -> score, at most `candidates` per query, best first.

    >>> found = bm25_run({"q": "what fell?"}, {"d1": "Rain falls.", "d2": "It fell."}, candidates=9)
    >>> {query: list(scores) for query, scores in found.items()}
    {'q': ['d2']}
    """
    return dict(zip(queries, BM25Index(corpus).search(queries.values(), candidates), strict=True))


def tokenize(texts: Iterable[str]) -> list[list[str]]:
    """Split texts into the stemmed words that BM25 compares.

    >>> tokenize(["Trains were late."])
    [['train', 'were', 'late']]
    """
    words: list[list[str]] = _tokenize(texts, return_ids=False)
    return words


def _load_or_build(corpus: Mapping[Any, str]) -> Any:
    """The corpus's bm25s index, from the cache if it is there; None for a corpus without words."""
    bm25s, Stemmer = _libraries()
    large = len(corpus) >= CACHED_FROM
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


def _key(corpus: Mapping[Any, str], *versions: str) -> str:
    """A name made of all that an index depends on: the documents in order, the parameters and the libraries."""
    digest = hashlib.sha256(json.dumps([PARAMETERS, versions]).encode())
    for document in corpus.items():
        digest.update(json.dumps(document).encode())
    return digest.hexdigest()


def _keep(index: Any, folder: Path) -> None:
    """Write the index beside its folder and rename it, so that no other process reads half of it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            index.save(Path(made) / "index", show_progress=False)
            (Path(made) / "index").rename(folder)
    except OSError as error:
        logger.warning("the BM25 index could not be stored in %s, so the next run builds it again: %s", folder, error)


def _tokenize(texts: Iterable[str], *, return_ids: bool = True, show_progress: bool = False) -> Any:
    """Each text's stems, as lists of words or as numbers with their vocabulary."""
    bm25s, Stemmer = _libraries()
    stemmer = Stemmer.Stemmer("english")
    texts = texts if return_ids else list(texts)
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=return_ids, show_progress=show_progress)


def _libraries() -> tuple[Any, Any]:
    try:
        import bm25s
        import Stemmer
    except ImportError as error:
        raise ImportError(
            f'BM25 needs bm25s and PyStemmer ({error}): pip install "matryoshka-reranker[eval]" or '
            'pip install "matryoshka-reranker[train]"; an evaluation can take a TREC run instead'
        ) from error
    return bm25s, Stemmer
