"""Which documents stay in the running, against a slow simulation with dictionaries and sorting."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mrr_model import Cascade
from mrr_model.inference.candidates import NOT_READ, Candidates, Reached

EXITS = (2, 4, 6)
ROWS = 8
DOCUMENT = st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=3, unique=True)
REQUESTS = st.lists(st.lists(DOCUMENT, max_size=6), min_size=1, max_size=3)
LOGITS = st.lists(
    st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, 4.0]), min_size=ROWS, max_size=ROWS),
    min_size=len(EXITS),
    max_size=len(EXITS),
)
CASCADES = st.one_of(
    st.none(),
    st.builds(lambda one, two: Cascade({2: one, 4: two}), st.floats(0, 3), st.floats(0, 3)),
    st.builds(
        lambda one, two: Cascade({2: max(one, two), 4: min(one, two)}, "count"), st.integers(1, 5), st.integers(1, 5)
    ),
    st.builds(lambda one: Cascade({4: one}), st.floats(0, 3)),
)


def slow_reached(
    documents: list[list[int]], logits: list[list[float]], cascade: Cascade | None, top_n: int | None
) -> list[Reached]:
    """One request's documents, by the words of `Cascade`'s docstring."""
    windows = {index: dict(enumerate(rows)) for index, rows in enumerate(documents)}  # those that still run
    found: dict[int, Reached] = {}
    for exit_layer, values in zip(EXITS, logits, strict=True):
        for index, own in windows.items():
            window = max(own, key=lambda window: (values[own[window]], -window))
            found[index] = Reached(exit_layer, values[own[window]], window)
        if cascade is None or exit_layer not in cascade.exits:
            continue
        best = {index: found[index].logit for index in windows}
        order = sorted(best, key=lambda index: (-best[index], index))
        number = dict(cascade.stages)[exit_layer]
        rank = int(number) if cascade.by == "count" else top_n or 10
        bar = -math.inf
        if len(order) > rank:
            bar = best[order[rank - 1]] - (0 if cascade.by == "count" else number)
        kept = order[:rank] if cascade.by == "count" else [index for index in order if best[index] >= bar]
        windows = {
            index: {window: row for window, row in windows[index].items() if values[row] >= bar}
            for index in sorted(kept)
        }
    return [found[index] for index in range(len(documents))]


@settings(max_examples=300)
@given(requests=REQUESTS, logits=LOGITS, cascade=CASCADES, top_n=st.one_of(st.none(), st.integers(1, 4)))
def test_documents_reach_what_a_slow_loop_says_whatever_other_requests_share_their_rows(
    requests: list[list[list[int]]], logits: list[list[float]], cascade: Cascade | None, top_n: int | None
) -> None:
    candidates = Candidates(requests, ROWS, cascade, top_n)
    for exit_layer, values in zip(EXITS, logits, strict=True):
        rows = candidates.alive().nonzero()[0].tolist()
        half = len(rows) // 2
        candidates.read(exit_layer, rows[:half], [values[row] for row in rows[:half]])
        provisional = candidates.running(exit_layer)
        candidates.read(exit_layer, rows[half:], [values[row] for row in rows[half:]])
        candidates.drop(exit_layer)
        left = candidates.alive()
        assert not (left & ~provisional).any()  # whoever stops among half of them stops among all
    assert candidates.reached() == [slow_reached(request, logits, cascade, top_n) for request in requests]


def test_what_a_stage_has_not_reached_keeps_its_last_logit() -> None:
    candidates = Candidates([[[0], [1], [2]]], 3)
    assert candidates.reached() == [[NOT_READ] * 3]
    candidates.read(2, [0, 1], [1.0, 2.0])
    candidates.settle()
    assert candidates.reached() == [[Reached(2, 1.0, 0), Reached(2, 2.0, 0), NOT_READ]]
    candidates.read(4, [1], [-1.0])
    candidates.settle()
    assert candidates.reached() == [[Reached(2, 1.0, 0), Reached(4, -1.0, 0), NOT_READ]]


def test_windows_stop_one_by_one() -> None:
    candidates = Candidates([[[0, 1], [2], [3, 4]]], 5, Cascade({2: 1.0}), top_n=2)
    candidates.read(2, range(5), [3.0, 0.5, 2.0, 1.5, -4.0])
    candidates.drop(2)
    assert candidates.alive().tolist() == [True, False, True, True, False]
    assert candidates.promise([0, 2, 3]) == [0, 2, 3]
    candidates.read(6, [0, 2, 3], [-1.0, 0.0, 9.0])
    candidates.drop(6)
    assert candidates.reached() == [[Reached(6, -1.0, 0), Reached(6, 0.0, 0), Reached(6, 9.0, 0)]]


def test_a_window_at_the_bar_waits_for_the_others_of_its_document() -> None:
    candidates = Candidates([[[0], [1], [2, 3]]], 4, Cascade({2: 2}, by="count"))
    candidates.read(2, [0, 1, 2], [5.0, 5.0, 5.0])
    assert candidates.running(2).all()
    candidates.read(2, [3], [6.0])
    candidates.drop(2)
    assert candidates.alive().tolist() == [True, False, True, True]


@pytest.mark.parametrize("requests", [[], [[]], [[], [[0]]]])
def test_requests_without_documents(requests: Any) -> None:
    candidates = Candidates(requests, 1, Cascade({2: 0.0}), top_n=1)
    candidates.read(2, [0], [1.0])
    candidates.drop(2)
    assert [len(request) for request in candidates.reached()] == [len(request) for request in requests]


def test_a_logit_that_is_no_number_is_shown() -> None:
    candidates = Candidates([[[0], [1, 2]]], 3, Cascade({2: 0.0}), top_n=1)
    candidates.read(2, [0, 1, 2], [1.0, 0.5, math.nan])
    candidates.drop(2)
    assert math.isnan(candidates.reached()[0][1].logit)
