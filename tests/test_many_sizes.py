"""One call, many sizes: cascades, deadlines, many queries and long documents through `MatryoshkaReranker`."""

import asyncio
import copy
import inspect
import math
import pickle
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import MISTRAL

from mrr_model import Cascade, MatryoshkaReranker, Ranking
from mrr_model.calibration.probability import probability
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.windows import DocumentSplitter
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint

DECODER = MISTRAL
QUERY = "how do plants make food?"
TEXTS = [
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "",
    "The committee met on Tuesday to discuss the budget for the coming year.",
    "Plants are green because of chlorophyll.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Bees make honey from nectar, and store it in the comb for the winter.",
    "Plants make food from light by photosynthesis.",
    "Roots take up water.",
    "The war ended in 1945.",
]
LONG = "The committee met on Tuesday. " * 40 + "Plants make food by photosynthesis. " + "It rained all day. " * 40


@pytest.fixture(scope="module", params=["mini", DECODER], ids=["mini", "decoder"])
def reranker(request: pytest.FixtureRequest) -> MatryoshkaReranker:
    """Shared, and left as it is; 128 tokens at most."""
    return MatryoshkaReranker(request.param, dtype="float32", max_length=128)


@pytest.fixture(scope="module")
def mini() -> MatryoshkaReranker:
    return MatryoshkaReranker(dtype="float32")


def stages(reranker: MatryoshkaReranker, number: float, last: int | None = None) -> dict[int, float]:
    last = reranker.exits[-1] if last is None else last
    return {exit_layer: number for exit_layer in reranker.exits if exit_layer < last}


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_documents_that_reach_the_last_exit_are_scored_as_score_does(
    reranker: MatryoshkaReranker, keep_ratio: float
) -> None:
    for cascade in (Cascade(stages(reranker, 0.5)), Cascade(stages(reranker, 3), by="count")):
        options: dict[str, Any] = {"keep_ratio": keep_ratio, "normalize": False}
        ranking = reranker.rank(QUERY, TEXTS, top_n=3, cascade=cascade, **options)
        logits = reranker.score(QUERY, TEXTS, **options)
        assert len(ranking) == 3
        for document in ranking:
            assert document.depth == reranker.exits[-1]
            assert document.score == pytest.approx(logits[document.index], abs=1e-5)


def test_a_cascade_that_drops_nothing_ranks_as_none(reranker: MatryoshkaReranker) -> None:
    plain = reranker.rank(QUERY, TEXTS)
    ranking = reranker.rank(QUERY, TEXTS, cascade=Cascade(stages(reranker, 1e6)))
    assert [document.index for document in ranking] == [document.index for document in plain]
    assert [document.score for document in ranking] == pytest.approx([document.score for document in plain], abs=1e-5)
    assert ranking.shares == plain.shares == {reranker.exits[-1]: 1.0}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(
    margin=st.floats(0, 4),
    depth=st.sampled_from([4, 6]),
    keep_ratio=st.sampled_from([1.0, 0.5]),
    top_n=st.one_of(st.none(), st.integers(1, 9)),
    normalize=st.booleans(),
)
def test_any_cascades_ranking_is_a_permutation_with_calibrated_scores_that_never_increase(
    mini: MatryoshkaReranker, margin: float, depth: int, keep_ratio: float, top_n: int | None, normalize: bool
) -> None:
    options: dict[str, Any] = {"depth": depth, "keep_ratio": keep_ratio, "normalize": normalize}
    cascade = Cascade(stages(mini, margin, depth), top_n=top_n)
    ranking = mini.rank(QUERY, TEXTS, cascade=cascade, **options)
    assert sorted(document.index for document in ranking) == list(range(len(TEXTS)))
    assert all((before.depth, before.score) >= (after.depth, after.score) for before, after in pairwise(ranking))
    plan, lowest = mini.plan(depth, keep_ratio), math.inf
    for document in ranking:
        one = plan.up_to(document.depth)
        [[logit]] = mini.engine.logits([(QUERY, document.text)], one).tolist()
        own = probability(mini.calibration.nearest(one).map(logit)) if normalize else logit  # type: ignore[union-attr]
        lowest = min(lowest, own)
        assert document.score == pytest.approx(lowest, abs=1e-5)


