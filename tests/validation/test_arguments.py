"""Documents, pairs and numbers that a call accepts, whichever library they come from."""

import asyncio
import json
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel

from mrr_integrations._options import listed
from mrr_model import MatryoshkaReranker, RankedDocument
from mrr_model.checkpoint import Checkpoint
from mrr_model.validation.arguments import (
    optional_milliseconds,
    optional_number,
    optional_text,
    optional_whole_number,
    true_or_false,
    whole_number,
)

QUERY, TEXTS = "what is a panda?", ["the panda", "bamboo is the", "zoo"]

pandas = pytest.importorskip("pandas")


class Colour(str, Enum):
    RED = "the panda"
    BLUE = "bamboo is the"
    GREEN = "zoo"


@pytest.fixture(scope="module")
def reranker(make_checkpoint: Callable[..., Checkpoint]) -> MatryoshkaReranker:
    return MatryoshkaReranker(make_checkpoint("bert"), max_length=64)


ACCEPTED: dict[str, Callable[[], Any]] = {
    "tuple": lambda: tuple(TEXTS),
    "generator": lambda: (text for text in TEXTS),
    "array": lambda: np.array(TEXTS),
    "object array": lambda: np.array(TEXTS, dtype=object),
    "Series": lambda: pandas.Series(TEXTS, index=[7, 7, 2]),
    "Index": lambda: pandas.Index(TEXTS),
    "column": lambda: pandas.DataFrame({"text": TEXTS})["text"],
    "categorical": lambda: pandas.Series(TEXTS, dtype="category"),
    "keys": lambda: dict.fromkeys(TEXTS).keys(),
    "values": lambda: dict(enumerate(TEXTS)).values(),
    "enum": lambda: list(Colour),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_ordered_collections_of_texts_are_accepted(reranker: MatryoshkaReranker, kind: str) -> None:
    assert reranker.score(QUERY, ACCEPTED[kind]()) == reranker.score(QUERY, TEXTS)
    ranking = reranker.rank(QUERY, ACCEPTED[kind]())
    assert [(item.index, item.text) for item in ranking] == [
        (item.index, item.text) for item in reranker.rank(QUERY, TEXTS)
    ]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            pandas.DataFrame({"title": ["a"], "text": ["b"]}),
            r"^documents .*table \(DataF",
        ),
        (SimpleNamespace(column_names=["text"]), "^documents .*table"),
        ({"a": "text"}, "^documents .*single dict"),
        (OrderedDict(a="text"), "^documents .*OrderedDict"),
        ({"a", "b"}, "^documents .*got a set"),
        (frozenset("ab"), "^documents .*frozenset"),
        (np.array("text"), "^documents .*ndarray"),
        (np.str_("text"), "^documents .*str_"),
        (np.array(["text"], dtype="S"), r"^documents\[0\] .*bytes_"),
        (np.array([["a", "b"]]), r"^documents\[0\] .*ndarray"),
        (pandas.Series(["a", None]), r"^documents\[1\]"),
        (torch.zeros(2), r"^documents\[0\] .*tensor"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_other_documents_are_errors_that_name_them(reranker: MatryoshkaReranker, documents: Any, message: str) -> None:
    for method in (reranker.score, reranker.rank):
        with pytest.raises(TypeError, match=message):
            method(QUERY, documents)


PAIRS = [(QUERY, text) for text in TEXTS]

ACCEPTED_PAIRS: dict[str, Callable[[], Any]] = {
    "lists": lambda: [list(pair) for pair in PAIRS],
    "array": lambda: np.array(PAIRS),
    "object array": lambda: np.array(PAIRS, dtype=object),
    "generator": lambda: (pair for pair in PAIRS),
    "generator of arrays": lambda: (np.array(pair) for pair in PAIRS),
    "zip": lambda: zip([QUERY] * 3, pandas.Series(TEXTS), strict=True),
    "rows": lambda: pandas.DataFrame(PAIRS).itertuples(index=False),
    "table's array": lambda: pandas.DataFrame(PAIRS).to_numpy(),
}


@pytest.mark.parametrize("kind", ACCEPTED_PAIRS)
def test_pairs_are_accepted_in_any_form(reranker: MatryoshkaReranker, kind: str) -> None:
    assert reranker.score_pairs(ACCEPTED_PAIRS[kind]()) == reranker.score_pairs(PAIRS)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (pandas.DataFrame(PAIRS), "^pairs .*table"),
        ({QUERY: "text"}, "^pairs .*single dict"),
        (set(PAIRS), "^pairs .*got a set"),
        (["ab"], r"^pairs\[0\] .*'ab'"),
        ([{"query": "a", "text": "b"}], r"^pairs\[0\]"),
        ([{"a", "b"}], r"^pairs\[0\]"),
        ([3], r"^pairs\[0\]"),
        (np.array([["a", "b", "c"]]), r"^pairs\[0\]"),
        (np.array(["a", "b"]), r"^pairs\[0\]"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_other_pairs_are_errors_that_name_them(reranker: MatryoshkaReranker, pairs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        reranker.score_pairs(pairs)


@pytest.mark.parametrize(
    "number", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)], ids=lambda n: str(type(n))
)
def test_whole_numbers_of_any_library_are_accepted(
    reranker: MatryoshkaReranker, make_checkpoint: Callable[..., Checkpoint], number: Any
) -> None:
    assert reranker.rank(QUERY, TEXTS, top_n=number) == reranker.rank(QUERY, TEXTS, top_n=2)
    assert reranker.score_pairs(PAIRS, batch_size=number) == pytest.approx(reranker.score_pairs(PAIRS))
    assert reranker.flops(query_tokens=number, passage_tokens=number) == reranker.flops(
        query_tokens=2, passage_tokens=2
    )
    assert reranker.score(QUERY, TEXTS, depth=number) == reranker.score(QUERY, TEXTS, depth=2)
    assert type(whole_number("top_n", number)) is int
    small = MatryoshkaReranker(
        make_checkpoint("bert", adapters=False), max_length=number * 32, query_max_length=number, batch_tokens=number
    )
    assert json.dumps([small.max_length, small.query_max_length, small.batch_tokens]) == "[64, 2, 2]"


@pytest.mark.parametrize("number", [True, np.True_, 2.0, np.float32(2), "2", None, np.array([1, 2])], ids=repr)
def test_other_whole_numbers_are_errors_that_name_them(number: Any) -> None:
    with pytest.raises(TypeError, match=r"^top_n"):
        whole_number("top_n", number)
    with pytest.raises(ValueError, match=r"^top_n .*0"):
        whole_number("top_n", np.int64(0))


@pytest.mark.parametrize("number", [0, -3, 0.5, np.float32(0.25), np.int64(2)], ids=repr)
def test_numbers_of_any_library_are_floats(number: Any) -> None:
    assert optional_number("min_score", number) == number
    assert type(optional_number("min_score", number)) is float


def test_numbers_too_large_for_a_float_are_infinite() -> None:
    assert optional_milliseconds("deadline_ms", 10**400) == math.inf
    for number in (10**400, -(10**400)):
        with pytest.raises(ValueError, match=r"^min_score must be a finite number"):
            optional_number("min_score", number)
    with pytest.raises(ValueError, match=r"^deadline_ms must be at least 0"):
        optional_milliseconds("deadline_ms", -(10**400))


@pytest.mark.parametrize("number", ["0.5", True, 1j, [0.5], float("nan"), float("inf")], ids=repr)
def test_other_numbers_are_errors_that_name_them(number: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^min_score"):
        optional_number("min_score", number)


def test_texts_and_switches() -> None:
    assert optional_text("prompt", "Predict.") == "Predict."
    assert true_or_false("normalize", np.False_) is False
    for none in (optional_text("prompt", None), optional_number("min_score", None), optional_whole_number("n", None)):
        assert none is None
    with pytest.raises(TypeError, match=r"^prompt .*7"):
        optional_text("prompt", 7)
    for wrong in ("yes", 1, None):
        with pytest.raises(TypeError, match=r"^normalize"):
            true_or_false("normalize", wrong)


def test_the_repr_of_a_ranked_document_shortens_a_long_text() -> None:
    short = RankedDocument(1, 0.5, "it's short", depth=6)
    assert repr(short) == 'RankedDocument(index=1, score=0.5, text="it\'s short", depth=6)'
    long = RankedDocument(1, 0.5, "word\n" * 1_000_000, depth=6)
    assert len(repr([long])) < 150
    assert "…" in repr(long)
    assert long.text == "word\n" * 1_000_000


ENTRIES: dict[str, Callable[[MatryoshkaReranker], Any]] = {
    "score": lambda reranker: reranker.score(QUERY, TEXTS),
    "rank": lambda reranker: reranker.rank(QUERY, TEXTS, depth=50),
    "score_pairs": lambda reranker: reranker.score_pairs(PAIRS),
    "flops": lambda reranker: reranker.flops(),
    "explain": lambda reranker: reranker.explain(),
    "plan": lambda reranker: reranker.plan(),
    "ascore": lambda reranker: asyncio.run(reranker.ascore(QUERY, TEXTS)),
    "arank": lambda reranker: asyncio.run(reranker.arank(QUERY, TEXTS, depth=50)),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_depth_warning_points_at_the_callers_line_once(
    make_checkpoint: Callable[..., Checkpoint], entry: str
) -> None:
    with pytest.warns(UserWarning, match="depth=50") as caught:
        reranker = MatryoshkaReranker(make_checkpoint("bert", adapters=False), depth=50, max_length=64)
    assert [warning.filename for warning in caught] == [__file__]
    reranker._warned_of_depth = False  # as if it had been built without a depth
    with pytest.warns(UserWarning, match="depth=50") as caught:
        ENTRIES[entry](reranker)
    [warning] = caught
    assert (warning.filename, warning.lineno) == (__file__, ENTRIES[entry].__code__.co_firstlineno)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reranker.rank(QUERY, TEXTS)


def _langchain(core: MatryoshkaReranker) -> Any:
    return pytest.importorskip("mrr_integrations.langchain").MatryoshkaReranker(reranker=core, depth=50)


def _llama_index(core: MatryoshkaReranker) -> Any:
    return pytest.importorskip("mrr_integrations.llama_index").MatryoshkaReranker(reranker=core, depth=50)


def _sentence_transformers(core: MatryoshkaReranker) -> Any:
    model = pytest.importorskip("mrr_integrations.sentence_transformers").MatryoshkaCrossEncoder(reranker=core)
    return model.predict([(QUERY, TEXTS[0])], depth=50)


@pytest.mark.slow
@pytest.mark.parametrize("build", [_langchain, _llama_index, _sentence_transformers])
def test_so_does_a_warning_through_the_integrations(
    make_checkpoint: Callable[..., Checkpoint], build: Callable[[MatryoshkaReranker], Any]
) -> None:
    core = MatryoshkaReranker(make_checkpoint("bert", adapters=False), max_length=64)
    with pytest.warns(UserWarning, match="depth=50") as caught:
        build(core)
    assert [warning.filename for warning in caught] == [__file__]


def test_integrations_check_lists_and_numbers_as_the_core_does() -> None:
    table = pandas.DataFrame({"text": ["a"]})
    with pytest.raises(TypeError, match=r"^nodes .*table \(DataFrame\)"):
        listed(table, BaseModel, "nodes", "NodeWithScore")
    with pytest.raises(TypeError, match=r"^documents .*got a set"):
        listed({1, 2}, BaseModel, "documents", "Document")
    assert optional_whole_number("top_n", torch.tensor(2)) == 2
    for wrong in (2.0, True, "2"):
        with pytest.raises(TypeError, match=r"^max_length .* None"):
            optional_whole_number("max_length", wrong)
