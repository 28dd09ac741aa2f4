"""Users' texts to token ids. Text is data: no text can spell a special token.

A tokenizer reads `[SEP]` in a text as its special token, and many have the token among their ordinary words too. So
texts are tokenized by a private copy of the tokenizer, in which the special tokens have random names. A template's own
text may spell special tokens; it is rewritten with these names.
"""

import copy
import json
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mrr_model.files.damage import short
from mrr_model.inference.cutting import Cuts, components

CHARACTERS_PER_TOKEN = 8
"""A text with more characters than this per token of the bound is cut before it is tokenized."""

SEGMENTS = re.compile(r"(?s).{1,100000}(?!\S)|.{1,100000}")
"""Parts of a text that are tokenized one by one to find its tokens: they end with a word if they can."""

WORD_PARTS = re.compile(r"\s*\S{1,16}|\s+")
"""Parts of a text whose tokens a slow tokenizer counts one by one."""

CHARACTERS_TOGETHER = 1_000_000
"""Texts go to the tokenizer in lists of about this many characters: its results are large."""

PANICS = "pyo3_runtime"
"""The module of the error that the tokenizers library raises if it gives up on a text, such as ten million spaces for a
regular expression. It is not an `Exception`.
"""

BYTE = re.compile("<0x[0-9A-F]{2}>")
"""A byte's token, in vocabularies that write unknown characters byte by byte."""


def without_surrogates(text: str) -> str:
    r"""The text with U+FFFD for each lone surrogate, and with the character for a pair of them.

    Example:
        >>> without_surrogates("a\ud800b \ud83d\ude00") == "a\ufffdb \U0001f600"
        True
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class TextTokenizer:
    """Texts to ids, without added special tokens, truncation or padding. The tokenizer itself is not changed.

    Args:
        tokenizer: A tokenizer of transformers, fast or slow.
        literals: A template's own texts, in which special tokens count. `literal` gives each as it must be written in a
            text for `ids`.
    """

    def __init__(self, tokenizer: Any, literals: Iterable[str] = ()) -> None:
        self._cuts: Cuts | None = None
        literals = [*literals]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        specials = set(getattr(tokenizer, "all_special_tokens", ()))
        if backend is None:
            names = _names(specials | _spelled(tokenizer, literals))
            self._literals = {text: _renamed_in(text, names) for text in literals}
            self._splits: dict[str, list[int]] = {text: [] for text in literals}
            self._encode: _Fast | _Slow = _Slow(tokenizer, names)
            return
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None, "post_processor": None}
        state["added_tokens"] = [token for token in state["added_tokens"] if not _stands_for_a_byte(token, state)]
        specials.update(token["content"] for token in state["added_tokens"] if token["special"])
        found = {text: _added_tokens_in(text, state) for text in literals}
        names = _names(specials.union(content for spans in found.values() for content, _, _ in spans))
        self._literals = {text: _written(text, spans, names) for text, spans in found.items()}
        added = {token["content"]: (token["lstrip"], token["rstrip"]) for token in state["added_tokens"]}
        spellable = [token for token in state["added_tokens"] if token["content"] not in names]
        _rename(state, names)
        private = Tokenizer.from_str(json.dumps(state))
        self._cuts = Cuts.of(state, spellable, private)
        cuts = None if _marks_beginnings(state) else self._cuts
        self._splits = {
            text: _splits(text, [(*added[content], *span) for content, *span in spans], cuts, _marks_beginnings(state))
            for text, spans in found.items()
        }
        self._encode = _Fast(private)

    def literal(self, text: str) -> str:
        """One of the template's own texts, as it must be written beside a user's text."""
        return self._literals[text]

    def splits(self, text: str) -> list[int]:
        """The positions where one of the template's own texts can be split into pieces, whatever is written around it.

        The tokens of its parts, each tokenized with what is written beside it, are those of the whole.
        """
        return self._splits[text]

    def ids(self, texts: Sequence[str], before: str = "", after: str = "", most: int | None = None) -> list[list[int]]:
        """Tokenize texts.

        Args:
            texts: Users' texts.
            before: A literal to write before each.
            after: A literal to write after each.
            most: A long text may end after more than this many tokens, without `after`. Its tokens are the first ones
                of the whole text.

        Returns:
            The ids of each text.

        Raises:
            ValueError: If the tokenizer gives up on a text.
        """
        texts = [text if text.isascii() else without_surrogates(text) for text in texts]
        if most is None or self._cuts is None:
            return self._encoded([before + text + after for text in texts])
        ids: list[list[int]] = [[] for _ in texts]
        pending, limit = [*range(len(texts))], CHARACTERS_PER_TOKEN * most
        while pending:
            parts = [self._cuts.first_part(texts[index], limit) for index in pending]
            strings = [before + text + (after if whole else "") for text, whole in parts]
            for index, tokens in zip(pending, self._encoded(strings), strict=True):
                ids[index] = tokens
            pending = [
                index for index, (_, whole) in zip(pending, parts, strict=True) if not whole and len(ids[index]) <= most
            ]
            for index in pending:
                texts[index] = self._cuts.shortened(texts[index])
            limit *= 2
        return ids

    def offsets(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the tokens of a text begin and end, about: a long text is tokenized in segments.

        Args:
            text: A text without surrogates.

        Returns:
            The index of each token's first character and of one past its last, both (K,). A slow tokenizer does not
            say: each word's tokens are spread over it.

        Raises:
            ValueError: If the tokenizer gives up on the text.
        """
        offsets = [np.empty((0, 2), dtype=np.int64)]
        for segment in SEGMENTS.finditer(text):
            found = self._encode.offsets(segment[0])
            offsets.append(np.array(found, dtype=np.int64).reshape(-1, 2) + segment.start())
        starts, ends = np.concatenate(offsets).T
        return starts, ends

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = []
        together: list[str] = []
        characters = 0
        for text in texts:
            if together and characters + len(text) > CHARACTERS_TOGETHER:
                ids += self._encode(together)
                together, characters = [], 0
            together.append(text)
            characters += len(text)
        return ids + self._encode(together) if together else ids


