"""Long documents to overlapping windows, each short enough to be scored whole.

Dai & Callan, "Deeper Text Understanding for IR with Contextual Neural Language Modeling" (SIGIR 2019), score passages
of 150 words that begin every 75 words; the best passage's score is the document's (MaxP). Here windows are counted in
tokens, are as long as the input allows unless the caller says otherwise, and end with a sentence if one ends near.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mrr_model.inference.breaks import BreakableText
from mrr_model.inference.cancelling import check
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.tokenize import without_surrogates
from mrr_model.validation.arguments import optional_whole_number

LongDocuments = Literal["truncate", "max"]
"""What happens to documents that exceed a window: they are cut, or split, and score as their best window."""

Span = tuple[int, int]
"""A window: its first character and one past its last, as indices of the document."""

SURROGATE_PAIRS = re.compile("[\ud800-\udbff][\udc00-\udfff]")


@dataclass(frozen=True)
class Windows:
    """How documents are split.

    Args:
        window: Tokens of a window's text, at most. None, or more than fit beside the query: as many as fit.
        stride: Tokens after which the next window starts, about; None for half a window.

    Raises:
        TypeError: If an argument is not a whole number.
        ValueError: If it is below 1, or the stride exceeds the window.

    Example:
        >>> Windows(window=150, stride=75)
        Windows(window=150, stride=75)
    """

    window: int | None = None
    stride: int | None = None

    def __post_init__(self) -> None:
        window = optional_whole_number("window", self.window)
        stride = optional_whole_number("stride", self.stride)
        if window is not None and stride is not None and stride > window:
            raise ValueError(
                f"stride={stride} exceeds window={window}: the text between two windows would be skipped. Choose at "
                f"most {window}."
            )
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "stride", stride)


def checked_windows(
    long_documents: LongDocuments, window: int | None = None, stride: int | None = None
) -> Windows | None:
    """Check the arguments of a call.

    Returns:
        How documents are split; None if they are cut.

    Raises:
        TypeError: If `window` or `stride` is not a whole number.
        ValueError: If an argument is out of its range, or documents are cut and `window` or `stride` is given.

    Example:
        >>> checked_windows("max", stride=100), checked_windows("truncate")
        (Windows(window=None, stride=100), None)
    """
    if long_documents not in get_args(LongDocuments):
        allowed = " or ".join(map(repr, get_args(LongDocuments)))
        raise ValueError(f"long_documents must be {allowed}, got {long_documents!r}.")
    windows = Windows(window, stride)
    if long_documents == "max":
        return windows
    for name, value in (("window", windows.window), ("stride", windows.stride)):
        if value is not None:
            raise ValueError(
                f"{name}={value} needs long_documents='max', which splits documents; 'truncate' cuts them. Choose "
                f"'max', or leave {name} out."
            )
    return None


class DocumentSplitter:
    """Splits the documents of (query, document) pairs into windows that no query's input cuts.

    Args:
        encoder: Encodes the pairs; its tokenizer counts, and its lengths bound a window.

    Example:
        >>> from mrr_model import MatryoshkaReranker
        >>> splitter = DocumentSplitter(MatryoshkaReranker("mini").engine.encoder)
        >>> text = "Goethe wrote Faust. Bees make honey. Rain is wet."
        >>> [spans] = splitter.spans([("who wrote Faust?", text)], windows=Windows(window=9, stride=9))
        >>> [text[start:end] for start, end in spans]
        ['Goethe wrote Faust. Bees make honey.', 'Rain is wet.']
    """

    def __init__(self, encoder: PairEncoder) -> None:
        self._encoder = encoder

    def spans(
        self,
        pairs: Sequence[tuple[str, str]],
        prompt: str | None = None,
        windows: Windows | None = None,
        *,
        check: Callable[[], object] = check,
    ) -> list[list[Span]]:
        """Split documents.

        A pair's windows depend on its query's length, its document, the prompt and `windows` only. Every character that
        is not whitespace is in a window. Windows start and end with such characters, and none lies in another.

        Args:
            pairs: (query, document) pairs.
            prompt: The instruction; None for the template's own, `""` for none.
            windows: How to split; None for windows as long as fit.
            check: Called before each document; what it raises ends the call.

        Returns:
            The windows of each pair in reading order. A document that fits is one window: all of it, `(0, len(text))`.
            So is one of whitespace only, and one beside a query that leaves no space.

        Raises:
            Cancelled: Before a document, if the caller has stopped waiting (`mrr_model.inference.cancelling`).
            ValueError: If the prompt leaves no space for texts.
        """
        windows = windows or Windows()
        limits = {query: self._limit(query, prompt, windows) for query in dict.fromkeys(query for query, _ in pairs)}
        by_document: dict[str, dict[int, list[Span]]] = {}
        for query, document in pairs:
            by_document.setdefault(document, {})[limits[query]] = [(0, len(document))]
        unsure = [text for text, splits in by_document.items() if not self._surely_fits(text, min(splits))]
        lengths = self._encoder.passage_lengths(unsure, most=max(limits.values(), default=0))
        for document, length in zip(unsure, lengths, strict=True):
            check()
            splits = by_document[document]
            longer = [limit for limit in splits if self._encoder.passage_frame < limit < length]
            if longer and not document.isspace():
                text = _LongText(self._encoder, document)
                splits.update((limit, text.spans(limit, windows.stride)) for limit in longer)
        return [by_document[document][limits[query]] for query, document in pairs]

    def _limit(self, query: str, prompt: str | None, windows: Windows) -> int:
        """Tokens of a window beside a query, with what the template writes beside its text."""
        space = self._encoder.passage_space(query, prompt)
        return space if windows.window is None else min(space, windows.window + self._encoder.passage_frame)

    def _surely_fits(self, document: str, limit: int) -> bool:
        """Whether a text need not be tokenized: ASCII has at most a token per character, and one before the first."""
        return document.isascii() and len(document) + 1 + self._encoder.passage_frame <= limit


class _LongText:
    """One document, whose tokens are found once."""

    def __init__(self, encoder: PairEncoder, document: str) -> None:
        self._encoder = encoder
        self._text = without_surrogates(document)
        self._document = document
        self._breakable = BreakableText(self._text, *encoder.text_offsets(self._text))

    def spans(self, limit: int, stride: int | None) -> list[Span]:
        """Windows of at most `limit` tokens, with what the template writes beside them."""
        tokens = limit - self._encoder.passage_frame
        stride = max(1, tokens // 2) if stride is None else stride
        breakable = self._breakable
        start, spans = breakable.start, list[Span]()
        while True:
            end = self._end(start, tokens, limit)
            if not spans or end > spans[-1][1]:
                spans.append((start, end))
            if end >= breakable.end:
                return self._in_document(spans)
            start = breakable.next_start(start, end, stride) if stride < tokens else breakable.after(end)

    def _end(self, start: int, tokens: int, limit: int) -> int:
        """Where a window ends: earlier if the text between has more tokens alone than within the whole."""
        while True:
            end = self._breakable.window(start, tokens)
            [length] = self._encoder.passage_lengths([self._text[start:end]], most=2 * limit)
            if length <= limit or tokens <= 1:
                return end
            tokens -= max(1, min(length - limit, tokens // 2))

    def _in_document(self, spans: list[Span]) -> list[Span]:
        """Spans of the text, in which a character stands for each pair of surrogates, as spans of the document."""
        joined = [found.start() - index for index, found in enumerate(SURROGATE_PAIRS.finditer(self._document))]
        return [(start + bisect_left(joined, start), end + bisect_left(joined, end)) for start, end in spans]
