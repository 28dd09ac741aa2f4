"""Token merging against the slow loop of its equation, for any lengths, ratios and weights."""

import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrr_model.modeling.merging import (
    Spans,
    destinations,
    group_count,
    merge_tokens,
    merged_counts,
    middle_positions,
    span_means,
    token_mean,
)

DIM = 3
lengths = st.tuples(st.integers(1, 6), st.integers(0, 25), st.integers(0, 4))
batches = st.lists(lengths, min_size=1, max_size=4)
steps = st.fractions(min_value=Fraction(1, 9), max_value=1, max_denominator=12) | st.sampled_from(
    [Fraction(1, 1024), Fraction(1023, 1024)]
)
seeds = st.integers(0, 2**16)


def spans_of(rows: list[tuple[int, int, int]]) -> Spans:
    query, passage, prompt = (torch.tensor(column) for column in zip(*rows, strict=True))
    return Spans(query, passage, prompt)


def slow_targets(query: int, passage: int, prompt: int, step: Fraction) -> list[int]:
    """Query tokens keep positions of their own, passage token j goes to group floor(j · step), the prompt follows."""
    groups = [math.floor(j * step) for j in range(passage)]
    after = query + len(set(groups))
    return [*range(query), *(query + group for group in groups), *range(after, after + prompt)]


def slow_merge(hidden: Tensor, targets: list[int], weights: Tensor | None) -> Tensor:
    """h'_g = Σ w_j h_j / Σ w_j over the tokens of group g, in float64; the plain mean where Σ w_j is zero."""
    merged = []
    for group in range(max(targets) + 1):
        members = [j for j, target in enumerate(targets) if target == group]
        shares = torch.ones(len(members), dtype=torch.float64)
        if weights is not None and weights[members].sum() > 0:
            shares = weights[members].double()
        merged.append((hidden[members].double() * shares[:, None]).sum(0) / shares.sum())
    return torch.stack(merged)


@given(rows=batches, step=steps)
@settings(max_examples=100, deadline=None)
def test_destinations_equal_the_loop(rows: list[tuple[int, int, int]], step: Fraction) -> None:
    spans = spans_of(rows)
    found = destinations(spans, step).tolist()
    longest = max(map(sum, rows))
    for row, target in zip(rows, found, strict=True):
        assert target == slow_targets(*row, step) + [-1] * (longest - sum(row))
    # The lengths that the next width works with are those that the destinations make.
    assert spans.merged(step).total.tolist() == [max(target) + 1 for target in found]


