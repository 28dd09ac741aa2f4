"""The GPU kit runs from end to end on the CPU with tiny shapes; whatever happens, its file says so."""

import json
from argparse import ArgumentTypeError
from pathlib import Path

import gpu
import pytest
import torch
from gpu_budget import with_budget
from gpu_profile import gap_table, union
from gpu_run import SHARES, Run
from gpu_shapes import MIXED, SHAPES, Texts, documents_of
from result_files import read_result
from workloads import QUERY


@pytest.mark.slow
def test_the_kit_runs_with_tiny_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bge-v2-m3", "mistral-7b"):  # the others run the same code
        monkeypatch.delitem(SHAPES, name)
    run = Run(tmp_path, torch.device("cpu"), minutes=600, tiny=True, commit="0" * 40)
    assert gpu.measured(run), run.results["failed"] or run.results["correctness"]
    results = read_result(tmp_path / "gpu.json").results
    assert results["skipped"] == results["failed"] == []
    assert {step: len(results[step]) for step in SHARES} == {
        "correctness": 12, "budget": 2, "profile": 2, "speed": 4, "memory": 4
    }  # fmt: skip
    assert all(row["compared"] > 0 for row in results["correctness"] if "compared" in row)
    for workload in results["speed"]:
        assert [peer["name"] for peer in workload["peers"]] == ["CrossEncoder, sdpa"]
        assert all(setting["pairs_per_second"] > 0 for setting in workload["settings"])
    rows = json.loads((tmp_path / "batch_tokens.json").read_text(encoding="utf-8"))["cpu"]
    assert {row["batch_tokens"] for row in rows} <= {size for shape in SHAPES.values() for size in shape.budgets}
    assert (tmp_path / "profile.txt").read_text(encoding="utf-8").count("kernels\n") == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["batch_tokens.json", "gpu.json", "profile.txt"]
    assert "| minilm-l6, 10 words | full size |" in capsys.readouterr().out


def test_a_wrong_commit_is_refused() -> None:
    assert gpu.commit("0a" * 20) == "0a" * 20
    with pytest.raises(ArgumentTypeError, match="40 hex digits"):
        gpu.commit("main")


def test_what_does_not_fit_or_fails_is_recorded(tmp_path: Path) -> None:
    run = Run(tmp_path, torch.device("cpu"), minutes=1, tiny=True, commit="0" * 40)
    run.begin("correctness")
    assert run.item("long", 100.0, dict) is None
    assert run.item("broken", 0.0, lambda: {"share": 1 / 0}) is None
    assert run.item("good", 0.0, lambda: {"passed": True}) is not None
    result = read_result(tmp_path / "gpu.json")
    assert str(result.machine).startswith(f"{result.results['device']['name']}, ")
    results = result.results
    assert [row["name"] for row in results["skipped"]] == ["long"]
    [failed] = results["failed"]
    assert failed["error"].startswith("ZeroDivisionError")
    assert "1 / 0" in "\n".join(failed["traceback"])
    assert [row["name"] for row in results["correctness"]] == ["good"]


def test_a_cross_encoder_shares_the_weights(tmp_path: Path) -> None:
    shape = SHAPES["bge-v2-m3"].tiny()
    reranker = shape.reranker(torch.device("cpu"), torch.float32)
    peer = shape.cross_encoder(reranker, "sdpa", tmp_path)
    ours, theirs = reranker.model.model.state_dict(), peer[0].model.base_model.state_dict()
    assert {name: weight.data_ptr() for name, weight in ours.items()} == {
        name: weight.data_ptr() for name, weight in theirs.items()
    }
    with torch.inference_mode():  # the same states come out, so both run the same model
        batch = peer.tokenizer([QUERY], ["a passage"], return_tensors="pt")
        state = peer[0].model.base_model(**batch)[0][0, 0]
        plan = reranker.plan()
        logit = reranker.model.heads[str(shape.layers)](state[None], None)
        assert logit.item() == pytest.approx(reranker.engine.logits([(QUERY, "a passage")], plan).item(), abs=1e-5)


def test_documents_differ() -> None:
    assert len(set(documents_of(60, 4096))) == 4096  # equal pairs are scored once
    assert {len(text.split()) for text in documents_of(400, 20)} == {400}
    assert not set(documents_of(MIXED, 9)) & set(documents_of(MIXED, 9, first=9))


def test_every_call_of_a_contender_has_new_texts() -> None:
    texts, seen = Texts(5, 3, calls=2), list[list[str]]()
    one, other = texts.contender(seen.append), texts.contender(seen.append)
    for contender in (one, other, one, other):
        contender()
    assert seen == [texts.calls[0], texts.calls[0], texts.calls[1], texts.calls[1]]
    assert len({text for call in texts.calls for text in call}) == 6


def test_a_budget_is_the_engines() -> None:
    reranker = SHAPES["minilm-l6"].tiny().reranker(torch.device("cpu"))
    assert with_budget(reranker, 4096).engine.batch_tokens == 4096


def test_busy_time_counts_overlaps_once() -> None:
    assert union([(0, 4), (1, 2), (3, 5), (7, 8)]) == 6
    assert union([]) == 0
    gaps = gap_table([(0, 2000, "a"), (1000, 3000, "b"), (7000, 8000, "c"), (9000, 9500, "d")])
    assert gaps.splitlines()[1:] == [
        "    4.000 ms at     3.000 ms: after b, before c",
        "    1.000 ms at     8.000 ms: after c, before d",
    ]