def test_margins_are_measured_from_the_rank_that_is_asked_for(mini: MatryoshkaReranker) -> None:
    exit_2 = mini.engine.logits([(QUERY, text) for text in TEXTS], mini.plan().up_to(2))[:, 0].tolist()
    best = sorted(exit_2, reverse=True)

    def survivors(wanted: int | None, **options: Any) -> int:
        ranking = mini.rank(QUERY, TEXTS, cascade=Cascade({2: 0.0}, **options), top_n=wanted)
        return round(ranking.shares[6] * len(TEXTS))

    for top_n in (1, 4):
        assert survivors(top_n) == sum(logit >= best[top_n - 1] for logit in exit_2)
    assert survivors(4, top_n=6) == sum(logit >= best[5] for logit in exit_2)
    assert survivors(7, top_n=6) == sum(logit >= best[6] for logit in exit_2)
    assert survivors(None) == len(TEXTS)  # there is no tenth best


def test_min_score_counts_after_the_scores_are_capped(mini: MatryoshkaReranker) -> None:
    cascade = Cascade({2: 2}, by="count")
    ranking = mini.rank(QUERY, TEXTS, cascade=cascade)
    bar = ranking[1].score
    kept = mini.rank(QUERY, TEXTS, cascade=cascade, min_score=bar)
    assert kept == [document for document in ranking if document.score >= bar]
    assert kept.shares == ranking.shares


@pytest.mark.parametrize("cascade", [None, Cascade({2: 0.5, 4: 0.2}), Cascade({3: 2}, by="count")], ids=str)
@pytest.mark.parametrize("budget", [64, 4096])
def test_many_queries_are_ranked_as_each_alone(
    reranker: MatryoshkaReranker, cascade: Cascade | None, budget: int
) -> None:
    if cascade is not None and not set(cascade.exits) < set(reranker.exits):
        cascade = Cascade(stages(reranker, 0.5))
    requests = [(QUERY, TEXTS), ("what do bees make?", TEXTS[2:7]), ("an empty one", []), (QUERY, TEXTS[:4])]
    expected = [reranker.rank(query, texts, top_n=3, cascade=cascade) for query, texts in requests]
    reranker = copy.copy(reranker)
    reranker.engine = reranker.engine.copy()
    reranker.engine.budget = copy.copy(reranker.engine.budget)
    reranker.engine.budget.limit = budget
    found = reranker.rank_many(requests, top_n=3, cascade=cascade)
    assert found == asyncio.run(reranker.arank_many(requests, top_n=3, cascade=cascade))  # the same batches
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Ranking)
        assert [(document.index, document.depth) for document in one] == [
            (document.index, document.depth) for document in other
        ]
        assert [document.score for document in one] == pytest.approx([document.score for document in other], abs=1e-5)
        assert one.shares == other.shares
    by_query = reranker.rank_many(dict(requests[1:3]), top_n=3, cascade=cascade)
    assert [[each.index for each in one] for one in by_query] == [[each.index for each in one] for one in found[1:3]]


def test_requests_that_exceed_the_memory_for_states_run_one_after_the_other(mini: MatryoshkaReranker) -> None:
    requests = [(f"question {number}?", TEXTS) for number in range(4)]
    cascade = Cascade({2: 0.5})
    expected = mini.rank_many(requests, cascade=cascade)
    with patch("mrr_model.inference.batching.BatchBudget.waiting", 200):
        assert [[each.index for each in one] for one in mini.rank_many(requests, cascade=cascade)] == [
            [each.index for each in one] for one in expected
        ]


@pytest.mark.parametrize(
    ("requests", "named"),
    [
        ("query", "requests"),
        ([("query", "document")], r"requests\[0\]\[1\]"),
        ([("query",)], r"requests\[0\]"),
        ([(3, ["document"])], r"requests\[0\]\[0\]"),
        ({"query": [None]}, r"requests\[0\]\[1\]\[0\]"),
        ({" ": ["document"]}, r"requests\[0\]\[0\]"),
    ],
)
def test_bad_requests_are_errors_that_name_them(mini: MatryoshkaReranker, requests: Any, named: str) -> None:
    with pytest.raises((TypeError, ValueError), match=named):
        mini.rank_many(requests)


