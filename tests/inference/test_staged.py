"""A pass exit by exit: survivors are scored as whole passes score them, nothing runs twice, memory is bounded."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrr_model import Cascade
from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.cancelling import Cancelled
from mrr_model.inference.candidates import Candidates, Reached
from mrr_model.inference.forward import ForwardPass
from mrr_model.inference.staged import Deadline, StagedPass
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.states import HiddenBatch, PooledBatch

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
PLANS = [
    Plan((6,)),
    Plan((5,), {1: HALF}),
    Plan((6,), {2: HALF}),  # a merge after an exit's layer
    Plan((6,), {1: HALF, 3: HALF}),  # before it, and between two exits
    Plan((6,), {4: QUARTER, 5: HALF}),
]
CASCADES = [
    Cascade({2: 0.05, 4: 0.02}),
    Cascade({2: 12, 4: 5}, by="count"),
    Cascade({1: 0.1, 2: 0.1, 3: 0.1, 4: 0.05}),
    Cascade({2: 1000.0, 3: 1000.0}),
]
MODELS: dict[str, dict[str, Any]] = {
    "bert": {},
    "llama": {},  # pairs share their query
    "mean": {"own": {"pooling": "mean"}},
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, make_model: Callable[..., MatryoshkaModel]) -> MatryoshkaModel:
    return make_model("bert" if request.param == "mean" else request.param, **MODELS[request.param]).eval()


@pytest.fixture
def pairs(make_pairs: Callable[..., list[EncodedPair]]) -> list[EncodedPair]:
    """30 pairs of two queries, 13 to 71 tokens long."""
    made = make_pairs([(5, 5 + 2 * index, 3) for index in range(30)])
    queries = [made[index].input_ids[:5] for index in (0, 1)]
    return [
        EncodedPair([*queries[index % 2], *pair.input_ids[5:]], 5, pair.passage_length, 3)
        for index, pair in enumerate(made)
    ]


REQUESTS = [[[index] for index in range(30) if index % 2 == query] for query in (0, 1)]


def exit_by_exit(
    model: MatryoshkaModel,
    plan: Plan,
    pairs: Sequence[EncodedPair],
    cascade: Cascade | None,
    *,
    exits: Sequence[int] | None = None,
    requests: Sequence[Sequence[Sequence[int]]] = REQUESTS,
    budget: BatchBudget | None = None,
    chunk: int = 100,
    **options: Any,
) -> tuple[list[list[Reached]], bool]:
    candidates = Candidates(requests, len(pairs), cascade, top_n=3)
    exits = cascade.exits if exits is None and cascade is not None else exits or ()
    run = StagedPass(model, plan, exits, candidates, budget or BatchBudget(model, 300), **options)
    encoded = (
        (range(start, start + chunk)[: len(pairs) - start], pairs[start : start + chunk])
        for start in range(0, len(pairs), chunk)
    )
    complete = run.run(encoded)
    return candidates.reached(), complete


def simulated(
    model: MatryoshkaModel, plan: Plan, pairs: Sequence[EncodedPair], cascade: Cascade
) -> list[list[Reached]]:
    """The same from whole passes to each exit."""
    candidates = Candidates(REQUESTS, len(pairs), cascade, top_n=3)
    for exit_layer in (*cascade.exits, plan.last_layer):
        logits = ForwardPass(model, plan.up_to(exit_layer), pairs, BatchBudget(model, 10_000)).logits()[:, -1]
        candidates.read(exit_layer, range(len(pairs)), logits.tolist())
        candidates.drop(exit_layer)
    return candidates.reached()


def check_equal(found: list[list[Reached]], expected: list[list[Reached]]) -> None:
    assert [[each.depth for each in request] for request in found] == [
        [each.depth for each in request] for request in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert [each.logit for each in one] == pytest.approx([each.logit for each in other], abs=1e-5)


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize(("cascade", "budget"), [(CASCADES[0], 1), *((each, 150) for each in CASCADES)], ids=str)
def test_documents_are_scored_as_whole_passes_to_their_exits_score_them(
    model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan, cascade: Cascade, budget: int
) -> None:
    expected = simulated(model, plan, pairs, cascade)
    found, complete = exit_by_exit(model, plan, pairs, cascade, budget=BatchBudget(model, budget))
    assert complete
    check_equal(found, expected)
    depths = Counter(each.depth for request in found for each in request)
    assert set(depths) <= {*cascade.exits, plan.last_layer}
    assert depths[plan.last_layer] >= 6  # the three best of each request


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    stages=st.dictionaries(st.integers(1, 5), st.floats(0, 0.3), min_size=1),
    merges=st.dictionaries(st.integers(1, 5), st.sampled_from([HALF, QUARTER, Fraction(2, 3)]), max_size=2),
    order=st.permutations(range(30)),
    budget=st.integers(1, 600),
    chunk=st.integers(1, 40),
)
def test_no_composition_of_batches_moves_a_logit(
    model: MatryoshkaModel,
    pairs: list[EncodedPair],
    stages: dict[int, float],
    merges: dict[int, Fraction],
    order: list[int],
    budget: int,
    chunk: int,
) -> None:
    plan, cascade = Plan((6,), merges), Cascade(stages)
    expected = simulated(model, plan, pairs, cascade)
    shuffled = [pairs[index] for index in order]
    rows = {index: row for row, index in enumerate(order)}
    requests = [[[rows[index] for index in document] for document in request] for request in REQUESTS]
    found, _ = exit_by_exit(
        model, plan, shuffled, cascade, requests=requests, budget=BatchBudget(model, budget), chunk=chunk
    )
    check_equal(found, expected)


class Watch:
    """Counts the layers that pairs run through, and the tokens of states that wait."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()  # layer -> pairs that ran through it whole
        self.keys_values: Counter[int] = Counter()  # layer -> pairs whose keys and values were computed apart
        self.embedded = 0

    @contextmanager
    def watching(self, model: MatryoshkaModel) -> Iterator["Watch"]:
        backbone = type(model.backbone)
        block, finish, keys_values = backbone.block, backbone.finish_block, backbone.keys_values
        embed = MatryoshkaModel.embed

        def watched_block(own: Any, layer: int, hidden: Tensor, *rest: Any) -> Tensor:
            self.layers[layer] += len(hidden)
            return block(own, layer, hidden, *rest)

        def watched_finish(own: Any, layer: int, hidden: Tensor, *rest: Any) -> Tensor:
            self.layers[layer] += len(hidden)
            return finish(own, layer, hidden, *rest)

        def watched_keys_values(own: Any, layer: int, hidden: Tensor, *rest: Any) -> Any:
            self.keys_values[layer] += len(hidden)
            return keys_values(own, layer, hidden, *rest)

        def watched_embed(own: MatryoshkaModel, batch: Any, *rest: Any) -> HiddenBatch:
            self.embedded += len(batch.input_ids)
            return embed(own, batch, *rest)

        with (
            patch.object(backbone, "block", watched_block),
            patch.object(backbone, "finish_block", watched_finish),
            patch.object(backbone, "keys_values", watched_keys_values),
            patch.object(MatryoshkaModel, "embed", watched_embed),
        ):
            yield self


