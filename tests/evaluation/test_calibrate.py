"""Calibrating a model: from collections or unlabelled texts to a map for each setting."""

import json
from collections.abc import Callable
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
from mrr_model.evaluation.calibrate import calibrate_model, pairs_of
from mrr_model.evaluation.collection import open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.evaluate import open_collections, open_reranker, score_grid
from mrr_model.evaluation.store import save_calibration

GRID = [Compression(6, 1.0), Compression(6, 0.5), Compression(3, 1.0), Compression(3, 0.5)]


@pytest.fixture
def settings_of(facts_beir: Path, tmp_path: Path) -> Callable[..., EvaluateConfig]:
    given = {
        "collections": (f"{facts_beir}#test",),
        "dtype": "float32",
        "depths": (3, 6),
        "keep_ratios": (1.0, 0.5),
        "output": tmp_path / "out",
    }
    return lambda **changes: EvaluateConfig(**{**given, **changes})


@pytest.fixture
def texts(facts_beir: Path, tmp_path: Path) -> Path:
    """Every question with every answer, unlabelled."""
    collection = open_collection(f"{facts_beir}#test")
    rows = [{"query": query, "documents": list(collection.corpus.values())} for query in collection.queries.values()]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def logits_of(reranker: MatryoshkaReranker, folder: Path, setting: Compression) -> list[float]:
    collection = open_collection(f"{folder}#test")
    pairs = [(text, answer) for text in collection.queries.values() for answer in collection.corpus.values()]
    return reranker.score_pairs(pairs, depth=setting.depth, keep_ratio=setting.keep_ratio, normalize=False)


def test_each_setting_gets_the_map_of_its_own_logits(
    settings_of: Callable[..., EvaluateConfig], facts_beir: Path
) -> None:
    settings = settings_of()
    made = calibrate_model(settings).calibration
    assert (made.data, made.targets, made.pairs, made.relevant_share) == ("facts (8 queries)", "labels", 64, 8 / 64)
    assert made.queries == 8
    reranker = open_reranker(settings)
    targets = [float(document == query) for query in range(8) for document in range(8)]
    for setting in GRID:
        plan = reranker.plan(setting.depth, setting.keep_ratio)
        [fitted] = [each.map for each in made.settings if each.matches(plan.last_layer, plan.merges)]
        expected = calibrating.fit_map(logits_of(reranker, facts_beir, setting), targets, np.arange(64).tolist())
        assert isinstance(fitted, PlattMap)
        assert isinstance(expected, PlattMap)
        assert (fitted.slope, fitted.intercept) == pytest.approx((expected.slope, expected.intercept), rel=1e-3)
    assert len(made.settings) == len(GRID)


def test_probabilities_add_up_to_the_relevant_pairs(
    settings_of: Callable[..., EvaluateConfig], own_mini: Path, facts_beir: Path
) -> None:
    made = calibrate_model(settings_of(model=str(own_mini)))
    save_calibration(own_mini, made.calibration, "", made.weights)
    reranker = MatryoshkaReranker(own_mini, dtype="float32")
    collection = open_collection(f"{facts_beir}#test")
    for setting in GRID:
        logits = logits_of(reranker, facts_beir, setting)
        total = sum(probabilities(logits, reranker.plan(setting.depth, setting.keep_ratio), reranker.calibration))
        assert total == pytest.approx(8, abs=1.5)  # Platt's targets are drawn in a little
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
    settings_of: Callable[..., EvaluateConfig], facts_beir: Path, make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    facts = open_collection(f"{facts_beir}#test")
    corpus = {**facts.queries, **facts.corpus}
    candidates = {query: list(corpus) for query in facts.queries}
    folder = make_beir(tmp_path / "twins", facts.queries, corpus, facts.qrels, candidates)
    made = calibrate_model(settings_of(collections=(str(folder),))).calibration
    assert (made.pairs, made.relevant_share) == (8 * 15, 1 / 15)


def test_settings_that_are_one_plan_get_one_map(settings_of: Callable[..., EvaluateConfig]) -> None:
    made = calibrate_model(settings_of(keep_ratios=(1.0, "5:0.5")))
    assert [str(each) for each in made.calibration.settings] == [
        "exit 6, no merges",
        "exit 3, no merges",
        "exit 6, merges 5:1/2",
    ]


def test_pairs_keep_the_runs_order_and_unjudged_is_not_relevant(
    settings_of: Callable[..., EvaluateConfig],
) -> None:
    settings = settings_of()
    reranker, opened = open_reranker(settings), open_collections(settings)
    [(_, collection, runs)] = score_grid(reranker, GRID, opened, settings)
    pairs = pairs_of(reranker, collection, runs)
    keys = [(query, document) for query in collection.queries for document in collection.candidates[query]]
    assert pairs.groups == [("facts", query) for query, _ in keys]
    assert pairs.targets == [float(query[1:] == document[1:]) for query, document in keys]
    for setting in GRID:
        plan = reranker.plan(setting.depth, setting.keep_ratio)
        [own] = [each for each in pairs.logits if (each.exits, each.merges) == (plan.exits, plan.merges)]
        assert pairs.logits[own] == [runs[setting][query][document] for query, document in keys]
        assert own.calibration is None


