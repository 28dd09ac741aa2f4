"""Texts to token ids and spans, and pairs to batches by a token budget.

Letters: B pairs, T tokens.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from typing_extensions import Self

from mrr_model.backbones.prefix import Prefix
from mrr_model.merging import Spans, padded_length

SHARING_LEAST = 4
"""Fewer pairs of one query are not worth batches of their own."""

SPECIAL_TOKENS = ("{bos}", "{cls}", "{sep}", "{eos}")
"""Pieces of a layout that stand for one of the tokenizer's special tokens."""


class Layout(BaseModel):
    """How a query, a passage and a prompt become one sequence of tokens.

    Each span is a tuple of pieces. A piece is a special token (``{bos}``, ``{cls}``, ``{sep}``, ``{eos}``) or a text,
    which may hold
    ``{query}``, ``{passage}`` or ``{prompt}``; each text is tokenized by itself, without special tokens.
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
    ``max_length`` bounds the whole sequence, the passage is cut first (encoders).
    """
    default_prompt: str | None = None
    """The prompt where a call gives none; None for layouts that have no prompt."""

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        if sum("{query}" in piece for piece in self.query) != 1:
            raise ValueError(f"exactly one piece of the query span must hold {{query}}, got {self.query}")
        if len(self.passage) != 1 or "{passage}" not in self.passage[0]:
            raise ValueError(f"the passage span must be one piece that holds {{passage}}, got {self.passage}")
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

    ``max_length`` counts tokens. The query is cut to ``query_max_length``; without one, to three quarters of
    ``max_length`` under
    ``spans`` truncation and only where it would not fit at all under ``whole``. The passage is cut to what is left.
    """

    def __init__(
        self, tokenizer: Any, layout: Layout, max_length: int = 512, query_max_length: int | None = None
    ) -> None:
        self.layout = layout
        self.max_length = max_length
        self.query_max_length = query_max_length
        self._tokenize = _PlainTokenizer(tokenizer)
        self._special_ids = {piece: getattr(tokenizer, f"{piece[1:-1]}_token_id", None) for piece in SPECIAL_TOKENS}
        slot = _slot_index(layout.query, "{query}")
        self._before_query = self._span_ids(layout.query[:slot])
        self._after_query = self._span_ids(layout.query[slot + 1 :])
        self._query_template, self._passage_template = layout.query[slot], layout.passage[0]
        specials = len(self._before_query) + len(self._after_query) + len(self.prompt_ids())
        if layout.truncation == "whole" and max_length < specials:
            raise ValueError(
                f"max_length={max_length} leaves no room beside the {specials} special tokens of the input layout. "
                f"Choose at least {specials + 1}."
            )

    def encode(self, pairs: Sequence[tuple[str, str]], prompt: str | None = None) -> list[EncodedPair]:
        """Encode (query, passage) pairs; each distinct text is tokenized once. ``prompt`` replaces the layout's
        default.
        """
        prompt_ids = self.prompt_ids(prompt)
        queries = self._text_ids(self._query_template, "{query}", {query for query, _ in pairs})
        passages = self._text_ids(self._passage_template, "{passage}", {passage for _, passage in pairs})
        return [self._cut(queries[query], passages[passage], prompt_ids) for query, passage in pairs]

    def prompt_ids(self, prompt: str | None = None) -> list[int]:
        """The ids of the span that follows the passage."""
        return self._span_ids(self.layout.prompt, self.layout.default_prompt if prompt is None else prompt)

    def lengths(self, query_tokens: int, passage_tokens: int) -> EncodedPair:
        """The spans of a pair whose query and passage have that many tokens (ids are zeros)."""
        return self._cut([0] * query_tokens, [0] * passage_tokens, self.prompt_ids())

    def _cut(self, query: list[int], passage: list[int], prompt: list[int]) -> EncodedPair:
        around = len(self._before_query) + len(self._after_query)
        if self.layout.truncation == "spans":
            query = query[: self.query_max_length or self.max_length * 3 // 4]
            room = self.max_length + len(prompt) - around - len(query)
        else:
            room = self.max_length - around - len(prompt)
            query = query[: min(self.query_max_length or room, room)]
            room -= len(query)
        passage = passage[: max(0, min(self.max_length, room))]
        query = [*self._before_query, *query, *self._after_query]
        return EncodedPair([*query, *passage, *prompt], len(query), len(passage), len(prompt))

    def _text_ids(self, template: str, slot: str, texts: set[str]) -> dict[str, list[int]]:
        ordered = list(texts)
        return dict(zip(ordered, self._tokenize([template.replace(slot, text) for text in ordered]), strict=True))

    def _span_ids(self, pieces: tuple[str, ...], prompt: str | None = None) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            if piece not in SPECIAL_TOKENS:
                ids += self._tokenize([piece.replace("{prompt}", prompt or "")])[0]
            elif (special := self._special_ids[piece]) is not None:
                ids.append(special)
            else:
                raise ValueError(
                    f"the input layout needs the special token {piece}, which the tokenizer does not define."
                )
        return ids


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


class _PlainTokenizer:
    """Texts to ids without special tokens, truncation or padding, on a private copy of a fast tokenizer's backend."""

    def __init__(self, tokenizer: Any) -> None:
        self._slow = None
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            self._slow = tokenizer
            return
        self._backend = copy.deepcopy(backend)
        self._backend.no_truncation()
        self._backend.no_padding()

    def __call__(self, texts: list[str]) -> list[list[int]]:
        if self._slow is not None:
            return [self._slow.convert_tokens_to_ids(self._slow.tokenize(text)) for text in texts]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


def _slot_index(pieces: tuple[str, ...], slot: str) -> int:
    return next(index for index, piece in enumerate(pieces) if slot in piece)