@pytest.mark.parametrize("deadline_ms", [0, 1, 5, 20, 1e9, math.inf])
def test_any_deadline_gives_a_ranking_of_all_documents(reranker: MatryoshkaReranker, deadline_ms: float) -> None:
    ranking = reranker.rank(QUERY, TEXTS, deadline_ms=deadline_ms)
    assert sorted(document.index for document in ranking) == list(range(len(TEXTS)))
    assert all((before.depth, before.score) >= (after.depth, after.score) for before, after in pairwise(ranking))
    unread = [document.index for document in ranking if not document.depth]
    assert unread == sorted(unread)
    assert math.isclose(sum(ranking.shares.values()), 1.0)
    assert ranking.complete == (ranking.shares == {reranker.exits[-1]: 1.0})
    if not deadline_ms:
        assert ranking.shares == {0: 1.0}
        assert [document.score for document in ranking] == [0.0] * len(TEXTS)
    if deadline_ms > 1e6:
        assert ranking.complete
        plain = reranker.rank(QUERY, TEXTS)
        assert [document.score for document in ranking] == pytest.approx(
            [document.score for document in plain], abs=1e-5
        )


def test_the_wait_for_a_thread_counts(mini: MatryoshkaReranker) -> None:
    """A deadline that passes before a thread is free leaves nothing to do."""
    now = time.monotonic
    waited: list[float] = []

    async def run() -> Ranking:
        with patch("mrr_model.reranker.time.monotonic", lambda: now() + sum(waited)):
            call = mini.arank(QUERY, TEXTS, deadline_ms=60_000)
            task = asyncio.ensure_future(call)
            loop = asyncio.get_running_loop()
            with patch.object(loop, "run_in_executor", side_effect=_late(loop.run_in_executor, waited)):
                return await task

    assert asyncio.run(run()).shares == {0: 1.0}


def _late(run_in_executor: Callable[..., Any], waited: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        waited.append(100.0)
        return run_in_executor(*arguments)

    return run


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (math.nan, ValueError), ("50", TypeError), (True, TypeError)]
)
def test_bad_deadlines_are_errors(mini: MatryoshkaReranker, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="deadline_ms"):
        mini.rank(QUERY, TEXTS, deadline_ms=value)
    with pytest.raises(error, match="deadline_ms"):
        asyncio.run(mini.arank(QUERY, TEXTS, deadline_ms=value))


@pytest.mark.parametrize("method", ["arank", "arank_many"])
def test_a_cancelled_cascade_stops_before_its_next_batch(mini: MatryoshkaReranker, method: str) -> None:
    batches: list[int] = []
    read_exit = MatryoshkaModel.read_exit
    arguments: tuple[Any, ...] = (QUERY, TEXTS) if method == "arank" else ({QUERY: TEXTS},)

    async def run() -> None:
        task = asyncio.ensure_future(getattr(mini, method)(*arguments, cascade=Cascade({2: 1.0, 3: 1.0, 4: 1.0})))
        loop = asyncio.get_running_loop()

        def slow(model: MatryoshkaModel, *rest: Any) -> Any:
            batches.append(1)
            loop.call_soon_threadsafe(task.cancel)
            while not task.cancelled():
                time.sleep(0.001)
            return read_exit(model, *rest)

        with patch.object(MatryoshkaModel, "read_exit", slow):
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.2)

    asyncio.run(run())
    assert len(batches) == 1