class _Fast:
    """Texts to ids by the backend of a fast tokenizer."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend

    def __call__(self, texts: list[str]) -> list[list[int]]:
        with _panics_named(texts):
            return self._ids(texts)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The span of each token."""
        with _panics_named([text]):
            return self._backend.encode(text, add_special_tokens=False).offsets

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if len(texts) == 1:  # in this thread: processes that are forked later cannot use a pool of threads
            return [self._backend.encode(texts[0], add_special_tokens=False).ids]
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]


@contextmanager
def _panics_named(texts: list[str]) -> Iterator[None]:
    """Turns a panic of the tokenizers library into a `ValueError` that shows the longest text."""
    try:
        yield
    except BaseException as error:
        if type(error).__module__ != PANICS:
            raise
        longest = max(texts, key=len)
        raise ValueError(
            f"the tokenizer failed ({short(error, 80)}). The longest text, {short(longest[:60])!r}, has "
            f"{len(longest)} characters; shorten it."
        ) from error


class _Slow:
    """Texts to ids by a tokenizer without a fast backend. `names`: the special tokens' private names."""

    def __init__(self, tokenizer: Any, names: dict[str, str]) -> None:
        self._tokenizer = tokenizer
        self._splitting = copy.copy(tokenizer)
        self._splitting.split_special_tokens = True
        self._special = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self._named = re.compile("(" + ("|".join(names.values()) or r"(?!)") + ")")
        self._ids = dict(zip(names.values(), tokenizer.convert_tokens_to_ids([*names]), strict=True))
        self._unknown = getattr(tokenizer, "unk_token_id", None)

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [[id_ for part in self._named.split(text) for id_ in self._part(part)] if text else [] for text in texts]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Spans of as many tokens as the parts of the text's words have, spread over each part."""
        parts = [found.span() for found in WORD_PARTS.finditer(text)]
        counts = {part: len(self._part(part)) for part in {text[start:end] for start, end in parts}}
        spans = list[tuple[int, int]]()
        for start, end in parts:
            count = counts[text[start:end]]
            bounds = [start + (end - start) * index // max(1, count) for index in range(count + 1)]
            spans += pairwise(bounds)
        return spans

    def _part(self, text: str) -> list[int]:
        if text in self._ids:
            return [self._ids[text]]
        if not self._special.search(text):
            ids = self._tokenizer.convert_tokens_to_ids(self._tokenizer.tokenize(text))
        else:
            ids = self._splitting.convert_tokens_to_ids(self._splitting.tokenize(text))
        forbidden = {*self._ids.values()} - {self._unknown}
        harmless = [self._unknown] if self._unknown is not None else []
        return [one for id_ in ids for one in (harmless if id_ in forbidden else [id_])]


def _names(contents: Iterable[str]) -> dict[str, str]:
    """A name per special token that nobody can guess. All have one length, so that none is a prefix of another."""
    return {content: secrets.token_hex(16) for content in sorted(contents)}


def _spelled(tokenizer: Any, literals: Iterable[str]) -> set[str]:
    """The added tokens that a template's own texts contain."""
    added = getattr(tokenizer, "added_tokens_encoder", {})
    return {content for content in added for text in literals if content in text}


def _renamed_in(text: str, names: dict[str, str]) -> str:
    longest_first = sorted(names, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)) or r"(?!)", lambda found: names[found[0]], text)


