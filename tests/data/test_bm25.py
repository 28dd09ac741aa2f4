"""BM25: bm25s's own scores, ties by id, and the index that is cached on disk."""

import builtins
import json
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bm25s
import pytest
import Stemmer

from mrr_model.data import bm25
from mrr_model.data.bm25 import BM25Index, bm25_run, tokenize

DRAW = random.Random(0)
WORDS = [f"{start}{end}" for start in ("rain", "stone", "light", "river") for end in ("fall", "ing", "s", "bed", "y")]
CORPUS = {f"d{index}": " ".join(DRAW.choices(WORDS, k=DRAW.randint(0, 25))) for index in range(300)}
QUERIES = {f"q{index}": " ".join(DRAW.choices([*WORDS, "the", "unheard"], k=4)) for index in range(40)}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bm25s"


def direct(queries: Mapping[str, str], corpus: Mapping[str, str], k: int) -> dict[str, dict[str, float]]:
    """What bm25s finds when it is called as its own documentation does."""
    options: dict[str, Any] = {"stopwords": "en", "stemmer": Stemmer.Stemmer("english"), "show_progress": False}
    index = bm25s.BM25(corpus=list(corpus), method="lucene", k1=0.9, b=0.4)
    index.index(bm25s.tokenize(list(corpus.values()), **options), show_progress=False)
    found, scores = index.retrieve(bm25s.tokenize(list(queries.values()), **options), k=k, show_progress=False)
    return {
        query: {str(document): float(score) for document, score in zip(row, row_scores, strict=True) if score > 0}
        for query, row, row_scores in zip(queries, found, scores, strict=True)
    }


def test_everything_that_is_found_has_the_score_that_bm25s_gives_it() -> None:
    assert bm25_run(QUERIES, CORPUS, len(CORPUS)) == direct(QUERIES, CORPUS, len(CORPUS))


def test_the_best_are_those_of_bm25s() -> None:
    ours, theirs = bm25_run(QUERIES, CORPUS, 10), direct(QUERIES, CORPUS, 10)
    for query in QUERIES:
        assert list(ours[query].values()) == list(theirs[query].values())
        least = min(theirs[query].values())  # which of those that tie at the cut bm25s takes is left open
        assert {id_ for id_, score in ours[query].items() if score > least} == {
            id_ for id_, score in theirs[query].items() if score > least
        }


def test_equal_scores_are_ordered_by_id_descending_whatever_the_order_of_the_corpus() -> None:
    corpus = dict.fromkeys(("b", "c", "a", "d"), "rain falls") | {"z": "stones fall and rain falls and falls"}
    backwards = dict(reversed(corpus.items()))
    assert list(bm25_run({"q": "rain"}, corpus, 3)["q"]) == ["d", "c", "b"]
    assert list(bm25_run({"q": "rain"}, backwards, 3)["q"]) == ["d", "c", "b"]


def test_an_index_of_a_list_finds_indices_by_the_same_rule() -> None:
    index = BM25Index(dict(enumerate(["rain falls"] * 12 + ["stones fall and rain falls and falls", "light"])))
    [found] = index.search(["rain"], top_k=3)
    assert list(found) == [11, 10, 9]  # by number, not by digits
    assert index.search(["rain", "light"], top_k=0) == [{}, {}]


def test_scores_are_those_of_a_search_for_every_document() -> None:
    index = BM25Index(CORPUS)
    for query, found in zip(QUERIES.values(), index.search(QUERIES.values(), len(CORPUS)), strict=True):
        scores = dict(zip(CORPUS, index.scores(query).tolist(), strict=True))
        assert {document: score for document, score in scores.items() if score > 0} == found
    assert index.scores("unheard").tolist() == [0.0] * len(CORPUS)
    assert BM25Index({"d": "the"}).scores("rain").tolist() == [0.0]


def test_words_are_stemmed_and_stop_words_left_out() -> None:
    assert tokenize(["Trains were late", "the of", ""]) == [["train", "were", "late"], [], []]


@pytest.mark.parametrize("query", ["what is it", "unheard", "", "x"])
def test_a_query_that_shares_no_word_finds_nothing(query: str) -> None:
    assert bm25_run({"q": query, "other": "rain"}, {"d": "it rains"}, 5) == {
        "q": {},
        "other": bm25_run({"q": "rain"}, {"d": "it rains"}, 5)["q"],
    }


@pytest.mark.parametrize("corpus", [{}, {"d": ""}, {"d": "the", "e": "x"}])
def test_a_corpus_without_words_finds_nothing(corpus: dict[str, str]) -> None:
    assert bm25_run({"q": "rain"}, corpus, 5) == {"q": {}}


def test_the_index_of_a_large_corpus_is_cached_by_what_it_holds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bm25_run(QUERIES, CORPUS, 10)
    assert not cache.exists()  # a small corpus
    monkeypatch.setattr(bm25, "CACHED_FROM", 300)
    assert bm25_run(QUERIES, CORPUS, 10) == made
    assert len(list(cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(bm25s.BM25, "index", lambda *_, **__: pytest.fail("the index was built again"))
        assert bm25_run(QUERIES, CORPUS, 10) == made
    assert bm25_run(QUERIES, {**CORPUS, "d0": "rainfall"}, 10) != made
    assert bm25_run(QUERIES, dict(reversed(CORPUS.items())), 10) == made  # the order differs, so the index does
    assert len(list(cache.iterdir())) == 3


def test_an_index_that_cannot_be_cached_is_used_all_the_same(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bm25, "CACHED_FROM", 1)
    cache.parent.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, bm25.__name__):
        assert bm25_run({"q": "rain"}, {"d": "it rains"}, 5)["q"].keys() == {"d"}
    assert "the BM25 index could not be stored in" in caplog.text


@pytest.mark.parametrize("missing", ["bm25s", "Stemmer"])
def test_a_missing_library_is_named_with_the_command(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refused(name: str, *arguments: Any, **options: Any) -> Any:
        if name == missing:
            raise ImportError(f"No module named {name!r}")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(ImportError, match=rf'{missing}.*pip install "matryoshka-reranker\[eval\]"'):
        bm25_run({"q": "rain"}, {"d": "rain"}, 1)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bm25, "CACHED_FROM", 1)
    bm25_run(QUERIES, CORPUS, 10)
    bm25_run(QUERIES, CORPUS, 10)
    assert capfd.readouterr() == ("", "")


def test_the_parameters_are_plain_data() -> None:
    assert json.loads(json.dumps(bm25.PARAMETERS)) == {"method": "lucene", "k1": 0.9, "b": 0.4}
