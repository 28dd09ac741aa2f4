"""Protocols by name: what they contain, and what they set for each collection."""

import importlib
from typing import get_args

import ir_measures
import pytest
from pydantic import ValidationError

from mrr_model.data.collection_source import FirstStage
from mrr_model.evaluation.presets import CONTRADICTION, PRESETS, SAME_QUESTION, PresetName, preset

NAMES = get_args(PresetName)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_complete(name: str) -> None:
    found = preset(name)
    assert found.name == name
    assert found.first_stage in get_args(FirstStage)
    assert len(set(found.collections)) == len(found.collections) > 0
    for metrics in (found.metrics, *found.collection_metrics.values()):
        assert [str(ir_measures.parse_measure(metric)) for metric in metrics] == list(metrics)


def test_the_names_are_the_keys() -> None:
    assert tuple(PRESETS) == NAMES
    with pytest.raises(ValueError, match=r"preset must be one of msmarco-passage, msmarco-document, beir, got 'trec'"):
        preset("trec")


@pytest.mark.parametrize("name", NAMES)
def test_the_collections_are_ids_of_ir_datasets(
    name: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path_factory.mktemp("home")))
    library = importlib.import_module("ir_datasets")
    for collection in preset(name).collections:
        dataset = library.load(collection)
        assert dataset.has_docs()
        assert dataset.has_queries()
        assert dataset.has_qrels()
        if preset(name).first_stage == "given":
            assert dataset.has_scoreddocs()


@pytest.mark.parametrize(
    ("collection", "prompt"),
    [
        ("beir/quora/test", SAME_QUESTION),
        ("BeIR/quora", SAME_QUESTION),
        ("beir/cqadupstack/android", SAME_QUESTION),
        ("mteb/cqadupstack-tex", SAME_QUESTION),
        ("beir/arguana", CONTRADICTION),
        ("mteb/ArguAna", CONTRADICTION),
        ("beir/scifact/test", None),
    ],
)
def test_prompts_depend_on_the_collection(collection: str, prompt: str | None) -> None:
    assert preset("beir").prompt_for(collection) == prompt
    assert preset("msmarco-passage").prompt_for(collection) is None


def test_metrics_depend_on_the_collection() -> None:
    assert preset("msmarco-passage").metrics_for("msmarco-passage/dev/small") == ("RR@10",)
    assert preset("msmarco-passage").metrics_for("msmarco-passage/trec-dl-2020/judged") == ("nDCG@10",)
    assert preset("msmarco-document").metrics_for("msmarco-document/dev") == ("RR@100",)
    assert preset("beir").metrics_for("beir/quora/test") == ("nDCG@10",)


def test_the_length_is_no_more_than_the_model_takes() -> None:
    assert preset("msmarco-passage").max_length_for(None) == 224
    assert preset("msmarco-document").max_length_for(512) == 512
    assert preset("beir").max_length_for(4096) == 512


def test_a_preset_is_frozen() -> None:
    with pytest.raises(ValidationError):
        preset("beir").candidates = 5  # type: ignore[misc]
