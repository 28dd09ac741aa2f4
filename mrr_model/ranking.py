"""What `rank` returns: documents with their scores, best first."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN_CHARACTERS = 50
"""Characters of a document's text that its `repr` shows."""


@dataclass(frozen=True, repr=False)
class RankedDocument:
    """One document of a ranking. Its `repr` shortens a long text.

    Args:
        index: The document's index in the list that was ranked.
        score: Its score: a probability, or a logit with `normalize=False`.
        text: Its text.
        depth: The exit that its score was read at; 0 if a deadline passed before it was read at all.
        span: The characters of `text`, from the first to before the last, of the window that decided the score; None if
            the text was not split or not read.

    Example:
        >>> RankedDocument(0, 0.75, "word " * 1000, depth=6)
        RankedDocument(index=0, score=0.75, text='word word word word word word word word word word …', depth=6)
    """

    index: int
    score: float
    text: str
    depth: int
    span: tuple[int, int] | None = None

    @property
    def passage(self) -> str:
        """The part of the text that decided the score: the window in `span`, else all of it."""
        return self.text if self.span is None else self.text[slice(*self.span)]

    def span_in(self, part: str) -> tuple[int, int] | None:
        """The span in a part of the text, such as the content that follows a title.

        Args:
            part: The part; what counts is its last occurrence, without white space around it.

        Returns:
            The characters of `part`, from the first to before the last; None if the text was not split, or its window
            has nothing of the part.

        Example:
            >>> document = RankedDocument(0, 0.75, "Faust: Goethe wrote it. It is a tragedy.", depth=6, span=(0, 23))
            >>> document.span_in("Goethe wrote it. It is a tragedy.")
            (0, 16)
        """
        stripped = part.strip()
        at = self.text.rfind(stripped)
        if self.span is None or not stripped or at < 0:
            return None
        start, end = max(self.span[0] - at, 0), min(self.span[1] - at, len(stripped))
        before = len(part) - len(part.lstrip())
        return (start + before, end + before) if start < end else None

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN_CHARACTERS else self.text[:SHOWN_CHARACTERS] + "…"
        span = "" if self.span is None else f", span={self.span!r}"
        return (
            f"{type(self).__name__}(index={self.index!r}, score={self.score!r}, text={text!r}, depth={self.depth!r}"
            f"{span})"
        )


class Ranking(list[RankedDocument]):
    """A list of documents, best first.

    Attributes:
        complete: Whether every document was read as deep as the setting and its cascade say; False if a deadline passed
            before.
        shares: By exit, the share of all documents whose score was read at it; 0 stands for those that were not read.

    Example:
        >>> ranking = Ranking([RankedDocument(0, 0.75, "Goethe wrote Faust.", depth=6)], shares={6: 0.5, 2: 0.5})
        >>> ranking.complete, ranking[0].index
        (True, 0)
    """

    def __init__(
        self, documents: Iterable[RankedDocument] = (), *, complete: bool = True, shares: dict[int, float] | None = None
    ) -> None:
        super().__init__(documents)
        self.complete = complete
        self.shares = shares or {}


@dataclass(frozen=True)
class Scored:
    """What is known of one document before it is ranked; `MatryoshkaReranker.score_documents` says it.

    Attributes:
        logit: At the exit that it reached; any number if it was not read.
        score: Its score at that exit, by itself.
        depth: That exit; 0 if it was not read.
        span: See `RankedDocument`.
        tokens: Of its input, of all of them if it was split; 0 if it was not encoded.
    """

    logit: float
    score: float
    depth: int
    span: tuple[int, int] | None = None
    tokens: int = 0


def ranked(
    texts: Sequence[str],
    scored: Sequence[Scored],
    top_n: int | None = None,
    min_score: float | None = None,
    *,
    complete: bool = True,
) -> Ranking:
    """Order documents: those that went deeper first, then by logit; equal ones keep their input order.

    Scores never increase along the ranking: a document's is capped by the lowest of those that went deeper. Documents
    that were not read come last, in input order, with a score of at most 0.

    Args:
        texts: The documents.
        scored: What is known of each.
        top_n: Documents to return at most; None for all.
        min_score: The lowest score to return; None for all. Documents that were not read never reach it.
        complete: See `Ranking`.

    Example:
        >>> scored = [Scored(9.0, 0.9, depth=2), Scored(1.0, 0.6, depth=6), Scored(2.0, 0.8, depth=6)]
        >>> [(document.index, document.score) for document in ranked(["a", "b", "c"], scored)]
        [(2, 0.8), (1, 0.6), (0, 0.6)]
    """
    best_first = sorted(
        range(len(texts)),
        key=lambda index: (-scored[index].depth, -scored[index].logit if scored[index].depth else 0.0),
    )
    documents, lowest = [], math.inf
    for index in best_first:
        each = scored[index]
        lowest = min(lowest, each.score if each.depth else 0.0)
        if min_score is None or (each.depth and lowest >= min_score):
            documents.append(RankedDocument(index, lowest, texts[index], each.depth, each.span))
    counts = Counter(each.depth for each in scored)
    shares = {depth: counts[depth] / len(texts) for depth in sorted(counts, reverse=True)}
    return Ranking(documents[:top_n], complete=complete, shares=shares)
