"""Cascades simulated on known logits, and margins fitted to them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mrr_model import Compression
from mrr_model.cascade import Cascade
from mrr_model.data.run import break_ties
from mrr_model.evaluation import cascades
from mrr_model.evaluation.cascades import (
    CascadedSetting,
    ExitCosts,
    ExitLogits,
    cascade_run,
    fit_margins,
    loses,
    measured_of,
    share_lost,
    simulate,
)
from mrr_model.selection.profile import ProfileCascade, ProfilePoint

EXITS = (2, 3, 4, 6)
COSTS = ExitCosts(stop=np.array([1.2, 2.2, 3.2, 5.2]), read=np.array([0.01, 0.01, 0.01, 0.0]))
CASCADES = (
    Cascade({2: 1.5, 4: 0.5}),
    Cascade({2: 0.0}, top_n=3),
    Cascade({2: 1e6, 3: 1e6, 4: 1e6}),
    Cascade({2: 5, 3: 5, 4: 2}, by="count"),
    Cascade({3: 1}, by="count"),
)


def query_logits(candidates: int, rng: np.random.Generator, *, decimals: int = 1) -> NDArray[np.float64]:
    """Logits that settle with depth, with some ties: (N, E)."""
    final = rng.normal(size=(candidates, 1)) * 3
    noise = rng.normal(size=(candidates, len(EXITS))) * np.array([1.5, 1.0, 0.6, 0.0])
    return np.round(final + noise, decimals)


def collection_of(queries: int, *, seed: int = 0, candidates: int = 30, decimals: int = 3) -> ExitLogits:
    rng = np.random.default_rng(seed)
    return ExitLogits(
        EXITS, {f"q{number}": query_logits(candidates, rng, decimals=decimals) for number in range(queries)}
    )


# Simulated


def slowly(cascade: Cascade, logits: NDArray[np.float64], top_n: int | None) -> tuple[list[int], list[int]]:
    """The exit that each document reaches and the order, document by document."""
    running, reached = list(range(len(logits))), [EXITS[-1]] * len(logits)
    for exit_layer, number in cascade.stages:
        column = EXITS.index(exit_layer)
        best_first = sorted(running, key=lambda index: (-logits[index, column], index))
        rank = int(number) if cascade.by == "count" else cascade.rank(top_n)
        if len(running) <= rank:
            continue
        if cascade.by == "count":
            kept = set(best_first[:rank])
        else:
            lowest = logits[best_first[rank - 1], column] - number
            kept = {index for index in running if logits[index, column] >= lowest}
        for index in running:
            if index not in kept:
                reached[index] = exit_layer
        running = [index for index in running if index in kept]
    last = [logits[index, EXITS.index(reached[index])] for index in range(len(logits))]
    return reached, sorted(range(len(logits)), key=lambda index: (-reached[index], -last[index], index))


@given(st.integers(0, 25), st.integers(0, 10_000), st.sampled_from(CASCADES), st.sampled_from([None, 1, 3, 10]))
def test_a_simulation_is_the_slow_loop(candidates: int, seed: int, cascade: Cascade, top_n: int | None) -> None:
    logits = query_logits(candidates, np.random.default_rng(seed))
    outcome = simulate(cascade, EXITS, logits, top_n)
    reached, order = slowly(cascade, logits, top_n)
    assert (outcome.reached.tolist(), outcome.order.tolist()) == (reached, order)
    ordered = outcome.scores[outcome.order].tolist()
    assert ordered == sorted(ordered, reverse=True)
    for better, worse in itertools.pairwise(order):
        tied = (
            reached[better] == reached[worse]
            and logits[better, EXITS.index(reached[better])] == (logits[worse, EXITS.index(reached[worse])])
        )
        assert (outcome.scores[better] == outcome.scores[worse]) == tied


@given(st.integers(1, 25), st.integers(0, 10_000))
def test_a_cascade_that_drops_nothing_ranks_as_its_setting(candidates: int, seed: int) -> None:
    logits = query_logits(candidates, np.random.default_rng(seed))
    documents = [f"d{number}" for number in range(candidates)]
    outcome = simulate(Cascade({2: 1e6, 3: 1e6, 4: 1e6}), EXITS, logits, 10)
    own = {"q": dict(zip(documents, logits[:, -1].tolist(), strict=True))}
    run = cascade_run({"q": outcome}, {"q": documents})
    assert list(break_ties(run)["q"]) == list(break_ties(own)["q"])  # ties are broken alike
    assert not loses(outcome.reached, logits[:, -1], 10)


def test_a_query_loses_if_one_of_its_best_was_dropped() -> None:
    final = np.array([3.0, 1.0, 2.0, 2.0])
    assert not loses(np.array([6, 2, 6, 2]), final, top_n=2)  # of equal ones, the first is among the best
    assert loses(np.array([6, 2, 6, 2]), final, top_n=3)
    assert loses(np.array([2, 6, 6, 6]), final, top_n=1)


def test_queries_with_nothing_to_lose_are_not_counted() -> None:
    losing = np.array([[0.0, 0.0, 0.0, 9.0], [5.0, 5.0, 5.0, 1.0], [4.0, 4.0, 4.0, 0.0]])
    quiet = losing[:, ::-1].copy()
    quiet[:, -1] = quiet[:, 0]
    cascade = Cascade({2: 1.0}, top_n=2)
    assert share_lost(cascade, [ExitLogits(EXITS, {"a": losing, "b": losing[1:]})], 2) == 1.0
    assert share_lost(cascade, [ExitLogits(EXITS, {"a": losing}), ExitLogits(EXITS, {"b": quiet})], 2) == 0.5
    assert share_lost(cascade, [ExitLogits(EXITS, {"b": losing[:2], "c": losing[:0]})], 2) is None


# Fitted


@pytest.mark.parametrize("lost", [0.0, 0.01, 0.05, 0.2, 0.5])
@pytest.mark.parametrize("top_n", [1, 5])
def test_fitted_margins_lose_no_more_than_the_share(lost: float, top_n: int) -> None:
    known = [collection_of(300, seed=1), collection_of(200, seed=2, candidates=12)]
    fitted = fit_margins(known, COSTS, top_n=top_n, lost=lost)
    assert fitted is not None
    share = share_lost(fitted.cascade, known, top_n)
    assert share is not None
    assert share <= min(lost, fitted.held_out)  # each query's margins are at least those of the half it is not in
    assert fitted.queries == 500
    assert fitted.cascade.top_n == top_n
    if lost > 0.01:  # of 500 queries, 5 are too few to know
        assert fitted.held_out <= lost
    assert all(round(margin, 2) == margin for _, margin in fitted.cascade.stages)


def mean_flops(cascade: Cascade, known: Sequence[ExitLogits], top_n: int) -> float:
    """By the simulation, document by document."""
    column = {exit_layer: index for index, exit_layer in enumerate(EXITS)}
    taken = []
    for values in (values for each in known for values in each.by_query.values()):
        for reached in simulate(cascade, EXITS, values, top_n).reached.tolist():
            on_the_way = [exit_layer for exit_layer in cascade.exits if exit_layer < reached]
            taken.append(COSTS.stop[column[reached]] + sum(COSTS.read[column[each]] for each in on_the_way))
    return float(np.mean(taken))


def test_the_fit_is_nearly_the_best_of_all_margins() -> None:
    """Against every cascade of a grid that loses as little on the same queries."""
    known, top_n, lost = [collection_of(80, candidates=20)], 3, 0.1
    data = cascades._Data(
        required=np.stack([cascades._required(values, top_n) for values in known[0].by_query.values()]),
        deficits=np.concatenate([cascades._below(values, top_n) for values in known[0].by_query.values()]),
        costs=COSTS,
    )
    shares = cascades._allot(data, lost)
    fitted = data.flops(cascades._margins(data.required, shares))
    grid = [*np.arange(0, 9, 0.5), np.inf]
    best = min(
        data.flops(margins)
        for numbers in itertools.product(grid, repeat=len(EXITS) - 1)
        if cascades._losing(data.required, margins := dict(enumerate(numbers))).mean() <= lost
    )
    assert fitted <= 1.05 * best


def test_the_fits_flops_are_at_least_those_of_the_simulation() -> None:
    """The fit drops by the rank among all documents; documents that are dropped lower the rank among the others."""
    known, margins = [collection_of(60)], {0: 2.0, 1: 1.0, 2: 0.5}
    data = cascades._Data(
        required=np.stack([cascades._required(values, 5) for values in known[0].by_query.values()]),
        deficits=np.concatenate([cascades._below(values, 5) for values in known[0].by_query.values()]),
        costs=COSTS,
    )
    cascade = Cascade({EXITS[column]: margin for column, margin in margins.items()}, top_n=5)
    lost = share_lost(cascade, known, 5)
    assert lost is not None
    assert lost <= cascades._losing(data.required, margins).mean()
    assert data.flops(margins) == pytest.approx(mean_flops(cascade, known, 5), rel=0.05)


def test_a_larger_share_never_costs_more_nor_needs_larger_margins() -> None:
    required = np.random.default_rng(0).exponential(size=(400, 3))
    before = {0: np.inf, 1: np.inf, 2: np.inf}
    for share in (0.0, 0.01, 0.1, 0.5, 1.0):
        margins = cascades._margins(required, dict.fromkeys(range(3), share))
        for column, margin in margins.items():
            assert margin <= before[column]
            assert (required[:, column] > margin).mean() <= share
        before = margins
    assert before == {0: 0.0, 1: 0.0, 2: 0.0}
    known = [collection_of(300)]
    costs = []
    for lost in (0.0, 0.02, 0.1, 0.3):
        fitted = fit_margins(known, COSTS, top_n=5, lost=lost)
        assert fitted is not None
        costs.append(mean_flops(fitted.cascade, known, 5))
    assert costs == sorted(costs, reverse=True)


def test_margins_are_rounded_up() -> None:
    required = np.array([[0.251], [0.25], [1.004], [0.0]])
    found = [cascades._margins(required, {0: share})[0] for share in (0.0, 0.25, 0.5, 0.75)]
    assert found == [1.01, 0.26, 0.26, 0.0]


def test_the_same_seed_fits_the_same_margins() -> None:
    known = [collection_of(150)]
    first, again = (fit_margins(known, COSTS, top_n=5, lost=0.05, seed=3) for _ in range(2))
    assert first == again


def test_an_exit_that_saves_nothing_is_left_out() -> None:
    useless = ExitCosts(stop=np.array([1.2, 5.2, 3.2, 5.2]), read=np.array([0.01, 0.5, 0.01, 0.0]))
    fitted = fit_margins([collection_of(200)], useless, top_n=5, lost=0.05)
    assert fitted is not None
    assert 3 not in fitted.cascade.exits
    nothing = ExitCosts(stop=np.full(4, 5.2), read=np.zeros(4))
    assert fit_margins([collection_of(200)], nothing, top_n=5, lost=0.05) is None


def test_a_collection_that_loses_more_than_the_others_is_heard() -> None:
    """Half of a small collection's queries would lose, which a share of all queries would hide."""
    easy, hard = collection_of(950, seed=1), collection_of(50, seed=2)
    hard.by_query.update({query: values * np.array([3, 3, 3, 1]) for query, values in hard.by_query.items()})  # type: ignore[attr-defined]
    fitted = fit_margins([easy, hard], COSTS, top_n=5, lost=0.05)
    assert fitted is not None
    own = share_lost(fitted.cascade, [hard], 5)
    assert own is not None
    assert own <= 0.06