def test_calibrating_goes_on_from_an_evaluation(settings_of: Callable[..., EvaluateConfig]) -> None:
    made = calibrate_model(settings_of())
    with patch.object(MatryoshkaReranker, "logits", side_effect=AssertionError("computed again")):
        assert calibrate_model(settings_of()) == made


def test_reports_are_of_queries_that_were_held_out_and_of_collections_held_out_whole(
    settings_of: Callable[..., EvaluateConfig], facts_beir: Path
) -> None:
    made = calibrate_model(settings_of(), held_out=(f"{facts_beir}#half",))  # another split of the same folder
    assert list(made.reports) == ["facts (8 queries), queries held out", "facts"]
    own, other = made.reports.values()
    assert set(own.after) == set(other.after) == {str(each) for each in made.calibration.settings}
    assert "| setting | calibration error |" in own.markdown()


def test_a_run_is_the_collections_and_not_the_held_out_ones(
    settings_of: Callable[..., EvaluateConfig], facts_beir: Path, make_beir: Callable[..., Path], tmp_path: Path
) -> None:
    run = facts_beir / "candidates" / "test.run"
    other = make_beir(
        tmp_path / "other",
        {"x": "who wrote Faust?"},
        {"a": "Goethe wrote it.", "b": "Bees make honey."},
        {"x": {"a": 1}},
        {"x": ["a", "b"]},
    )
    made = calibrate_model(settings_of(run=run), held_out=(str(other),))
    assert "other" in made.reports


def test_unlabelled_texts_teach_full_sizes_probabilities(
    settings_of: Callable[..., EvaluateConfig], texts: Path, facts_beir: Path, own_mini: Path
) -> None:
    settings = settings_of(collections=(str(texts),), model=str(own_mini))
    made = calibrate_model(settings, texts=texts)
    assert made.reports == {}
    assert made.calibration.targets == "full size"
    assert made.calibration.data == "texts.jsonl, by full size's own probabilities"
    assert made.calibration.pairs == 64
    full = made.calibration.nearest(Plan((6,)))
    assert full.map == PlattMap(slope=1.0, intercept=0.0)  # its logits as they are
    reranker = open_reranker(settings)
    wanted = sum(map(probability, logits_of(reranker, facts_beir, GRID[0])))
    for each in made.calibration.settings[1:]:
        found = sum(probability(each.map(logit)) for logit in logits_of(reranker, facts_beir, each.setting))
        assert found == pytest.approx(wanted, abs=1.5)


def test_unlabelled_texts_keep_full_sizes_stored_map(
    settings_of: Callable[..., EvaluateConfig], texts: Path, own_mini: Path
) -> None:
    labelled = calibrate_model(settings_of(model=str(own_mini), depths=(6,), keep_ratios=(1.0,))).calibration
    save_calibration(own_mini, labelled, "", load_outline(own_mini).fingerprint or "")
    settings = settings_of(model=str(own_mini), collections=(str(texts),), output=settings_of().output / "texts")
    made = calibrate_model(settings, texts=texts).calibration
    assert made.nearest(Plan((6,))).map == labelled.settings[0].map
    assert made.nearest(Plan((3,))).map != labelled.settings[0].map


def test_fewer_texts(settings_of: Callable[..., EvaluateConfig], texts: Path) -> None:
    settings = settings_of(collections=(str(texts),), limit_queries=5)
    assert calibrate_model(settings, texts=texts).calibration.pairs == 5 * 8


def test_the_same_document_twice_is_one_pair(settings_of: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    rows = [{"query": f"what is {n}?", "documents": [f"{n} is {n}.", "a", "a", f"{n} is {n}."]} for n in range(6)]
    file = tmp_path / "twice.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert calibrate_model(settings_of(collections=(str(file),)), texts=file).calibration.pairs == 12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit_queries": 4}, "calibrating takes 5 judged queries at least, .*; got 4"),
        ({"depths": (1,)}, "depth=1 lies below this model's first exit"),
        ({"model": "no/such model"}, "no/such model"),
    ],
)
def test_what_cannot_be_calibrated_is_said(
    settings_of: Callable[..., EvaluateConfig], change: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        calibrate_model(settings_of(**change))


def test_empty_texts_are_an_error(settings_of: Callable[..., EvaluateConfig], tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        calibrate_model(settings_of(collections=(str(file),)), texts=file)


def test_a_calibration_is_what_a_checkpoint_stores(settings_of: Callable[..., EvaluateConfig]) -> None:
    made = calibrate_model(settings_of()).calibration
    assert Calibration.model_validate_json(made.model_dump_json()) == made
