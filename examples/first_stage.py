"""The examples' first stage: BM25 with bm25s."""

import bm25s
import Stemmer


class Bm25:
    """A first stage: the passages whose words match a query best."""

    def __init__(self, texts: list[str]) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._index.index(self._words(texts), show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """Return the indices and BM25 scores of the best `k` passages, best first."""
        indices, scores = self._index.retrieve(self._words([query]), k=k, show_progress=False)
        return [(int(index), float(score)) for index, score in zip(indices[0], scores[0], strict=True)]

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return words
