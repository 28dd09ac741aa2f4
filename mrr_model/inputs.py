"""Texts to token ids and spans, and pairs to batches by a token budget.

Letters: B pairs, T tokens.
"""

import copy
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from typing_extensions import Self

from mrr_model.backbones.prefix import Prefix
from mrr_model.merging import Spans, padded_length
from mrr_model.tokenizing import CHARACTERS_PER_TOKEN, TextTokenizer

SHARING_LEAST = 4
"""Fewer pairs of one query are not worth batches of their own."""

COMPARED_TOKENS = 8192
"""Of a query and a passage that both exceed ``max_length``, the longer gets the odd token; from this many tokens on
they count as equally long.
"""

WINDOW_CHARACTERS = 4_000_000
"""Pairs are encoded in windows of about this many characters, as far as they are tokenized."""

SPECIAL_TOKENS = ("{bos}", "{cls}", "{sep}", "{eos}")
"""Pieces of a layout that stand for one of the tokenizer's special tokens."""


class Layout(BaseModel):
    """How a query, a passage and a prompt become one sequence of tokens.

    Each span is a tuple of pieces. A piece is a special token (``{bos}``, ``{cls}``, ``{sep}``, ``{eos}``) or a text,
    which may hold ``{query}``, ``{passage}`` or ``{prompt}``; each text is tokenized by itself. A special token that
    the layout's own text spells counts as one; what a query, a passage or a prompt spells is text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: tuple[str, ...]
    """The query span; one piece holds ``{query}``."""
    passage: tuple[str, ...]
    """The passage span, one piece that holds ``{passage}``; only its tokens are ever merged."""
    prompt: tuple[str, ...]
    """What follows the passage; a piece may hold ``{prompt}``."""
    truncation: Literal["spans", "whole"]
    """``spans``: ``max_length`` bounds query and passage, the prompt is never cut (the published release). ``whole``:
    ``max_length`` bounds the whole sequence; the longer of query and passage is cut first (encoders).
    """
    default_prompt: str | None = None
    """The prompt where a call gives none; None for layouts that have no prompt."""

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        if sum(piece.count("{query}") for piece in self.query) != 1:
            raise ValueError(f"exactly one piece of the query span must hold {{query}}, once, got {self.query}")
        if len(self.passage) != 1 or self.passage[0].count("{passage}") != 1:
            raise ValueError(f"the passage span must be one piece that holds {{passage}} once, got {self.passage}")
        return self

    @property
    def takes_prompt(self) -> bool:
        """Whether a call may give a prompt."""
        return any("{prompt}" in piece for piece in self.prompt)


RELEASE_LAYOUT = Layout(
    query=("{bos}", "A: {query}", "\n"),
    passage=("B: {passage}",),
    prompt=("\n", "{prompt}"),
    truncation="spans",
    default_prompt="Predict whether passage B contains an answer to query A.",
)
"""The input of the published release and this project's decoders (arXiv 2501.16302, input format)."""

