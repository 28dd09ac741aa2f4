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
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.forward import ForwardPass
from mrr_model.inference.layers import TokenSource
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.states import HiddenBatch, PooledBatch

HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)
BUDGET = 300
TWICE = Plan((2, 4, 6), {1: HALF, 3: HALF})


@pytest.fixture(params=["bert", "llama"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., MatryoshkaModel]) -> MatryoshkaModel:
    return make_model(request.param).eval()


@pytest.fixture
def pairs(make_pairs: Callable[..., list[EncodedPair]]) -> list[EncodedPair]:
    """24 pairs of two queries, 38 to 61 tokens long."""
    made = make_pairs([(5, 30 + index, 3) for index in range(24)])
    queries = [made[index].input_ids[:5] for index in (0, 1)]
    return [
        EncodedPair([*queries[index % 2], *pair.input_ids[5:]], 5, pair.passage_length, 3)
        for index, pair in enumerate(made)
    ]


class WatchedBudget(BatchBudget):
    """A budget that keeps the tokens of every batch that did not fit."""

    def __init__(self, model: MatryoshkaModel, limit: int) -> None:
        super().__init__(model, limit)
        self.halved: list[int] = []

    def halve(self, tokens: int) -> None:
        self.halved.append(tokens)
        super().halve(tokens)


