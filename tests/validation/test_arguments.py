"""What a call takes for documents, pairs and whole numbers, whichever library it comes from."""

import asyncio
import json
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
from mrr_integrations._request import optional_whole_number
from mrr_model import MatryoshkaReranker, RankedDocument
from mrr_model.checkpoint import Checkpoint
from mrr_model.validation.arguments import whole_number

QUERY, TEXTS = "what is a panda?", ["the panda", "bamboo is the", "zoo"]

pandas = pytest.importorskip("pandas")


class Colour(str, Enum):
    RED = "the panda"
    BLUE = "bamboo is the"
    GREEN = "zoo"


@pytest.fixture(scope="module")
def reranker(make_checkpoint: Callable[..., Checkpoint]) -> MatryoshkaReranker:
    return MatryoshkaReranker(make_checkpoint("bert"), max_length=64)


TAKEN: dict[str, Callable[[], Any]] = {
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


@pytest.mark.parametrize("kind", TAKEN)
def test_ordered_collections_of_texts_are_taken(reranker: MatryoshkaReranker, kind: str) -> None:
    assert reranker.score(QUERY, TAKEN[kind]()) == reranker.score(QUERY, TEXTS)
    ranking = reranker.rank(QUERY, TAKEN[kind]())
    assert [(item.index, item.text) for item in ranking] == [
        (item.index, item.text) for item in reranker.rank(QUERY, TEXTS)
    ]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (
            pandas.DataFrame({"title": ["a"], "text": ["b"]}),
            r"documents must be a list of strings, got a table \(DataF",
        ),
        (SimpleNamespace(column_names=["text"]), "documents must be a list of strings, got a table"),
        ({"a": "text"}, "documents must be a list of strings, got a single dict"),
        (OrderedDict(a="text"), "documents must be a list of strings, got a single OrderedDict"),
        ({"a", "b"}, "documents must be a list of strings, got a set, which has no order"),
        (frozenset("ab"), "documents must be a list of strings, got a frozenset, which has no order"),
        (np.array("text"), "documents must be a list of strings, got a single ndarray"),
        (np.str_("text"), "documents must be a list of strings, got a single str_"),
        (np.array(["text"], dtype="S"), r"documents\[0\] must be a string, got .*bytes_"),
        (np.array([["a", "b"]]), r"documents\[0\] must be a string, got .*ndarray"),
        (pandas.Series(["a", None]), r"documents\[1\] must be a string"),
        (torch.zeros(2), r"documents\[0\] must be a string, got tensor"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_is_no_list_of_texts_is_refused_by_name(
    reranker: MatryoshkaReranker, documents: Any, message: str
) -> None:
    for method in (reranker.score, reranker.rank):
        with pytest.raises(TypeError, match=message):
            method(QUERY, documents)


PAIRS = [(QUERY, text) for text in TEXTS]

PAIRS_TAKEN: dict[str, Callable[[], Any]] = {
    "lists": lambda: [list(pair) for pair in PAIRS],
    "array": lambda: np.array(PAIRS),
    "object array": lambda: np.array(PAIRS, dtype=object),
    "generator": lambda: (pair for pair in PAIRS),
    "generator of arrays": lambda: (np.array(pair) for pair in PAIRS),
    "zip": lambda: zip([QUERY] * 3, pandas.Series(TEXTS), strict=True),
    "rows": lambda: pandas.DataFrame(PAIRS).itertuples(index=False),
    "table's array": lambda: pandas.DataFrame(PAIRS).to_numpy(),
}


@pytest.mark.parametrize("kind", PAIRS_TAKEN)
def test_pairs_are_taken_in_any_form(reranker: MatryoshkaReranker, kind: str) -> None:
    assert reranker.score_pairs(PAIRS_TAKEN[kind]()) == reranker.score_pairs(PAIRS)
    plan = reranker.plan()
    assert torch.equal(reranker.engine.logits(PAIRS_TAKEN[kind](), plan), reranker.engine.logits(PAIRS, plan))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (pandas.DataFrame(PAIRS), r"pairs must be a list of \(query, document\) pairs, got a table"),
        ({QUERY: "text"}, "pairs must be a list of .*, got a single dict"),
        (set(PAIRS), "pairs must be a list of .*, got a set, which has no order"),
        (["ab"], r"pairs\[0\] must be a \(query, document\) pair of strings, got 'ab'"),
        ([{"query": "a", "text": "b"}], r"pairs\[0\] must be a \(query, document\) pair"),
        ([{"a", "b"}], r"pairs\[0\] must be a \(query, document\) pair"),
        ([3], r"pairs\[0\] must be a \(query, document\) pair"),
        (np.array([["a", "b", "c"]]), r"pairs\[0\] must be a \(query, document\) pair"),
        (np.array(["a", "b"]), r"pairs\[0\] must be a \(query, document\) pair"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_what_is_no_list_of_pairs_is_refused_by_name(reranker: MatryoshkaReranker, pairs: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        reranker.score_pairs(pairs)


@pytest.mark.parametrize(
    "number", [2, np.int64(2), np.uint8(2), np.array(2), torch.tensor(2)], ids=lambda n: str(type(n))
)
def test_whole_numbers_of_any_library_are_taken(
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
def test_other_numbers_are_refused_by_name(number: Any) -> None:
    with pytest.raises(TypeError, match="top_n must be a whole number, got"):
        whole_number("top_n", number)
    with pytest.raises(ValueError, match="top_n must be at least 1, got 0"):
        whole_number("top_n", np.int64(0))


def test_the_repr_of_a_ranked_document_cuts_a_long_text() -> None:
    short = RankedDocument(1, 0.5, "it's short")
    assert repr(short) == 'RankedDocument(index=1, score=0.5, text="it\'s short")'
    long = RankedDocument(1, 0.5, "word\n" * 1_000_000)
    assert len(repr([long])) < 150
    assert "…" in repr(long)
    assert long.text == "word\n" * 1_000_000


ENTRIES: dict[str, Callable[[MatryoshkaReranker], Any]] = {
    "score": lambda reranker: reranker.score(QUERY, TEXTS),
    "rank": lambda reranker: reranker.rank(QUERY, TEXTS, depth=50),
    "score_pairs": lambda reranker: reranker.score_pairs(PAIRS),
    "cost": lambda reranker: reranker.flops(),
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
    reranker._warned = False  # as if it had been built without a depth
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


@pytest.mark.parametrize("build", [_langchain, _llama_index, _sentence_transformers])
def test_it_does_so_through_the_integrations_too(
    make_checkpoint: Callable[..., Checkpoint], build: Callable[[MatryoshkaReranker], Any]
) -> None:
    core = MatryoshkaReranker(make_checkpoint("bert", adapters=False), max_length=64)
    with pytest.warns(UserWarning, match="depth=50") as caught:
        build(core)
    assert [warning.filename for warning in caught] == [__file__]


def test_integrations_check_lists_and_numbers_as_the_core_does() -> None:
    table = pandas.DataFrame({"text": ["a"]})
    with pytest.raises(TypeError, match=r"nodes must be a list of NodeWithScores, got a table \(DataFrame\)"):
        listed(table, BaseModel, "nodes", "NodeWithScore")
    with pytest.raises(TypeError, match="documents must be a list of Documents, got a set, which has no order"):
        listed({1, 2}, BaseModel, "documents", "Document")
    assert optional_whole_number("top_n")(torch.tensor(2)) == 2
    assert optional_whole_number("top_n")(None) is None
    for wrong in (2.0, True, "2"):
        with pytest.raises(TypeError, match=r"max_length must be a whole number, got .* None is allowed too"):
            optional_whole_number("max_length")(wrong)
