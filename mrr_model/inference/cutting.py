"""Where a text can be cut so that the tokens of its first part are the first tokens of the whole text.

A cut goes between two characters that the tokenizer cannot join. A tokenizer normalizes a text, splits it into words,
and splits each word by its vocabulary. A cut is possible

- where the word splitter always splits, or
- if words don't matter, between two characters that no piece of the vocabulary has side by side,

and only between characters that none of the listed normalizers joins: ASCII, CJK ideographs, some CJK punctuation, and
a space after any letter. A tokenizer with a part that is not listed here has no cuts.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

from tokenizers import Tokenizer

NEARBY = 4
"""A cut is first searched for within this many times the wanted length, then in the rest of the text."""

TRIES = 10_000
"""Pairs of characters to look up in the vocabulary before giving up on a text."""

_ALNUM, _CJK, _CJK_MARKS = "0-9A-Za-z", "\u4e00-\u9fff", "\uff0c\u3002\u3001\uff01\uff1f\uff1b\uff1a"
_MARKS = r"!-/:-@\[-`{-~"
_MARKS_OF_WORDS = r"!-&(-/:-@\[-^`{-~"
"""ASCII punctuation without the two marks that belong to words: `'` of contractions and `_` of names."""

_BEFORE_SPACE = rf"(?<=[\w!-~{_CJK_MARKS}])(?= )"
_AFTER_WORD = f"(?<=[{_ALNUM}{_CJK}])(?=[{_MARKS_OF_WORDS}{_CJK_MARKS}])"
_AFTER_LINE = r"(?<=\n)(?= [A-Za-z])"
_AFTER_LINES = r"(?<=\n)(?=[!-.0-~])"
"""For patterns that keep line ends together whatever follows. Some add a `/` to the marks and line ends before it."""

_AT_DIGIT = "(?<=[A-Za-z])(?=[0-9])|(?<=[0-9])(?=[A-Za-z])"
_AT_MARK = f"(?<=[ {_MARKS}])(?=[ -~])|(?<=[ -~])(?=[ {_MARKS}])"
_AT_IDEOGRAPH = f"(?<=[{_CJK}])(?=[ -~{_CJK}])|(?<=[ -~])(?=[{_CJK}])"
_LATIN = "[0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f]"
_ANYWHERE = f"(?<=[!-~{_CJK}])(?=[ -~{_CJK}])"
_ANYWHERE_IN_BYTES = "(?<=[!-~])(?=[ -~])"

_CONTRACTIONS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'s|'t|'re|'ve|'m|'ll|'d")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LETTERS = (
    r" ?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?\p{L}+",
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    *(
        rf"[^\r\n\p{{L}}\p{{N}}]?{letters}{end}"
        for letters in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*")
        for end in ("", f"{_CONTRACTIONS[0]}?")
    ),
)
_NUMBERS = (r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?\p{N}+")
_OTHERS = (
    *(rf" ?[^\s\p{{L}}\p{{N}}]+{end}" for end in ("", r"[\r\n]*", r"[\r\n/]*")),
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
)
_SPACING = (r"\s*[\r\n]+", r"\s+(?!\S)")


def _one_of(patterns: Sequence[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, patterns))})"


WORD_PATTERN = re.compile(
    rf"(?:{_one_of(_CONTRACTIONS)}\|)?(?:{_one_of(_LETTERS)}\|)+{_one_of(_NUMBERS)}\|{_one_of(_OTHERS)}\|"
    rf"(?:{_one_of(_SPACING)}\|)*\\s\+"
)
"""The patterns by which GPT-2, Llama 3, Qwen and similar models split words. Each matches one run of letters, digits,
marks or whitespace, with at most one character before it and a contraction or line ends after it. None extends over a
space that follows a word or mark, or from a word over a mark other than `'`.
"""

_SPACES = "\u2581\u0120"
"""The characters that SentencePiece and byte-level vocabularies write for a space."""

PLAIN_NORMALIZERS = ("NFC", "NFKC", "Nmt", "Precompiled", "Prepend", "Strip")
"""Normalizers that keep every character of the kinds above."""

FOLDING_NORMALIZERS = ("BertNormalizer", "NFD", "NFKD", "Lowercase", "StripAccents")
"""Normalizers that replace characters one by one."""

LOCAL_SPLITTERS = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Punctuation", "Digits", "Metaspace")
"""Word splitters that look only at two neighbouring characters."""


Part = Mapping[str, Any]
"""One normalizer or word splitter, as the tokenizers library writes it."""


class Cuts:
    """Where the texts of one tokenizer can be cut.

    Args:
        splits: A pattern of the positions where words are always split.
        anywhere: A pattern of the positions where the vocabulary decides.
        uncut: Texts that no cut may go through.
        backend: The tokenizer, for its vocabulary.
        longest_word: Characters of a word above which it is unknown as a whole; then runs of whitespace don't count
            either.
    """

    def __init__(
        self,
        splits: str | None,
        anywhere: str | None,
        uncut: Sequence[str],
        backend: Tokenizer,
        longest_word: int | None = None,
    ) -> None:
        self._splits = re.compile(splits) if splits else None
        self._anywhere = re.compile(anywhere) if anywhere else None
        self._uncut = frozenset(pair for text in uncut for pair in _neighbours(text.lower()))
        self._backend = backend
        self._longest_word = longest_word

    @classmethod
    def of(cls, state: Mapping[str, Any], added: Sequence[Mapping[str, Any]], backend: Tokenizer) -> "Cuts | None":
        """The cuts of a backend in this state; None if none is certain. `added`: tokens that a text may spell."""
        normalizers = [*components(state["normalizer"], "normalizers")]
        splitters = [*components(state["pre_tokenizer"], "pretokenizers")]
        if any(token["single_word"] or token["lstrip"] for token in added):
            return None
        if not all(map(_known_normalizer, normalizers)) or not all(map(_known_splitter, splitters)):
            return None
        splits, anywhere = _split_positions(normalizers, splitters), None
        if _decided_by_pieces(state["model"], normalizers, splitters):
            anywhere = _ANYWHERE_IN_BYTES if any(part["type"] == "ByteLevel" for part in splitters) else _ANYWHERE
        if splits is None and anywhere is None:
            return None
        uncut = [token["content"] for token in added]
        uncut += [part["pattern"]["String"] for part in normalizers if "String" in part.get("pattern", {})]
        plain = not uncut and [part["type"] for part in (*normalizers, *splitters)] == [
            "BertNormalizer",
            "BertPreTokenizer",
        ]
        return cls(splits, anywhere, uncut, backend, state["model"].get("max_input_chars_per_word") if plain else None)

    def first_part(self, text: str, least: int) -> tuple[str, bool]:
        """The beginning of a text, of at least `least` characters, and whether it is the whole text."""
        if len(text) <= least:
            return text, True
        position = self.after(text, least, NEARBY * least)
        if position is None:
            text = self.shortened(text)
            position = self.after(text, least)
        return (text, True) if position is None else (text[:position], False)

    def after(self, text: str, least: int, most: int = sys.maxsize) -> int | None:
        """A position from `least` to `most` where a text can be cut; None if none is found."""
        return next(self.positions(text, least, most), None)

    def positions(self, text: str, least: int = 1, most: int = sys.maxsize) -> Iterator[int]:
        """The positions from `least` to `most` where a text can be cut, those between words first."""
        least = max(1, least)
        for found in self._splits.finditer(text, least, most) if self._splits is not None else ():
            if text[found.start() - 1 : found.start() + 1].lower() not in self._uncut:
                yield found.start()
        positions = self._anywhere.finditer(text, least, most) if self._anywhere is not None else ()
        for found in islice(positions, TRIES):
            if self._apart(text[found.start() - 1], text[found.start()]):
                yield found.start()

    def shortened(self, text: str) -> str:
        """The text with long runs of whitespace and letters shortened if that changes no token."""
        if self._longest_word is None:
            return text
        text = re.sub(r"[ \t\r\n]{2,}", " ", text)
        return re.sub(f"({_LATIN}{{{self._longest_word + 1}}}){_LATIN}+", r"\1", text)

    def _apart(self, left: str, right: str) -> bool:
        """Whether the first is a piece and no piece has both side by side, as written or in lower case."""
        pairs = {left + right, (left + right).lower()}
        return {left, left.lower()} <= self._pieces and pairs.isdisjoint(self._joined) and pairs.isdisjoint(self._uncut)

    @cached_property
    def _pieces(self) -> frozenset[str]:
        return frozenset(self._backend.get_vocab(with_added_tokens=False))

    @cached_property
    def _joined(self) -> frozenset[str]:
        """Neighbouring characters in any piece of the vocabulary, with spaces written as spaces."""
        spaces = str.maketrans(_SPACES, " " * len(_SPACES))
        return frozenset(pair for piece in self._pieces for pair in _neighbours(piece.translate(spaces)))


def _neighbours(text: str) -> Iterator[str]:
    return map("".join, pairwise(text))


def components(part: Part | None, name: str) -> Iterator[Part]:
    """A normalizer or word splitter, or the parts of a sequence of them."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part[name]:
        yield from components(inner, name)


