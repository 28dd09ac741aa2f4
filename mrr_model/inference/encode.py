"""Texts to token ids and spans, truncated to the model's lengths."""

import copy
import re
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from mrr_model.inference.prefetch import prefetched
from mrr_model.inference.tokenize import CHARACTERS_PER_TOKEN, TextTokenizer, without_surrogates
from mrr_model.modeling.batch import EncodedPair
from mrr_model.template import SPECIAL_TOKENS, InputTemplate

COMPARED_TOKENS = 8192
"""If a query and a passage both exceed `max_length`, the longer one gets the odd token. Texts of more tokens than this
count as equally long.
"""

UNLIMITED = 10**9
"""More tokens than any text has."""

CHUNK_CHARACTERS = 4_000_000
"""Pairs are encoded in chunks of about this many characters."""

PREFETCHED_CHARACTERS = (200_000, 400_000, 800_000)
"""The same if each chunk is encoded while the one before it is used: of the first chunk, the second, and all others.

Nothing is computed while the first one is encoded, nor encoded while the last one is computed, so both must be short;
but small chunks make small batches, which take the host longer to start than the device to compute. Of four choices
tried on an H200 with the shapes of MiniLM-L6 and bge-reranker-v2-m3, this one was the fastest or within the noise.
"""

PASSAGES_TOGETHER = 64
"""Passages that are tokenized together to count their tokens."""