def test_cascades_that_do_not_fit_are_errors(mini: MatryoshkaReranker) -> None:
    with pytest.raises(ValueError, match="cascade names exit 1"):
        mini.rank(QUERY, TEXTS, cascade=Cascade({1: 1.0}))
    with pytest.raises(ValueError, match="cascade names exit 4"):
        mini.rank(QUERY, TEXTS, depth=4, cascade=Cascade({4: 1.0}))
    with pytest.raises(TypeError, match="cascade must be"):
        mini.rank(QUERY, TEXTS, cascade={2: 1.0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cascade names exit 6"):
        MatryoshkaReranker(cascade=Cascade({6: 1.0}))


def with_profile(reranker: MatryoshkaReranker, *points: ProfilePoint) -> MatryoshkaReranker:
    other = copy.copy(reranker)
    full = ProfilePoint(depth=6, quality=0.8, kept=1, min_kept=1, seconds=0.01, flops=4e9)
    profile = Profile(
        metric="nDCG@10", collections=("toy",), queries=10, query_tokens=8, passage_tokens=40, device="a processor",
        dtype="float32", threads=1, points=(full, *points),
    )  # fmt: skip
    other._origin = copy.copy(reranker._origin)
    object.__setattr__(other._origin, "profile", profile)
    return other


def test_auto_is_the_cascade_that_the_profile_has_for_the_setting(mini: MatryoshkaReranker) -> None:
    measured: dict[str, Any] = {"quality": 0.8, "kept": 1.0, "min_kept": 1.0, "seconds": 0.005, "flops": 2e9}
    fitted = ProfileCascade(stages={2: 0.5}, top_n=3, lost=0.01)
    known = with_profile(mini, ProfilePoint(depth=6, cascade=fitted, **measured))
    by_hand = mini.rank(QUERY, TEXTS, top_n=2, cascade=Cascade({2: 0.5}, top_n=3))
    assert known.rank(QUERY, TEXTS, top_n=2, cascade="auto") == by_hand
    assert known.copy(cascade="auto").rank(QUERY, TEXTS, top_n=2) == by_hand
    assert "margins 2:0.5" in str(known.explain(cascade="auto"))
    with pytest.raises(ValueError, match="cascade='auto' needs"):
        known.rank(QUERY, TEXTS, depth=4, cascade="auto")
    with pytest.raises(ValueError, match="cascade='auto' needs"):
        with_profile(mini).rank(QUERY, TEXTS, cascade="auto")


def test_a_call_at_another_setting_runs_without_the_objects_cascade(mini: MatryoshkaReranker) -> None:
    own = mini.copy(cascade=Cascade({2: 2}, by="count"))
    assert own.cascade == Cascade({2: 2}, by="count")
    assert set(own.rank(QUERY, TEXTS).shares) == {6, 2}
    assert set(own.rank(QUERY, TEXTS, depth=6).shares) == {6, 2}  # the same setting
    assert set(own.rank(QUERY, TEXTS, depth=4).shares) == {4}
    assert set(own.rank(QUERY, TEXTS, cascade=None).shares) == {6}
    assert own.score(QUERY, TEXTS) == mini.score(QUERY, TEXTS)
    assert own.copy(max_length=64).cascade == own.cascade == own.copy(depth=6).cascade
    assert own.copy(depth=2).cascade is own.copy(compensated=False).cascade is None
    assert pickle.loads(pickle.dumps(own)).cascade == own.cascade


@pytest.mark.parametrize("cascade", [None, Cascade({2: 0.5})], ids=str)
def test_a_long_document_scores_as_its_best_window(reranker: MatryoshkaReranker, cascade: Cascade | None) -> None:
    texts = [TEXTS[2], LONG, TEXTS[7]]
    if cascade is not None:
        cascade = Cascade(stages(reranker, 1e6))
    ranking = reranker.rank(QUERY, texts, long_documents="max", cascade=cascade, normalize=False)
    [document] = [document for document in ranking if document.index == 1]
    assert document.span is not None
    assert document.passage == LONG[slice(*document.span)]
    [alone] = reranker.score(QUERY, [document.passage], normalize=False)
    assert document.score == pytest.approx(alone, abs=1e-5)
    assert all(other.span is None for other in ranking if other.index != 1)
    scores = reranker.score(QUERY, texts, long_documents="max", normalize=False)
    assert [document.score for document in ranking] == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert reranker.score_pairs([(QUERY, LONG)], long_documents="max", normalize=False) == pytest.approx(
        [scores[1]], abs=1e-5
    )


def test_the_window_that_answers_wins_and_is_named(mini: MatryoshkaReranker) -> None:
    [document] = mini.rank(QUERY, [LONG], long_documents="max", window=60)
    assert "photosynthesis" in document.passage
    assert len(document.passage) < len(LONG) / 3
    [cut] = mini.copy(max_length=64).rank(QUERY, [LONG])
    assert document.score > 10 * cut.score


def test_windows_of_one_document_are_dropped_one_by_one(mini: MatryoshkaReranker) -> None:
    cascade = Cascade({2: 0.0})
    run = mini.rank(QUERY, [LONG, TEXTS[2]], top_n=1, long_documents="max", window=30, cascade=cascade)
    assert run.shares == {6: 0.5, 2: 0.5}
    counted: list[int] = []
    embed, pool = MatryoshkaModel.embed, MatryoshkaModel.pool_last_exit
    with (
        patch.object(
            MatryoshkaModel,
            "embed",
            lambda model, batch, *rest: counted.append(len(batch.input_ids)) or embed(model, batch, *rest),
        ),
        patch.object(
            MatryoshkaModel,
            "pool_last_exit",
            lambda model, hidden, plan: counted.append(-len(hidden)) or pool(model, hidden, plan),
        ),
    ):
        mini.rank(QUERY, [LONG, TEXTS[2]], top_n=1, long_documents="max", window=30, cascade=cascade)
    assert sum(count for count in counted if count > 0) > 5
    assert sum(count for count in counted if count < 0) == -1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"long_documents": "mean"}, "long_documents"),
        ({"window": 100}, "window"),
        ({"long_documents": "max", "window": 0}, "window"),
        ({"long_documents": "max", "stride": 2.5}, "stride"),
        ({"long_documents": "max", "window": 10, "stride": 20}, "stride"),
        ({"long_documents": "truncate", "stride": 20}, "stride"),
    ],
)
def test_bad_windows_are_errors_in_every_call(mini: MatryoshkaReranker, options: dict[str, Any], named: str) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: mini.score(QUERY, TEXTS, **options),
        lambda: mini.score_pairs([(QUERY, LONG)], **options),
        lambda: mini.rank(QUERY, TEXTS, **options),
        lambda: mini.rank_many({QUERY: TEXTS}, **options),
        lambda: mini.copy(**options),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError), match=named):
            call()