def _known_normalizer(part: Part) -> bool:
    if part["type"] != "Replace":
        return part["type"] in (*PLAIN_NORMALIZERS, *FOLDING_NORMALIZERS)
    pattern = part["pattern"]
    return pattern == {"Regex": " {2,}"} or pattern.get("String") == " " or len(pattern.get("String", "")) > 1


def _known_splitter(part: Part) -> bool:
    if part["type"] == "Split":
        isolated = part["behavior"] == "Isolated" or (part["behavior"] == "Removed" and part["invert"])
        by_words = isolated and WORD_PATTERN.fullmatch(part["pattern"].get("Regex", "")) is not None
        return by_words or len(part["pattern"].get("String", "")) == 1
    return part["type"] in (*LOCAL_SPLITTERS, "ByteLevel")


def _by_pattern(part: Part) -> bool:
    """Whether a word splitter looks further than two neighbouring characters."""
    return bool(part.get("use_regex")) or "Regex" in part.get("pattern", {})


def _split_positions(normalizers: Sequence[Part], splitters: Sequence[Part]) -> str | None:
    kinds = {part["type"] for part in splitters}
    by_pattern = any(map(_by_pattern, splitters))
    if any(part.get("pattern") == {"String": " "} for part in normalizers):
        return None  # the splitters see no spaces
    if by_pattern and kinds & {"Metaspace", "BertPreTokenizer"}:
        return None
    positions = []
    if by_pattern or "Whitespace" in kinds:
        positions = [_BEFORE_SPACE, _AFTER_WORD, *([_AT_DIGIT, _AFTER_LINE] if "Whitespace" not in kinds else [])]
        if any(_SPACING[0] in part.get("pattern", {}).get("Regex", "") for part in splitters):
            positions.append(_AFTER_LINES)
    elif "WhitespaceSplit" in kinds or any(part["type"] == "Metaspace" and part["split"] for part in splitters):
        positions = [_BEFORE_SPACE]
    if "BertPreTokenizer" in kinds:
        positions += [_BEFORE_SPACE, _AT_MARK]
        if any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers):
            positions.append(_AT_IDEOGRAPH)
    return "|".join(positions) or None


def _decided_by_pieces(model: Part, normalizers: Sequence[Part], splitters: Sequence[Part]) -> bool:
    """Whether two neighbouring characters that no piece contains are always in two tokens."""
    if any(map(_by_pattern, splitters)):
        return False
    if not all(
        part["type"] in PLAIN_NORMALIZERS or part.get("pattern") in ({"String": " "}, {"Regex": " {2,}"})
        for part in normalizers
    ):
        return False
    if model["type"] == "Unigram":
        return True
    marked = ("dropout", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    return model["type"] == "BPE" and not any(model.get(name) for name in marked)
