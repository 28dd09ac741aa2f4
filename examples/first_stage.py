"""The examples' first stage: BM25 over a list of texts."""

from mrr_model.data.bm25 import BM25Index


class Bm25:
    """A first stage: the `k` passages whose words fit a query best."""

    def __init__(self, texts: list[str]) -> None:
        self._index = BM25Index(dict(enumerate(texts)))

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        """(index in the list, BM25 score), best first."""
        [found] = self._index.search([query], k)
        return list(found.items())
