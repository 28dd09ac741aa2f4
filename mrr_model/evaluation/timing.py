"""Time and FLOPs of each setting, on the same sample of whole queries.

The passes over the grid are shared between settings, so their times say nothing about a single setting. Each setting is
timed by itself.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from mrr_model.compression import Compression
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.reranker import MatryoshkaReranker, timing_facts
from mrr_model.selection.latency import Timings, measure_timings, moment, read_timings, store_timings, timings_key

Sample = Sequence[tuple[str, list[str]]]
"""Queries, each with the texts of its candidates."""


def draw_sample(collections: Sequence[Collection], pairs: int, seed: int) -> Sample:
    """Whole queries with their candidates, from each collection in turn, until there are at least `pairs` pairs."""
    rng = random.Random(seed)
    queues = []
    for collection in collections:
        queries = [query for query in collection.queries if collection.candidates[query]]
        rng.shuffle(queries)
        queues.append([(collection, query) for query in queries])
    sample: list[tuple[str, list[str]]] = []
    drawn = 0
    while drawn < pairs and any(queues):
        for queue in queues:
            if queue and drawn < pairs:
                collection, query = queue.pop()
                texts = [collection.corpus[document] for document in collection.candidates[query]]
                sample.append((collection.queries[query], texts))
                drawn += len(texts)
    return sample


def time_grid(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    sample: Sample,
    config: EvaluateConfig,
    report_to: Callable[[str], object],
) -> Timings:
    """Time each setting on the sample.

    Times of an earlier call with the same model, machine, grid and sample are reused, even if they were noisy, unless
    `config.retime` is set.
    """
    facts = timing_facts(reranker)
    key = timings_key(
        facts,
        grid,
        fingerprint=reranker.fingerprint,
        repeats=config.timing_repeats,
        sample=hashlib.sha256(json.dumps(sample).encode()).hexdigest(),
    )
    file = config.output / "timings" / f"{key}.json"
    known = None if config.retime else read_timings(file, grid)
    if known is not None:
        report_to(f"reusing the times of {moment(known.measured_at)}")
        return known
    report_to(f"timing {len(grid)} settings, {config.timing_repeats} times each")
    runs = {setting: _timed_run(reranker, setting, sample) for setting in grid}
    timings = measure_timings(facts, runs, config.timing_repeats)
    store_timings(file, timings)
    return timings


def sample_flops(reranker: MatryoshkaReranker, setting: Compression, sample: Sample) -> float:
    """FLOPs of scoring the sample at a setting, 2 per multiply-add."""
    plan = reranker.plan(setting.depth, setting.keep_ratio)
    return sum(
        reranker.engine.flops([(query, text) for text in texts], plan, reranker.prompt) for query, texts in sample
    )


def _timed_run(reranker: MatryoshkaReranker, setting: Compression, sample: Sample) -> Callable[[], Any]:
    def run() -> None:
        for query, texts in sample:
            reranker.score(query, texts, **setting.to_kwargs())

    return run
