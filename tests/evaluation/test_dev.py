"""Development collections: opened before training, then nDCG@10 of a checkpoint at full size and at smaller sizes."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.evaluation.dev import HeldOut

QUERIES = {"q0": "a panda", "q1": "the bear"}
CORPUS = {"d0": "the panda eats", "d1": "what is a bear?", "d2": "a zoo", "d3": "bear in the zoo", "d4": "no candidate"}
CANDIDATES = {"q0": ["d1", "d0", "d2"], "q1": ["d2", "d3"]}
QRELS = {"q0": {"d0": 1}, "q1": {"d3": 1}}


@pytest.fixture
def dev(make_beir: Any, tmp_path: Path) -> Path:
    folder: Path = make_beir(tmp_path / "dev", QUERIES, CORPUS, QRELS, CANDIDATES)
    return folder


def rows_of(table: str) -> dict[str, list[float]]:
    """The rows of a table by their first cell, without its head."""
    lines = [line.strip("|").split("|") for line in table.splitlines()]
    return {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in lines[2:]}


def ndcg(reranker: MatryoshkaReranker, **setting: Any) -> float:
    """By its definition, with one relevant document per query."""
    values = []
    for query, documents in CANDIDATES.items():
        ranking = reranker.rank(QUERIES[query], [CORPUS[document] for document in documents], **setting)
        relevant = CORPUS[next(iter(QRELS[query]))]
        rank = next(rank for rank, ranked in enumerate(ranking, 1) if ranked.text == relevant)
        values.append(1 / math.log2(1 + rank))
    return sum(values) / len(values)


def test_a_checkpoint_is_evaluated_at_several_sizes(
    saved_encoder: Path, dev: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(HeldOut([str(dev)], max_length=32).table(saved_encoder))
    assert capfd.readouterr() == ("", "")
    assert rows.pop("first stage") == [pytest.approx(1 / math.log2(3), abs=1e-3)]
    reranker = MatryoshkaReranker(saved_encoder, max_length=32)
    expected = {"full size": {}} | {
        f"depth {depth}, keep ratio {ratio:g}": {"depth": depth, "keep_ratio": ratio}
        for depth in (6, 3, 1)
        for ratio in (1.0, 0.5)
        if (depth, ratio) != (6, 1.0)
    }
    assert rows.keys() == expected.keys()
    for name, setting in expected.items():
        assert rows[name] == [pytest.approx(ndcg(reranker, **setting), abs=1e-3)], name


def test_several_collections_have_a_mean(saved_encoder: Path, dev: Path, make_beir: Any, tmp_path: Path) -> None:
    other = make_beir(tmp_path / "other", QUERIES, CORPUS, QRELS, {"q0": ["d0", "d1"], "q1": ["d3", "d2"]})
    held_out = HeldOut([str(dev), str(other)], limit_queries=1)
    assert [len(collection.queries) for collection in held_out.collections.values()] == [1, 1]
    table = held_out.table(saved_encoder)
    assert table.startswith("| nDCG@10 | dev | other | mean |")
    for values in rows_of(table).values():
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=1e-3)
    assert rows_of(table)["first stage"][1] == 1.0


def test_only_the_candidates_texts_wait_in_memory(dev: Path) -> None:
    [collection] = HeldOut([str(dev)]).collections.values()
    assert collection.corpus.keys() == {"d0", "d1", "d2", "d3"}


def test_lengths_are_those_given_as_far_as_the_model_has_positions(
    saved_encoder: Path, dev: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[MatryoshkaReranker] = []
    plan = MatryoshkaReranker.plan
    monkeypatch.setattr(MatryoshkaReranker, "plan", lambda self, *args: opened.append(self) or plan(self, *args))
    for given, max_length in ((32, 32), (512, 130)):
        HeldOut([str(dev)], max_length=given, query_max_length=9).table(saved_encoder)
        assert {(each.max_length, each.query_max_length) for each in opened} == {(max_length, 9)}
        opened.clear()


def test_a_model_that_cannot_merge_is_evaluated_by_depth_alone(make_checkpoint: Any, dev: Path, tmp_path: Path) -> None:
    checkpoint.save(make_checkpoint("bert", adapters=False, own={"merge_layers": ()}), tmp_path / "model")
    rows = rows_of(HeldOut([str(dev)]).table(tmp_path / "model"))
    assert [*rows] == ["first stage", "full size", "depth 3, keep ratio 1", "depth 1, keep ratio 1"]


@pytest.mark.parametrize("source", ["/not/there", "corpus"])
def test_a_wrong_collection_is_an_error_when_it_is_opened(source: str, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    given = source if source.startswith("/") else str(tmp_path / source)
    with pytest.raises((FileNotFoundError, ValueError), match=given):
        HeldOut([given])


def test_without_the_eval_extra_the_command_to_get_it_is_named(dev: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ImportError, match=r'pip install "matryoshka-reranker\[eval\]"'):
        HeldOut([str(dev)])
