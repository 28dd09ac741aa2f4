"""A grid's logits: passes that several settings share, and chunks on disk that the next call reads."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from mrr_model import Compression, MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Plan
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.grid import CHUNK, Pass, Runs, logits_header, plan_passes, score_grid, score_pass
from mrr_model.inference.engine import InferenceEngine

GRID = [
    Compression(6, 1.0),
    *(Compression(depth, ratio) for depth in (2, 3, 6) for ratio in (1.0, 0.5)),
    Compression(6, {1: 0.5, 4: 0.25}),
    Compression(4, {2: 0.3}),
    Compression(3, {3: 0.5}),  # would merge at its exit, so never merges
]
GRID = list(dict.fromkeys(GRID))


@pytest.fixture(scope="module")
def collection(toy_beir: Path) -> Collection:
    return open_collection(str(toy_beir))


@pytest.fixture(scope="module", params=["bert", "llama", "bert without adapters", "llama without adapters"])
def reranker(request: pytest.FixtureRequest, make_checkpoint: Callable[..., Checkpoint]) -> MatryoshkaReranker:
    family, _, without = request.param.partition(" ")
    return MatryoshkaReranker(make_checkpoint(family, adapters=not without), max_length=64, dtype="float32")


@pytest.fixture(scope="module")
def encoder(make_checkpoint: Callable[..., Checkpoint]) -> MatryoshkaReranker:
    return MatryoshkaReranker(make_checkpoint("bert"), max_length=64)


def logits_of(
    reranker: MatryoshkaReranker,
    collection: Collection,
    one_pass: Pass,
    folder: Path,
    *,
    prompt: str | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> Runs:
    header = logits_header(reranker, collection, prompt)
    logits = score_pass(reranker, collection, one_pass, folder, prompt=prompt, header=header, progress=progress)
    return one_pass.runs(collection, logits)


def grid_of(reranker: MatryoshkaReranker, collection: Collection, grid: list[Compression], folder: Path) -> Runs:
    [scored] = score_grid(reranker, grid, {"the source": collection}, folder)
    assert (scored.source, scored.collection, list(scored.runs), scored.exits) == ("the source", collection, grid, {})
    return scored.runs


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Passes


def test_every_setting_is_read_once_at_the_exit_of_its_own_plan(reranker: MatryoshkaReranker) -> None:
    found = plan_passes(reranker, GRID)
    assert sorted(str(setting) for each in found for setting in each.columns) == sorted(map(str, GRID))
    for one_pass in found:
        for setting, column in one_pass.columns.items():
            plan = reranker.plan(setting.depth, setting.keep_ratio)
            assert one_pass.plan.exits[column] == plan.last_layer
            assert one_pass.plan.adapters == plan.adapters
            reached = {layer: step for layer, step in one_pass.plan.merges.items() if layer < plan.last_layer}
            assert reached == plan.merges


def test_no_two_passes_could_be_one(reranker: MatryoshkaReranker) -> None:
    found = plan_passes(reranker, GRID)
    for shallow in found:
        for deep in found:
            if shallow is not deep and shallow.plan.last_layer <= deep.plan.last_layer:
                reached = {n: step for n, step in deep.plan.merges.items() if n < shallow.plan.last_layer}
                assert (shallow.plan.adapters, shallow.plan.merges) != (deep.plan.adapters, reached)


def test_depths_share_one_pass_for_each_ratio(make_checkpoint: Callable[..., Checkpoint]) -> None:
    grid = [Compression(depth, ratio) for ratio in (1.0, 0.5) for depth in (2, 4, 6)]
    bare = MatryoshkaReranker(make_checkpoint("bert", adapters=False), max_length=64)
    assert [each.plan.exits for each in plan_passes(bare, grid)] == [(2, 4, 6), (2, 4, 6)]
    # The vertical adapter is on below the last exit, and off at it.
    adapted = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    assert sorted(each.plan.exits for each in plan_passes(adapted, grid)) == [(2, 4), (2, 4), (6,), (6,)]


def test_an_exit_before_a_merge_is_read_on_the_way_to_it(make_checkpoint: Callable[..., Checkpoint]) -> None:
    bare = MatryoshkaReranker(make_checkpoint("bert", adapters=False), max_length=64)
    twice, once, never = Compression(6, {2: 0.5, 4: 0.25}), Compression(4, {2: 0.5}), Compression(2, 1.0)
    [one_pass] = plan_passes(bare, [never, twice, once])
    assert one_pass.plan == Plan((2, 4, 6), {2: Fraction(1, 2), 4: Fraction(1, 2)})
    assert one_pass.columns == {twice: 2, once: 1, never: 0}


def test_settings_with_the_same_plan_are_computed_once(encoder: MatryoshkaReranker) -> None:
    same = [Compression(3, 1.0), Compression(3, {3: 0.5}), Compression(3, {4: 0.25, 5: 0.125})]
    [one_pass] = plan_passes(encoder, same)
    assert one_pass == Pass(Plan((3,), {}, ("vertical",)), dict.fromkeys(same, 0))


def test_the_pass_of_a_final_setting_reads_every_exit(reranker: MatryoshkaReranker) -> None:
    final = [Compression(6, 1.0), Compression(6, 0.5), Compression(6, {1: 0.5, 4: 0.25})]
    found = plan_passes(reranker, GRID, final)
    assert sorted(str(setting) for each in found for setting in each.columns) == sorted(map(str, GRID))
    for one_pass in found:
        own = [setting for setting in one_pass.columns if setting in final]
        if own:
            assert one_pass.plan.exits == reranker.exits
            [plan] = {reranker.plan(setting.depth, setting.keep_ratio) for setting in own}
            assert (one_pass.plan.merges, one_pass.plan.adapters) == (plan.merges, plan.adapters)
        for setting, column in one_pass.columns.items():
            assert one_pass.plan.exits[column] == reranker.plan(setting.depth, setting.keep_ratio).last_layer
    without = plan_passes(reranker, GRID)
    assert len(found) == len(without)  # no pass is added


# Logits


def test_the_grids_logits_are_those_of_single_calls(
    reranker: MatryoshkaReranker, collection: Collection, tmp_path: Path
) -> None:
    grid = grid_of(reranker, collection, GRID, tmp_path)
    assert grid.keys() == set(GRID)
    different = set()
    for setting, run in grid.items():
        assert {query: list(scores) for query, scores in run.items()} == collection.candidates
        for query, scores in list(run.items())[::3]:  # of every chunk some
            texts = [collection.corpus[document] for document in scores]
            alone = reranker.score(
                collection.queries[query],
                texts,
                depth=setting.depth,
                keep_ratio=setting.keep_ratio,
                normalize=False,
            )
            for logit, own in zip(scores.values(), alone, strict=True):
                assert abs(logit - own) <= 1e-5 * max(1.0, abs(own))
        different.add(tuple(round(run["q1"][document], 4) for document in run["q1"]))
    assert len(different) == len(GRID) - 1  # else this test could not tell settings apart; one is another's plan


def test_exits_are_read_under_the_final_settings_plan(
    reranker: MatryoshkaReranker, collection: Collection, tmp_path: Path
) -> None:
    final = [Compression(6, 1.0), Compression(6, 0.5)]
    [plain] = score_grid(reranker, GRID, {"the source": collection}, tmp_path / "plain")
    [scored] = score_grid(reranker, GRID, {"the source": collection}, tmp_path / "exits", final_settings=final)
    for setting, run in plain.runs.items():  # what settings score stays what it was
        assert {query: pytest.approx(own, abs=1e-5) for query, own in run.items()} == scored.runs[setting]
    assert list(scored.exits) == final
    for setting, known in scored.exits.items():
        assert known.exits == (1, 2, 3, 4, 5, 6)
        plan = reranker.plan(setting.depth, setting.keep_ratio)
        for query in ("q1", "q9"):
            documents = collection.candidates[query]
            pairs = [(collection.queries[query], collection.corpus[document]) for document in documents]
            own = reranker.engine.logits(pairs, Plan(known.exits, plan.merges, plan.adapters))
            torch.testing.assert_close(torch.tensor(known.by_query[query]).float(), own, rtol=1e-5, atol=1e-5)
            assert known.by_query[query][:, -1].tolist() == list(scored.runs[setting][query].values())
        assert known.by_query["q18"].shape == (0, 6)  # no candidate
    with patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed again")):
        [again] = score_grid(reranker, GRID, {"the source": collection}, tmp_path / "exits", final_settings=final)
    assert all(
        (again.exits[setting].by_query[query] == values).all()
        for setting in final
        for query, values in scored.exits[setting].by_query.items()
    )


def test_identical_documents_tie(reranker: MatryoshkaReranker, collection: Collection, tmp_path: Path) -> None:
    run = grid_of(reranker, collection, [Compression(4, 0.5)], tmp_path)[Compression(4, 0.5)]
    assert all(scores["d00"] == scores["same"] for query, scores in run.items() if scores)
    assert run["q18"] == {}  # no candidate


# Chunks on disk


def test_the_next_call_reads_the_chunks_and_computes_nothing(
    encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path
) -> None:
    first = grid_of(encoder, collection, GRID, tmp_path)
    written = files_of(tmp_path)
    with patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed again")):
        assert grid_of(encoder, collection, GRID, tmp_path) == first
    assert files_of(tmp_path) == written


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_pass_resumes_to_the_same_files(
    reranker: MatryoshkaReranker, collection: Collection, tmp_path: Path, after: int
) -> None:
    [one_pass] = plan_passes(reranker, [Compression(5, 0.5), Compression(3, 0.5)])
    whole = logits_of(reranker, collection, one_pass, tmp_path / "whole")
    calls = 0

    def interrupted(self: InferenceEngine, *args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return computed(self, *args, **kwargs)

    computed = InferenceEngine.logits
    with patch.object(InferenceEngine, "logits", interrupted), pytest.raises(KeyboardInterrupt):
        logits_of(reranker, collection, one_pass, tmp_path / "stopped")
    [file] = (tmp_path / "stopped").iterdir()
    assert file.read_bytes().count(b"\n") == 1 + after  # the header, and a line for each chunk
    with patch.object(InferenceEngine, "logits", autospec=True, side_effect=computed) as resumed:
        assert logits_of(reranker, collection, one_pass, tmp_path / "stopped") == whole
    assert resumed.call_count == 3 - after
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("left", [0.02, 0.3, 0.6, 0.95], ids="{:.0%}".format)
def test_a_truncated_file_resumes_to_the_same_file(
    encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path, left: float
) -> None:
    [one_pass] = plan_passes(encoder, [Compression(5, 0.5)])
    whole = logits_of(encoder, collection, one_pass, tmp_path)
    [file] = tmp_path.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: int(left * len(content))])
    assert logits_of(encoder, collection, one_pass, tmp_path) == whole
    assert file.read_bytes() == content


def test_chunks_carry_their_index(encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path) -> None:
    """Two processes that resume from the same file leave some chunks twice and in another order."""
    [one_pass] = plan_passes(encoder, [Compression(4, 1.0)])
    whole = logits_of(encoder, collection, one_pass, tmp_path)
    [file] = tmp_path.iterdir()
    header, *rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([header, rows[1], *rows[::-1], rows[0]]))
    with patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed again")):
        assert logits_of(encoder, collection, one_pass, tmp_path) == whole


@pytest.mark.parametrize("line", [b"[0, [[0.5]\n", b"0.5]]\n", b"\x00\x00\n", b"null\n", b'{"index": 3}\n'])
def test_a_damaged_file_is_named(
    encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path, line: bytes
) -> None:
    [one_pass] = plan_passes(encoder, [Compression(4, 1.0)])
    logits_of(encoder, collection, one_pass, tmp_path)
    [file] = tmp_path.iterdir()
    header, row, *rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([header, row, line, *rows]))
    with pytest.raises(ValueError, match=r"exits-4.*\.jsonl is damaged"):
        logits_of(encoder, collection, one_pass, tmp_path)


def test_progress_counts_pairs(encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path) -> None:
    [one_pass] = plan_passes(encoder, [Compression(4, 1.0)])
    for _ in range(2):  # computed, then read
        counts: list[int] = []
        logits_of(encoder, collection, one_pass, tmp_path, progress=counts.append)
        assert counts == [CHUNK * 6, CHUNK * 6, 2 * 6]


def changed_texts(collection: Collection) -> Collection:
    corpus = {**collection.corpus, "d00": "another text"}
    return Collection(collection.name, corpus, collection.queries, collection.qrels, collection.candidates)


def changed_queries(collection: Collection) -> Collection:
    queries = {**collection.queries, "q3": "another query"}
    return Collection(collection.name, collection.corpus, queries, collection.qrels, collection.candidates)


def fewer_candidates(collection: Collection) -> Collection:
    fewer = {query: documents[:3] for query, documents in collection.candidates.items()}
    return Collection(collection.name, collection.corpus, collection.queries, collection.qrels, fewer)


@pytest.mark.parametrize("change", [changed_texts, changed_queries, fewer_candidates])
def test_logits_of_other_texts_are_refused(
    encoder: MatryoshkaReranker,
    collection: Collection,
    tmp_path: Path,
    change: Callable[[Collection], Collection],
) -> None:
    [one_pass] = plan_passes(encoder, [Compression(4, 1.0)])
    logits_of(encoder, collection, one_pass, tmp_path)
    written = files_of(tmp_path)
    with pytest.raises(ValueError, match=r"another evaluation \(other candidates\)"):
        logits_of(encoder, change(collection), one_pass, tmp_path)
    assert files_of(tmp_path) == written


@pytest.mark.parametrize(
    ("changes", "options", "other"),
    [
        ({"seed": 1}, {}, "weights"),
        ({"adapters": False}, {}, "weights"),
        ({}, {"max_length": 32}, "max_length"),
        ({}, {"query_max_length": 7}, "query_max_length"),
    ],
)
def test_logits_of_another_model_are_refused(
    encoder: MatryoshkaReranker,
    make_checkpoint: Callable[..., Checkpoint],
    collection: Collection,
    tmp_path: Path,
    changes: dict[str, Any],
    options: dict[str, Any],
    other: str,
) -> None:
    full = Pass(Plan((6,)), {Compression(6, 1.0): 0})
    logits_of(encoder, collection, full, tmp_path)
    another = MatryoshkaReranker(make_checkpoint("bert", **changes), **{"max_length": 64, **options})
    with pytest.raises(ValueError, match=rf"\(other {other}\)"):
        logits_of(another, collection, full, tmp_path)


def test_logits_from_before_the_adapters_were_trained_are_refused(
    make_checkpoint: Callable[..., Checkpoint], collection: Collection, tmp_path: Path
) -> None:
    loaded = make_checkpoint("bert")
    [one_pass] = plan_passes(MatryoshkaReranker(loaded, max_length=64), [Compression(4, 0.5)])
    logits_of(MatryoshkaReranker(loaded, max_length=64), collection, one_pass, tmp_path)
    next(iter(loaded.adapters["vertical"].values())).b.mul_(2)
    with pytest.raises(ValueError, match=r"\(other weights\)"):
        logits_of(MatryoshkaReranker(loaded, max_length=64), collection, one_pass, tmp_path)


def test_logits_with_another_prompt_are_refused(
    make_checkpoint: Callable[..., Checkpoint], collection: Collection, tmp_path: Path
) -> None:
    decoder = MatryoshkaReranker(make_checkpoint("llama"), max_length=64)
    [one_pass] = plan_passes(decoder, [Compression(4, 0.5)])
    first = logits_of(decoder, collection, one_pass, tmp_path / "a", prompt="Is it so?")
    with pytest.raises(ValueError, match=r"\(other prompt\)"):
        logits_of(decoder, collection, one_pass, tmp_path / "a")
    assert logits_of(decoder, collection, one_pass, tmp_path / "b") != first
    prompted = MatryoshkaReranker(make_checkpoint("llama"), max_length=64, prompt="Is it so?")
    assert logits_of(prompted, collection, one_pass, tmp_path / "a", prompt=prompted.prompt) == first


def test_the_file_is_json_lines_with_its_header_first(
    encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path
) -> None:
    [one_pass] = plan_passes(encoder, [Compression(4, 0.5), Compression(2, 0.5)])
    found = logits_of(encoder, collection, one_pass, tmp_path)
    header, *rows = map(
        json.loads, (tmp_path / "exits-2-4__1-1.2__vertical+horizontal_1_2.jsonl").read_bytes().splitlines()
    )
    assert header["plan"] == "exits-2-4__1-1.2__vertical+horizontal_1_2"
    assert [index for index, _ in rows] == [0, 1, 2]
    assert rows[0][1][0] == [found[Compression(2, 0.5)]["q0"]["d00"], found[Compression(4, 0.5)]["q0"]["d00"]]


def test_a_folder_that_cannot_be_written_is_an_error_before_anything_is_computed(
    encoder: MatryoshkaReranker, collection: Collection, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    [one_pass] = plan_passes(encoder, [Compression(4, 0.5)])
    with (
        patch.object(InferenceEngine, "logits", side_effect=AssertionError("computed")),
        pytest.raises(OSError, match="file"),
    ):
        logits_of(encoder, collection, one_pass, tmp_path / "file" / "logits")


def test_two_models_of_one_kind_do_not_share_a_fingerprint(make_checkpoint: Callable[..., Checkpoint]) -> None:
    def fingerprint(**changes: Any) -> str:
        return MatryoshkaReranker(make_checkpoint("bert", **changes), max_length=64).fingerprint

    assert fingerprint() == fingerprint()
    assert len({fingerprint(), fingerprint(seed=1), fingerprint(adapters=False)}) == 3
