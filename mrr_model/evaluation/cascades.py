"""Cascades on known logits: which exit each document reaches, and the smallest margins that lose few documents.

Nothing here runs a model: one pass that reads every exit says what any cascade would have done.

Shapes: N candidates of a query, E exits, Q queries, D documents of all queries.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from mrr_model.cascade import Cascade
from mrr_model.compression import Compression
from mrr_model.selection.profile import ProfilePoint

DECIMALS = 2
"""Of a fitted margin. It is rounded up."""
MIN_SAVING = 0.01
"""The share of the setting's FLOPs that each stage must save: a stage takes time beside its FLOPs."""
UNITS = 8
"""Parts in which the share of queries that may lose a document is allotted to the exits."""
SCALES = (2.0, 1.75, 1.5, 1.25, 1.0, 0.75, 0.5, 0.25, 0.0)
"""Multiples of that share that are tried, largest first. A query may lose a document at several exits and counts once,
so the shares of the exits may add up to more; held-out queries lose more than those that were fitted, so less may be
needed."""
MAX_DOCUMENTS = 50_000
"""Documents on which the search compares FLOPs, at most; sampled."""


@dataclass(frozen=True)
class CascadedSetting:
    """A setting and the cascade that runs to it.

    >>> CascadedSetting(Compression(6, 0.5), Cascade({2: 3.0, 4: 1.0})).file_name
    'depth-6_keep-ratio-0.5_margins-2-3_4-1'
    """

    setting: Compression
    """Where the documents that are left end."""
    cascade: Cascade

    @property
    def file_name(self) -> str:
        """As a part of file names."""
        stages = self.cascade.stages_text.replace(":", "-").replace(",", "_")
        return f"{self.setting.file_name}_{self.cascade.by}s-{stages}"

    def __str__(self) -> str:
        return f"{self.setting}, {self.cascade}"


Measured = Compression | CascadedSetting
"""What an evaluation measures: a setting, alone or with a cascade."""


def measured_of(point: ProfilePoint) -> Measured:
    """What a profile's point was measured at."""
    return point.setting if point.cascade is None else CascadedSetting(point.setting, point.cascade.cascade)


@dataclass(frozen=True)
class ExitLogits:
    """A collection's logits at every exit of one pass."""

    exits: tuple[int, ...]
    """Ascending; the last is the setting's own."""
    by_query: Mapping[str, NDArray[np.float64]]
    """Query id -> logits (N, E), in the order of the candidates."""


@dataclass(frozen=True)
class Outcome:
    """What a cascade does with the candidates of one query."""

    reached: NDArray[np.int_]
    """The exit that each was read at last, (N,)."""
    order: NDArray[np.int_]
    """Their indices, best first: those that went deeper, then by logit; equal ones keep their order. (N,)"""
    scores: NDArray[np.float64]
    """Numbers in the same order, (N,): minus the number of better places, equal for equal logits at the same exit."""


@dataclass(frozen=True)
class ExitCosts:
    """FLOPs of a document in the pass of a final setting."""

    stop: NDArray[np.float64]
    """If it stops at an exit, (E,)."""
    read: NDArray[np.float64]
    """Of reading an exit on the way to a deeper one, (E,)."""


@dataclass(frozen=True)
class FittedMargins:
    """Margins, and how they did on queries that they were not fitted on."""

    cascade: Cascade
    held_out: float
    """The share of queries that lost a document, of each half with the margins of the other."""
    queries: int
    """How many could: those with more candidates than the rank that margins are measured from."""


def simulate(cascade: Cascade, exits: Sequence[int], logits: NDArray[np.float64], top_n: int | None = None) -> Outcome:
    """Run a cascade on the logits of one query's candidates.

    Args:
        cascade: Its exits are among `exits`.
        exits: Of the logits' columns, ascending.
        logits: (N, E).
        top_n: How many documents the call returns; None for all.

    Example:
        >>> outcome = simulate(Cascade({2: 1.0}), (2, 6), np.array([[0.0, 9.0], [3.0, 1.0], [2.5, 2.0]]), top_n=1)
        >>> outcome.reached.tolist(), outcome.order.tolist()
        ([2, 6, 6], [2, 1, 0])
    """
    column = {exit_layer: index for index, exit_layer in enumerate(exits)}
    reached, running = np.full(len(logits), exits[-1]), np.arange(len(logits))
    for exit_layer in cascade.exits:
        survived = cascade.survivors(exit_layer, logits[running, column[exit_layer]], top_n)
        reached[running[~survived]] = exit_layer
        running = running[survived]
    read = logits[np.arange(len(logits)), [column[exit_layer] for exit_layer in reached]]
    order = np.lexsort((-read, -reached))  # stable
    ranked = np.stack([reached, read], axis=1)[order]
    new = np.any(ranked[1:] != ranked[:-1], axis=1)
    scores = np.empty(len(logits))
    scores[order] = -np.concatenate([[0], np.cumsum(new)])[: len(logits)]
    return Outcome(reached, order, scores)