def test_long_documents_of_the_object_hold_for_its_calls(mini: MatryoshkaReranker) -> None:
    own = mini.copy(long_documents="max", window=60, stride=30)
    by_hand = mini.rank(QUERY, [LONG], long_documents="max", window=60, stride=30)
    assert own.rank(QUERY, [LONG]) == by_hand
    assert own.rank(QUERY, [LONG], long_documents="truncate") == mini.rank(QUERY, [LONG])
    assert own.score(QUERY, [LONG]) == [by_hand[0].score]


def test_rank_and_its_other_forms_take_the_same_options() -> None:
    rank, many = (
        inspect.signature(method).parameters for method in (MatryoshkaReranker.rank, MatryoshkaReranker.rank_many)
    )
    assert set(rank) - {"query", "documents", "deadline_ms"} == set(many) - {"requests"}
    assert {name: rank[name].default for name in many if name in rank} == {
        name: many[name].default for name in many if name in rank
    }


def test_a_deadline_ends_the_splitting_of_documents_too(
    mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, split = time.monotonic(), DocumentSplitter.spans
    clock = iter([now, now, now])  # the deadline's beginning, and two documents
    monkeypatch.setattr(time, "monotonic", lambda: next(clock, now + 60))
    begun = []

    def spans(self: DocumentSplitter, *arguments: Any, check: Callable[[], object], **options: Any) -> Any:
        def counted() -> None:
            begun.append(None)
            check()

        return split(self, *arguments, check=counted, **options)

    monkeypatch.setattr(DocumentSplitter, "spans", spans)
    texts = [f"{number} {LONG}" for number in range(9)]
    ranking = mini.rank(QUERY, texts, deadline_ms=1000, long_documents="max", window=64)
    assert len(begun) == 3
    assert not ranking.complete
    assert [(document.index, document.depth, document.span) for document in ranking] == [(n, 0, None) for n in range(9)]


def test_documents_that_were_not_read_have_no_window(mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    split = DocumentSplitter.spans
    monkeypatch.setattr(DocumentSplitter, "spans", lambda *arguments, check, **options: split(*arguments, **options))
    ranking = mini.rank(QUERY, [LONG, "Plants."], deadline_ms=0, long_documents="max", window=64)
    assert [(document.depth, document.span) for document in ranking] == [(0, None)] * 2
    assert ranking[0].passage == LONG


def test_cancelling_stops_the_splitting_of_documents(mini: MatryoshkaReranker) -> None:
    documents, begun = iter(range(1000)), []

    def offsets(self: Any, text: str, found: Any = PairEncoder.text_offsets) -> Any:
        begun.append(next(documents))
        time.sleep(0.02)
        return found(self, text)

    async def cancelled() -> None:
        texts = [f"{number} {LONG}" for number in range(500)]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(mini.arank(QUERY, texts, long_documents="max", window=64), 0.2)

    with patch.object(PairEncoder, "text_offsets", offsets):
        asyncio.run(cancelled())
    assert len(begun) < 100
