"""Long documents are split into windows: they cover the text, fit the input, and break where a reader would."""

import re
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
from mrr_model.inference.tokenize import TextTokenizer, without_surrogates
from mrr_model.inference.windows import DocumentSplitter, Span, Windows, checked_windows
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
        if pair.passage_length > limit or pair.passage_cut:
            assert max(length(encoder, character) for character in without_surrogates(text)) > limit, (
                "one character exceeds a window"
            )
    assert not any(
        "\udc00" <= document[index] < "\ue000" and "\ud800" <= document[index - 1] < "\udc00"
        for span in spans
        for index in span
        if 0 < index < len(document)
    ), "a character is split"


@pytest.mark.parametrize("kind", KINDS)
@given(document=documents, others=st.lists(documents, max_size=3), window=numbers)
@settings(deadline=None, max_examples=20)
def test_windows_do_not_depend_on_what_else_is_split(
    encoders: dict[str, PairEncoder], kind: str, document: str, others: list[str], window: int
) -> None:
    splitter = DocumentSplitter(encoders[kind])
    pairs = [(query, text) for text in [*others, document, *others] for query in (QUERY, "q", "panda " * 9)]
    for windows in (Windows(window), Windows(stride=window)):
        assert splitter.spans(pairs, None, windows) == [splitter.spans([pair], None, windows)[0] for pair in pairs]


def test_the_examples_are_split(encoders: dict[str, PairEncoder]) -> None:
    """The properties above are not vacuous: each tokenizer splits such texts, and without a `window` too."""
    for encoder in encoders.values():
        document = " ".join(SNIPPETS) * 3
        assert len(split(encoder, document)) > 3
        assert len(split(encoder, document, window=10)) > 10


# The space beside a query


@given(
    query=st.integers(0, 60),
    prompt=st.integers(0, 20),
    max_length=st.integers(12, 50),
    query_max=st.none() | st.integers(1, 60),
    truncation=st.sampled_from(["spans", "longest_first", "end"]),
    query_first=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_the_space_is_the_longest_passage_that_is_not_cut(
    query: int, prompt: int, max_length: int, query_max: int | None, truncation: str, query_first: bool
) -> None:
    spans = {"query": ("{prompt}{query}|",), "prompt": ("!",)} if query_first else {
        "query": ("d:",), "prompt": ("|{query}", "{prompt}")
    }  # fmt: skip
    template = InputTemplate.model_validate({**spans, "passage": ("<{passage}",), "truncation": truncation})
    encoder = PairEncoder(Characters(), template, max_length, query_max)
    try:
        space = encoder.passage_space("Q" * query, "i" * prompt)
    except ValueError as error:
        assert "max_length" in str(error)  # noqa: PT017  # a prompt that leaves no space
        return
    for length in range(max_length + 2):
        [pair] = encoder.encode([("Q" * query, "P" * length)], "i" * prompt)
        assert pair.passage_cut == (length + encoder.passage_frame > max(space, encoder.passage_frame)) or (
            space < encoder.passage_frame
        )


def test_a_prompt_takes_space_from_the_windows() -> None:
    template = InputTemplate.model_validate({**plain_template("end").model_dump(), "prompt": ("{prompt}", "!")})
    encoder = PairEncoder(Characters(), template, 40)
    lengths = [max(map(len, texts("P" * 99, split(encoder, "P" * 99, "Q", prompt)))) for prompt in ("", "i" * 10)]
    assert lengths == [40 - len("Q|!"), 40 - len("Q|!") - 10]


def test_a_query_that_leaves_no_space_leaves_documents_whole() -> None:
    encoder = PairEncoder(Characters(), plain_template("end"), 20)
    assert split(encoder, "P" * 50, "Q" * 30) == [(0, 50)]
    assert split(encoder, "P" * 6, "Q" * 16) == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]


@pytest.mark.parametrize("truncation", ["spans", "longest_first"])
def test_a_long_query_leaves_the_windows_their_share(truncation: str) -> None:
    encoder = PairEncoder(Characters(), plain_template(truncation), 40)
    spans = split(encoder, "P" * 99, "Q" * 99)
    assert len(spans) > 1
    assert {end - start for start, end in spans[:-1]} == {encoder.passage_space("Q" * 99)}
    assert encoder.passage_space("Q" * 99) >= 5


# What is one window


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("document", ["", " ", "\n" * 999, "panda", " panda. The bear "])
def test_a_document_that_fits_is_whole(encoders: dict[str, PairEncoder], kind: str, document: str) -> None:
    assert split(encoders[kind], document) == [(0, len(document))]


def test_a_window_is_at_most_as_long_as_asked() -> None:
    encoder = PairEncoder(Characters(), plain_template("longest_first", passage="<{passage}>"), 200)
    assert split(encoder, "P" * 30, window=30) == [(0, 30)]
    assert split(encoder, "P" * 31, window=30) == [(0, 30), (15, 31)]
    assert split(encoder, "P" * 31, window=10_000) == [(0, 31)]


