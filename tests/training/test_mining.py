"""Hard negatives: never a positive, the same for the same seed, and from the `top_k` best."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrr_model.data.groups import Group, write_groups
from mrr_model.training import mining
from mrr_model.training.mining import MineConfig, mine_bm25, mine_dense, mine_random, mine_sources

WORDS = ["rain", "river", "cloud", "stone", "apple", "train", "paper", "light"]

Miner = Callable[..., list[list[str]]]


def embed(texts: list[str]) -> Tensor:
    """Bags of words: the cosine is that of the word counts."""
    counts = torch.tensor([[float(text.lower().split().count(word)) for word in WORDS] for text in texts])
    return counts + 1e-3


def dense(queries: list[str], positives: list[list[str]], corpus: list[str], **options: Any) -> list[list[str]]:
    return mine_dense(embed(queries), embed(corpus), positives, corpus, **options)


def uniform(queries: list[str], positives: list[list[str]], corpus: list[str], **options: Any) -> list[list[str]]:
    taken = {key: value for key, value in options.items() if key != "top_k"}
    return mine_random(positives, corpus, **taken)


MINERS = pytest.mark.parametrize("mine", [mine_bm25, dense, uniform])

passages = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


@MINERS
@settings(max_examples=25, deadline=None)
@given(
    corpus=st.lists(passages, min_size=8, max_size=20, unique=True),
    queries=st.lists(passages, min_size=1, max_size=3),
    top_k=st.integers(0, 25),
    seed=st.integers(),
)
def test_negatives_are_different_passages_of_the_corpus_and_never_a_positive(
    mine: Miner, corpus: list[str], queries: list[str], top_k: int, seed: int
) -> None:
    positives = [random.Random(f"{seed} {query}").sample(corpus, 2) for query in queries]
    corpus = [*corpus, *(text.upper() + " " for text in corpus)]  # the same texts, differently written
    mined = mine(queries, positives, corpus, negatives=4, top_k=top_k, seed=seed)
    assert mined == mine(queries, positives, corpus, negatives=4, top_k=top_k, seed=seed)
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


def test_bm25_draws_from_its_top_k_after_stemming_and_fills_up_with_the_rest() -> None:
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
    cosines = torch.tensor([0.8, 0.9, 0.77, 0.75, 0.5, 0.1])  # of the positive, then of the others; the bound is 0.76
    corpus = ["positive", "closer", "too close", "hard", "harder not", "easy"]
    embeddings = 7 * torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)  # (N, 2)
    for seed in range(5):
        (mined,) = mine_dense(query, embeddings, [["positive"]], corpus, negatives=2, top_k=2, seed=seed)
        assert set(mined) == {"hard", "harder not"}
        (mined,) = mine_dense(query, embeddings, [["positive"]], corpus, negatives=2, top_k=2, margin=1.0, seed=seed)
        assert set(mined) == {"too close", "hard"}


def test_dense_margin_is_off_if_the_positive_points_away() -> None:
    embeddings = torch.tensor([[-1.0, 0.1], [1.0, 0.0], [0.0, 1.0]])
    (mined,) = mine_dense(embeddings[1:2], embeddings, [["p"]], ["p", "near", "far"], negatives=1, top_k=1)
    assert mined == ["near"]


def test_random_order_is_uniform() -> None:
    corpus = ["a", "b", "c"]
    draws = [text for seed in range(600) for text in mine_random([["p"]], corpus, negatives=1, seed=seed)[0]]
    # 600 draws of 3: 200 each, standard deviation sqrt(600 · 1/3 · 2/3) = 11.5; five of them either way.
    assert all(142 < draws.count(text) < 258 for text in corpus)
    orders = {tuple(mine_random([["p"]], corpus, negatives=3, seed=seed)[0]) for seed in range(60)}
    assert len(orders) == 6


@MINERS
def test_a_corpus_that_is_too_small_is_an_error(mine: Miner) -> None:
    with pytest.raises(
        ValueError, match=r"only 1 different passages besides the positives of query 0, but negatives=2"
    ):
        mine(["rain"], [["rain"]], ["rain", "Rain", "stone"], negatives=2)


@MINERS
def test_arguments_that_do_not_fit_are_refused(mine: Miner) -> None:
    with pytest.raises(ValueError, match=r"positives\[0\] is a string; expected a list of passages"):
        mine(["rain"], ["stone"], ["rain", "stone"], negatives=1)
    with pytest.raises(ValueError, match=r"negatives and top_k must not be below 0, got -1"):
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


GROUPS = [
    Group("rain", ("rain rain",), ("stone",), (0.5,), (0.25,), "What for?"),
    Group("river stone", ("river stone", "river"), ("light",)),
]
CORPUS = [f"{word} {other}" for word in WORDS for other in WORDS]


def unit(texts: list[str]) -> Tensor:
    """Bags of words of length 1, as a bi-encoder gives them."""
    return torch.nn.functional.normalize(embed(texts), dim=-1)


@pytest.fixture
def fake_encoder(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Bags of words instead of a bi-encoder; the names that it was opened by."""
    asked: list[str] = []

    def encoder(name: str) -> Callable[[list[str]], Tensor]:
        asked.append(name)
        return unit

    monkeypatch.setattr(mining, "_encoder", encoder)
    return asked