def loses(reached: NDArray[np.int_], final: NDArray[np.float64], top_n: int) -> bool:
    """Whether one of the `top_n` best documents of the final setting was dropped on the way.

    Args:
        reached: The exit that each document reached, (N,).
        final: Their logits at the final exit, (N,); of equal ones, the first counts as better.
        top_n: The rank.

    Example:
        >>> loses(np.array([2, 6, 6]), np.array([9.0, 1.0, 2.0]), top_n=1)
        True
    """
    best = np.argsort(-final, kind="stable")[:top_n]
    return bool(len(best) and reached[best].min() < reached.max())


def cascade_run(
    outcomes: Mapping[str, Outcome], candidates: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, float]]:
    """A cascade's ranking as a run. Logits of different exits do not compare, so the scores are places."""
    return {
        query: dict(zip(candidates[query], outcome.scores.tolist(), strict=True)) for query, outcome in outcomes.items()
    }


def share_lost(cascade: Cascade, logits: Sequence[ExitLogits], top_n: int) -> float | None:
    """The share of queries that lose a document of the final setting's `top_n`.

    Queries with at most `top_n` candidates have nothing to lose: their documents are those best ones whatever the
    cascade does. They are not counted, since each would hide a query that does lose.

    Args:
        cascade: What runs.
        logits: Of each collection.
        top_n: The rank.

    Returns:
        None if no query has more candidates.
    """
    lost = [
        loses(simulate(cascade, each.exits, values, top_n).reached, values[:, -1], top_n)
        for each in logits
        for values in each.by_query.values()
        if len(values) > top_n
    ]
    return sum(lost) / len(lost) if lost else None


def fit_margins(
    logits: Sequence[ExitLogits], costs: ExitCosts, *, top_n: int, lost: float, seed: int = 0
) -> FittedMargins | None:
    """The cascade with the fewest FLOPs with which few queries lose a document of the final setting's `top_n`.

    A query loses at an exit if a document of the final top lies further below the exit's own `top_n`-th best than the
    margin. (Fewer documents reach later exits, which lowers their `top_n`-th best: a cascade loses no more than that.)
    An exit's margin is the smallest with which at most its share of the queries lose there. The shares are allotted so
    that FLOPs are fewest; exits that save too little are left out.

    The queries of each collection are split into random halves, and margins are fitted on each half. A fit holds if, of
    each collection and of all, at most the share `lost` of the queries lose a document with the margins of the half
    that they are not in (one query of a small collection may); the largest shares that hold are used. The larger of
    both halves' margins is returned, which loses no more than either.

    Args:
        logits: Of each collection, at the same exits. Queries with at most `top_n` candidates are left out: they have
            nothing to lose, so they would loosen the margins of the others.
        costs: Of a document.
        top_n: The rank of what is not to be lost, and that margins are measured from.
        lost: The share of the queries that may lose a document.
        seed: Of the halves.

    Returns:
        None if no cascade saves anything, or no query has enough candidates.
    """
    exits = logits[0].exits
    rng = np.random.default_rng(seed)
    queries = [
        (collection, values)
        for collection, each in enumerate(logits)
        for values in each.by_query.values()
        if len(values) > top_n
    ]
    if len(exits) < 2 or len(queries) < 2:
        return None
    data = _Data(
        required=np.stack([_required(values, top_n) for _, values in queries]),
        deficits=_sampled(np.concatenate([_below(values, top_n) for _, values in queries]), rng),
        costs=costs,
    )
    collections = np.array([collection for collection, _ in queries])
    half = _halves(collections, rng)
    for scale in SCALES:
        shares = _allot(data, lost * scale)
        if not shares:
            return None
        fitted = [_margins(data.required[half == number], shares) for number in (0, 1)]
        held_out = np.where(half, *(_losing(data.required, margins) for margins in fitted))  # 1 is tested with 0's
        if _holds(held_out, collections, lost):
            break
    larger = {exits[column]: max(each[column] for each in fitted) for column in shares}
    return FittedMargins(Cascade(larger, top_n=top_n), float(held_out.mean()), len(queries))


@dataclass(frozen=True)
class _Data:
    """What margins are fitted to."""

    required: NDArray[np.float64]
    """The margin with which a query loses nothing at an exit, (Q, E − 1)."""
    deficits: NDArray[np.float64]
    """How far a document lies below its query's best at an exit, (D, E − 1)."""
    costs: ExitCosts

    def flops(self, margins: Mapping[int, float]) -> float:
        """Per document, with a margin by column."""
        total, running = 0.0, self.deficits
        for column in sorted(margins):
            survived = running[:, column] <= margins[column]
            survivors = int(survived.sum())
            total += (len(running) - survivors) * self.costs.stop[column] + survivors * self.costs.read[column]
            running = running[survived]
        return float(total + len(running) * self.costs.stop[-1]) / len(self.deficits)