def test_whitespace_around_the_text_is_in_no_window() -> None:
    encoder = PairEncoder(Characters(), plain_template("end"), 20)
    assert split(encoder, " " * 30 + "panda" + " " * 30, "q") == [(30, 35)]
    assert split(encoder, "\n bear \n" + " " * 40 + "panda bear", "q", window=10, stride=10) == [(2, 6), (48, 58)]


# Where windows break


@pytest.mark.parametrize("kind", KINDS)
def test_windows_end_with_sentences_and_start_with_them(encoders: dict[str, PairEncoder], kind: str) -> None:
    document = SENTENCES + "\n" + SENTENCES
    window = 2 * length(encoders[kind], "It does: ninety pounds a day.")
    found = texts(document, split(encoders[kind], document, "q", window=window))
    assert len(found) > 2
    assert all(text[-1] in ".!?" for text in found)
    assert {text.split()[0] for text in found} <= {"The", "It", "Does"}


@pytest.mark.parametrize(
    ("document", "window", "expected"),
    [
        ("Pandas eat, e.g. bamboo. They sleep a lot", 25, ["Pandas eat, e.g. bamboo.", "They sleep a lot"]),
        ("They weigh 3.5 tons. They do not", 25, ["They weigh 3.5 tons.", "They do not"]),
        ("“Is it a bear?” (Yes!) It is a bear.", 25, ["“Is it a bear?” (Yes!)", "It is a bear."]),
        ("A heading of a part\n\nthe text of the part", 25, ["A heading of a part", "the text of the part"]),
        ("a line without an end\nand another line", 25, ["a line without an end\nand", "another line"]),
        ("大熊猫是一种熊。它生活在中国的山里。它吃竹子。", 20, ["大熊猫是一种熊。它生活在中国的山里。", "它吃竹子。"]),
        ("यह भालू है। यह बाँस खाता है।", 20, ["यह भालू है।", "यह बाँस खाता है।"]),
    ],
)
def test_sentence_ends(document: str, window: int, expected: list[str]) -> None:
    encoder = PairEncoder(Characters(), plain_template("end"), 100)
    assert texts(document, split(encoder, document, "q", window=window, stride=window)) == expected


@pytest.mark.parametrize("kind", ["encoder", "decoder", "characters", "bytes"])
def test_chinese_windows_end_with_sentences(encoders: dict[str, PairEncoder], kind: str) -> None:
    window = length(encoders[kind], CHINESE[:20])
    found = texts(CHINESE * 3, split(encoders[kind], CHINESE * 3, "q", window=window))
    assert len(found) > 4
    assert all(text[-1] in "。？" for text in found)


