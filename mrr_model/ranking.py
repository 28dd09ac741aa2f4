"""What `rank` returns: documents with their scores, best first."""

from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_CHARACTERS = 60
"""Characters of a document's text that its `repr` shows."""


@dataclass(frozen=True, repr=False)
class RankedDocument:
    """One document of a ranking. Its `repr` shortens a long text.

    Args:
        index: The document's index in the list that was ranked.
        score: Its score: a probability, or a logit with `normalize=False`.
        text: Its text.

    Example:
        >>> RankedDocument(0, 0.75, "word " * 1000)
        RankedDocument(index=0, score=0.75, text='word word word word word word word word word word word word …')
    """

    index: int
    score: float
    text: str

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN_CHARACTERS else self.text[:SHOWN_CHARACTERS] + "…"
        return f"{type(self).__name__}(index={self.index!r}, score={self.score!r}, text={text!r})"


def ranked(
    texts: Sequence[str],
    logits: Sequence[float],
    scores: Sequence[float],
    top_n: int | None = None,
    min_score: float | None = None,
) -> list[RankedDocument]:
    """Order documents by logit, best first; equal logits keep their input order.

    Args:
        texts: The documents.
        logits: Their logits, which decide the order.
        scores: Their scores, which are returned and bounded by `min_score`.
        top_n: Documents to return at most; None for all.
        min_score: The lowest score to return; None for all.

    Example:
        >>> [document.index for document in ranked(["a", "b", "c"], [1.0, 2.0, 2.0], [0.73, 0.88, 0.88], top_n=2)]
        [1, 2]
    """
    best_first = sorted(range(len(texts)), key=lambda index: -logits[index])
    kept = [index for index in best_first if min_score is None or scores[index] >= min_score]
    return [RankedDocument(index, scores[index], texts[index]) for index in kept[:top_n]]
