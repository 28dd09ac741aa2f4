"""Hostile texts in a reranker's calls: special tokens, great lengths, lone surrogates."""

import asyncio
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from reference import MISTRAL

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.inference import encode as inputs
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.forward import ForwardPass

DECODER = MISTRAL
QUERY = "how do plants make food?"
RELEVANT, IRRELEVANT = "Plants make food by photosynthesis.", "The committee met on Tuesday to discuss the budget."


def test_special_tokens_in_a_document_are_plain_text(mini: MatryoshkaReranker) -> None:
    spelled = "[SEP] " * 30 + IRRELEVANT
    spaced = spelled.replace("[SEP]", "[ sep ]")
    assert mini.score(QUERY, [spelled]) == pytest.approx(mini.score(QUERY, [spaced]), abs=1e-5)
    own = mini.tokenizer(IRRELEVANT, add_special_tokens=False)["input_ids"]
    batch = mini.engine.batch([(QUERY, spelled), (QUERY, IRRELEVANT)])
    sep = mini.tokenizer.sep_token_id
    assert (batch.input_ids == sep).sum(1).tolist() == [2, 2]
    assert batch.input_ids[1, int(batch.spans.query[1]) :][: len(own)].tolist() == own


def test_a_pickled_reranker_reads_texts_the_same(mini: MatryoshkaReranker) -> None:
    again = pickle.loads(pickle.dumps(mini))
    for text in ("[SEP] a", "a " * 5000, "\ud800"):
        batches = [each.engine.batch([(text, text)]) for each in (again, mini)]
        assert torch.equal(batches[0].input_ids, batches[1].input_ids)


@pytest.mark.parametrize(
    ("text", "scored"), [("\ud800 abc", "\ufffd abc"), ("a \ud83d", "a \ufffd"), ("x \ud83d\ude00", "x \U0001f600")]
)
def test_lone_surrogates_are_scored_and_kept(text: str, scored: str, reranker: MatryoshkaReranker) -> None:
    expected = reranker.score(scored, [RELEVANT, scored])
    assert reranker.score(text, [RELEVANT, text]) == expected
    assert reranker.score_pairs([(text, text)]) == pytest.approx(expected[1:], abs=1e-5)
    assert {document.text for document in reranker.rank(text, [RELEVANT, text])} == {RELEVANT, text}
    assert {document.text for document in asyncio.run(reranker.arank(text, [text]))} == {text}
    assert reranker.engine.token_counts([(text, text)]) == reranker.engine.token_counts([(scored, scored)])


def test_lone_surrogates_in_a_prompt(decoder: MatryoshkaReranker) -> None:
    assert decoder.score(QUERY, [RELEVANT], prompt="\ud800?") == decoder.score(QUERY, [RELEVANT], prompt="\ufffd?")


@pytest.mark.parametrize("bad", [b"bytes", None, 3])
def test_a_document_that_is_not_a_string_is_named(bad: object, mini: MatryoshkaReranker) -> None:
    documents: list[Any] = [RELEVANT, "\ud800", bad]
    with pytest.raises(TypeError, match=r"documents\[2\]"):
        mini.score(QUERY, documents)


def test_a_long_query_leaves_space_and_is_warned_of_once() -> None:
    reranker = MatryoshkaReranker(dtype="float32")
    query = QUERY + " and what else is there" * 300
    with pytest.warns(UserWarning, match=r"query .*257 tokens") as caught:
        scores = reranker.score(query, [RELEVANT + " So it is." * 300, IRRELEVANT, "", "x"])
    assert [(warning.filename, str(warning.message)[:7]) for warning in caught] == [
        (__file__, "a query"),
        (__file__, "1 of 4 "),
    ]
    assert len(set(scores)) == 4
    reranker.rank(query, [RELEVANT + " So it is." * 300])  # no second warning


def test_cut_documents_are_warned_of_once_with_their_share() -> None:
    reranker = MatryoshkaReranker(dtype="float32", max_length=64)
    copies = reranker.copy(max_length=60), reranker.copy(depth=3)
    documents = [RELEVANT * 9, IRRELEVANT * 9, RELEVANT, RELEVANT, IRRELEVANT * 9]
    expected = r"^2 of 3 documents \(66\.7%\) were cut.* max_length=64 .* choose a larger max_length, .*long_documents"
    with pytest.warns(UserWarning, match=expected) as caught:
        reranker.score(QUERY, documents)
    assert [warning.filename for warning in caught] == [__file__]
    for again in (reranker, *copies):
        again.score(QUERY, documents)
    with pytest.warns(UserWarning, match="2 of 3 documents"):
        MatryoshkaReranker(dtype="float32", max_length=64).score(QUERY, documents)
    with pytest.warns(UserWarning, match=r"max_length=512 tokens: split"):  # all positions that mini has
        MatryoshkaReranker(dtype="float32", max_length=512).score(QUERY, [RELEVANT * 90])


def test_documents_that_fit_are_not_warned_of() -> None:
    reranker = MatryoshkaReranker(dtype="float32")
    [(query, passage)] = reranker.engine.token_counts([(QUERY, RELEVANT)])
    exact = reranker.copy(max_length=query + passage + 1)
    exact.score(QUERY, [RELEVANT, IRRELEVANT[:9], ""])
    with pytest.warns(UserWarning, match="1 of 1 documents"):
        exact.copy(max_length=query + passage).score(QUERY, [RELEVANT])


