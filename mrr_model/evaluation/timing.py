"""Time and FLOPs of each setting, on the same sample of whole queries.

The passes over the grid are shared between settings, so their times say nothing about a single setting. Each setting is
timed by itself.

A setting's time depends on the lengths of the pairs, which differ little from query to query. A cascade's depends on
how many documents of each query survive, which differs much. So cascades need a sample of more queries
(`CASCADE_TIMING_PAIRS`); since times are compared, all settings are then timed on it. Evaluations without cascades keep
the small one.

Shapes: E exits.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mrr_model.compression import Compression
from mrr_model.evaluation.cascades import CascadedSetting, ExitCosts, ExitLogits, Measured, simulate
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.reranker import MatryoshkaReranker, timing_facts
from mrr_model.selection.latency import Timings, measure_timings, moment, read_timings, store_timings, timings_key


@dataclass(frozen=True)
class SampledQuery:
    """A query with all its candidates."""

    collection: str
    """The collection's name."""
    identifier: str
    """The query's id there."""
    text: str
    documents: list[str]
    """The candidates' texts."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(query, document) for each candidate."""
        return [(self.text, document) for document in self.documents]


Sample = Sequence[SampledQuery]


def draw_sample(collections: Sequence[Collection], pairs: int, seed: int) -> Sample:
    """Whole queries with their candidates, from each collection in turn, until there are at least `pairs` pairs."""
    rng = random.Random(seed)
    queues = []
    for collection in collections:
        queries = [query for query in collection.queries if collection.candidates[query]]
        rng.shuffle(queries)
        queues.append([(collection, query) for query in queries])
    sample: list[SampledQuery] = []
    drawn = 0
    while drawn < pairs and any(queues):
        for queue in queues:
            if queue and drawn < pairs:
                collection, query = queue.pop()
                texts = [collection.corpus[document] for document in collection.candidates[query]]
                sample.append(SampledQuery(collection.name, query, collection.queries[query], texts))
                drawn += len(texts)
    return sample


def time_grid(
    reranker: MatryoshkaReranker,
    grid: Sequence[Measured],
    sample: Sample,
    config: EvaluateConfig,
    report_to: Callable[[str], object],
) -> Timings:
    """Time each setting on the sample, and each cascade as `rank` runs it.

    Times of an earlier call with the same model, machine, grid and sample are reused, even if they were noisy, unless
    `config.retime` is set.
    """
    facts = timing_facts(reranker)
    with_cascades = any(isinstance(each, CascadedSetting) for each in grid)
    key = timings_key(
        facts,
        grid,
        fingerprint=reranker.fingerprint,
        repeats=config.timing_repeats,
        sample=hashlib.sha256(json.dumps([(each.text, each.documents) for each in sample]).encode()).hexdigest(),
        **({"top_n": config.cascade_top_n} if with_cascades else {}),
    )
    file = config.output / "timings" / f"{key}.json"
    known = None if config.retime else read_timings(file, grid)
    if known is not None:
        report_to(f"reusing the times of {moment(known.measured_at)}")
        return known
    report_to(f"timing {len(grid)} settings, {config.timing_repeats} times each")
    runs = {measured: _timed_run(reranker, measured, sample, config.cascade_top_n) for measured in grid}
    timings = measure_timings(facts, runs, config.timing_repeats)
    store_timings(file, timings)
    return timings


def sample_flops(reranker: MatryoshkaReranker, setting: Compression, sample: Sample) -> float:
    """FLOPs of scoring the sample at a setting, 2 per multiply-add."""
    plan = reranker.plan(setting.depth, setting.keep_ratio)
    return sum(reranker.engine.flops(each.pairs, plan, reranker.prompt) for each in sample)


def cascade_flops(
    reranker: MatryoshkaReranker,
    cascaded: CascadedSetting,
    sample: Sample,
    logits: Mapping[str, ExitLogits],
    top_n: int,
) -> float:
    """FLOPs of ranking the sample with a cascade, 2 per multiply-add.

    Args:
        reranker: The model.
        cascaded: What runs.
        sample: What it runs on.
        logits: Collection's name -> logits in the pass of the setting, which say the exit that each document reaches.
        top_n: How many documents a call returns.
    """
    plan = reranker.plan(cascaded.setting.depth, cascaded.setting.keep_ratio)
    exits, total = cascaded.cascade.exits, 0.0
    for each in sample:
        known = logits[each.collection]
        reached = simulate(cascaded.cascade, known.exits, known.by_query[each.identifier], top_n).reached.tolist()
        total += reranker.engine.flops(each.pairs, plan, reranker.prompt, exits=exits, reached=reached)
    return total


def exit_costs(reranker: MatryoshkaReranker, setting: Compression, exits: Sequence[int], sample: Sample) -> ExitCosts:
    """A document's FLOPs at each exit of a final setting's pass, averaged over the sample.

    Args:
        reranker: The model.
        setting: The final setting.
        exits: Those of its pass, ascending.
        sample: Any queries with their documents.
    """
    plan = reranker.plan(setting.depth, setting.keep_ratio)

    def flops(reached: int, *on_the_way: int) -> float:
        each = (
            reranker.engine.flops(
                query.pairs, plan, reranker.prompt, exits=on_the_way, reached=[reached] * len(query.documents)
            )
            for query in sample
        )
        return sum(each) / sum(len(query.documents) for query in sample)

    *before, last = exits
    whole = flops(last)
    return ExitCosts(
        stop=np.array([*(flops(exit_layer, exit_layer) for exit_layer in before), whole]),
        read=np.array([*(flops(last, exit_layer) - whole for exit_layer in before), 0.0]),
    )


def _timed_run(reranker: MatryoshkaReranker, measured: Measured, sample: Sample, top_n: int) -> Callable[[], Any]:
    def run() -> None:
        for each in sample:
            if isinstance(measured, CascadedSetting):
                options = measured.setting.to_kwargs()
                reranker.rank(each.text, each.documents, top_n=top_n, cascade=measured.cascade, **options)
            else:
                reranker.score(each.text, each.documents, **measured.to_kwargs())

    return run