def known(corpus: list[str]) -> list[str]:
    """The corpus with the positives that it lacks."""
    return list(dict.fromkeys([*corpus, *(text for group in GROUPS for text in group.positives)]))


def test_mine_by_bm25_changes_negatives_and_scores_alone() -> None:
    mined = list(mining.mine(GROUPS, CORPUS, MineConfig(negatives=3, top_k=5, seed=2)))
    negatives = mine_bm25(
        [group.query for group in GROUPS],
        [group.positives for group in GROUPS],
        known(CORPUS),
        negatives=3,
        top_k=5,
        seed=2,
    )
    assert mined == [
        Group("rain", ("rain rain",), tuple(negatives[0]), prompt="What for?"),
        Group("river stone", ("river stone", "river"), tuple(negatives[1])),
    ]


def test_mine_by_bi_encoder_is_mine_dense(fake_encoder: list[str]) -> None:
    config = MineConfig(encoder="some/encoder", negatives=3, top_k=5, margin=0.75, seed=2)
    mined = list(mining.mine(GROUPS, CORPUS, config))
    positives = [list(group.positives) for group in GROUPS]
    queries, passages = (unit(texts) for texts in ([group.query for group in GROUPS], known(CORPUS)))
    expected = mine_dense(queries, passages, positives, known(CORPUS), negatives=3, top_k=5, margin=0.75, seed=2)
    assert [list(group.negatives) for group in mined] == expected
    assert [list(group.positives) for group in mined] == positives
    assert {(group.positive_scores, group.negative_scores) for group in mined} == {(None, None)}
    assert fake_encoder == ["some/encoder"]


@pytest.mark.usefixtures("fake_encoder")
def test_scores_are_the_cosines_of_their_passages() -> None:
    for group in mining.mine(GROUPS, CORPUS, MineConfig(encoder="some/encoder", negatives=4, scores=True)):
        assert group.positive_scores is not None
        assert group.negative_scores is not None
        passages = [*group.positives, *group.negatives]
        cosines = torch.cosine_similarity(embed([group.query]), embed(passages))
        assert [*group.positive_scores, *group.negative_scores] == pytest.approx(cosines.tolist(), abs=1e-4)
        assert len(set(cosines.tolist())) > 1


@pytest.mark.parametrize("encoder", [None, "some/encoder"])
@pytest.mark.usefixtures("fake_encoder")
def test_mining_nothing_gives_nothing(encoder: str | None) -> None:
    assert list(mining.mine([], CORPUS, MineConfig(encoder=encoder))) == []


def test_scores_ask_for_a_bi_encoder() -> None:
    with pytest.raises(ValueError, match="give an encoder"):
        MineConfig(scores=True)


def test_negatives_come_from_the_corpus_of_a_beir_folder(tmp_path: Path) -> None:
    rows = {
        "corpus.jsonl": [{"_id": str(index), "text": text} for index, text in enumerate(["rain rain", *CORPUS])],
        "queries.jsonl": [{"_id": "q", "text": "rain"}],
    }
    for name, content in rows.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    [group] = mine_sources([f"{tmp_path}#dev"], MineConfig(negatives=7, top_k=15))
    assert (group.query, group.positives) == ("rain", ("rain rain",))
    assert len(group.negatives) == 7
    assert set(group.negatives) <= {text for text in CORPUS if "rain" in text}  # 15 of 64; one reads as the positive


def test_negatives_of_another_source_come_from_its_own_passages(tmp_path: Path) -> None:
    write_groups(tmp_path / "one.jsonl", GROUPS)
    write_groups(tmp_path / "two.jsonl", [Group("apple", ("apple",), ("paper", "train", "cloud"))])
    sources = [str(tmp_path / name) for name in ("one.jsonl", "two.jsonl")]
    mined = list(mine_sources(sources, MineConfig(negatives=3)))
    assert [group.query for group in mined] == ["rain", "river stone", "apple"]
    assert set(mined[0].negatives) < {"stone", "river stone", "river", "light"}
    assert set(mined[1].negatives) == {"rain rain", "stone", "light"}
    assert set(mined[2].negatives) == {"paper", "train", "cloud"}