Shares = dict[int, float]
"""Column of an exit -> the share of queries that may lose a document there."""


def _below(values: NDArray[np.float64], top_n: int) -> NDArray[np.float64]:
    """How far each candidate lies below the `top_n`-th best at each exit before the last, (N, E − 1)."""
    best: NDArray[np.float64] = np.sort(values[:, :-1], axis=0)[-top_n]
    return best - values[:, :-1]


def _required(values: NDArray[np.float64], top_n: int) -> NDArray[np.float64]:
    """The margins with which none of the final top is dropped, (E − 1,)."""
    best = np.argsort(-values[:, -1], kind="stable")[:top_n]
    required: NDArray[np.float64] = _below(values, top_n)[best].max(axis=0).clip(min=0)
    return required


def _sampled(deficits: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    if len(deficits) <= MAX_DOCUMENTS:
        return deficits
    return deficits[rng.choice(len(deficits), MAX_DOCUMENTS, replace=False)]


def _halves(collections: NDArray[np.int_], rng: np.random.Generator) -> NDArray[np.int_]:
    """0 or 1 for each query, half of each collection's."""
    half = np.empty(len(collections), dtype=int)
    for collection in np.unique(collections):
        own = rng.permutation(np.flatnonzero(collections == collection))
        half[own] = np.arange(len(own)) % 2
    return half


def _margins(required: NDArray[np.float64], shares: Shares) -> dict[int, float]:
    """By column, the smallest margin with which at most a share of the queries lose; rounded up."""
    margins = {}
    for column, share in shares.items():
        ascending = np.sort(required[:, column])
        allowed = int(share * len(ascending) + 1e-9)
        smallest = ascending[-1 - allowed] if allowed < len(ascending) else 0.0
        if smallest > 0:  # up, and never to the margin itself: the subtraction of a call may round the other way
            smallest = np.ceil(smallest * 10**DECIMALS + 1e-6) / 10**DECIMALS
        margins[column] = float(smallest)
    return margins


def _losing(required: NDArray[np.float64], margins: Mapping[int, float]) -> NDArray[np.bool_]:
    """Which queries lose a document, (Q,)."""
    columns = list(margins)
    above = required[:, columns] > np.array([margins[column] for column in columns])
    return cast(NDArray[np.bool_], above.any(axis=1))


def _holds(losing: NDArray[np.bool_], collections: NDArray[np.int_], lost: float) -> bool:
    """Whether few enough queries lose a document, of each collection and of all."""
    own = [losing[collections == collection] for collection in np.unique(collections)]
    return bool(losing.mean() <= lost) and all(each.sum() <= np.ceil(lost * len(each) - 1e-9) for each in own)


def _allot(data: _Data, total: float) -> Shares:
    """Allot a share of the queries to exits so that FLOPs are fewest; exits are added while each saves enough."""
    unused = list(range(data.required.shape[1]))
    chosen: Shares = {}
    fewest = float(data.costs.stop[-1])

    def flops(shares: Shares) -> float:
        return data.flops(_margins(data.required, shares))

    while unused:
        added = min(unused, key=lambda column: flops(_evenly([*chosen, column], total)))
        shares = _exchanged(_evenly([*chosen, added], total), flops, total / UNITS)
        found = flops(shares)
        if fewest - found < MIN_SAVING * data.costs.stop[-1]:
            break
        chosen, fewest = shares, found
        unused.remove(added)
    for column in tuple(chosen):  # a stage may be of little use beside those added after it
        others = [each for each in chosen if each != column]
        if others:
            shares = _exchanged(_evenly(others, total), flops, total / UNITS)
            if flops(shares) - fewest < MIN_SAVING * data.costs.stop[-1]:
                chosen, fewest = shares, flops(shares)
    return chosen


def _evenly(columns: Sequence[int], total: float) -> Shares:
    return {column: total / len(columns) for column in sorted(columns)}


def _exchanged(shares: Shares, flops: Callable[[Shares], float], unit: float) -> Shares:
    """Move units from exit to exit while that saves FLOPs."""
    fewest = flops(shares)
    while True:
        moved = [
            {**shares, giver: shares[giver] - unit, taker: shares[taker] + unit}
            for giver, taker in itertools.permutations(shares, 2)
            if shares[giver] >= unit
        ]
        best = min(moved, key=flops, default=shares)
        if flops(best) >= fewest:
            return shares
        shares, fewest = best, flops(best)
