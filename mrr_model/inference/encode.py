"""Texts to token ids and spans, truncated to the model's lengths."""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from mrr_model.inference.tokenize import CHARACTERS_PER_TOKEN, TextTokenizer
from mrr_model.modeling.batch import EncodedPair
from mrr_model.template import SPECIAL_TOKENS, InputTemplate

COMPARED_TOKENS = 8192
"""If a query and a passage both exceed `max_length`, the longer one gets the odd token. Texts of more tokens than this
count as equally long.
"""

WINDOW_CHARACTERS = 4_000_000
"""Pairs are encoded in windows of about this many characters."""


class PairEncoder:
    """Encodes (query, passage) pairs by an input template. Threads may share one; the tokenizer is not changed.

    Truncation: the query is first cut to `query_max_length`, or, without one, by `spans` truncation to three quarters
    of `max_length`. If the pair is still too long, `whole` truncation cuts it as transformers' `longest_first` does.
    `spans` truncation cuts the passage; it cuts the query too if the passage would get less than its share, which is an
    eighth of `max_length`, or a quarter of the space for both texts if that is less. What the template writes after a
    text is never cut.

    Args:
        tokenizer: A tokenizer of transformers.
        template: The model's input template.
        max_length: Tokens of an input; `InputTemplate.truncation` says what they bound.
        query_max_length: Tokens of a query; None for the rule above.

    Raises:
        ValueError: If the tokenizer lacks a special token of the template, or `max_length` leaves no space for texts.
    """

    def __init__(
        self, tokenizer: Any, template: InputTemplate, max_length: int = 512, query_max_length: int | None = None
    ) -> None:
        self.template = template
        self.max_length = max_length
        self.query_max_length = query_max_length
        slot = _slot_index(template.query, "{query}")
        self._tokenizer = TextTokenizer(tokenizer, _literals(template))
        self._special_ids = {piece: getattr(tokenizer, f"{piece[1:-1]}_token_id", None) for piece in SPECIAL_TOKENS}
        self._before_query = self._span_ids(template.query[:slot])
        self._after_query = self._span_ids(template.query[slot + 1 :])
        self._query = self._slot(template.query[slot], "{query}")
        self._passage = self._slot(template.passage[0], "{passage}")
        self._check_space()

    def resized(self, max_length: int) -> Self:
        """The same encoder with another `max_length`. Both share one tokenizer: a large one takes seconds to build.

        Raises:
            ValueError: If `max_length` leaves no space for texts.
        """
        other = copy.copy(self)
        other.max_length = max_length
        other._check_space()
        return other

    def encode(self, pairs: Sequence[tuple[str, str]], prompt: str | None = None) -> list[EncodedPair]:
        """Encode (query, passage) pairs; each distinct text is tokenized once.

        Args:
            pairs: The pairs.
            prompt: The instruction that replaces the template's own.
        """
        prompt_ids = self.prompt_ids(prompt)
        most = max(self.max_length, self.query_max_length or 0)
        texts = {query for query, _ in pairs}
        queries = self._text_ids(self._query, texts, most)
        if self.template.truncation == "longest_first" and any(len(ids) > most for ids in queries.values()):
            most = max(most, COMPARED_TOKENS)
            queries = self._text_ids(self._query, texts, most)
        passages = self._text_ids(self._passage, {passage for _, passage in pairs}, most)
        return [self._cut(queries[query], passages[passage], prompt_ids) for query, passage in pairs]

    def windows(
        self, pairs: Sequence[tuple[str, str]], prompt: str | None = None
    ) -> Iterator[tuple[list[int], list[EncodedPair]]]:
        """Encode pairs window by window, so that memory stays bounded. A query's pairs share a window if they fit.

        Yields:
            The indices of a window's pairs, and their encodings.
        """
        for window in self._windows(pairs):
            yield window, self.encode([pairs[index] for index in window], prompt)

    def prompt_ids(self, prompt: str | None = None) -> list[int]:
        """The ids of the span that follows the passage."""
        if prompt is None and self.template.default_prompt is not None:
            return self._span_ids(self.template.prompt, self._tokenizer.literal(self.template.default_prompt))
        return self._span_ids(self.template.prompt, prompt or "")

    def lengths(self, query_tokens: int, passage_tokens: int) -> EncodedPair:
        """The spans of a pair whose texts have this many tokens; its ids are zeros."""
        return self._cut([0] * query_tokens, [0] * passage_tokens, self.prompt_ids())

    def _cut(self, query: list[int], passage: list[int], prompt: list[int]) -> EncodedPair:
        wanted = min(len(query), self._query_limit)
        space = max(0, self._space(len(prompt)))
        if self.template.truncation == "spans":
            longest = min(len(passage), self.max_length)
            free = (space - self._query.size - self._passage.size) // 4
            share = self._passage.size + max(1, min(self.max_length // 8, free))
            kept_query = min(wanted, max(0, space - min(longest, share)))
            kept_passage = min(longest, space - kept_query)
            if self.query_max_length is None:
                wanted = len(query)
        else:
            kept_query, kept_passage = longest_first(wanted, len(passage), space)
        cut = [*self._before_query, *self._query.cut(query, kept_query), *self._after_query]
        passage = self._passage.cut(passage, kept_passage)
        return EncodedPair(
            [*cut, *passage, *prompt], len(cut), len(passage), len(prompt), query_cut=kept_query < wanted
        )

    @property
    def _query_limit(self) -> int:
        if self.query_max_length is not None:
            return self.query_max_length
        return self.max_length * 3 // 4 if self.template.truncation == "spans" else sys.maxsize

    def _space(self, prompt_tokens: int) -> int:
        """Tokens for query and passage together, with the text that the template writes around them."""
        around = len(self._before_query) + len(self._after_query)
        return self.max_length - around + (prompt_tokens if self.template.truncation == "spans" else -prompt_tokens)

    def _check_space(self) -> None:
        space = self._space(len(self.prompt_ids()))
        least = self._query.size + self._passage.size
        if self.template.truncation == "spans":
            least += 2
        if space < least:
            taken = self.max_length - space + least
            raise ValueError(
                f"max_length={self.max_length} leaves no space for texts: the input template takes {taken} tokens. "
                f"Choose at least {taken + 1}."
            )

    def _text_ids(self, slot: "_Slot", texts: set[str], most: int) -> dict[str, list[int]]:
        ordered = list(texts)
        ids = self._tokenizer.ids(ordered, slot.before, slot.after, most)
        return {text: tokens[: most + 1] for text, tokens in zip(ordered, ids, strict=True)}

    def _windows(self, pairs: Sequence[tuple[str, str]]) -> Iterator[list[int]]:
        longest = CHARACTERS_PER_TOKEN * self.max_length
        sizes = [min(len(query), longest) + min(len(passage), longest) for query, passage in pairs]
        by_query: dict[str, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(index)
        window: list[int] = []
        taken = 0
        for indices in by_query.values():
            if window and taken + sum(sizes[index] for index in indices) > WINDOW_CHARACTERS:
                yield sorted(window)
                window, taken = [], 0
            for index in indices:
                if window and taken + sizes[index] > WINDOW_CHARACTERS:
                    yield sorted(window)
                    window, taken = [], 0
                window.append(index)
                taken += sizes[index]
        if window:
            yield sorted(window)

    def _slot(self, piece: str, name: str) -> "_Slot":
        before, after = map(self._tokenizer.literal, piece.split(name))
        tail = self._tokenizer.ids([after])[0]
        return _Slot(before, after, tail, len(self._tokenizer.ids([before])[0]) + len(tail))

    def _span_ids(self, pieces: tuple[str, ...], prompt: str = "") -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if piece not in SPECIAL_TOKENS:
                text = prompt.join(map(self._tokenizer.literal, piece.split("{prompt}")))
                ids += self._tokenizer.ids([text])[0]
            elif (special := self._special_ids[piece]) is not None:
                ids.append(special)
            else:
                raise ValueError(
                    f"the input template needs the special token {piece}, which the tokenizer does not define."
                )
        return ids


@dataclass(frozen=True)
class _Slot:
    """What a template writes before and after a text, the ids of what comes after, and the tokens of both."""

    before: str
    after: str
    tail: list[int]
    size: int

    def cut(self, ids: list[int], length: int) -> list[int]:
        """Cut a text, with what is written around it, to `length` ids; what comes after the text stays."""
        if len(ids) <= length:
            return ids
        tail = self.tail[:length]
        return [*ids[: length - len(tail)], *tail]


def longest_first(query: int, passage: int, space: int) -> tuple[int, int]:
    """Tokens of query and passage that are kept, by the rule of transformers' `longest_first` truncation.

    Example:
        >>> longest_first(3, 20, 10), longest_first(20, 20, 9), longest_first(30, 20, 9)
        ((3, 7), (4, 5), (5, 4))
    """
    if query + passage <= space:
        return query, passage
    shorter = min(query, passage, space // 2)
    return (space - shorter, shorter) if query > passage else (shorter, space - shorter)


def _literals(template: InputTemplate) -> set[str]:
    """A template's own texts, without special tokens."""
    pieces = [piece for piece in (*template.query, *template.passage, *template.prompt) if piece not in SPECIAL_TOKENS]
    texts = {text for piece in pieces for text in re.split(r"\{query\}|\{passage\}|\{prompt\}", piece)}
    return texts | {template.default_prompt or ""}


def _slot_index(pieces: tuple[str, ...], slot: str) -> int:
    return next(index for index, piece in enumerate(pieces) if slot in piece)