def test_rows_without_negatives_are_what_mining_is_for(tmp_path: Path) -> None:
    rows = [{"query": word, "pos": [f"{word} {word}"]} for word in WORDS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mined = list(mine_sources([str(tmp_path / "rows.jsonl")], MineConfig(negatives=3)))
    assert [(group.query, group.positives) for group in mined] == [(word, (f"{word} {word}",)) for word in WORDS]
    assert all(len(group.negatives) == 3 for group in mined)


def test_bad_rows_of_a_source_can_be_left_out(tmp_path: Path) -> None:
    write_groups(tmp_path / "rows.jsonl", GROUPS)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("broken\n")
    source = str(tmp_path / "rows.jsonl")
    assert len(list(mine_sources([source], MineConfig(negatives=2), on_bad_row="skip"))) == 2
    with pytest.raises(ValueError, match=r"rows\.jsonl:3"):
        list(mine_sources([source], MineConfig(negatives=2)))


# Queries that are passages of the corpus

QUESTIONS = [
    Group("rain river cloud", ("cloud river rain rain",)),
    Group("stone apple train", ("train stone apple apple",)),
]
DUPLICATES = [
    "Rain  river CLOUD",
    "stone apple train",
    *(text for group in QUESTIONS for text in group.positives),
    *CORPUS,
]
"""Both queries, one of them written otherwise."""


@pytest.mark.parametrize("encoder", [None, "some/encoder"])
@pytest.mark.parametrize("top_k", [0, 1, 5, 80])
@pytest.mark.usefixtures("fake_encoder")
def test_a_query_is_not_its_own_negative(encoder: str | None, top_k: int) -> None:
    asked = {"encoder": encoder, "negatives": 60, "top_k": top_k, "margin": 1.0}
    for group in mining.mine(QUESTIONS, DUPLICATES, MineConfig(**asked)):  # type: ignore[arg-type]
        assert group.query not in {" ".join(text.lower().split()) for text in group.negatives}


@MINERS
def test_excluded_passages_are_never_drawn_and_do_not_count_among_the_top_k(mine: Miner) -> None:
    corpus = ["rain river", "RAIN river ", "rain", "stone"]
    for seed in range(8):
        [drawn] = mine(["rain river"], [["stone"]], corpus, negatives=1, top_k=1, seed=seed, excluded=[["Rain River"]])
        assert drawn == ["rain"]
    with pytest.raises(ValueError, match=r"excluded has 2 entries for 1 queries"):
        mine(["rain"], [["rain"]], corpus, negatives=1, excluded=[[], []])
    with pytest.raises(ValueError, match=r"only 1 different passages besides the positives of query 0 and the query"):
        mine(["rain"], [["stone"]], corpus, negatives=2, excluded=[["rain river"]])


@pytest.mark.parametrize("depth", [0, 30])
def test_a_beir_folders_own_document_is_no_negative(make_beir: Callable[..., Path], tmp_path: Path, depth: int) -> None:
    corpus = {
        "q": "Title rain river",
        "d": "river rain cloud",
        **{f"w{index}": word for index, word in enumerate(WORDS)},
    }
    folder = make_beir(
        tmp_path / "arguments", {"q": "rain river", "r": "stone"}, corpus, {"q": {"d": 1}, "r": {"d": 1}}
    )
    config = MineConfig(negatives=8, top_k=depth)
    mined = mine_sources([f"{folder}#test"], config)
    first, second = mined
    assert set(first.negatives) == set(WORDS)
    assert "Title rain river" in second.negatives  # which is another query's own
    assert mined.identical == 2  # "rain river" by its id, "stone" by its text
    with_own = mine_sources([f"{folder}#test"], MineConfig(negatives=9, top_k=depth, keep_identical=True))
    assert {"Title rain river"} < set(next(with_own).negatives)
    assert "stone" in next(with_own).negatives
    assert (list(with_own), with_own.identical) == ([], 0)


def test_without_sentence_transformers_the_command_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r'pip install "matryoshka-reranker\[sentence-transformers\]"'):
        list(mining.mine(GROUPS, CORPUS, MineConfig(encoder="some/encoder")))


def test_an_encoder_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    with pytest.raises(FileNotFoundError, match=r"encoder='.*nothing' cannot be loaded"):
        list(mining.mine(GROUPS, CORPUS, MineConfig(encoder=str(tmp_path / "nothing"))))