def test_nothing_is_computed_twice(make_model: Callable[..., MatryoshkaModel], pairs: list[EncodedPair]) -> None:
    """Each pair runs through each layer once: those that stop at an exit through its keys and values only."""
    model, plan, cascade = make_model("bert").eval(), Plan((6,)), Cascade({2: 14, 4: 9}, by="count")
    keys: Counter[int] = Counter()  # layer -> pairs whose keys were projected, by whoever does it
    for layer in range(1, 7):
        project, _ = model.backbone.key_value_projections(layer)
        project.register_forward_hook(lambda module, inputs, output, layer=layer: keys.update({layer: len(inputs[0])}))
    with Watch().watching(model) as watch:
        found, _ = exit_by_exit(model, plan, pairs[::2], cascade, requests=[[[index] for index in range(15)]])
    assert Counter(each.depth for each in found[0]) == {2: 1, 4: 5, 6: 9}
    assert watch.embedded == 15
    assert watch.layers == {1: 15, 2: 14, 3: 14, 4: 9, 5: 9}
    assert watch.keys_values == {2: 15, 4: 14, 6: 9}
    assert keys == {1: 15, 2: 15, 3: 14, 4: 14, 5: 9, 6: 9}


def test_exits_at_which_nothing_is_expected_to_stop_are_read_in_passing(
    make_model: Callable[..., MatryoshkaModel], pairs: list[EncodedPair]
) -> None:
    """Pairs wait at the first exit; then they run to the end, with one more row for each exit."""
    model, plan, cascade = make_model("bert").eval(), Plan((6,)), Cascade({2: 1e6, 3: 1e6, 4: 1e6})
    with Watch().watching(model) as watch:
        found, _ = exit_by_exit(model, plan, pairs, cascade)
    check_equal(found, simulated(model, plan, pairs, cascade))
    assert watch.layers == {1: 30, 2: 30, 3: 30, 4: 30, 5: 30}
    assert watch.keys_values == {2: 30, 6: 30}


