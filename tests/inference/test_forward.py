"""Encoded pairs to logits: batches that merging has made small are joined, within their limits, and nothing changes."""

import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mrr_model.compression import Plan
from mrr_model.inference.forward import Scoring
from mrr_model.modeling.batch import Batch, EncodedPair, collate
from mrr_model.modeling.model import BatchReading, BatchState, MatryoshkaModel

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
BUDGET = 300
TWICE = Plan((2, 4, 6), {1: HALF, 3: HALF})


@pytest.fixture(params=["bert", "llama"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., MatryoshkaModel]) -> MatryoshkaModel:
    return make_model(request.param).eval()


@pytest.fixture
def pairs(make_pairs: Callable[..., list[EncodedPair]]) -> list[EncodedPair]:
    """24 pairs of two queries, 38 to 61 tokens long."""
    made = make_pairs([(5, 30 + place, 3) for place in range(24)])
    queries = [made[place].input_ids[:5] for place in (0, 1)]
    return [
        EncodedPair([*queries[place % 2], *pair.input_ids[5:]], 5, pair.passage_length, 3)
        for place, pair in enumerate(made)
    ]


class Watched(Scoring):
    """Scoring that keeps what each step was given: the layer it began behind, pairs and tokens.

    ``most``: memory runs out where more pairs than that go on from a merge, after all has been computed.
    """

    def __init__(self, *arguments: Any, budget: int, most: int | None = None, **limits: Any) -> None:
        self.budget, self.most, self.done = budget, most, 0
        self.steps: list[tuple[int, int, int]] = []
        self.halved: list[int] = []
        super().__init__(*arguments, batch_tokens=lambda: self.budget, halve=self.shrink, progress=self.count, **limits)

    def shrink(self, tokens: int) -> None:
        self.halved.append(tokens)
        self.budget = min(self.budget, tokens // 2)

    def count(self, pairs: int) -> None:
        self.done += pairs

    def logits(self) -> Tensor:
        advance = MatryoshkaModel.advance

        def watched(model: MatryoshkaModel, state: BatchState, plan: Plan) -> Any:
            made = advance(model, state, plan)
            if self.most is not None and state.layer and len(state) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.steps.append((state.layer, len(state), len(state) * state.width))
            return made

        with patch.object(MatryoshkaModel, "advance", watched):
            found = super().logits()
        assert self.done == len(found)
        return found

    def behind(self, layer: int) -> list[tuple[int, int]]:
        return [(pairs, tokens) for at, pairs, tokens in self.steps if at == layer]


def expected(model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(collate([pair], 0), plan) for pair in pairs])


@pytest.mark.parametrize("plan", [Plan((6,)), Plan((1,)), Plan((4,), {1: QUARTER}), Plan((3, 5), {2: HALF}), TWICE])
@pytest.mark.parametrize("budget", [1, 100, 300, 10_000])
def test_logits_are_those_of_single_pairs(
    model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan, budget: int
) -> None:
    run = Watched(model, plan, pairs, budget=budget)
    torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)


def test_batches_are_joined_after_each_merge_within_their_limits(
    model: MatryoshkaModel, pairs: list[EncodedPair]
) -> None:
    run = Watched(model, TWICE, pairs, budget=BUDGET)
    run.logits()
    first, second, third = (run.behind(layer) for layer in (0, 1, 3))
    assert len(first) > len(second) > len(third)
    for step in (first, second, third):
        assert sum(count for count, _ in step) == len(pairs)  # every pair once
    for step in (second, third):
        assert all(count == 1 or tokens <= BUDGET for count, tokens in step)


def test_what_differs_in_width_is_not_joined(
    make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    pairs = make_pairs([(5, 100, 1)] * 2 + [(5, 8, 1)] * 2)
    run = Watched(make_model("bert").eval(), Plan((6,), {1: HALF}), pairs, budget=224)
    run.logits()
    assert run.behind(0) == [(2, 224), (2, 32)]
    assert run.behind(1) == [(2, 112), (2, 24)]  # four of 56 would fit the budget, but are 224 tokens and not 136


def test_no_width_is_padded_beyond_the_positions(
    make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    model, pairs = make_model("bert").eval(), make_pairs([(5, 120, 4), (5, 119, 4)])  # 129 of 130 positions
    run = Watched(model, TWICE, pairs, budget=1000)
    torch.testing.assert_close(run.logits(), expected(model, pairs, TWICE), atol=1e-5, rtol=1e-5)


def test_a_batch_size_holds_for_joined_batches_too(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    run = Watched(model, TWICE, pairs, budget=10_000, batch_size=4)
    run.logits()
    assert max(count for _, count, _ in run.steps) == 4


def test_a_joined_batch_that_does_not_fit_is_parted(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    plan = Plan((2, 4, 6), {1: QUARTER, 3: HALF})
    run = Watched(model, plan, pairs, budget=BUDGET, most=6)
    torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)
    for layer in (1, 3):
        assert max(count for count, _ in run.behind(layer)) <= 6
    assert run.budget == min(run.halved) // 2 < BUDGET
    assert min(run.halved) > 6 * 8  # tokens of batches of more than six pairs, each wider than 8
    first, last = run.behind(0)[0], run.behind(0)[-3:]
    assert all(tokens <= BUDGET / 2 for _, tokens in last)  # what starts later is smaller
    assert first[1] > BUDGET / 2
    with pytest.raises(torch.OutOfMemoryError):
        Watched(model, TWICE, pairs, budget=BUDGET, most=0).logits()


def test_batches_that_cannot_be_joined_for_want_of_memory_go_on_apart(
    model: MatryoshkaModel, pairs: list[EncodedPair]
) -> None:
    joined = BatchState.joined

    def never(states: list[BatchState]) -> BatchState:
        if len(states) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return joined(states)

    run = Watched(model, TWICE, pairs, budget=BUDGET)
    with patch.object(BatchState, "joined", never):
        torch.testing.assert_close(run.logits(), expected(model, pairs, TWICE), atol=1e-5, rtol=1e-5)
    assert run.budget < BUDGET
    assert sorted(count for count, _ in run.behind(0)) == sorted(count for count, _ in run.behind(1))


@pytest.mark.parametrize("plan", [Plan((2, 6)), TWICE])
def test_readings_that_wait_do_not_stay_where_they_were_made(
    model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan
) -> None:
    made: list[weakref.ref[Tensor]] = []
    start, advance = MatryoshkaModel.start, MatryoshkaModel.advance

    def watched_start(model: MatryoshkaModel, batch: Batch) -> BatchState:
        assert not [reference for reference in made if reference() is not None]
        return start(model, batch)

    def watched_advance(model: MatryoshkaModel, state: BatchState, plan: Plan) -> BatchState | BatchReading:
        part = advance(model, state, plan)
        if isinstance(part, BatchReading):
            made.extend(map(weakref.ref, (part.reading.attended, part.reading.states, *part.logits)))
        return part

    run = Watched(model, plan, pairs, budget=100)
    with (
        patch.object(MatryoshkaModel, "start", watched_start),
        patch.object(MatryoshkaModel, "advance", watched_advance),
    ):
        torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)
    assert len(made) > 20