BERT_LAYOUT = Layout(query=("{cls}", "{query}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="whole")
"""``[CLS] query [SEP] passage [SEP]``."""

XLM_ROBERTA_LAYOUT = Layout(
    query=("{cls}", "{query}", "{sep}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="whole"
)
"""``<s> query </s></s> passage </s>``."""

QWEN3_LAYOUT = Layout(
    query=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: {query}\n<Document>:",
    ),
    passage=(" {passage}",),
    prompt=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    truncation="spans",
)
"""The input of the Qwen3 re-rankers, with their own instruction for web search."""


@dataclass(frozen=True)
class EncodedPair:
    """The token ids of one pair, and how many of them belong to the query, the passage and the prompt span, in that
    order.
    """

    input_ids: list[int]
    query_length: int
    passage_length: int
    prompt_length: int
    query_cut: bool = field(default=False, compare=False)
    """Whether the query was cut further than its ``query_max_length``, to leave room for the passage."""


@dataclass(frozen=True)
class Batch:
    """Pairs padded on the right: ``input_ids`` int64 (B, T) on the model's device, ``spans`` three (B,) on the CPU."""

    input_ids: Tensor
    spans: Spans
    rounded: bool = False
    """Whether widths are rounded up, so that few shapes come up."""
    prefix: Prefix | None = None
    """The query span of all pairs, which ``input_ids`` and ``spans`` then leave out."""

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its ids on ``device``."""
        return replace(self, input_ids=self.input_ids.to(device, non_blocking=True))


class PairEncoder:
    """Turns texts into :class:`EncodedPair` by a layout. Safe to share among threads; the tokenizer it is given stays
    as it is.

    ``max_length`` counts tokens. The query is first cut to ``query_max_length``; without one, under ``spans``
    truncation, to three quarters of ``max_length``. A pair that is still too long is cut by ``whole`` truncation as
    transformers' ``longest_first`` cuts it. ``spans`` truncation cuts the passage, and the query where that would leave
    the passage less than its share: an eighth of ``max_length``, or a quarter of the room for both texts if that is
    less. What a layout writes after a text stays when the text is cut.
    """

    def __init__(
        self, tokenizer: Any, layout: Layout, max_length: int = 512, query_max_length: int | None = None
    ) -> None:
        self.layout = layout
        self.max_length = max_length
        self.query_max_length = query_max_length
        slot = _slot_index(layout.query, "{query}")
        self._tokenizer = TextTokenizer(tokenizer, _literals(layout))
        self._special_ids = {piece: getattr(tokenizer, f"{piece[1:-1]}_token_id", None) for piece in SPECIAL_TOKENS}
        self._before_query = self._span_ids(layout.query[:slot])
        self._after_query = self._span_ids(layout.query[slot + 1 :])
        self._query = self._slot(layout.query[slot], "{query}")
        self._passage = self._slot(layout.passage[0], "{passage}")
        self._check_room()

    def resized(self, max_length: int) -> Self:
        """The same encoder with another ``max_length``. Both share one tokenizer: a large one takes seconds to make."""
        other = copy.copy(self)
        other.max_length = max_length
        other._check_room()
        return other

    def encode(self, pairs: Sequence[tuple[str, str]], prompt: str | None = None) -> list[EncodedPair]:
        """Encode (query, passage) pairs; each distinct text is tokenized once. ``prompt`` replaces the layout's
        default.
        """
        prompt_ids = self.prompt_ids(prompt)
        most = max(self.max_length, self.query_max_length or 0)
        texts = {query for query, _ in pairs}
        queries = self._text_ids(self._query, texts, most)
        if self.layout.truncation == "whole" and any(len(ids) > most for ids in queries.values()):
            most = max(most, COMPARED_TOKENS)
            queries = self._text_ids(self._query, texts, most)
        passages = self._text_ids(self._passage, {passage for _, passage in pairs}, most)
        return [self._cut(queries[query], passages[passage], prompt_ids) for query, passage in pairs]

    def windows(
        self, pairs: Sequence[tuple[str, str]], prompt: str | None = None
    ) -> Iterator[tuple[list[int], list[EncodedPair]]]:
        """The pairs' indices and encodings, as many at a time as fit in memory; those of a query together, if
        they fit.
        """
        for window in self._windows(pairs):
            yield window, self.encode([pairs[index] for index in window], prompt)

    def prompt_ids(self, prompt: str | None = None) -> list[int]:
        """The ids of the span that follows the passage."""
        if prompt is None and self.layout.default_prompt is not None:
            return self._span_ids(self.layout.prompt, self._tokenizer.literal(self.layout.default_prompt))
        return self._span_ids(self.layout.prompt, prompt or "")

    def lengths(self, query_tokens: int, passage_tokens: int) -> EncodedPair:
        """The spans of a pair whose query and passage have that many tokens (ids are zeros)."""
        return self._cut([0] * query_tokens, [0] * passage_tokens, self.prompt_ids())

    def _cut(self, query: list[int], passage: list[int], prompt: list[int]) -> EncodedPair:
        wanted = min(len(query), self._query_limit)
        room = max(0, self._room(len(prompt)))
        if self.layout.truncation == "spans":
            longest = min(len(passage), self.max_length)
            free = (room - self._query.size - self._passage.size) // 4
            share = self._passage.size + max(1, min(self.max_length // 8, free))
            kept_query = min(wanted, max(0, room - min(longest, share)))
            kept_passage = min(longest, room - kept_query)
            if self.query_max_length is None:
                wanted = len(query)
        else:
            kept_query, kept_passage = longest_first(wanted, len(passage), room)
        cut = [*self._before_query, *self._query.cut(query, kept_query), *self._after_query]
        passage = self._passage.cut(passage, kept_passage)
        return EncodedPair(
            [*cut, *passage, *prompt], len(cut), len(passage), len(prompt), query_cut=kept_query < wanted
        )

    @property
    def _query_limit(self) -> int:
        if self.query_max_length is not None:
            return self.query_max_length
        return self.max_length * 3 // 4 if self.layout.truncation == "spans" else sys.maxsize

    def _room(self, prompt_tokens: int) -> int:
        """Tokens that query and passage, with the text written around them, may have together."""
        around = len(self._before_query) + len(self._after_query)
        return self.max_length - around + (prompt_tokens if self.layout.truncation == "spans" else -prompt_tokens)

    def _check_room(self) -> None:
        room = self._room(len(self.prompt_ids()))
        least = self._query.size + self._passage.size
        if self.layout.truncation == "spans":
            least += 2
        if room < least:
            raise ValueError(
                f"max_length={self.max_length} leaves no room beside the {self.max_length - room + least} tokens of "
                f"the input layout. Choose at least {self.max_length - room + least + 1}."
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
                    f"the input layout needs the special token {piece}, which the tokenizer does not define."
                )
        return ids


@dataclass(frozen=True)
class _Slot:
    """What a layout writes before and after a text, the ids of the latter, and the tokens of both."""

    before: str
    after: str
    tail: list[int]
    size: int

    def cut(self, ids: list[int], length: int) -> list[int]:
        """The first ``length`` ids of a text with what is written around it; what comes after it stays."""
        if len(ids) <= length:
            return ids
        tail = self.tail[:length]
        return [*ids[: length - len(tail)], *tail]


def longest_first(query: int, passage: int, room: int) -> tuple[int, int]:
    """How many tokens of each are kept, by the rule of transformers' truncation of that name.

    >>> longest_first(3, 20, 10), longest_first(20, 20, 9), longest_first(30, 20, 9)
    ((3, 7), (4, 5), (5, 4))
    """
    if query + passage <= room:
        return query, passage
    shorter = min(query, passage, room // 2)
    return (room - shorter, shorter) if query > passage else (shorter, room - shorter)


def length_sorted_batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices of pairs in batches, longest first; a batch holds at most ``batch_tokens`` tokens, padding counted, or
    one pair; and at most ``batch_size`` pairs where that is given.

    >>> list(length_sorted_batches([3, 9, 4, 8], 16))
    [[1], [3, 2], [0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > batch_tokens or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def sharing_groups(pairs: Sequence[EncodedPair]) -> list[tuple[Prefix | None, list[int]]]:
    """The pairs' indices by query span, with the span where it is worth computing apart: where ``SHARING_LEAST`` pairs
    or more have it, each with tokens behind it. All others come last, in one group.
    """
    by_query: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        if pair.query_length and pair.passage_length + pair.prompt_length:
            by_query.setdefault(tuple(pair.input_ids[: pair.query_length]), []).append(index)
    shared = {ids: indices for ids, indices in by_query.items() if len(indices) >= SHARING_LEAST}
    taken = {index for indices in shared.values() for index in indices}
    groups: list[tuple[Prefix | None, list[int]]] = [
        (Prefix(torch.tensor(ids, device="cpu")), indices) for ids, indices in shared.items()
    ]
    rest = [index for index in range(len(pairs)) if index not in taken]
    return [*groups, (None, rest)] if rest else groups


def collate(
    pairs: Sequence[EncodedPair],
    pad_id: int,
    *,
    rounded: bool = False,
    max_tokens: int | None = None,
    prefix: Prefix | None = None,
) -> Batch:
    """Pad pairs on the right to the longest of them.

    ``rounded`` pads on to its :func:`~mrr_model.merging.padded_length`, to ``max_tokens`` at most where a model has no
    more positions, and asks the same of every merged width. ``prefix``: the query span of all of them, which is left
    out of the rows.
    """
    before = 0 if prefix is None else prefix.size
    rows = [pair.input_ids[before:] for pair in pairs]
    longest = max(map(len, rows))
    if rounded:
        longest = max(longest, min(padded_length(longest), max_tokens or padded_length(longest)))
    spans = Spans(
        torch.tensor([pair.query_length - before for pair in pairs], device="cpu"),
        torch.tensor([pair.passage_length for pair in pairs], device="cpu"),
        torch.tensor([pair.prompt_length for pair in pairs], device="cpu"),
    )
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)  # numpy reads lists several times as fast as torch
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return Batch(torch.from_numpy(ids), spans, rounded, prefix)


def _literals(layout: Layout) -> set[str]:
    """A layout's own texts, apart from special tokens."""
    pieces = [piece for piece in (*layout.query, *layout.passage, *layout.prompt) if piece not in SPECIAL_TOKENS]
    texts = {text for piece in pieces for text in re.split(r"\{query\}|\{passage\}|\{prompt\}", piece)}
    return texts | {layout.default_prompt or ""}


def _slot_index(pieces: tuple[str, ...], slot: str) -> int:
    return next(index for index, piece in enumerate(pieces) if slot in piece)
