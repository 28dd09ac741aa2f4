"""Calibrating a model: from collections or unlabelled texts to a map for each setting."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from mrr_model import Compression, MatryoshkaReranker
from mrr_model.calibration import fit as calibrating
from mrr_model.calibration.maps import Calibration, PlattMap
from mrr_model.calibration.probability import probabilities, probability
from mrr_model.checkpoint import load_outline
from mrr_model.compression import Plan
from mrr_model.evaluation.calibrate import CalibrationResult, calibrate_model, scored_pairs
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import open_collections, open_reranker, score_collections
from mrr_model.evaluation.store import save_calibration
from mrr_model.inference.engine import InferenceEngine

GIVEN: dict[str, Any] = {"dtype": "float32", "depths": (3, 6), "keep_ratios": (1.0, 0.5)}
GRID = [Compression(6, 1.0), Compression(6, 0.5), Compression(3, 1.0), Compression(3, 0.5)]


@pytest.fixture(scope="module", autouse=True)
def _load_mini_once() -> Iterator[None]:
    """Loading takes longer than calibrating; copies of `mini` are loaded each time, as tests store maps in them."""
    load = cache(MatryoshkaReranker)

    def opened(model: str, **options: Any) -> MatryoshkaReranker:
        return load(model, **options) if model == "mini" else MatryoshkaReranker(model, **options)

    with patch("mrr_model.evaluation.evaluate.MatryoshkaReranker", opened):
        yield


@pytest.fixture
def config_of(facts_beir: Path, tmp_path: Path) -> Callable[..., EvaluateConfig]:
    given = {**GIVEN, "collections": (f"{facts_beir}#test",), "output": tmp_path / "out"}
    return lambda **changes: EvaluateConfig(**{**given, **changes})


@pytest.fixture(scope="module")
def calibrated(facts_beir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CalibrationResult, Path]:
    """One calibration on labels, and its output folder, to be copied."""
    output = tmp_path_factory.mktemp("calibrations") / "out"
    config = EvaluateConfig(**GIVEN, collections=(f"{facts_beir}#test",), output=output)
    return calibrate_model(config), output


@pytest.fixture
def scored_config_of(
    config_of: Callable[..., EvaluateConfig], calibrated: tuple[CalibrationResult, Path], tmp_path: Path
) -> Callable[..., EvaluateConfig]:
    """A config whose output folder holds the logits already."""
    shutil.copytree(calibrated[1], tmp_path / "out")
    return config_of


@pytest.fixture
def texts(facts_beir: Path, tmp_path: Path) -> Path:
    """Every question with every answer, unlabelled."""
    collection = open_facts(facts_beir)
    rows = [{"query": query, "documents": list(collection.corpus.values())} for query in collection.queries.values()]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def open_facts(folder: Path) -> Collection:
    return open_collection(f"{folder}#test")


def logits_of(reranker: MatryoshkaReranker, folder: Path, setting: Compression) -> list[float]:
    collection = open_facts(folder)
    pairs = [(text, answer) for text in collection.queries.values() for answer in collection.corpus.values()]
    return reranker.score_pairs(pairs, depth=setting.depth, keep_ratio=setting.keep_ratio, normalize=False)


def test_each_setting_gets_the_map_of_its_own_logits(
    config_of: Callable[..., EvaluateConfig], calibrated: tuple[CalibrationResult, Path], facts_beir: Path
) -> None:
    made = calibrated[0].calibration
    assert (made.data, made.targets, made.pairs, made.relevant_share) == ("facts (8 queries)", "labels", 64, 8 / 64)
    assert made.queries == 8
    reranker = open_reranker(config_of())
    targets = [float(document == query) for query in range(8) for document in range(8)]
    for setting in GRID:
        plan = reranker.plan(setting.depth, setting.keep_ratio)
        [fitted] = [each.map for each in made.settings if each.plan() == Plan((plan.last_layer,), plan.merges)]
        expected = calibrating.fit_map(logits_of(reranker, facts_beir, setting), targets, np.arange(64).tolist())
        assert isinstance(fitted, PlattMap)
        assert isinstance(expected, PlattMap)
        assert (fitted.slope, fitted.intercept) == pytest.approx((expected.slope, expected.intercept), rel=1e-3)
    assert len(made.settings) == len(GRID)


def test_probabilities_add_up_to_the_relevant_pairs(
    calibrated: tuple[CalibrationResult, Path], own_mini: Path, facts_beir: Path
) -> None:
    made, _ = calibrated
    save_calibration(own_mini, made.calibration, "", made.weights)
    reranker = MatryoshkaReranker(own_mini, dtype="float32")
    collection = open_facts(facts_beir)
    for setting in GRID:
        logits = logits_of(reranker, facts_beir, setting)
        total = sum(probabilities(logits, reranker.plan(setting.depth, setting.keep_ratio), reranker.calibration))
        assert total == pytest.approx(8, abs=1.5)  # Platt's targets are a little below 1 and above 0
        assert abs(sum(map(probability, logits)) - 8) > 0.01 or setting == GRID[0]
    for query, (question, answer) in enumerate(
        zip(collection.queries.values(), collection.corpus.values(), strict=True)
    ):
        for setting in GRID:  # one threshold, the same documents
            best = reranker.rank(
                question,
                list(collection.corpus.values()),
                min_score=0.5,
                depth=setting.depth,
                keep_ratio=setting.keep_ratio,
            )
            assert [ranked.text for ranked in best] == [answer], (query, setting)


def test_a_querys_own_document_is_not_fitted_on(
    config_of: Callable[..., EvaluateConfig], facts_beir: Path, make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    facts = open_facts(facts_beir)
    corpus = {**facts.queries, **facts.corpus}
    candidates = {query: list(corpus) for query in facts.queries}
    folder = make_beir(tmp_path / "twins", facts.queries, corpus, facts.qrels, candidates)
    made = calibrate_model(config_of(collections=(str(folder),))).calibration
    assert (made.pairs, made.relevant_share) == (8 * 15, 1 / 15)


def test_settings_that_are_one_plan_get_one_map(config_of: Callable[..., EvaluateConfig]) -> None:
    made = calibrate_model(config_of(keep_ratios=(1.0, "5:0.5")))
    assert [str(each) for each in made.calibration.settings] == [
        "depth 6, keep ratio 1",
        "depth 3, keep ratio 1",
        "depth 6, keep ratio 5:0.5",
    ]


def test_pairs_keep_the_runs_order_and_unjudged_is_not_relevant(
    scored_config_of: Callable[..., EvaluateConfig],
) -> None:
    config = scored_config_of()
    reranker, opened = open_reranker(config), open_collections(config)
    [scored] = score_collections(reranker, GRID, opened, config)
    collection, runs = scored.collection, scored.runs
    pairs = scored_pairs(reranker, collection, runs)
    keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
    assert pairs.groups == [("facts", query) for query, _ in keys]
    assert pairs.targets == [float(query[1:] == document[1:]) for query, document in keys]
    for setting in GRID:
        plan = reranker.plan(setting.depth, setting.keep_ratio)
        [own] = [each for each in pairs.logits if (each.exits, each.merges) == (plan.exits, plan.merges)]
        assert pairs.logits[own] == [runs[setting][query][document] for query, document in keys]


def test_calibrating_uses_the_logits_of_the_output_folder(
    scored_config_of: Callable[..., EvaluateConfig], calibrated: tuple[CalibrationResult, Path]
) -> None:
    with patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed again")):
        assert calibrate_model(scored_config_of()) == calibrated[0]


def test_reports_are_of_held_out_queries_and_of_held_out_collections(
    scored_config_of: Callable[..., EvaluateConfig], facts_beir: Path
) -> None:
    made = calibrate_model(scored_config_of(), held_out=(f"{facts_beir}#half",))  # another split of the same folder
    assert list(made.reports) == ["facts (8 queries), queries held out", "facts"]
    own, other = made.reports.values()
    assert set(own.after) == set(other.after) == {str(each) for each in made.calibration.settings}
    assert "| setting | calibration error |" in own.markdown()


def test_a_run_belongs_to_the_collection_and_not_to_the_held_out_ones(
    scored_config_of: Callable[..., EvaluateConfig], facts_beir: Path, make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    run = facts_beir / "candidates" / "test.run"
    other = make_beir(
        tmp_path / "other",
        {"x": "who wrote Faust?"},
        {"a": "Goethe wrote it.", "b": "Bees make honey."},
        {"x": {"a": 1}},
        {"x": ["a", "b"]},
    )
    made = calibrate_model(scored_config_of(run=run), held_out=(str(other),))
    assert "other" in made.reports


def test_unlabelled_texts_teach_full_sizes_probabilities(
    config_of: Callable[..., EvaluateConfig], texts: Path, facts_beir: Path, own_mini: Path
) -> None:
    config = config_of(collections=(str(texts),), model=str(own_mini))
    made = calibrate_model(config, texts=texts)
    assert made.reports == {}
    assert made.calibration.targets == "full size"
    assert made.calibration.data == "texts.jsonl, by full size's own probabilities"
    assert made.calibration.pairs == 64
    full = made.calibration.nearest(Plan((6,)))
    assert full.map == PlattMap(slope=1.0, intercept=0.0)  # its logits as they are
    reranker = open_reranker(config)
    wanted = sum(map(probability, logits_of(reranker, facts_beir, GRID[0])))
    for each in made.calibration.settings[1:]:
        found = sum(probability(each.map(logit)) for logit in logits_of(reranker, facts_beir, each.setting))
        assert found == pytest.approx(wanted, abs=1.5)


def test_unlabelled_texts_keep_full_sizes_stored_map(
    config_of: Callable[..., EvaluateConfig], texts: Path, own_mini: Path
) -> None:
    labelled = calibrate_model(config_of(model=str(own_mini), depths=(6,), keep_ratios=(1.0,))).calibration
    save_calibration(own_mini, labelled, "", load_outline(own_mini).fingerprint or "")
    config = config_of(model=str(own_mini), collections=(str(texts),), output=config_of().output / "texts")
    made = calibrate_model(config, texts=texts).calibration
    assert made.nearest(Plan((6,))).map == labelled.settings[0].map
    assert made.nearest(Plan((3,))).map != labelled.settings[0].map


def test_fewer_texts(config_of: Callable[..., EvaluateConfig], texts: Path) -> None:
    config = config_of(collections=(str(texts),), limit_queries=5, depths=(6,), keep_ratios=(1.0,))
    assert calibrate_model(config, texts=texts).calibration.pairs == 5 * 8


def test_the_same_document_twice_is_one_pair(config_of: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    rows = [{"query": f"what is {n}?", "documents": [f"{n} is {n}.", "a", "a", f"{n} is {n}."]} for n in range(6)]
    file = tmp_path / "twice.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = config_of(collections=(str(file),), depths=(6,), keep_ratios=(1.0,))
    assert calibrate_model(config, texts=file).calibration.pairs == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit_queries": 4}, "collections .* 5 judged queries .*got 4"),
        ({"depths": (1,)}, "depth=1"),
        ({"model": "no/such model"}, "no/such model"),
    ],
)
def test_what_cannot_be_calibrated_is_named(
    config_of: Callable[..., EvaluateConfig], change: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        calibrate_model(config_of(**change))


def test_empty_texts_are_an_error(config_of: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.touch()
    with pytest.raises(ValueError, match=r"texts=.*empty\.jsonl"):
        calibrate_model(config_of(collections=(str(file),)), texts=file)


def test_a_calibration_is_what_a_checkpoint_stores(calibrated: tuple[CalibrationResult, Path]) -> None:
    made = calibrated[0].calibration
    assert Calibration.model_validate_json(made.model_dump_json()) == made