def _added_tokens_in(text: str, state: dict[str, Any]) -> list[tuple[str, int, int]]:
    """The added tokens in a text and their spans, found by a tokenizer that knows nothing but these."""
    model = {"type": "WordLevel", "vocab": {"": 0}, "unk_token": ""}
    finder = Tokenizer.from_str(json.dumps({**state, "model": model, "pre_tokenizer": None, "decoder": None}))
    added = finder.get_added_tokens_decoder()
    encoding = finder.encode(text, add_special_tokens=False)
    return [
        (added[id_].content, *span) for id_, span in zip(encoding.ids, encoding.offsets, strict=True) if id_ in added
    ]


def _splits(text: str, added: Iterable[tuple[bool, bool, int, int]], cuts: Cuts | None, only_before: bool) -> list[int]:
    """Where a text can be split: before its added tokens, after them unless `only_before`, and where it can be cut.

    `added`: whether each strips what is on its left and its right, and its span.
    """
    found, end = set[int](), 0
    for strips_left, strips_right, start, stop in [*added, (True, True, len(text), len(text))]:
        if cuts is not None:
            found.update(end + position for position in cuts.positions(text[end:start]))
        if not strips_left:
            found.add(start)
        if not strips_right and not only_before:
            found.add(stop)
        end = stop
    return sorted(found)


def _marks_beginnings(state: dict[str, Any]) -> bool:
    """Whether the beginning of a text is tokenized unlike its middle, as by SentencePiece's mark for a first word."""
    steps = [*components(state["normalizer"], "normalizers"), *components(state["pre_tokenizer"], "pretokenizers")]
    return any(
        step["type"] in ("Prepend", "Strip")
        or step.get("add_prefix_space", False)
        or step.get("prepend_scheme", "never") != "never"
        for step in steps
    )


def _written(text: str, spans: Sequence[tuple[str, int, int]], names: dict[str, str]) -> str:
    written, end = "", 0
    for content, start, stop in spans:
        written += text[end:start] + names[content]
        end = stop
    return written + text[end:]


def _stands_for_a_byte(token: dict[str, Any], state: dict[str, Any]) -> bool:
    """Whether any text may contain this token, because it stands for a byte of unknown characters."""
    return bool(state["model"].get("byte_fallback")) and BYTE.fullmatch(token["content"]) is not None


def _rename(state: dict[str, Any], names: dict[str, str]) -> None:
    """Rename tokens throughout a backend's state; each keeps its id."""
    for token in state["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = state["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    known = names.keys() & model["vocab"].keys()
    model["vocab"] = {names.get(piece, piece): id_ for piece, id_ in model["vocab"].items()}
    model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if known and "merges" in model:
        prefix = len(model["continuing_subword_prefix"] or "")
        model["merges"] = [
            [left, right] for left, right in model["merges"] if known.isdisjoint((left, right, left + right[prefix:]))
        ]
