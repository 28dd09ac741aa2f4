"""Metrics by ir_measures over one explicit order, and runs that have the same metrics after they are written."""

import itertools
import math
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ir_measures
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mrr_model.data.beir import read_run
from mrr_model.data.run import break_ties
from mrr_model.evaluation.metrics import compare, evaluate_run, parse_metric, write_run

NAMES = ("nDCG@10", "RR@10", "AP", "R@2", "P@3", "Compat(p=0.8)", "Judged@10", "Success@1")
"""By pytrec_eval and by ir_measures itself, which break ties in different ways."""

scores = st.sampled_from([0.0, -0.0, 1.0, 1.0 + 2**-24, 1.0 + 2**-40, -3.5, 1e-45, 7e4]) | st.floats(
    -1e4, 1e4, width=32
)
"""Many ties, some of them only in float32."""
rankings = st.dictionaries(st.sampled_from([f"d{number}" for number in range(12)] + ["é", "D1"]), scores)
runs = st.dictionaries(st.sampled_from(["q1", "q2", "q3", "q4"]), rankings)
judgements = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "q5"]),
    st.dictionaries(st.sampled_from([f"d{number}" for number in range(12)]), st.integers(0, 3), min_size=1),
    min_size=1,
)


@given(rankings)
def test_the_order_is_by_score_and_then_by_docid_both_descending(ranking: Mapping[str, float]) -> None:
    ordered = break_ties({"q": ranking})["q"]
    assert list(ordered) == [
        document for _, document in sorted(((score, name) for name, score in ranking.items()), reverse=True)
    ]


@given(rankings)
def test_scores_come_out_strictly_descending_in_float32_and_stay_where_they_were(ranking: Mapping[str, float]) -> None:
    ordered = break_ties({"q": ranking})["q"]
    values = list(ordered.values())
    assert all(float(np.float32(value)) == value for value in values)
    assert all(lower < above for above, lower in itertools.pairwise(values))
    for document, value in ordered.items():
        assert value <= np.float32(ranking[document])
    if len({np.float32(score) for score in ranking.values()}) == len(ranking):
        assert ordered == {document: float(np.float32(ranking[document])) for document in ordered}


@given(runs, judgements)
def test_values_are_those_of_ir_measures_on_the_written_run(
    tmp_path_factory: pytest.TempPathFactory,
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
) -> None:
    file = tmp_path_factory.mktemp("runs") / "a.run"
    write_run(file, run, "tag")
    measured = evaluate_run(NAMES, qrels, run)
    library = [ir_measures.parse_measure(name) for name in NAMES]
    results = ir_measures.calc(library, qrels, list(ir_measures.read_trec_run(str(file))))
    for name, each in zip(NAMES, library, strict=True):
        assert measured.mean[name] == pytest.approx(results.aggregated[each], abs=1e-9)
        expected = {metric.query_id: metric.value for metric in results.per_query if metric.measure == each}
        assert measured.by_query[name] == pytest.approx(expected, abs=1e-9)
        assert measured.by_query[name].keys() == qrels.keys()


def test_tied_documents_are_ordered_by_docid_descending_in_every_tool() -> None:
    qrels = {"q": {"d2": 1}}
    tied = {"q": {"d1": 0.5, "d3": 0.5, "d2": 0.5}}
    measured = evaluate_run(["RR@10", "RR", "Compat(p=0.5)", "P@1"], qrels, tied)
    assert measured.mean["RR@10"] == measured.mean["RR"] == 1 / 2  # d3, d2, d1
    assert measured.mean == evaluate_run(list(measured.mean), qrels, {"q": {"d3": 3.0, "d2": 2.0, "d1": 1.0}}).mean


def test_a_query_without_documents_counts_and_one_without_judgements_does_not() -> None:
    qrels = {"a": {"d": 1}, "b": {"d": 1}, "missing": {"d": 1}, "none relevant": {"d": 0}}
    run: dict[str, dict[str, float]] = {"a": {"d": 1.0}, "b": {}, "none relevant": {"d": 1.0}, "unjudged": {"d": 1.0}}
    for name in ("nDCG@10", "AP", "Compat(p=0.8)", "Judged@10"):
        values = evaluate_run([name], qrels, run).by_query[name]
        assert values.keys() == qrels.keys()
        assert (values["a"], values["b"], values["missing"]) == (1.0, 0.0, 0.0)
    assert evaluate_run(["nDCG@10"], qrels, run).mean == {"nDCG@10": 0.25}
    assert evaluate_run(["Judged@10", "Compat"], qrels, {"a": {}}).mean == {
        "Judged@10": 0.0,
        "Compat": 0.0,
    }


