"""The examples' first stage: BM25 by bm25s."""

import bm25s
import Stemmer


class Bm25:
    """A first stage: the ``k`` passages whose words fit a query best."""

    def __init__(self, texts: list[str]) -> None:
        self._stemmer = Stemmer.Stemmer("english")
        self._index = bm25s.BM25()
        self._index.index(self._words(texts), show_progress=False)

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """(place in the list, BM25 score), best first."""
        places, scores = self._index.retrieve(self._words([query]), k=k, show_progress=False)
        return [(int(place), float(score)) for place, score in zip(places[0], scores[0], strict=True)]

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = bm25s.tokenize(
            texts, stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return words
