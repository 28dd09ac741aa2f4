"""Long documents are split into windows: they cover the text, fit the input, and break where a reader would."""

import string
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.windows import DocumentSplitter, Span, Windows
from mrr_model.template import BERT_TEMPLATE, RELEASE_TEMPLATE, InputTemplate

Tokenizers = Mapping[str, PreTrainedTokenizerBase]

QUERY = "what is a panda?"
SENTENCES = "The giant panda is a bear. It lives in China! Does it eat bamboo? It does: ninety pounds a day."
CHINESE = "大熊猫是一种熊。它生活在中国的山里。它吃竹子吗？是的，每天吃很多。"
SNIPPETS = [
    *("panda", "the", "Dr.", "e.g.", "bear.", "What?", "(so!)", "3.5", "can't", "[SEP]", "<s>", "</s>", "[CLS]x"),
    *("大熊猫。", "它吃竹子吗？", "日本語", "é" * 30, "pneumono" * 8, "ab" * 60, "....", "ﷺ", "①", "\u0301"),
    *("\U0001f43c", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ud83d\ude00", "\ud800", "\udc00b", "क्षि।"),
]
SPACES = ["", " ", " ", " ", "\n", "\n\n", "  \t ", "\u00a0", "\u3000"]

documents = st.lists(
    st.tuples(st.sampled_from(SNIPPETS), st.sampled_from(SPACES)).map("".join) | st.text(max_size=6), max_size=40
).map("".join)
numbers = st.integers(1, 40)


class Characters:
    """A slow tokenizer: one token per character, with no fast backend."""

    bos_token_id, eos_token_id, cls_token_id, sep_token_id = 1, 2, 3, 4

    def __init__(self) -> None:
        self.seen: list[str] = []

    def tokenize(self, text: str) -> list[str]:
        self.seen.append(text)
        return list(text)

    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int]:
        return [ord(token) for token in tokens]


def unigram() -> PreTrainedTokenizerFast:
    """A tokenizer as XLM-RoBERTa's, of the characters and words of `SNIPPETS`."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "</s>", "<unk>", "<pad>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator([SENTENCES, CHINESE, string.printable, *SNIPPETS[:12]], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        cls_token="<s>", sep_token="</s>",
    )  # fmt: skip


KINDS = ("encoder", "decoder", "unigram", "characters", "bytes")


@pytest.fixture(scope="module")
def encoders(tokenizers: Tokenizers) -> dict[str, PairEncoder]:
    """One for each kind of tokenizer and each rule of truncation."""
    return {
        "encoder": PairEncoder(tokenizers["encoder"], BERT_TEMPLATE, 64),
        "decoder": PairEncoder(tokenizers["decoder"], RELEASE_TEMPLATE, 96),
        "unigram": PairEncoder(unigram(), plain_template("end"), 48),
        "characters": PairEncoder(Characters(), plain_template("longest_first", passage="<{passage}>"), 100),
        "bytes": PairEncoder(ByT5Tokenizer(), plain_template("spans"), 120, query_max_length=20),
    }


def plain_template(truncation: str, passage: str = "{passage}") -> InputTemplate:
    return InputTemplate.model_validate(
        {"query": ("{query}|",), "passage": (passage,), "prompt": ("!",), "truncation": truncation}
    )


def split(
    encoder: PairEncoder, document: str, query: str = QUERY, prompt: str | None = None, **windows: Any
) -> list[Span]:
    [spans] = DocumentSplitter(encoder).spans([(query, document)], prompt, Windows(**windows))
    return spans


def texts(document: str, spans: list[Span]) -> list[str]:
    return [document[start:end] for start, end in spans]


def length(encoder: PairEncoder, text: str) -> int:
    """Tokens of a passage's span before any cut."""
    [pair] = encoder.uncut().encode([("q", text)])
    return pair.passage_length


# Properties


@pytest.mark.parametrize("kind", KINDS)
@given(
    document=documents,
    window=st.none() | numbers,
    stride=st.none() | numbers,
    query=st.sampled_from([QUERY, "q", "panda " * 4]),
)
@example(document="\ud83d\ude00 \U0001f600" * 40, window=3, stride=2, query="q")
@settings(deadline=None, max_examples=60)
def test_windows_cover_the_text_in_order_and_fit(
    encoders: dict[str, PairEncoder], kind: str, document: str, window: int | None, stride: int | None, query: str
) -> None:
    encoder = encoders[kind]
    if window is not None and stride is not None:
        stride = min(window, stride)
    spans = split(encoder, document, query, window=window, stride=stride)
    if spans == [(0, len(document))]:
        [pair] = encoder.encode([(query, document)])
        assert document.isspace() or not pair.passage_cut
        return
    starts, ends = zip(*spans, strict=True)
    assert all(left < right for left, right in pairwise(starts))
    assert all(left < right for left, right in pairwise(ends))
    covered = {index for span in spans for index in range(*span)}
    assert all(index in covered or character.isspace() for index, character in enumerate(document))
    limit = encoder.passage_space(query)
    if window is not None:
        limit = min(limit, window + encoder.passage_frame)
    for text in texts(document, spans):
        assert text == text.strip() != ""
        [pair] = encoder.encode([(query, text)])
        if len(text.encode("utf-16-le", "surrogatepass")) > 4:  # else a character of more tokens than the window's
            assert not pair.passage_cut
            assert pair.passage_length <= limit
    assert not any(
        "\udc00" <= document[index] < "\ue000" and "\ud800" <= document[index - 1] < "\udc00"
        for span in spans
        for index in span
        if 0 < index < len(document)
    ), "a character is split"