def test_two_names_of_one_metric_both_have_values() -> None:
    measured = evaluate_run(["RR@10", "MRR@10", "nDCG@10"], {"q": {"d": 1}}, {"q": {"e": 1.0, "d": 0.5}})
    assert measured.mean["RR@10"] == measured.mean["MRR@10"] == 0.5
    assert measured.by_query["RR@10"] == measured.by_query["MRR@10"] == {"q": 0.5}


@pytest.mark.parametrize("name", ["", "nope", "nDCG@", "nDCG@ten", "R@100,AP", "P@1.5", "RBP(p=2)", "__import__('os')"])
def test_an_unknown_metric_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"metric .* is unknown to ir_measures") as raised:
        parse_metric(name)
    assert repr(name) in str(raised.value)


def test_a_metric_that_cannot_be_computed_here_is_named() -> None:
    with pytest.raises(ValueError, match="metric 'alpha_nDCG@10' needs"):
        parse_metric("alpha_nDCG@10")


def test_a_metric_whose_script_fails_is_a_readable_error() -> None:
    failed = subprocess.CalledProcessError(25, ["perl", "gdeval.pl"])
    with patch("ir_measures.calc", side_effect=failed), pytest.raises(ValueError, match="metrics: one of AP, ERR@10"):
        evaluate_run(["AP", "ERR@10"], {"q": {"d": 1}}, {"q": {"d": 1.0}})


def test_without_ir_measures_the_pip_command_is_in_the_error() -> None:
    with (
        patch.dict("sys.modules", {"ir_measures": None}),
        pytest.raises(ImportError, match=r"pip install .*\[eval\]"),
    ):
        parse_metric("nDCG@10")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_comparison_is_a_paired_t_test(values: list[tuple[float, float]]) -> None:
    one = {str(index): pair[0] for index, pair in enumerate(values)}
    other = {str(index): pair[1] for index, pair in enumerate(values)}
    found = compare(one, dict(reversed(other.items())))
    differences = np.array([a - b for a, b in values])
    assert found.difference == pytest.approx(differences.mean())
    if np.ptp(differences) > 1e-6:
        assert found.p_value == pytest.approx(scipy.stats.ttest_rel(*np.array(values).T).pvalue)
    assert found.p_value == pytest.approx(compare(other, one).p_value, nan_ok=True)  # differences whose squares vanish


def test_comparisons_without_spread() -> None:
    same: dict[str, float] = {"a": 0.5, "b": 0.25}
    assert compare(same, same).p_value == 1.0
    assert compare(same, {"a": 0.25, "b": 0.0}).p_value == 0.0  # better by the same on every query
    alone = compare({"a": 1.0}, {"a": 0.5})
    assert alone.difference == 0.5
    assert math.isnan(alone.p_value)
    with pytest.raises(ValueError, match="values and baseline"):
        compare(same, {"a": 0.5})


def test_runs_are_in_trec_form(tmp_path: Path) -> None:
    run: dict[str, dict[str, float]] = {"q2": {"a": 0.1, "é": 0.1, "b": 3.25}, "q1": {"a": -1e-7}, "empty": {}}
    file = tmp_path / "new" / "folder" / "a.run"
    write_run(file, run, "depth-4")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "q2 Q0 b 1 3.25 depth-4"
    assert [line.split()[2:4] for line in lines[1:]] == [["é", "2"], ["a", "3"], ["a", "1"]]
    assert {len(line.split()) for line in lines} == {6}
    for query, scores in read_run(file).items():
        assert {document: float(np.float32(score)) for document, score in scores.items()} == break_ties(run)[query]
    write_run(file, {"q": {"d": 1.0}}, "again")
    assert file.read_text(encoding="utf-8") == "q Q0 d 1 1.0 again\n"
    assert [path.name for path in file.parent.iterdir()] == ["a.run"]


def test_a_run_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.run"
    write_run(file, {"q": {"d": 1.0}}, "old")
    broken: Any = {"q": {"d": 1.0, "e": None}}
    with pytest.raises(TypeError):
        write_run(file, broken, "new")
    assert "old" in file.read_text(encoding="utf-8")
