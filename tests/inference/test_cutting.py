"""Cutting texts before they are tokenized gives the tokens of the whole text, whatever the tokenizer."""

import string
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mrr_model.inference import tokenize as tokenizing
from mrr_model.inference.tokenize import TextTokenizer

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UNKNOWN = r"\w+\s\w+|\W"
"""A pattern that allows no cut."""

SNIPPETS = [
    *("the", "panda", "can't", "we'll", "DON'T", "Dr.", "e.g.", "1,234.5", "2024-01-02", "a_b", "x/y", "C++", "#1"),
    *("pneumono" * 14, "é" * 120, "ab" * 49, "....", "!?!", "---", "''", "'l", "'", '"', "`", "``", "ELF32bit", "9f3a"),
    *("<table>", "<tab", "[MASK", "[SEP]", "</s>", "<0x0A>"),
    *(" ", "  ", " " * 9, "\t", "\n", "\r\n", "\n\n \n", "\u00a0", "\u3000", "\u200b", "\u2028"),
    *("大熊猫", "是", "哺乳动物", "，", "。", "！？", "パンダ", "ﾊﾟ", "カ\u3099", "한국어", "\u1100\u1161\u11a8"),
    *("слово", "الكتاب", "ไทย", "\u0d4e", "हिन्दी", "Σ", "ΑΣ", "𝔘", "\U0001f1e9\U0001f1ea"),
    *("é", "e\u0301", "e\u0323\u0301", "\u0301" * 5, "Å", "\u212b", "\u212a", "İ", "ß", "ﬁ", "ﷺ", "①", "½"),
    *("🐼", "👩\u200d🔬", "\ufe0f", "\u0600", "\u0000", "\u0085", "\ufffd"),
]  # fmt: skip
CORPUS = ["the panda can't sleep, it's 1,234.5 km away!", "大熊猫 是 哺乳动物，不是？", "x/y a_b ''quoted'' ...."] * 9

texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=3), min_size=1, max_size=30).map("".join)


def trained(model: Any, trainer: Any, normalizer: Any, splitter: Any, *added: AddedToken) -> Tokenizer:
    backend = Tokenizer(model)
    if normalizer is not None:
        backend.normalizer = normalizer
    if splitter is not None:
        backend.pre_tokenizer = splitter
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([*added])
    return backend


def byte_level(splitter: Any, normalizer: Any = None, **options: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    return trained(models.BPE(**options), trainer, normalizer, splitter, AddedToken("<table>", special=False))


def split_bytes(pattern: str) -> Any:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def sentence_piece_bpe(splitter: Any, normalizer: Any) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    model = models.BPE(unk_token="<unk>", fuse_unk=True)
    return trained(model, trainer, normalizer, splitter, AddedToken("<table>", special=False))


def byte_fallback() -> Tokenizer:
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *string.ascii_letters]
    vocabulary += ["▁t", "he", "▁the", "..", "....", "大熊", "大", "熊", "猫"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), (".", "."), ("..", ".."), ("大", "熊")]
    vocabulary += [mark for mark in string.punctuation if mark not in vocabulary]
    model = models.BPE(
        {piece: index for index, piece in enumerate(vocabulary)}, merges, unk_token="<unk>", fuse_unk=True,
        byte_fallback=True,
    )  # fmt: skip
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def unigram(splitter: Any) -> Tokenizer:
    """Like XLM-RoBERTa's: its special tokens are pieces of the model too, with the best score."""
    alphabet = sorted({*"".join(CORPUS), *string.ascii_letters, *string.punctuation, "▁"} - {" "})
    words = ["▁the", "▁panda", "anda", "can", "'t", "..", "....", "大熊", "熊猫", "▁x/y", "a_b", "1,2"]
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(piece, -2.0 - index / 7) for index, piece in enumerate(words)]
    pieces += [(piece, -6.0 - index / 11) for index, piece in enumerate(alphabet)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=3))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = splitter
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    return backend


def word_pieces(splitter: Any, normalizer: Any = None) -> Tokenizer:
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False
    )
    return trained(models.WordPiece(unk_token="[UNK]"), trainer, normalizer or normalizers.BertNormalizer(), splitter)


def words() -> Tokenizer:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "panda", ".", "大熊猫"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(vocabulary[:4])
    return backend


GEMMA = normalizers.Replace(" ", "▁")
BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "BERT": lambda: word_pieces(pre_tokenizers.BertPreTokenizer()),
    "WordPiece by whitespace": lambda: word_pieces(pre_tokenizers.WhitespaceSplit()),
    "WordPiece by words": lambda: word_pieces(pre_tokenizers.Whitespace(), normalizers.Lowercase()),
    "WordLevel": words,
    "GPT-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), normalizers.NFC()),
    "Llama 3": lambda: byte_level(split_bytes(LLAMA3), ignore_merges=True),
    "o200k": lambda: byte_level(split_bytes(O200K), normalizers.NFC()),
    "StarCoder": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()])
    ),
    "bytes unsplit": lambda: byte_level(pre_tokenizers.ByteLevel(use_regex=False)),
    "Mistral": byte_fallback,
    "Gemma": lambda: sentence_piece_bpe(pre_tokenizers.Split(" ", "merged_with_previous"), GEMMA),
    "Metaspace": lambda: sentence_piece_bpe(pre_tokenizers.Metaspace(split=False), None),
    "XLM-RoBERTa": lambda: unigram(
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    ),
    "Unigram unsplit": lambda: unigram(pre_tokenizers.Metaspace(split=False, prepend_scheme="first")),
    "unknown": lambda: byte_level(split_bytes(UNKNOWN)),
}
"""A tiny one of every kind."""