class PairEncoder:
    """Encodes (query, passage) pairs by an input template. Threads may share one; the tokenizer is not changed.

    Truncation: the query is first cut to `query_max_length`, or, without one, by `spans` truncation to three quarters
    of `max_length`. If the pair is still too long, `longest_first` truncation cuts it as the tokenizers library does.
    `spans` truncation cuts the passage; it cuts the query too if the passage would get less than its share, which is an
    eighth of `max_length`, or a quarter of the space for both texts if that is less. What the template writes after a
    text is never cut by these two. `end` truncation keeps the first tokens and those that the template writes after the
    last text.

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
        self._tokenizer = TextTokenizer(tokenizer, _literals(template))
        self._special_ids = {piece: getattr(tokenizer, f"{piece[1:-1]}_token_id", None) for piece in SPECIAL_TOKENS}
        self._default_layout = self._laid_out(self._tokenizer.literal(template.default_prompt or ""))
        self._check_space(self._default_layout)

    def resized(self, max_length: int) -> Self:
        """The same encoder with another `max_length`. Both share one tokenizer: a large one takes seconds to build.

        Raises:
            ValueError: If `max_length` leaves no space for texts.
        """
        other = copy.copy(self)
        other.max_length = max_length
        other._check_space(self._default_layout)
        return other

    def uncut(self) -> Self:
        """The same encoder without any limit."""
        other = copy.copy(self)
        other.max_length, other.query_max_length = UNLIMITED, None
        return other

    def encode(self, pairs: Sequence[tuple[str, str]], prompt: str | None = None) -> list[EncodedPair]:
        """Encode (query, passage) pairs; each distinct text is tokenized once.

        Args:
            pairs: The pairs.
            prompt: The instruction; None for the template's own, `""` for none.

        Raises:
            ValueError: If the prompt leaves no space for texts.
        """
        layout = self._layout(prompt)
        most = max(self.max_length, self.query_max_length or 0)
        texts = {query for query, _ in pairs}
        queries = self._text_ids(layout.query, texts, most)
        if self.template.truncation == "longest_first" and any(len(ids) > most for ids in queries.values()):
            most = max(most, COMPARED_TOKENS)
            queries = self._text_ids(layout.query, texts, most)
        passages = self._text_ids(layout.passage, {passage for _, passage in pairs}, most)
        return [self._cut(layout, queries[query], passages[passage]) for query, passage in pairs]

    def chunks(
        self,
        pairs: Sequence[tuple[str, str]],
        prompt: str | None = None,
        *,
        size: int | None = None,
        prefetch: bool = False,
    ) -> Generator[tuple[list[int], list[EncodedPair]], None, None]:
        """Encode pairs chunk by chunk, so that memory stays bounded. A query's pairs share a chunk if they fit.

        Args:
            pairs: The pairs.
            prompt: The instruction; None for the template's own, `""` for none.
            size: Pairs of each chunk, in order; None for chunks of about `CHUNK_CHARACTERS` characters.
            prefetch: Encode each chunk in a thread while the one before it is used, in chunks of about
                `PREFETCHED_CHARACTERS`, the first ones smaller. Close the iterator if you do not use all of it.

        Yields:
            The indices of a chunk's pairs, and their encodings.
        """
        if size is not None:
            chunks = [[*range(start, min(start + size, len(pairs)))] for start in range(0, len(pairs), size)]
        else:
            chunks = [*self._chunks(pairs, PREFETCHED_CHARACTERS if prefetch else (CHUNK_CHARACTERS,))]
        encoded = ((chunk, self.encode([pairs[index] for index in chunk], prompt)) for chunk in chunks)
        yield from prefetched(encoded) if prefetch and len(chunks) > 1 else encoded

    def lengths(self, query_tokens: int, passage_tokens: int) -> EncodedPair:
        """The spans of a pair whose texts have this many tokens; its ids are zeros."""
        return self._cut(self._default_layout, [0] * query_tokens, [0] * passage_tokens)

    @property
    def passage_frame(self) -> int:
        """Tokens that the template writes beside a passage's text, in the passage's span."""
        return self._default_layout.passage.size

    def passage_space(self, query: str, prompt: str | None = None) -> int:
        """The most tokens of a passage's span that is not cut beside a query.

        Args:
            query: The query.
            prompt: The instruction; None for the template's own, `""` for none.

        Returns:
            Tokens, those of `passage_frame` included. A long query may leave space for no text at all.

        Raises:
            ValueError: If the prompt leaves no space for texts.
        """
        layout = self._layout(prompt)
        most = max(self.max_length, self.query_max_length or 0)
        ids = self._text_ids(layout.query, {query}, most)[query]
        endless = [0] * (max(self.max_length, len(ids)) + 1)
        space = self._cut(layout, ids, endless).passage_length
        while space and self._cut(layout, ids, endless[:space]).passage_cut:
            space -= 1
        return space

    def passage_lengths(self, passages: Iterable[str], most: int) -> Iterator[int]:
        """Tokens of passages' spans. Of a passage of more than `most`, some number above `most`."""
        slot, together = self._default_layout.passage, iter(passages)
        while portion := [*islice(together, PASSAGES_TOGETHER)]:
            ids = self._tokenizer.ids(portion, slot.before, slot.after, most)
            yield from map(len, ids)

    def text_offsets(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See `TextTokenizer.offsets`."""
        return self._tokenizer.offsets(text)

    def _cut(self, layout: "_Layout", query: list[int], passage: list[int]) -> EncodedPair:
        """Join two texts, written as the layout's slots write them, to at most as many ids as are allowed."""
        if self.template.truncation == "end":
            limit = sys.maxsize if self.query_max_length is None else self.query_max_length
            return layout.cut_at_end(layout.query.cut(query, limit), passage, self.max_length)
        wanted = min(len(query), self._query_limit)
        space = max(0, self._space(layout))
        if self.template.truncation == "spans":
            longest = min(len(passage), self.max_length)
            free = (space - layout.query.size - layout.passage.size) // 4
            share = layout.passage.size + max(1, min(self.max_length // 8, free))
            kept_query = min(wanted, max(0, space - min(longest, share)))
            kept_passage = min(longest, space - kept_query)
            if self.query_max_length is None:
                wanted = len(query)
        else:
            kept_query, kept_passage = longest_first(wanted, len(passage), space)
        return layout.joined(
            layout.query.cut(query, kept_query),
            layout.passage.cut(passage, kept_passage),
            query_cut=kept_query < wanted,
            passage_cut=kept_passage < len(passage),
        )

    @property
    def _query_limit(self) -> int:
        if self.query_max_length is not None:
            return self.query_max_length
        return self.max_length * 3 // 4 if self.template.truncation == "spans" else sys.maxsize

    def _space(self, layout: "_Layout") -> int:
        """Tokens for query and passage together, with the text that the template writes around them."""
        sign = 1 if self.template.truncation == "spans" else -1
        return self.max_length - layout.before_passage + sign * layout.after_passage

    def _check_space(self, layout: "_Layout", with_prompt: str = "") -> None:
        space = self._space(layout)
        least = layout.query.size + layout.passage.size
        if self.template.truncation == "spans":
            least += 2
        if space < least:
            taken = self.max_length - space + least
            raise ValueError(
                f"max_length={self.max_length} leaves no space for texts: the input template takes {taken} "
                f"tokens{with_prompt}. Choose at least {taken + 1}."
            )

    def _layout(self, prompt: str | None) -> "_Layout":
        """The template with a prompt, tokenized."""
        if prompt is None:
            return self._default_layout
        layout = self._laid_out(without_surrogates(prompt))
        if self.template.truncation != "spans":
            self._check_space(layout, " with this prompt")
        return layout

    def _laid_out(self, prompt: str) -> "_Layout":
        template = self.template
        holder = template.query if template.query_first else template.prompt
        index = next(index for index, piece in enumerate(holder) if "{query}" in piece)
        query = self._slot(holder[index], "{query}", prompt)
        passage = self._slot(template.passage[0], "{passage}", prompt)
        before, after = self._span_ids(holder[:index], prompt), self._span_ids(holder[index + 1 :], prompt)
        if template.query_first:
            return _Layout(before, query, after, passage, self._span_ids(template.prompt, prompt), query_first=True)
        return _Layout(self._span_ids(template.query, prompt), query, before, passage, after, query_first=False)

    def _text_ids(self, slot: "_Slot", texts: set[str], most: int) -> dict[str, list[int]]:
        ordered = list(texts)
        ids = self._tokenizer.ids(ordered, slot.before, slot.after, most)
        return {text: tokens[: most + 1] for text, tokens in zip(ordered, ids, strict=True)}

    def _chunks(self, pairs: Sequence[tuple[str, str]], characters: Sequence[int]) -> Iterator[list[int]]:
        """Indices of pairs; a chunk holds about as many characters as given for it, those after the last as many."""
        longest = CHARACTERS_PER_TOKEN * self.max_length
        sizes = [min(len(query), longest) + min(len(passage), longest) for query, passage in pairs]
        by_query: dict[str, list[int]] = {}
        for index, (query, _) in enumerate(pairs):
            by_query.setdefault(query, []).append(index)
        limits = chain(characters, repeat(characters[-1]))
        chunk, taken, limit = list[int](), 0, next(limits)
        for indices in by_query.values():
            if chunk and taken + sum(sizes[index] for index in indices) > limit:
                yield sorted(chunk)
                chunk, taken, limit = [], 0, next(limits)
            for index in indices:
                if chunk and taken + sizes[index] > limit:
                    yield sorted(chunk)
                    chunk, taken, limit = [], 0, next(limits)
                chunk.append(index)
                taken += sizes[index]
        if chunk:
            yield sorted(chunk)

    def _slot(self, piece: str, name: str, prompt: str) -> "_Slot":
        before, after = (self._written(part, prompt) for part in piece.split(name))
        tail = self._tokenizer.ids([after])[0]
        return _Slot(before, after, tail, len(self._tokenizer.ids([before])[0]) + len(tail))

    def _span_ids(self, pieces: tuple[str, ...], prompt: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if "{prompt}" in piece and not prompt:
                continue
            if piece not in SPECIAL_TOKENS:
                ids += self._tokenizer.ids([self._written(piece, prompt)])[0]
            elif (special := self._special_ids[piece]) is not None:
                ids.append(special)
            else:
                raise ValueError(
                    f"the input template needs the special token {piece}, which the tokenizer does not define."
                )
        return ids

    def _written(self, piece: str, prompt: str) -> str:
        if not prompt:
            piece = piece.replace(" {prompt}", "{prompt}")
        return prompt.join(map(self._tokenizer.literal, piece.split("{prompt}")))


@dataclass(frozen=True)
class _Layout:
    """A template whose prompt is filled in: the texts' slots, and the ids before, between and after them.

    `query_first`: whether the query's slot precedes the passage's.
    """

    first: list[int]
    query: "_Slot"
    between: list[int]
    passage: "_Slot"
    last: list[int]
    query_first: bool

    @property
    def before_passage(self) -> int:
        """Tokens of the span before the passage, without the query."""
        return len(self.first) + (len(self.between) if self.query_first else 0)

    @property
    def after_passage(self) -> int:
        """Tokens of the span after the passage, without the query."""
        return len(self.last) + (0 if self.query_first else len(self.between))

    def joined(self, query: list[int], passage: list[int], *, query_cut: bool, passage_cut: bool) -> EncodedPair:
        """Both texts in their places."""
        if self.query_first:
            before, after = [*self.first, *query, *self.between], self.last
        else:
            before, after = self.first, [*self.between, *query, *self.last]
        ids = [*before, *passage, *after]
        return EncodedPair(ids, len(before), len(passage), len(after), query_cut=query_cut, passage_cut=passage_cut)

    def cut_at_end(self, query: list[int], passage: list[int], max_length: int) -> EncodedPair:
        """Both texts in their places, cut to `max_length` before what is written after the last text."""
        whole = self.joined(query, passage, query_cut=False, passage_cut=False)
        if len(whole.input_ids) <= max_length:
            return whole
        tail = (self.passage if self.query_first else self.query).tail
        suffix = [*tail, *self.last]
        kept = max_length - len(suffix)
        before = min(kept, whole.query_length)
        inside = min(kept - before, whole.passage_length)
        if self.query_first:
            return EncodedPair(
                [*whole.input_ids[:kept], *suffix],
                before,
                inside + len(tail),
                len(self.last),
                query_cut=kept < len(self.first) + len(query),
                passage_cut=inside < whole.passage_length - len(tail),
            )
        return EncodedPair(
            [*whole.input_ids[:kept], *suffix],
            before,
            inside,
            max_length - before - inside,
            query_cut=True,
            passage_cut=inside < whole.passage_length,
        )


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
    """Tokens of query and passage that are kept, by the rule of the tokenizers library's `longest_first`.

    Example:
        >>> longest_first(3, 20, 10), longest_first(20, 20, 9), longest_first(30, 20, 9)
        ((3, 7), (4, 5), (5, 4))
    """
    if query + passage <= space:
        return query, passage
    shorter = min(query, passage, space // 2)
    return (space - shorter, shorter) if query > passage else (shorter, space - shorter)


def _literals(template: InputTemplate) -> set[str]:
    """A template's own texts, without special tokens, and those of a call that has no prompt."""
    pieces = [piece for piece in (*template.query, *template.passage, *template.prompt) if piece not in SPECIAL_TOKENS]
    pieces += [piece.replace(" {prompt}", "{prompt}") for piece in pieces]
    texts = {text for piece in pieces for text in re.split(r"\{query\}|\{passage\}|\{prompt\}", piece)}
    return texts | {template.default_prompt or ""}
