from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr_model import MatryoshkaReranker
from mrr_model.inference.encode import PairEncoder
from mrr_model.serving.dialects.truncation import Truncation, cut_text
from mrr_model.serving.errors import Fault, ServingError

QUERY = "who wrote Faust?"
TEXTS = st.text(st.sampled_from("ab Ä, .\n日本語🙂"), max_size=80)


@given(TEXTS, st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_a_cut_text_is_a_part_with_at_most_so_many_tokens(mini: MatryoshkaReranker, text: str, count: int) -> None:
    encoder = mini.engine.encoder
    whole = len(encoder.text_offsets(text)[0])
    for side in ("left", "right"):
        part = cut_text(encoder, text, count, side)
        assert text.startswith(part) if side == "right" else text.endswith(part)
        assert len(encoder.text_offsets(part)[0]) == min(whole, count)


def test_documents_are_cut_to_their_own_limit(mini: MatryoshkaReranker) -> None:
    documents = ["Goethe wrote the tragedy Faust.", "Faust", ""]
    [(_, cut)] = Truncation(max_tokens_per_doc=2).cut(mini, [(QUERY, documents)], None)
    assert cut == ["Goethe wrote", "Faust", ""]
    [(_, cut)] = Truncation(max_tokens_per_doc=2, side="left").cut(mini, [(QUERY, documents)], None)
    assert cut == ["Faust.", "Faust", ""]


@pytest.mark.parametrize("side", ["left", "right"])
def test_only_the_part_that_is_kept_is_tokenized(
    mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch, side: Literal["left", "right"]
) -> None:
    read, encoder = [], mini.engine.encoder
    original = type(encoder).text_offsets

    def text_offsets(encoder: PairEncoder, text: str) -> Any:
        read.append(len(text))
        return original(encoder, text)

    monkeypatch.setattr(type(encoder), "text_offsets", text_offsets)
    text = "the beginning " + "word " * 200_000 + "the end"
    assert cut_text(encoder, text, 2, side) == {"left": "the end", "right": "the beginning"}[side]
    assert sum(read) < 1000


def test_texts_that_do_not_fit_may_be_refused(mini: MatryoshkaReranker) -> None:
    requests = [(QUERY, ["short", "word " * 600])]
    with pytest.raises(ServingError, match="text 1") as refused:
        Truncation(allowed=False).cut(mini, requests, None)
    assert refused.value.fault is Fault.INVALID
    assert Truncation(allowed=False).cut(mini.copy(long_documents="max"), requests, None) == requests
    with pytest.raises(ServingError, match="truncate_prompt_tokens"):
        Truncation(max_length=2).cut(mini, requests, None)
    with pytest.raises(ServingError, match="more than the 20 tokens"):
        Truncation(max_length=20, allowed=False).cut(mini, [(QUERY, ["word " * 30])], None)