@pytest.mark.parametrize(
    "known",
    [
        [ExitLogits((6,), {"a": np.zeros((30, 1)), "b": np.zeros((30, 1))})],
        [collection_of(20, candidates=5)],
        [collection_of(1)],
        [ExitLogits(EXITS, {})],
    ],
    ids=["one exit", "few candidates", "one query", "no query"],
)
def test_without_anything_to_fit_there_is_no_cascade(known: list[ExitLogits]) -> None:
    assert fit_margins(known, COSTS, top_n=10, lost=0.05) is None


# Named


def test_names_tell_cascades_apart_and_are_file_names() -> None:
    full, half = Compression(6, 1.0), Compression(6, 0.5)
    made = [
        CascadedSetting(setting, cascade)
        for setting in (full, half)
        for cascade in (Cascade({2: 3.0}), Cascade({2: 3, 4: 1.5}), Cascade({2: 3, 4: 1}, by="count"))
    ]
    names = [each.file_name for each in made]
    assert len(set(names)) == len(set(map(str, made))) == len(made)
    assert all(name.isascii() and not set(name) & set("/\\:,* ") for name in names)


def test_a_point_says_what_was_measured() -> None:
    facts: dict[str, Any] = {"depth": 6, "quality": 1, "kept": 1, "min_kept": 1, "seconds": 1, "flops": 1}
    assert measured_of(ProfilePoint(**facts)) == Compression(6, 1.0)
    cascade = ProfileCascade(stages={2: 1.0}, top_n=10)
    assert measured_of(ProfilePoint(**facts, cascade=cascade)) == CascadedSetting(
        Compression(6, 1.0), Cascade({2: 1.0}, top_n=10)
    )