class Watched:
    """A forward pass that keeps the layer, pairs and tokens with which each batch began.

    `most`: memory runs out if a batch of more pairs runs on from a merge, after all has been computed.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        plan: Plan,
        pairs: list[EncodedPair],
        *,
        budget: int,
        most: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.budget, self.most, self.done = WatchedBudget(model, budget), most, 0
        self.steps: list[tuple[int, int, int]] = []
        self.forward = ForwardPass(model, plan, pairs, self.budget, batch_size=batch_size, progress=self.count)

    def count(self, pairs: int) -> None:
        self.done += pairs

    def logits(self) -> Tensor:
        run_layers = MatryoshkaModel.run_layers

        def watched(model: MatryoshkaModel, hidden: HiddenBatch, plan: Plan, last: int) -> HiddenBatch:
            made = run_layers(model, hidden, plan, last)
            if self.most is not None and hidden.layer and len(hidden) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.steps.append((hidden.layer, len(hidden), len(hidden) * hidden.width))
            return made

        with patch.object(MatryoshkaModel, "run_layers", watched):
            found = self.forward.logits()
        assert self.done == len(found)
        return found

    def after(self, layer: int) -> list[tuple[int, int]]:
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
    first, second, third = (run.after(layer) for layer in (0, 1, 3))
    assert len(first) > len(second) > len(third)
    for step in (first, second, third):
        assert sum(count for count, _ in step) == len(pairs)  # every pair once
    for step in (second, third):
        assert all(count == 1 or tokens <= BUDGET for count, tokens in step)


def test_batches_of_different_widths_are_not_joined(
    make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    pairs = make_pairs([(5, 100, 1)] * 2 + [(5, 8, 1)] * 2)
    run = Watched(make_model("bert").eval(), Plan((6,), {1: HALF}), pairs, budget=224)
    run.logits()
    assert run.after(0) == [(2, 224), (2, 32)]
    assert run.after(1) == [(2, 112), (2, 24)]  # four of 56 would fit the budget, but are 224 tokens and not 136


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


def test_a_joined_batch_that_does_not_fit_is_split(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    plan = Plan((2, 4, 6), {1: QUARTER, 3: HALF})
    run = Watched(model, plan, pairs, budget=BUDGET, most=6)
    torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)
    for layer in (1, 3):
        assert max(count for count, _ in run.after(layer)) <= 6
    assert run.budget.tokens == min(run.budget.halved) // 2 < BUDGET
    assert min(run.budget.halved) > 6 * 8  # tokens of batches of more than six pairs, each wider than 8
    first, last = run.after(0)[0], run.after(0)[-3:]
    assert all(tokens <= BUDGET / 2 for _, tokens in last)  # what starts later is smaller
    assert first[1] > BUDGET / 2
    with pytest.raises(torch.OutOfMemoryError):
        Watched(model, TWICE, pairs, budget=BUDGET, most=0).logits()


def test_batches_run_apart_if_joining_them_runs_out_of_memory(model: MatryoshkaModel, pairs: list[EncodedPair]) -> None:
    joined = HiddenBatch.joined

    def never(parts: list[HiddenBatch]) -> HiddenBatch:
        if len(parts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return joined(parts)

    run = Watched(model, TWICE, pairs, budget=BUDGET)
    with patch.object(HiddenBatch, "joined", never):
        torch.testing.assert_close(run.logits(), expected(model, pairs, TWICE), atol=1e-5, rtol=1e-5)
    assert run.budget.tokens < BUDGET
    assert sorted(count for count, _ in run.after(0)) == sorted(count for count, _ in run.after(1))


@pytest.mark.parametrize("plan", [Plan((2, 6)), TWICE])
def test_pooled_tokens_that_are_collected_do_not_stay_where_they_were_made(
    model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan
) -> None:
    made: list[weakref.ref[Tensor]] = []
    embed, pool = MatryoshkaModel.embed, MatryoshkaModel.pool_last_exit

    def watched_embed(model: MatryoshkaModel, *arguments: Any) -> HiddenBatch:
        assert not [reference for reference in made if reference() is not None]
        return embed(model, *arguments)

    def watched_pool(model: MatryoshkaModel, hidden: HiddenBatch, plan: Plan) -> PooledBatch:
        pooled = pool(model, hidden, plan)
        made.extend(map(weakref.ref, (pooled.state.attended, pooled.state.residual, *pooled.logits)))
        return pooled

    run = Watched(model, plan, pairs, budget=100)
    with (
        patch.object(MatryoshkaModel, "embed", watched_embed),
        patch.object(MatryoshkaModel, "pool_last_exit", watched_pool),
    ):
        torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)
    assert len(made) > 20


@pytest.mark.parametrize("plan", [Plan((2, 6)), TWICE])
def test_states_of_earlier_batches_are_gone_before_the_next_starts(
    model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan
) -> None:
    """Only what waits at a merge is kept: no batch is kept at the width that it had before."""
    before_merging: list[weakref.ref[Tensor]] = []
    embed, run_layers = MatryoshkaModel.embed, MatryoshkaModel.run_layers

    def watched_embed(model: MatryoshkaModel, *arguments: Any) -> HiddenBatch:
        assert not [reference for reference in before_merging if reference() is not None]
        hidden = embed(model, *arguments)
        before_merging.append(weakref.ref(hidden.states))
        return hidden

    def watched_run(model: MatryoshkaModel, hidden: HiddenBatch, plan: Plan, last: int) -> HiddenBatch:
        before_merging.append(weakref.ref(hidden.states))
        return run_layers(model, hidden, plan, last)

    run = Watched(model, plan, pairs, budget=BUDGET)
    with (
        patch.object(MatryoshkaModel, "embed", watched_embed),
        patch.object(MatryoshkaModel, "run_layers", watched_run),
    ):
        torch.testing.assert_close(run.logits(), expected(model, pairs, plan), atol=1e-5, rtol=1e-5)
    assert len(before_merging) > 10


def test_a_large_batch_ends_before_it_is_mostly_padding(model: MatryoshkaModel) -> None:
    lengths = [64] * 80 + [32] * 80
    pairs = [EncodedPair([5] * length, 2, length - 3, 1) for length in lengths]
    source = TokenSource(model, pairs, range(len(pairs)))
    batch = source.batch(1 << 20)
    assert batch is not None
    assert 64 * len(batch.rows) <= 9 / 8 * sum(lengths[row] for row in batch.rows)
    assert len(batch.rows) >= 80
    small = TokenSource(model, pairs[70:90], range(20)).batch(1 << 20)
    assert small is not None
    assert len(small.rows) == 20  # its tokens are few, so that padding costs less than another batch
