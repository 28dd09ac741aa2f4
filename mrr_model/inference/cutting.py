"""Where a text can be cut, so that its first part's tokens are the first tokens of the whole.

That is between two characters that the tokenizer cannot join. A tokenizer normalizes a text, splits it into words, and
splits each word by its vocabulary. Cuts are made

- where the word splitter is certain to split, or
- where it does not matter, and no piece of the vocabulary holds the two characters side by side,

and only between characters that no normalizer here joins: ASCII, CJK ideographs, some CJK punctuation, and a space
after any letter. A tokenizer with a part that is not listed here has no cuts.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice, pairwise
from typing import Any

from tokenizers import Tokenizer

NEARBY = 4
"""A cut is first looked for in this many times the text that is wanted, and then in the rest."""

TRIES = 10_000
"""Pairs of characters that are looked at by their pieces, before a text counts as one without a cut."""

_ALNUM, _CJK, _CJK_MARKS = "0-9A-Za-z", "\u4e00-\u9fff", "\uff0c\u3002\u3001\uff01\uff1f\uff1b\uff1a"
_MARKS = r"!-/:-@\[-`{-~"
_MARKS_OF_WORDS = r"!-&(-/:-@\[-^`{-~"
"""ASCII punctuation, but for the two marks that belong to words: ``'`` of contractions, ``_`` of names."""

_BEFORE_SPACE = rf"(?<=[\w!-~{_CJK_MARKS}])(?= )"
_AFTER_WORD = f"(?<=[{_ALNUM}{_CJK}])(?=[{_MARKS_OF_WORDS}{_CJK_MARKS}])"
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
"""The patterns by which GPT-2, Llama 3, Qwen and their like split words. Each takes one run of letters, digits, marks
or whitespace, with at most one character before it and a contraction or line ends after it: none goes over a space that
follows a word or mark, or from a word over a mark that is not ``'``.
"""

_SPACES = "\u2581\u0120"
"""What SentencePiece and byte-level vocabularies write for a space."""

PLAIN_NORMALIZERS = ("NFC", "NFKC", "Nmt", "Precompiled", "Prepend", "Strip")
"""Normalizers that leave every character of the listed kinds as it is."""

FOLDING_NORMALIZERS = ("BertNormalizer", "NFD", "NFKD", "Lowercase", "StripAccents")
"""Normalizers that replace characters one by one."""

LOCAL_SPLITTERS = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer", "Punctuation", "Digits", "Metaspace")
"""Word splitters that look at two neighbours alone."""


Part = Mapping[str, Any]
"""One normalizer or word splitter, as the tokenizers library writes it."""


