"""Development collections: opened before training, measured after it at full size and at smaller sizes."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from mrr_model import MatryoshkaReranker
from mrr_model.training import recipe as finetuning
from mrr_model.training.config import FinetuneConfig, SelfDistillConfig
from mrr_model.training.recipe import finetune
from mrr_model.training.self_distill import self_distill

QUERIES = {"q0": "a runs", "q1": "a sings"}
CORPUS = {"d0": "the red cat runs", "d1": "the blue dog runs", "d2": "a red bird sings", "d3": "cat the sings a"}
CANDIDATES = {"q0": ["d1", "d0", "d2"], "q1": ["d2", "d3"]}
QRELS = {"q0": {"d0": 1}, "q1": {"d3": 1}}


@pytest.fixture
def dev(make_beir: Any, tmp_path: Path) -> Path:
    folder: Path = make_beir(tmp_path / "dev", QUERIES, CORPUS, QRELS, CANDIDATES)
    return folder


def settings(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "stages": ("distill",), "train_group_size": 4,
        "max_length": 32, "distill": {"max_steps": 2}, "save_steps": 1,
    }  # fmt: skip
    return FinetuneConfig(**{**fields, **changes})


def table(said: str) -> dict[str, list[float]]:
    """The rows of the printed table, without its head."""
    lines = [line.strip("|").split("|") for line in said.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [float(cell) for cell in cells[1:]] for cells in lines[2:]}


def ndcg(reranker: MatryoshkaReranker, **setting: Any) -> float:
    """By its definition, with one relevant document a query."""
    values = []
    for query, documents in CANDIDATES.items():
        ranking = reranker.rank(QUERIES[query], [CORPUS[document] for document in documents], **setting)
        gold = CORPUS[next(iter(QRELS[query]))]
        rank = next(place for place, ranked in enumerate(ranking, 1) if ranked.text == gold)
        values.append(1 / math.log2(1 + rank))
    return sum(values) / len(values)


def test_the_checkpoint_is_measured_at_several_sizes(
    stock_encoder: Path, toy_file: Path, dev: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = finetune(settings(stock_encoder, toy_file, tmp_path / "out", dev=(str(dev),)))
    rows = table(capfd.readouterr().err)
    reranker = MatryoshkaReranker(folder, max_length=32)
    assert rows.pop("first stage") == [pytest.approx((1 / math.log2(3)), abs=1e-3)]
    expected = {"full size": {}} | {
        f"depth {depth}, keep ratio {ratio:g}": {"depth": depth, "keep_ratio": ratio}
        for depth in (4, 3, 1)
        for ratio in (1.0, 0.5)
        if (depth, ratio) != (4, 1.0)
    }
    assert rows.keys() == expected.keys()
    for name, setting in expected.items():
        assert rows[name] == [pytest.approx(ndcg(reranker, **setting), abs=1e-3)], name


def test_several_collections_have_a_mean_and_flattening_measures_too(
    cross_encoder: Path, dev: Path, make_beir: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = make_beir(tmp_path / "other", QUERIES, CORPUS, QRELS, {"q0": ["d0", "d1"], "q1": ["d3", "d2"]})
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"query": "a runs", "documents": ["the red cat runs", "a dog", "bird sings"]}\n' * 8, "utf-8")
    stage: Any = {"max_steps": 1}
    self_distill(
        SelfDistillConfig(
            model=str(cross_encoder),
            texts=(str(texts),),
            output=tmp_path / "out",
            train_group_size=3,
            max_length=32,
            dev=(str(dev), str(other)),
            dev_queries=1,
            vertical=stage,
            horizontal={**stage, "ratios": (2,)},
        )
    )
    said = capfd.readouterr().err
    assert "| nDCG@10 | dev | other | mean |" in said
    for values in table(said).values():
        assert values[2] == pytest.approx((values[0] + values[1]) / 2, abs=1e-3)
    assert table(said)["first stage"][1] == 1.0


def test_a_resumed_run_measures_too(
    stock_encoder: Path,
    toy_file: Path,
    dev: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(finetuning.Finetuning, "_finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(settings(stock_encoder, toy_file, tmp_path / "out", dev=(str(dev),)))
    assert not table(capfd.readouterr().err)
    finetune(settings(stock_encoder, toy_file, tmp_path / "out", dev=(str(dev),)))
    assert "full size" in table(capfd.readouterr().err)


@pytest.mark.parametrize("source", ["/not/there", "corpus"])
def test_a_wrong_collection_is_an_error_before_training(
    source: str, stock_encoder: Path, toy_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    given = source if source.startswith("/") else str(tmp_path / source)
    with pytest.raises((FileNotFoundError, ValueError), match=given):
        finetune(settings(stock_encoder, toy_file, tmp_path / "out", dev=(given,)))
    assert not (tmp_path / "out").exists()


def test_without_the_eval_extra_the_command_to_get_it_is_named(
    stock_encoder: Path, toy_file: Path, dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(ImportError, match=r'pip install "matryoshka-reranker\[eval\]"'):
        finetune(settings(stock_encoder, toy_file, tmp_path / "out", dev=(str(dev),)))
    assert not (tmp_path / "out").exists()
