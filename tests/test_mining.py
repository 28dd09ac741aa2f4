"""Hard negatives: never a positive, always the same for a seed, from the depth that was asked for."""

import random
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrr_model.training.mining import mine_bm25, mine_dense, mine_random

WORDS = ["rain", "river", "cloud", "stone", "apple", "train", "paper", "light"]

Miner = Callable[..., list[list[str]]]


def embed(texts: list[str]) -> Tensor:
    """Bags of words: the cosine is that of the word counts."""
    counts = torch.tensor([[float(text.lower().split().count(word)) for word in WORDS] for text in texts])
    return counts + 1e-3


def dense(queries: list[str], positives: list[list[str]], corpus: list[str], **options: float) -> list[list[str]]:
    return mine_dense(embed(queries), embed(corpus), positives, corpus, **options)  # type: ignore[arg-type]


def uniform(queries: list[str], positives: list[list[str]], corpus: list[str], **options: int) -> list[list[str]]:
    return mine_random(positives, corpus, **{key: options[key] for key in ("negatives", "seed") if key in options})


MINERS = pytest.mark.parametrize("mine", [mine_bm25, dense, uniform])

passages = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


@MINERS
@settings(max_examples=25, deadline=None)
@given(
    corpus=st.lists(passages, min_size=8, max_size=20, unique=True),
    queries=st.lists(passages, min_size=1, max_size=3),
    depth=st.integers(0, 25),
    seed=st.integers(),
)
def test_negatives_are_different_passages_of_the_corpus_and_never_a_positive(
    mine: Miner, corpus: list[str], queries: list[str], depth: int, seed: int
) -> None:
    positives = [random.Random(f"{seed} {query}").sample(corpus, 2) for query in queries]
    corpus = [*corpus, *(text.upper() + " " for text in corpus)]  # the same texts, differently written
    mined = mine(queries, positives, corpus, negatives=4, depth=depth, seed=seed)
    assert mined == mine(queries, positives, corpus, negatives=4, depth=depth, seed=seed)
    assert len(mined) == len(queries)
    for own, negatives in zip(positives, mined, strict=True):
        assert set(negatives) <= set(corpus)
        assert len({text.lower().strip() for text in [*own, *negatives]}) == len(own) + 4


@MINERS
def test_seed_changes_the_draw(mine: Miner) -> None:
    corpus = [f"rain {word} {other}" for word in WORDS for other in WORDS]
    mined = [
        mine(["rain"], [["rain rain rain"]], [*corpus, "rain rain rain"], negatives=3, seed=seed) for seed in range(4)
    ]
    assert len({tuple(draw[0]) for draw in mined}) > 1


def test_bm25_draws_within_its_depth_after_stemming_and_fills_up_with_the_rest() -> None:
    corpus = ["Trains were late", "the train was late", "a training day", "paper", "light", "stone"]
    hard = {"Trains were late", "the train was late", "a training day"}  # Snowball stems all three to "train"
    for seed in range(5):
        (mined,) = mine_bm25(["train"], [["none of these"]], corpus, negatives=3, seed=seed)
        assert set(mined) == hard
        (mined,) = mine_bm25(["train"], [["A TRAINING  day"]], corpus, negatives=4, seed=seed)
        assert set(mined[:2]) == hard - {"a training day"}
        assert set(mined[2:]) < {"paper", "light", "stone"}


@pytest.mark.parametrize("query", ["the of", "unheard", "?"])
def test_bm25_of_a_query_that_finds_nothing_draws_at_random(query: str) -> None:
    (mined,) = mine_bm25([query], [["rain"]], ["rain", "stone", "light"], negatives=2)
    assert sorted(mined) == ["light", "stone"]


def test_bm25_takes_empty_passages() -> None:
    assert mine_bm25(["rain"], [["rain"]], ["", "the"], negatives=2) in ([["", "the"]], [["the", ""]])


def test_dense_skips_what_is_nearly_as_close_as_the_positive() -> None:
    query = torch.tensor([[1.0, 0.0]])
    cosines = torch.tensor([0.8, 0.9, 0.77, 0.75, 0.5, 0.1])  # of the positive, then of the others; the guard is 0.76
    corpus = ["positive", "closer", "too close", "hard", "harder not", "easy"]
    embeddings = 7 * torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)  # (N, 2)
    for seed in range(5):
        (mined,) = mine_dense(query, embeddings, [["positive"]], corpus, negatives=2, depth=2, seed=seed)
        assert set(mined) == {"hard", "harder not"}
        (mined,) = mine_dense(query, embeddings, [["positive"]], corpus, negatives=2, depth=2, margin=1.0, seed=seed)
        assert set(mined) == {"too close", "hard"}


def test_dense_guard_is_off_where_the_positive_points_away() -> None:
    embeddings = torch.tensor([[-1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    (mined,) = mine_dense(embeddings[1:2], embeddings, [["p"]], ["p", "near", "far"], negatives=1, depth=1)
    assert mined == ["near"]


def test_random_order_is_uniform() -> None:
    corpus = ["a", "b", "c"]
    draws = [text for seed in range(600) for text in mine_random([["p"]], corpus, negatives=1, seed=seed)[0]]
    # 600 draws of 3: 200 each, standard deviation sqrt(600 · 1/3 · 2/3) = 11.5; five of them either way.
    assert all(142 < draws.count(text) < 258 for text in corpus)
    orders = {tuple(mine_random([["p"]], corpus, negatives=3, seed=seed)[0]) for seed in range(60)}
    assert len(orders) == 6


@MINERS
def test_corpus_too_small_is_said(mine: Miner) -> None:
    with pytest.raises(
        ValueError, match=r"only 1 different passages besides the positives of query 0, but 2 negatives"
    ):
        mine(["rain"], [["rain"]], ["rain", "Rain", "stone"], negatives=2)


@MINERS
def test_arguments_that_do_not_fit_are_refused(mine: Miner) -> None:
    with pytest.raises(ValueError, match=r"positives\[0\] is a string; expected a list of passages"):
        mine(["rain"], ["stone"], ["rain", "stone"], negatives=1)
    with pytest.raises(ValueError, match=r"negatives and depth must not be below 0, got -1"):
        mine(["rain"], [["rain"]], ["rain", "stone"], negatives=-1)


def test_dense_arguments_that_do_not_fit_are_refused() -> None:
    corpus = ["rain", "stone"]
    with pytest.raises(ValueError, match=r"positives has 2 entries for 1 query_embeddings"):
        mine_dense(embed(["rain"]), embed(corpus), [["rain"], ["stone"]], corpus, negatives=1)
    with pytest.raises(ValueError, match=r"passage_embeddings has 1 rows for 2 texts in corpus"):
        mine_dense(embed(["rain"]), embed(["rain"]), [["rain"]], corpus, negatives=1)
    with pytest.raises(ValueError, match=r"margin must lie in \(0, 1\], got 1\.5"):
        mine_dense(embed(["rain"]), embed(corpus), [["rain"]], corpus, negatives=1, margin=1.5)
    with pytest.raises(ValueError, match=r"positive 'paper' of query 0 is not in corpus; add it"):
        mine_dense(embed(["rain"]), embed(corpus), [["paper"]], corpus, negatives=1)
    with pytest.raises(ValueError, match=r"query 0 has no positive"):
        mine_dense(embed(["rain"]), embed(corpus), [[]], corpus, negatives=1)


@pytest.mark.parametrize("library", ["bm25s", "Stemmer"])
def test_missing_library_names_the_command(monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r'pip install "matryoshka-reranker\[train\]"'):
        mine_bm25(["rain"], [["rain"]], ["rain", "stone"], negatives=1)