def test_token_counts_before_and_after_the_cut() -> None:
    for reranker in (MatryoshkaReranker(dtype="float32", max_length=64), MatryoshkaReranker(DECODER, max_length=64)):
        pairs = [(QUERY, RELEVANT * 50), (QUERY * 20, IRRELEVANT)]
        [(query, passage), _] = reranker.engine.token_counts(pairs)
        whole = reranker.engine.token_counts(pairs, cut=False)
        assert whole[0][0] == query
        assert whole[0][1] > 5 * passage
        assert whole[1][0] > 64


@pytest.mark.parametrize("call", ["score", "rank", "score_pairs", "logits"])
def test_the_warning_points_at_the_caller(call: str) -> None:
    reranker = MatryoshkaReranker(DECODER, dtype="float32", max_length=64)
    calls: dict[str, Callable[[], object]] = {
        "score": lambda: reranker.score("a " * 99, ["b"]),
        "rank": lambda: reranker.rank("a " * 99, ["b"]),
        "score_pairs": lambda: reranker.score_pairs([("a " * 99, "b")]),
        "logits": lambda: reranker.engine.logits([("a " * 99, "b")], reranker.plan()),
    }
    with pytest.warns(UserWarning, match="query was cut") as caught:
        calls[call]()
    assert [warning.filename for warning in caught] == [__file__]


def test_a_query_that_its_own_length_cuts_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MatryoshkaReranker(dtype="float32", query_max_length=32).score("a " * 900, [RELEVANT])
        MatryoshkaReranker(DECODER, dtype="float32", query_max_length=32).score("a " * 900, [RELEVANT])


def test_query_max_length_above_max_length_leaves_the_passage_its_share() -> None:
    reranker = MatryoshkaReranker(DECODER, dtype="float32", max_length=64, query_max_length=500)
    [(_, passage)] = reranker.engine.token_counts([("a " * 900, "b " * 900)])
    assert passage >= 8
    with pytest.warns(UserWarning, match="query was cut"):
        first, second = reranker.score("a " * 900, ["b " * 900, "the cat " * 90])
    assert first != second


# Chunks


def pairs_of_three_queries() -> list[tuple[str, str]]:
    texts = [f"{word} make food {number}." for number in range(6) for word in ("Plants", "Bees", "Towns")]
    return [(query, text) for text in [*texts, texts[0]] for query in (QUERY, "what do bees make?", "why?")]


def test_chunks_change_no_score(reranker: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of_three_queries()
    whole = reranker.engine.logits(pairs, reranker.plan())
    counts, flops = reranker.engine.token_counts(pairs), reranker.engine.flops(pairs, reranker.plan())
    for characters in (1, 500, 1500):
        monkeypatch.setattr(inputs, "CHUNK_CHARACTERS", characters)
        torch.testing.assert_close(reranker.engine.logits(pairs, reranker.plan()), whole, rtol=1e-5, atol=1e-5)
        assert reranker.engine.token_counts(pairs) == counts
        assert reranker.engine.flops(pairs, reranker.plan()) >= flops
    assert reranker.score_pairs(pairs, batch_size=2) == pytest.approx(reranker.score_pairs(pairs), abs=1e-5)


def test_a_chunk_is_scored_before_the_next_is_tokenized(
    reranker: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "CHUNK_CHARACTERS", 1000)
    events: list[str] = []
    encode, launch = PairEncoder.encode, ForwardPass.launch

    def encoding(self: PairEncoder, pairs: Any, prompt: str | None = None) -> Any:
        events.append(f"encode {len(pairs)}")
        return encode(self, pairs, prompt)

    def scoring(self: ForwardPass) -> Any:
        events.append(f"score {len(self.pairs)}")
        return launch(self)

    monkeypatch.setattr(PairEncoder, "encode", encoding)
    monkeypatch.setattr(ForwardPass, "launch", scoring)
    with patch("mrr_model.inference.engine.tqdm", side_effect=lambda **options: _Bar(events, **options)):
        reranker.score_pairs(pairs_of_three_queries(), show_progress=True)
    distinct = len(set(pairs_of_three_queries()))
    assert events[0] == f"progress of {distinct}"
    chunks = [event.split() for event in events if event.split()[0] in ("encode", "score")]
    assert len(chunks) > 2
    assert [kind for kind, _ in chunks] == ["encode", "score"] * (len(chunks) // 2)
    advanced = [int(event.split()[1]) for event in events if event.startswith("advance")]
    assert sum(advanced) == distinct
    assert events.index(f"advance {advanced[0]}") < events.index(" ".join(chunks[2]), 4)


class _Bar:
    """Records the updates of a progress bar."""

    def __init__(self, events: list[str], total: int, **options: Any) -> None:
        self.events = events
        events.append(f"progress of {total}")

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, pairs: int) -> None:
        self.events.append(f"advance {pairs}")


def test_training_reads_texts_as_data_too(saved_encoder: Path) -> None:
    from mrr_model.data.groups import Group
    from mrr_model.training.dataset import GroupCollator

    loaded = checkpoint.load(saved_encoder)
    encoder = PairEncoder(loaded.tokenizer, loaded.model.matryoshka.template, 64)
    step = GroupCollator(encoder, 1)([Group("the [SEP] panda", ("[CLS] is",), ("what",))])
    [batch] = step["batches"]
    sep, cls = loaded.tokenizer.sep_token_id, loaded.tokenizer.cls_token_id
    assert (batch.input_ids == sep).sum(1).tolist() == [2, 2]
    assert (batch.input_ids == cls).sum(1).tolist() == [1, 1]