class Cuts:
    """Where one tokenizer's texts can be cut.

    ``splits`` finds where words are certain to be split, ``anywhere`` where the backend's vocabulary has to be asked.
    ``kept`` are texts that no cut may go through. ``longest_word``: longer ones are unknown words as a whole, and
    whitespace does not count.
    """

    def __init__(
        self,
        splits: str | None,
        anywhere: str | None,
        kept: Sequence[str],
        backend: Tokenizer,
        longest_word: int | None = None,
    ) -> None:
        self._splits = re.compile(splits) if splits else None
        self._anywhere = re.compile(anywhere) if anywhere else None
        self._kept = frozenset(pair for text in kept for pair in _neighbours(text.lower()))
        self._backend = backend
        self._longest_word = longest_word

    @classmethod
    def of(cls, state: Mapping[str, Any], added: Sequence[Mapping[str, Any]], backend: Tokenizer) -> "Cuts | None":
        """By a backend and its state; None where nothing is certain. ``added``: tokens that a text may spell."""
        normalizers = [*_parts(state["normalizer"], "normalizers")]
        splitters = [*_parts(state["pre_tokenizer"], "pretokenizers")]
        if any(token["single_word"] or token["lstrip"] for token in added):
            return None
        if not all(map(_known_normalizer, normalizers)) or not all(map(_known_splitter, splitters)):
            return None
        splits, anywhere = _split_places(normalizers, splitters), None
        if _decided_by_pieces(state["model"], normalizers, splitters):
            anywhere = _ANYWHERE_IN_BYTES if any(part["type"] == "ByteLevel" for part in splitters) else _ANYWHERE
        if splits is None and anywhere is None:
            return None
        kept = [token["content"] for token in added]
        kept += [part["pattern"]["String"] for part in normalizers if "String" in part.get("pattern", {})]
        plain = not kept and [part["type"] for part in (*normalizers, *splitters)] == [
            "BertNormalizer",
            "BertPreTokenizer",
        ]
        return cls(splits, anywhere, kept, backend, state["model"].get("max_input_chars_per_word") if plain else None)

    def first_part(self, text: str, least: int) -> tuple[str, bool]:
        """A part of a text, of ``least`` characters or more, or all of it; and whether it is all."""
        if len(text) <= least:
            return text, True
        place = self.after(text, least, NEARBY * least)
        if place is None:
            text = self.shortened(text)
            place = self.after(text, least)
        return (text, True) if place is None else (text[:place], False)

    def after(self, text: str, least: int, most: int = sys.maxsize) -> int | None:
        """The first place from ``least`` to ``most`` characters where a text can be cut; None if none is found."""
        least = max(1, least)
        for found in self._splits.finditer(text, least, most) if self._splits is not None else ():
            if text[found.start() - 1 : found.start() + 1].lower() not in self._kept:
                return found.start()
        places = self._anywhere.finditer(text, least, most) if self._anywhere is not None else ()
        for found in islice(places, TRIES):
            if self._apart(text[found.start() - 1], text[found.start()]):
                return found.start()
        return None

    def shortened(self, text: str) -> str:
        """The text with long runs of whitespace and of letters shortened, as far as its tokens stay the same."""
        if self._longest_word is None:
            return text
        text = re.sub(r"[ \t\r\n]{2,}", " ", text)
        return re.sub(f"({_LATIN}{{{self._longest_word + 1}}}){_LATIN}+", r"\1", text)

    def _apart(self, left: str, right: str) -> bool:
        """Whether the first is a piece, and no piece holds both side by side, as they are or in lower case."""
        pairs = {left + right, (left + right).lower()}
        return {left, left.lower()} <= self._pieces and pairs.isdisjoint(self._joined) and pairs.isdisjoint(self._kept)

    @cached_property
    def _pieces(self) -> frozenset[str]:
        return frozenset(self._backend.get_vocab(with_added_tokens=False))

    @cached_property
    def _joined(self) -> frozenset[str]:
        """Neighbours in any piece of the vocabulary; a space for the characters that stand for one."""
        spaces = str.maketrans(_SPACES, " " * len(_SPACES))
        return frozenset(pair for piece in self._pieces for pair in _neighbours(piece.translate(spaces)))


def _neighbours(text: str) -> Iterator[str]:
    return map("".join, pairwise(text))


def _parts(part: Part | None, name: str) -> Iterator[Part]:
    """A normalizer or word splitter, or those that a sequence holds."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for inner in part[name]:
        yield from _parts(inner, name)


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
    """Whether a word splitter looks further than at two neighbours."""
    return bool(part.get("use_regex")) or "Regex" in part.get("pattern", {})


def _split_places(normalizers: Sequence[Part], splitters: Sequence[Part]) -> str | None:
    kinds = {part["type"] for part in splitters}
    by_pattern = any(map(_by_pattern, splitters))
    if any(part.get("pattern") == {"String": " "} for part in normalizers):
        return None  # the splitters see no spaces
    if by_pattern and kinds & {"Metaspace", "BertPreTokenizer"}:
        return None
    places = []
    if by_pattern or "Whitespace" in kinds:
        places = [_BEFORE_SPACE, _AFTER_WORD, *([_AT_DIGIT] if "Whitespace" not in kinds else [])]
    elif "WhitespaceSplit" in kinds or any(part["type"] == "Metaspace" and part["split"] for part in splitters):
        places = [_BEFORE_SPACE]
    if "BertPreTokenizer" in kinds:
        places += [_BEFORE_SPACE, _AT_MARK]
        if any(part["type"] == "BertNormalizer" and part["handle_chinese_chars"] for part in normalizers):
            places.append(_AT_IDEOGRAPH)
    return "|".join(places) or None


def _decided_by_pieces(model: Part, normalizers: Sequence[Part], splitters: Sequence[Part]) -> bool:
    """Whether two neighbours that no piece holds are in two tokens, whatever stands around them."""
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