SPECIAL = ("<s>", "</s>", "<pad>", "<unk>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<|im_start|>", "<|im_end|>")
CUT = sorted(BACKENDS.keys() - {"unknown"})


@pytest.fixture(scope="module")
def backends() -> dict[str, Tokenizer]:
    return {name: build() for name, build in BACKENDS.items()}


def fast(backend: Tokenizer) -> PreTrainedTokenizerFast:
    names = {"BOS": "<s>", "EOS": "</s>", "UNK": "<unk>"} if backend.token_to_id("<s>") is not None else {}
    bert = {"UNK": "[UNK]", "CLS": "[CLS]", "SEP": "[SEP]", "PAD": "[PAD]"}
    known = {name: token for name, token in (names or bert).items() if backend.token_to_id(token) is not None}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name.lower()}_token": token for name, token in known.items()}
    )


@pytest.fixture(scope="module")
def tokenizers_of_texts(backends: dict[str, Tokenizer]) -> dict[str, TextTokenizer]:
    return {name: TextTokenizer(fast(backend), ["", "A: "]) for name, backend in backends.items()}


@pytest.mark.parametrize("name", CUT)
@given(text=texts)
@settings(max_examples=150, deadline=None)
def test_tokens_before_a_cut_are_those_of_the_whole(
    name: str, text: str, tokenizers_of_texts: dict[str, TextTokenizer]
) -> None:
    tokenizer = tokenizers_of_texts[name]
    text = tokenizing.without_surrogates(text)
    assert tokenizer._cuts is not None
    cuts = {cut for least in range(len(text)) if (cut := tokenizer._cuts.after(text, least)) is not None}
    for before in ("", "A: "):
        [whole] = tokenizer.ids([text], before)
        for cut in cuts:
            [first] = tokenizer.ids([text[:cut]], before)
            assert first == whole[: len(first)], (text[:cut], text[cut:])


@given(text=texts)
@settings(max_examples=300, deadline=None)
def test_shortened_texts_keep_their_tokens(text: str, tokenizers_of_texts: dict[str, TextTokenizer]) -> None:
    tokenizer = tokenizers_of_texts["BERT"]
    text = tokenizing.without_surrogates(text)
    assert tokenizer._cuts is not None
    assert tokenizer.ids([tokenizer._cuts.shortened(text)]) == tokenizer.ids([text])


@pytest.mark.parametrize("name", sorted(BACKENDS))
@given(text=texts, most=st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_a_bounded_text_begins_with_the_tokens_of_the_whole(
    name: str, text: str, most: int, tokenizers_of_texts: dict[str, TextTokenizer]
) -> None:
    tokenizer = tokenizers_of_texts[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "CHARACTERS_PER_TOKEN", 1)
        [bounded, again] = tokenizer.ids([text, text], "A: ", "", most)
    [whole] = tokenizer.ids([text], "A: ")
    assert bounded[: most + 1] == whole[: most + 1]
    assert bounded == again


@pytest.mark.parametrize("name", sorted(BACKENDS))
@given(text=texts)
@settings(max_examples=100, deadline=None)
def test_ordinary_texts_have_the_tokenizers_own_ids(
    name: str, text: str, backends: dict[str, Tokenizer], tokenizers_of_texts: dict[str, TextTokenizer]
) -> None:
    for spelled in (*SPECIAL, "<0x0A>"):
        text = text.replace(spelled, "")
    [ids] = tokenizers_of_texts[name].ids([text])
    assert ids == backends[name].encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_no_text_has_a_special_token(
    name: str, backends: dict[str, Tokenizer], tokenizers_of_texts: dict[str, TextTokenizer]
) -> None:
    special = {id_ for token in SPECIAL if (id_ := backends[name].token_to_id(token)) is not None}
    unknown = {backends[name].token_to_id(token) for token in ("<unk>", "[UNK]")}
    spelled = [before + token + after for token in SPECIAL for before in ("", "x", " ") for after in ("", "y", " ")]
    found = {id_ for ids in tokenizers_of_texts[name].ids(spelled) for id_ in ids}
    assert special
    assert not found & (special - unknown)
    own = {id_ for text in spelled for id_ in backends[name].encode(text, add_special_tokens=False).ids}
    assert own & (special - unknown), "the tokenizer as it is reads them"


@pytest.mark.parametrize("character", [".", "a", " ", "é", "大"])
def test_only_a_part_of_a_long_text_is_tokenized(
    character: str, tokenizers_of_texts: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert characters_tokenized(tokenizers_of_texts["BERT"], character * 1_000_000, monkeypatch) < 10_000


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Mistral", "猫"),
        ("Llama 3", "a "),
        ("Llama 3", "1a"),
        ("o200k", "x."),
        ("XLM-RoBERTa", "猫"),
        ("GPT-2", "слово "),
    ],
)
def test_only_a_part_is_tokenized_by_other_tokenizers_too(
    name: str, text: str, tokenizers_of_texts: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert characters_tokenized(tokenizers_of_texts[name], text * 300_000, monkeypatch) < 10_000


def characters_tokenized(tokenizer: TextTokenizer, text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    lengths: list[int] = []
    encode = tokenizer._encode

    def counting(texts: list[str]) -> list[list[int]]:
        lengths.extend(map(len, texts))
        return encode(texts)

    monkeypatch.setattr(tokenizer, "_encode", counting)
    tokenizer.ids([text], most=500)
    return sum(lengths)


def test_a_text_without_a_cut_is_tokenized_whole(tokenizers_of_texts: dict[str, TextTokenizer]) -> None:
    text = "🐼" * 1000
    assert tokenizers_of_texts["BERT"].ids([text], most=5) == tokenizers_of_texts["BERT"].ids([text])
