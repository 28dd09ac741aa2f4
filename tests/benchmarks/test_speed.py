"""The speed of stock models is measured on the same model in both libraries."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import speed
import stock_models
from result_files import write_result
from sentence_transformers import CrossEncoder

from mrr_model import MatryoshkaReranker

TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every shape with three narrow layers; no other backend is installed."""
    monkeypatch.setattr("peers.ROOT", tmp_path_factory.mktemp("bare"))
    shapes = {
        name: replace(shape, fields={**shape.fields, **TINY, **({"num_key_value_heads": 2} if name == "qwen3" else {})})
        for name, shape in stock_models.SHAPES.items()
    }
    monkeypatch.setattr(speed, "SHAPES", shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(stock_models.SHAPES))
def test_both_libraries_run_a_shape(name: str, tiny: None) -> None:
    row = speed.compare_model(name, speed.SHAPES[name], speed.mixed_passages(5), repeats=1)  # it checks the logits
    assert row["parameters"] > 0
    assert row["dtypes"][0]["dtype"] == "float32"
    assert row["left_out"].keys() == {"onnx", "openvino"}
    for each in row["dtypes"]:
        assert each["peers"] == []
        assert each["best_batch_size"] in speed.MODEL_BATCH_SIZES
        assert min(each["pairs_per_second"].values()) > 0


def test_passages_have_the_lengths_that_the_page_states() -> None:
    words = [len(text.split()) for text in speed.mixed_passages(40)]
    assert min(words) >= speed.WORDS[0]
    assert max(words) <= speed.WORDS[1]
    assert statistics.median(words) == pytest.approx(speed.MEDIAN_WORDS, rel=0.1)
    assert words != sorted(words)


@pytest.mark.slow
def test_logits_that_differ_are_an_error(tiny: None, tmp_path: Path) -> None:
    speed.SHAPES["bert"].save(tmp_path)
    ours, stock = MatryoshkaReranker(tmp_path, dtype="float32"), CrossEncoder(str(tmp_path), device="cpu")
    pairs = [("a question", "a passage"), ("a question", "another")]
    speed.check_equal(ours, stock, pairs)
    stock.model.classifier.bias.data += 0.1
    with pytest.raises(ValueError, match="logits differ"):
        speed.check_equal(ours, stock, pairs)


def test_a_file_is_continued_only_for_the_same_code_and_setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("result_files.current_commit", lambda: "0" * 40)
    monkeypatch.setattr(speed, "current_commit", lambda: "0" * 40)
    file, setup = tmp_path / "speed-models.json", {"passages": 4}
    assert speed.measured_models(file, setup) == {}
    write_result(file, "speed-models", "How fast.", {**setup, "models": [{"name": "bert"}]})
    assert speed.measured_models(file, setup) == {"bert": {"name": "bert"}}
    assert speed.measured_models(file, {"passages": 5}) == {}
    monkeypatch.setattr(speed, "current_commit", lambda: "1" * 40)
    assert speed.measured_models(file, setup) == {}
    assert speed.measured_models(tmp_path / "other.json", setup) == {}