@given(rows=batches, step=steps, seed=seeds, weighted=st.booleans(), zeros=st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_merge_equals_the_loop(
    rows: list[tuple[int, int, int]], step: Fraction, seed: int, weighted: bool, zeros: float
) -> None:
    """Weights as attention gives them: many orders of magnitude apart, and zeros where it underflowed."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(map(sum, rows))
    hidden = torch.randn(len(rows), longest, DIM, generator=generator)
    weights = torch.exp(-20 * torch.rand(len(rows), longest, generator=generator))
    weights = weights.where(torch.rand(len(rows), longest, generator=generator) >= zeros, 0.0)
    spans = spans_of(rows)
    size = int(spans.merged(step).total.max())

    merged = merge_tokens(hidden, destinations(spans, step), size, weights if weighted else None)

    assert merged.shape == (len(rows), size, DIM)
    for index, row in enumerate(rows):
        expected = slow_merge(hidden[index], slow_targets(*row, step), weights[index] if weighted else None)
        assert (merged[index, : len(expected)] - expected).abs().max() <= 1e-5
        assert merged[index, len(expected) :].eq(0).all(), "positions that no token goes to are zero"


@given(rows=batches, seed=seeds, weighted=st.booleans())
@settings(max_examples=30, deadline=None)
def test_ratio_1_is_the_identity(rows: list[tuple[int, int, int]], seed: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    spans = spans_of(rows)
    longest = int(spans.total.max())
    hidden = torch.randn(len(rows), longest, DIM, generator=generator)
    weights = torch.rand(len(rows), longest, generator=generator) if weighted else None
    target = destinations(spans, Fraction(1))
    merged = merge_tokens(hidden, target, longest, weights)
    real = target >= 0
    assert torch.equal(merged[real], hidden[real])


@given(length=st.integers(0, 3000), step=steps)
def test_group_count_counts_the_groups(length: int, step: Fraction) -> None:
    expected = len({math.floor(j * step) for j in range(length)})
    assert group_count(torch.tensor([length]), step).tolist() == [expected]


@given(length=st.integers(0, 3000), k=st.integers(1, 16))
def test_unit_fractions_group_as_published(length: int, k: int) -> None:
    """The release groups k at a time, in order, the last group short: ceil(length / k) remain."""
    assert group_count(torch.tensor([length]), Fraction(1, k)).tolist() == [math.ceil(length / k)]
    spans = spans_of([(1, length, 0)])
    assert destinations(spans, Fraction(1, k))[0, 1:].tolist() == [1 + j // k for j in range(length)]


def test_only_the_passage_merges() -> None:
    spans = spans_of([(2, 6, 3)])
    target = destinations(spans, Fraction(1, 3))[0]
    assert target.tolist() == [0, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6]
    after = spans.merged(Fraction(1, 3))
    assert (after.query.tolist(), after.passage.tolist(), after.prompt.tolist()) == ([2], [2], [3])


def test_bfloat16_states_are_summed_in_float32() -> None:
    """512 equal states average to themselves; summed in bfloat16 they would stick at 256 times one share."""
    hidden = torch.full((1, 512, 1), 1.0, dtype=torch.bfloat16)
    merged = merge_tokens(hidden, torch.zeros(1, 512, dtype=torch.long), 1, torch.full((1, 512), 0.001))
    assert merged.dtype == torch.bfloat16
    assert merged.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_devices_without_weighted_bags_merge_alike(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = spans_of([(2, 9, 1), (1, 0, 1), (3, 4, 2)])
    target = destinations(spans, Fraction(2, 5))
    hidden = torch.randn(3, 12, DIM, generator=torch.Generator().manual_seed(0)).to(dtype)
    weights = torch.rand(3, 12, generator=torch.Generator().manual_seed(1))
    bags = merge_tokens(hidden, target, 8, weights)
    monkeypatch.setattr("mrr_model.modeling.merging.BAG_DEVICES", ())
    torch.testing.assert_close(merge_tokens(hidden, target, 8, weights), bags)


def test_padding_has_no_weight() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [1e30]]])
    target = torch.tensor([[0, 0, -1]])
    assert merge_tokens(hidden, target, 1, None).flatten().tolist() == [2.0]
    assert merge_tokens(hidden, target, 1, torch.tensor([[1.0, 1.0, 1e30]])).flatten().tolist() == [2.0]


def test_gradients_flow_to_states_and_weights() -> None:
    hidden = torch.tensor([[[1.0], [3.0]]], requires_grad=True)
    weights = torch.tensor([[3.0, 1.0]], requires_grad=True)
    merged = merge_tokens(hidden, torch.zeros(1, 2, dtype=torch.long), 1, weights)
    to_hidden, to_weights = torch.autograd.grad(merged.sum(), (hidden, weights))
    assert to_hidden.flatten().tolist() == [0.75, 0.25]  # the shares
    # d/dw_j of Σ w h / Σ w is (h_j − mean) / Σ w; the mean is 1.5.
    assert to_weights.flatten().tolist() == [-0.125, 0.375]


@given(rows=batches, seed=seeds, padding=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_span_means_equal_the_loop(rows: list[tuple[int, int, int]], seed: int, padding: int) -> None:
    size = max(map(sum, rows)) + padding
    hidden = torch.randn(len(rows), size, DIM, generator=torch.Generator().manual_seed(seed))
    for row, states, found in zip(rows, hidden, span_means(hidden, spans_of(rows)), strict=True):
        query, passage, _ = row
        for members, mean in zip((states[1:query], states[query : query + passage]), found, strict=True):
            expected = members.mean(0) if len(members) else torch.zeros(DIM)
            torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


def test_span_means_are_float32() -> None:
    assert span_means(torch.ones(1, 4, DIM, dtype=torch.bfloat16), spans_of([(2, 2, 0)])).dtype == torch.float32


def ones_of(spans: Spans, padding: int = 0) -> Tensor:
    """One token for each state, 0 for padding: what stands before the first merge."""
    return (torch.arange(int(spans.total.max()) + padding)[None] < spans.total[:, None]).long()


@given(rows=batches, merges=st.lists(steps, max_size=3), padding=st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_counts_and_positions_equal_the_loop(
    rows: list[tuple[int, int, int]], merges: list[Fraction], padding: int
) -> None:
    spans = spans_of(rows)
    spans = replace(spans, device_lengths=spans.lengths())
    counts = ones_of(spans, padding)
    members = [[[token] for token in range(sum(row))] for row in rows]  # the tokens that each state stands for
    for step in merges:
        for index, (query, passage, prompt) in enumerate(spans.lengths().T.tolist()):
            targets = slow_targets(query, passage, prompt, step)
            merged: list[list[int]] = [[] for _ in range(max(targets) + 1)]
            for tokens, target in zip(members[index], targets, strict=True):
                merged[target] += tokens
            members[index] = merged
        target = destinations(spans, step, counts.shape[1])
        spans = spans.merged(step)
        counts = merged_counts(counts, target, int(spans.total.max()) + padding)
        assert spans.device_lengths is not None
        assert spans.device_lengths.equal(spans.lengths())
    assert counts.sum(1).tolist() == [sum(row) for row in rows]
    positions = middle_positions(counts)
    for row, found, at, states in zip(rows, counts.tolist(), positions.tolist(), members, strict=True):
        empty = len(found) - len(states)
        assert found == [len(tokens) for tokens in states] + [0] * empty
        assert at == [sum(tokens) // len(tokens) for tokens in states] + [sum(row) - 1] * empty


@given(rows=batches, merges=st.lists(steps, min_size=1, max_size=3), seed=seeds)
@settings(max_examples=60, deadline=None)
def test_merges_weighted_by_counts_keep_the_mean(
    rows: list[tuple[int, int, int]], merges: list[Fraction], seed: int
) -> None:
    spans = spans_of(rows)
    counts = ones_of(spans)
    hidden = torch.randn(*counts.shape, DIM, generator=torch.Generator().manual_seed(seed))
    expected = token_mean(hidden, counts)
    for step in merges:
        target = destinations(spans, step, counts.shape[1])
        spans = spans.merged(step)
        size = int(spans.total.max())
        hidden, counts = merge_tokens(hidden, target, size, counts), merged_counts(counts, target, size)
    torch.testing.assert_close(token_mean(hidden, counts), expected, atol=1e-5, rtol=1e-5)


@given(rows=batches, seed=seeds, padding=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_token_mean_equals_the_loop(rows: list[tuple[int, int, int]], seed: int, padding: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    valid = ones_of(spans_of(rows), padding)
    counts = valid * torch.randint(1, 9, valid.shape, generator=generator)
    states = torch.randn(*counts.shape, DIM, generator=generator)
    for row, each, found in zip(rows, zip(states, counts, strict=True), token_mean(states, counts), strict=True):
        repeated = [state for state, count in zip(*each, strict=True) for _ in range(int(count))]
        assert len(repeated) >= sum(row)
        torch.testing.assert_close(found, torch.stack(repeated).mean(0), atol=1e-5, rtol=1e-5)


def test_token_means_are_float32() -> None:
    states = torch.ones(1, 600, DIM, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        mean = token_mean(states, torch.ones(1, 600, dtype=torch.long))
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean, torch.ones(1, DIM))