def test_whoever_stops_at_an_exit_in_passing_counts_as_stopped_there(
    model: MatryoshkaModel, pairs: list[EncodedPair]
) -> None:
    plan, cascade = Plan((6,), {3: HALF}), Cascade({2: 0.05, 3: 0.02, 4: 0.02})
    expected = simulated(model, plan, pairs, cascade)
    for least in (0.0, 0.3, 2.0):
        with patch("mrr_model.inference.staged.WORTH_WAITING", least):
            check_equal(exit_by_exit(model, plan, pairs, cascade)[0], expected)


@pytest.mark.parametrize("cascade", [Cascade({2: 0.3, 4: 0.2}), Cascade({2: 12, 4: 5}, by="count")], ids=str)
def test_states_that_exceed_their_budget_are_computed_again(
    model: MatryoshkaModel, pairs: list[EncodedPair], cascade: Cascade, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan((6,), {1: HALF})
    expected, budget = simulated(model, plan, pairs, cascade), BatchBudget(model, 100)
    with patch.object(BatchBudget, "waiting", 200), Watch().watching(model) as watch, caplog.at_level(logging.WARNING):
        for _ in range(2):
            found, _ = exit_by_exit(model, plan, pairs, cascade, budget=budget)
            check_equal(found, expected)
    assert watch.embedded > 2 * len(pairs)
    [record] = caplog.records  # once
    assert "200 tokens wait" in record.message


def test_no_more_states_wait_than_their_budget_allows(
    make_model: Callable[..., MatryoshkaModel], pairs: list[EncodedPair]
) -> None:
    model, waiting = make_model("bert").eval(), list[int]()
    make_space = StagedPass._make_space

    def watched(self: StagedPass, exit_layer: int) -> None:
        make_space(self, exit_layer)
        waiting.append(sum(part.tokens for group in self._groups.values() for part in group.parts))

    with patch.object(BatchBudget, "waiting", 400), patch.object(StagedPass, "_make_space", watched):
        exit_by_exit(model, Plan((6,)), pairs, Cascade({2: 0.1, 4: 0.1}), budget=BatchBudget(model, 100))
    assert len(waiting) > 3
    assert max(waiting) <= 400


def test_memory_that_runs_out_changes_no_logit(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    plan, cascade = Plan((6,), {3: HALF}), Cascade({2: 0.1, 4: 0.05})
    expected = simulated(model, plan, pairs, cascade)
    run_layers, read_exit, joined = MatryoshkaModel.run_layers, MatryoshkaModel.read_exit, HiddenBatch.joined

    def limited_layers(self: MatryoshkaModel, hidden: HiddenBatch, *rest: Any) -> HiddenBatch:
        made = run_layers(self, hidden, *rest)
        if len(hidden) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    def limited_exit(self: MatryoshkaModel, hidden: HiddenBatch, *rest: Any) -> tuple[PooledBatch, HiddenBatch]:
        made = read_exit(self, hidden, *rest)
        if len(hidden) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    def limited_joined(parts: Sequence[HiddenBatch]) -> HiddenBatch:
        if len(parts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return joined(parts)

    budget = BatchBudget(model, 10_000)
    with (
        patch.object(MatryoshkaModel, "run_layers", limited_layers),
        patch.object(MatryoshkaModel, "read_exit", limited_exit),
        patch.object(HiddenBatch, "joined", limited_joined),
    ):
        found, complete = exit_by_exit(model, plan, pairs, cascade, budget=budget)
    assert complete
    check_equal(found, expected)
    assert budget.tokens < 10_000


def test_progress_counts_each_row_once(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    counts: list[int] = []
    exit_by_exit(model, Plan((6,)), pairs, Cascade({2: 12, 4: 5}, by="count"), progress=counts.append)
    assert counts == [6, 14, 10]


class Clock:
    """A clock on which every batch takes one second; reading it takes nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    @contextmanager
    def ticking(self) -> Iterator["Clock"]:
        read_exit = MatryoshkaModel.read_exit

        def slow(model: MatryoshkaModel, *arguments: Any) -> Any:
            self.now += 1.0
            return read_exit(model, *arguments)

        with patch.object(MatryoshkaModel, "read_exit", slow), patch.object(time, "monotonic", lambda: self.now):
            yield self


@pytest.mark.parametrize("seconds", [0, 3, 8, 12, 1000, math.inf])
@pytest.mark.parametrize("cascade", [None, Cascade({2: 0.05})], ids=str)
def test_a_deadline_ends_the_pass_after_the_batch_that_passes_it(
    model: MatryoshkaModel, pairs: list[EncodedPair], seconds: float, cascade: Cascade | None
) -> None:
    plan, own, requests = Plan((6,), {1: HALF}), pairs[::2], [[[index] for index in range(15)]]
    options: dict[str, Any] = {"exits": (2, 4), "requests": requests, "chunk": 4}
    with Clock().ticking() as clock:
        found, complete = exit_by_exit(model, plan, own, cascade, **options, deadline=Deadline(seconds))
    assert clock.now <= seconds + 1  # late by one batch
    depths = [each.depth for each in found[0]]
    if not seconds:
        assert set(depths) == {0}
    if seconds >= 1000:
        assert complete
    if complete:
        check_equal(found, exit_by_exit(model, plan, own, cascade, **options)[0])
    elif cascade is None:
        assert set(depths) != {6}
    for exit_layer in set(depths) - {0}:
        logits = ForwardPass(model, plan.up_to(exit_layer), own, BatchBudget(model, 10_000)).logits()[:, -1].tolist()
        read = [index for index in range(15) if depths[index] == exit_layer]
        assert [found[0][index].logit for index in read] == pytest.approx([logits[index] for index in read], abs=1e-5)


def test_under_a_deadline_all_pairs_are_read_in_order_and_then_the_most_promising_first(
    make_model: Callable[..., MatryoshkaModel], pairs: list[EncodedPair]
) -> None:
    model, plan, own = make_model("bert").eval(), Plan((6,)), pairs[::2]
    promise = ForwardPass(model, plan.up_to(2), own, BatchBudget(model, 10_000)).logits()[:, 0].tolist()
    options: dict[str, Any] = {"exits": (2,), "requests": [[[index] for index in range(15)]], "chunk": 3}
    seen = set[tuple[int, ...]]()
    for seconds in range(30):
        with Clock().ticking():
            [found], _ = exit_by_exit(model, plan, own, None, **options, deadline=Deadline(seconds))
        depths = [each.depth for each in found]
        seen.add(tuple(sorted(set(depths))))
        if 0 in depths:
            assert set(depths) <= {0, 2}
            assert depths == sorted(depths, reverse=True)  # in order
        elif {*depths} == {2, 6}:
            went, waited = ([promise[index] for index in range(15) if depths[index] == depth] for depth in (6, 2))
            assert min(went) >= max(waited)
    assert seen >= {(0,), (0, 2), (2, 6), (6,)}


def test_a_pace_decides_how_many_tokens_fit_until_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 10.0)
    deadline = Deadline(11.0)
    first = deadline.tokens(2)
    deadline.took(seconds=0.5, tokens=100, layers=2)  # 400 tokens of one layer a second
    assert deadline.tokens(1) == 400 != first
    assert deadline.tokens(2) == 200
    monkeypatch.setattr(time, "monotonic", lambda: 12.0)
    assert deadline.tokens(1) == 1
    assert Deadline(math.inf).tokens(1) == first


def test_a_cancelled_pass_stops_before_its_next_batch(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    batches: list[int] = []
    read_exit = MatryoshkaModel.read_exit

    def counted(model: MatryoshkaModel, *arguments: Any) -> Any:
        batches.append(1)
        return read_exit(model, *arguments)

    def check() -> None:
        if len(batches) == 3:
            raise Cancelled

    with (
        patch("mrr_model.inference.staged.check", check),
        patch.object(MatryoshkaModel, "read_exit", counted),
        pytest.raises(Cancelled),
    ):
        exit_by_exit(model, Plan((6,)), pairs, Cascade({2: 0.1}), budget=BatchBudget(model, 100))
    assert len(batches) == 3