def test_a_sentence_of_many_words_is_broken_between_words(encoders: dict[str, PairEncoder]) -> None:
    document = "bear panda " * 30
    for encoder in encoders.values():
        found = texts(document, split(encoder, document, window=12 * length(encoder, "panda"))[:-1])
        assert all(re.fullmatch(r"((bear|panda) ?)+", text) for text in found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_word_is_broken_between_tokens(encoders: dict[str, PairEncoder], kind: str) -> None:
    word = "".join(string.ascii_lowercase[(7 * index * index) % 26] for index in range(3000))
    document = f"The panda. {word} The end."
    spans = split(encoders[kind], document, window=30)
    if kind == "encoder":  # to WordPiece it is one unknown word
        assert spans == [(0, len(document))]
    else:
        assert len(spans) > 20
        assert max(end - start for start, end in spans) < 400


def test_a_window_with_more_tokens_than_its_part_of_the_text_is_shortened(encoders: dict[str, PairEncoder]) -> None:
    """SentencePiece writes a mark before a text's first word: a window that starts inside a word gains a token."""
    encoder, document = encoders["unigram"], "猫熊大" * 50
    for window in (2, 7, 20):
        lengths = [length(encoder, text) for text in texts(document, split(encoder, document, "q", window=window))]
        assert set(lengths[:-1]) == {window}


# Strides


@pytest.mark.parametrize("kind", KINDS)
@given(document=documents, window=numbers)
@settings(deadline=None, max_examples=30)
def test_a_stride_of_a_window_leaves_no_overlap(
    encoders: dict[str, PairEncoder], kind: str, document: str, window: int
) -> None:
    spans = split(encoders[kind], document, window=window, stride=window)
    assert all(left[1] <= right[0] for left, right in pairwise(spans))


@pytest.mark.parametrize("stride", [5, 10, 20, 30, 40])
def test_windows_start_about_every_stride_tokens(stride: int) -> None:
    encoder = PairEncoder(Characters(), plain_template("end"), 100)
    document = "panda " * 300
    spans = split(encoder, document, window=40, stride=stride)
    steps = [right[0] - left[0] for left, right in pairwise(spans)]
    assert all(abs(step - stride) <= len("panda ") for step in steps)
    assert stride == 40 or abs(sum(steps) / len(steps) - stride) <= len("panda ") / 2
    overlaps = [left[1] - right[0] for left, right in pairwise(spans)]
    assert all(abs(overlap - (40 - stride)) <= 2 * len("panda ") for overlap in overlaps)


def test_the_default_stride_is_half_of_the_window(encoders: dict[str, PairEncoder]) -> None:
    for encoder in encoders.values():
        document = (SENTENCES + CHINESE) * 5
        for window in (20, 30):
            assert split(encoder, document, window=window) == split(
                encoder, document, window=window, stride=window // 2
            )


def test_a_window_of_one_token() -> None:
    encoder = PairEncoder(Characters(), plain_template("spans", passage="<{passage}>"), 100)
    assert split(encoder, "a\U0001f43cc d", window=1) == [(0, 1), (1, 2), (2, 3), (4, 5)]
    assert split(encoder, "a\ud83d\udc3cc", window=1, stride=1) == [(0, 1), (1, 3), (3, 4)]


# Characters


@pytest.mark.parametrize("kind", KINDS)
def test_spans_are_indices_of_the_users_own_string(encoders: dict[str, PairEncoder], kind: str) -> None:
    """A pair of surrogates is one character to the tokenizer and two of the string."""
    document = ("The panda \ud83d\udc3c sleeps. Is it \U0001f43c a bear? \ud83d It is. " * 6).strip()
    clean = without_surrogates(document)
    assert len(clean) < len(document)
    spans = split(encoders[kind], document, "q", window=20)
    found = [
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts(document, spans)
    ]
    assert found == texts(clean, split(encoders[kind], clean, "q", window=20))


def test_special_tokens_in_a_text_are_text(tokenizers: Tokenizers) -> None:
    encoder = PairEncoder(tokenizers["encoder"], BERT_TEMPLATE, 24)
    document = "the [SEP] panda is [CLS] what. " * 9
    special = {tokenizers["encoder"].sep_token_id, tokenizers["encoder"].cls_token_id}
    pairs = [(QUERY, text) for text in texts(document, split(encoder, document))]
    assert len(pairs) > 4
    for pair in encoder.encode(pairs):
        assert sum(id_ in special for id_ in pair.input_ids) == 3
        assert not pair.passage_cut


# Work


def test_each_document_is_tokenized_once_for_all_queries(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = PairEncoder(tokenizers["encoder"], BERT_TEMPLATE, 40)
    measured: list[str] = []
    offsets = TextTokenizer.offsets

    def recorded(self: TextTokenizer, text: str) -> Any:
        measured.append(text)
        return offsets(self, text)

    monkeypatch.setattr(TextTokenizer, "offsets", recorded)
    long, short = SENTENCES * 3, "the panda"
    queries = [*("q" * count for count in range(1, 12)), "is the panda"]
    spans = DocumentSplitter(encoder).spans([(query, text) for text in (long, short, long) for query in queries])
    assert measured == [long]
    assert len({tuple(each) for each in spans[: len(queries)]}) > 3


def test_work_grows_with_the_text_and_not_faster() -> None:
    tokenizer = Characters()
    encoder = PairEncoder(tokenizer, plain_template("end"), 100)
    document = "".join(f"{number} " for number in range(10_000))
    tokenizer.seen.clear()
    split(encoder, document)
    assert sum(map(len, tokenizer.seen)) < 6 * len(document)


def test_a_long_text_is_tokenized_in_segments(tokenizers: Tokenizers) -> None:
    tokenizer = TextTokenizer(tokenizers["encoder"])
    for text in ("what is the panda? " * 9000, "熊" * 150_000, "the " + "x" * 99 + " " * 120_000 + "panda"):
        starts, ends = tokenizer.offsets(text)
        assert len(starts) == len(tokenizer.ids([text])[0])
        assert (starts[1:] >= ends[:-1]).all()
        assert [text[starts[0] : ends[0]], text[starts[-1] : ends[-1]]] == {
            "w": ["what", "?"], "熊": ["熊", "熊"], "t": ["the", "panda"]
        }[text[0]]  # fmt: skip


# Arguments


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("both",), ValueError, "long_documents must be 'truncate' or 'max', got 'both'"),
        ((None,), ValueError, "long_documents"),
        (("max", 0), ValueError, "window must be at least 1"),
        (("max", 1.5), TypeError, "window must be a whole number"),
        (("max", True), TypeError, "window"),
        (("max", 10, 0), ValueError, "stride must be at least 1"),
        (("max", 10, "5"), TypeError, "stride"),
        (("max", 10, 11), ValueError, "stride=11 exceeds window=10"),
        (("truncate", 10), ValueError, "window=10 needs long_documents='max'"),
        (("truncate", None, 10), ValueError, "stride=10 needs long_documents='max'"),
        (("truncate", -1), ValueError, "window"),
    ],
)
def test_arguments_that_make_no_sense(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        checked_windows(*arguments)


def test_no_pairs_no_windows(encoders: dict[str, PairEncoder]) -> None:
    assert DocumentSplitter(encoders["encoder"]).spans([]) == []
