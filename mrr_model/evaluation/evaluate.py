"""One evaluation: collections in; runs, measures, significance, times, the frontier and a profile out.

In the output folder:

    kept/COLLECTION/             logits as they come; what a stopped evaluation goes on from
    timings/                     each setting's times, which the same call takes again
    runs/COLLECTION/SETTING.run  TREC runs
    queries/COLLECTION.jsonl     each query's measures at each setting
    results.json, table.md       all numbers, and the same to read
    frontier.png, frontier.svg   quality against time and against FLOPs
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from tqdm import tqdm

from mrr_model import __version__
from mrr_model.compression import Compression
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.grid import Logits, passes, scored
from mrr_model.evaluation.grid import facts_of as logit_facts_of
from mrr_model.evaluation.metrics import Comparison, Measured, compare, measure, parsed, write_run
from mrr_model.evaluation.presets import Preset, preset
from mrr_model.evaluation.report import draw
from mrr_model.files.atomic import write_file
from mrr_model.files.locks import locked
from mrr_model.reranker import DEFAULT, MatryoshkaReranker, timing_facts
from mrr_model.selection.latency import Timings, keep_timings, measure_timings, moment, read_timings, timings_key
from mrr_model.selection.profile import Profile, ProfilePoint

FIRST_STAGE = "first stage"
SIGNIFICANT = 0.05
STAR = f"`*`: differs from full size, p < {SIGNIFICANT} in a paired t-test (not corrected for the number of settings)"
MAX_LENGTH = 512
"""Tokens of a pair where neither the settings nor a preset say it."""
Runs = dict[Compression, Logits]


@dataclass(frozen=True)
class CollectionResult:
    """One collection: the first stage's order and every setting's, measured."""

    name: str
    source: str
    """As the user named it."""
    queries: int
    pairs: int
    identical_ids: int
    """How many candidates were left out because their id is their query's own."""
    first_stage: Measured
    settings: dict[Compression, Measured]
    against_full: dict[Compression, dict[str, Comparison]]
    """Setting -> measure -> its difference to full size, on the same queries."""


@dataclass(frozen=True)
class Evaluation:
    """All collections, and the profile that they make together."""

    collections: tuple[CollectionResult, ...]
    profile: Profile
    weights: str
    """The fingerprint of the weights and adapters that were measured."""

    def markdown(self) -> str:
        """A table with a row a setting: the profile's measure on each collection and in the mean, what it keeps of full
        size, the milliseconds of a pair, the shares of full size's time and FLOPs; what a star means; how many
        queries met their own document among the candidates, which was left out; and whether times are noisy.
        """
        profile = self.profile
        names = [result.name for result in self.collections]
        lines = [
            f"| {profile.metric} | {' | '.join(names)} | mean | of full size | ms a pair | time | FLOPs |",
            "| --- |" + " ---: |" * (len(names) + 5),
        ]
        first = [result.first_stage.mean[profile.metric] for result in self.collections]
        lines.append(f"| {FIRST_STAGE} | {' | '.join(f'{value:.3f}' for value in [*first, mean(first)])} |  |  |  |  |")
        full = profile.full
        for point in profile.points:
            name = "full size" if point == full else str(point.setting)
            cells = [_cell(result, point.setting, profile.metric) for result in self.collections]
            cells += [f"{point.quality:.3f}", f"{point.kept:.1%}", f"{point.seconds * 1000:.2f}"]
            cells += [f"{point.seconds / full.seconds:.0%}", f"{point.flops / full.flops:.0%}"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines += ["", STAR]
        if any(result.identical_ids for result in self.collections):
            counts = ", ".join(f"{result.name} {result.identical_ids}" for result in self.collections)
            lines += ["", f"Candidates left out because their id is the query's own, as in BEIR: {counts}"]
        if profile.noise is not None and profile.noise.noisy:
            lines += ["", f"Times are {profile.noise}; `--retime` measures them again"]
        return "\n".join(lines)


def evaluate(settings: EvaluateConfig, report: Callable[[str], object] = lambda _: None) -> Evaluation:
    """Evaluate, and write everything to ``settings.output``. ``report`` is told what comes next, a line each.

    Raises ``ValueError``, ``OSError`` or ``ImportError`` for what cannot be opened, ``ValueError`` for an output folder
    that belongs to another evaluation, and :class:`~mrr_model.files.locks.FolderInUseError` for one that another
    process writes to.
    """
    with locked(settings.output, "mrr evaluate"):
        return _evaluated(settings, report)


def _evaluated(settings: EvaluateConfig, report: Callable[[str], object]) -> Evaluation:
    for name in settings.all_measures:
        parsed(name)
    reranker = open_reranker(settings)
    grid = settings.grid(reranker.exits, bool(reranker.merge_layers))
    for setting in grid:
        reranker.plan(setting.depth, setting.keep_ratio)  # what the model cannot do shows before anything is scored
    collections = open_collections(settings, report)
    results = [
        _result(source, collection, runs, settings)
        for source, collection, runs in score_grid(reranker, grid, collections, settings)
    ]
    sample = _timing_sample(list(collections.values()), settings)
    timings = _timings(reranker, grid, sample, settings, report)
    profile = _profile(reranker, grid, results, sample, timings, _relevant(collections.values()), settings)
    evaluation = Evaluation(tuple(results), profile, reranker.fingerprint)
    _write(evaluation, reranker, settings)
    return evaluation


def open_reranker(settings: EvaluateConfig) -> MatryoshkaReranker:
    """The model, at the protocol's lengths."""
    protocol = _protocol(settings)
    query_max_length = settings.query_max_length or (protocol.query_max_length if protocol else None)
    reranker = MatryoshkaReranker(
        settings.model,
        depth=None,  # not the checkpoint's own: every setting of the grid is explicit
        keep_ratio=1.0,
        device=settings.device,
        dtype=settings.dtype,
        max_length=settings.max_length or MAX_LENGTH,
        query_max_length=query_max_length,
        prompt=DEFAULT if settings.prompt is None else settings.prompt,
        batch_tokens=settings.batch_tokens,
        local_files_only=settings.local_files_only,
    )
    if protocol and not settings.max_length:
        reranker = reranker.copy(max_length=protocol.max_length_for(reranker.model.backbone.max_tokens))
    return reranker.copy(compensated=False) if settings.without_compensation else reranker


def open_collections(
    settings: EvaluateConfig, report: Callable[[str], object] = lambda _: None
) -> dict[str, Collection]:
    """Source -> collection, as the protocol says. Raises ``ValueError`` for two of one name."""
    protocol = _protocol(settings)
    opened: dict[str, Collection] = {}
    for source in settings.all_collections:
        report(f"opening {source}")
        collection = open_collection(
            source,
            run=settings.run,
            first_stage=settings.first_stage or (protocol.first_stage if protocol else "auto"),
            candidates=settings.candidates or (protocol.candidates if protocol else 100),
            limit=settings.limit_queries,
            seed=settings.seed,
            ignore_identical_ids=settings.leaves_out_identical_ids,
        )
        if not any(collection.candidates.values()):
            raise ValueError(f"{source} has no candidates to re-rank: its first stage found nothing.")
        _check_identifiers(source, collection)
        if collection.name in (other.name for other in opened.values()):
            raise ValueError(f"two collections are called {collection.name!r}: evaluate one of them at a time.")
        opened[source] = collection
    return opened


def _check_identifiers(source: str, collection: Collection) -> None:
    for identifier in (*collection.queries, *chain.from_iterable(collection.candidates.values())):
        if identifier.split() != [identifier]:
            raise ValueError(f"{source}: the id {identifier!r} holds a blank, which TREC runs cannot hold. Rename it.")


def score_grid(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    collections: Mapping[str, Collection],
    settings: EvaluateConfig,
) -> Iterator[tuple[str, Collection, Runs]]:
    """Each collection with its logits at every setting, kept as they come; a progress bar in a terminal."""
    planned = passes(reranker, grid)
    pairs = sum(len(documents) for each in collections.values() for documents in each.candidates.values())
    with tqdm(total=pairs * len(planned), unit="pair", disable=None, smoothing=0.05) as progress:
        for source, collection in collections.items():
            progress.set_description(collection.name)
            prompt, kept = _prompt(reranker, source, settings), settings.output / "kept" / collection.name
            facts = logit_facts_of(reranker, collection, prompt)
            runs: Runs = {}
            for one_pass in planned:
                runs |= scored(reranker, collection, one_pass, kept, prompt=prompt, facts=facts, done=progress.update)
            yield source, collection, {setting: runs[setting] for setting in grid}


def _protocol(settings: EvaluateConfig) -> Preset | None:
    return preset(settings.preset) if settings.preset else None


def _prompt(reranker: MatryoshkaReranker, source: str, settings: EvaluateConfig) -> str | None:
    """The reranker's, which is the one asked for; where none was, the protocol's if the model takes one."""
    protocol = _protocol(settings)
    if settings.prompt is not None or protocol is None or not reranker.model.matryoshka.template.takes_prompt:
        return reranker.prompt
    own = protocol.prompt_for(source)
    return reranker.prompt if own is None else own


def _result(source: str, collection: Collection, runs: Runs, settings: EvaluateConfig) -> CollectionResult:
    """Measure one collection; write its runs and its queries' values."""
    protocol = _protocol(settings)
    asked = settings.all_measures
    if protocol and not settings.measures:
        asked = tuple(dict.fromkeys((*asked, *protocol.measures_for(source))))
    order = {
        query: {document: float(-place) for place, document in enumerate(documents)}
        for query, documents in collection.candidates.items()
    }
    full = next(iter(runs))
    first_stage = measure(asked, collection.qrels, order)
    measured = {setting: measure(asked, collection.qrels, run) for setting, run in runs.items()}
    for setting, run in runs.items():
        write_run(settings.output / "runs" / collection.name / f"{run_name(setting)}.run", run, run_name(setting))
    _write_queries(settings.output / "queries" / f"{collection.name}.jsonl", measured)
    return CollectionResult(
        name=collection.name,
        source=source,
        queries=len(collection.queries),
        pairs=sum(map(len, collection.candidates.values())),
        identical_ids=collection.identical_ids,
        first_stage=first_stage,
        settings=measured,
        against_full={
            setting: {name: compare(each.by_query[name], measured[full].by_query[name]) for name in asked}
            for setting, each in measured.items()
            if setting != full
        },
    )


def run_name(setting: Compression) -> str:
    """A setting as a file's name.

    >>> run_name(Compression(4, {1: 0.5, 2: 0.25}))
    'depth-4_keep-ratio-1-0.5_2-0.25'
    """
    ratio = setting.keep_ratio_text.replace(":", "-").replace(",", "_")
    return f"depth-{setting.depth}_keep-ratio-{ratio}"


def _timings(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    sample: Sequence[tuple[str, list[str]]],
    settings: EvaluateConfig,
    report: Callable[[str], object],
) -> Timings:
    """Each setting's time, alone and on the same whole queries, since the grid's own passes are shared and tell nothing
    of a setting. What was timed for the same call before is taken again, even if it was noisy.
    """
    facts = timing_facts(reranker)
    key = timings_key(
        facts,
        grid,
        fingerprint=reranker.fingerprint,
        repeats=settings.timing_repeats,
        sample=hashlib.sha256(json.dumps(sample).encode()).hexdigest(),
    )
    file = settings.output / "timings" / f"{key}.json"
    known = None if settings.retime else read_timings(file, grid)
    if known is not None:
        report(f"times are those of {moment(known.measured_at)}")
        return known
    report(f"timing {len(grid)} settings, {settings.timing_repeats} times each")
    runs = {setting: _timed_run(reranker, setting, sample) for setting in grid}
    timings = measure_timings(facts, runs, settings.timing_repeats)
    keep_timings(file, timings)
    return timings


def _relevant(collections: Iterable[Collection]) -> int:
    """How many of the candidates are relevant."""
    return sum(
        collection.qrels[query].get(document, 0) > 0
        for collection in collections
        for query, documents in collection.candidates.items()
        for document in documents
    )


def _profile(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    results: Sequence[CollectionResult],
    sample: Sequence[tuple[str, list[str]]],
    timings: Timings,
    relevant: int,
    settings: EvaluateConfig,
) -> Profile:
    """Every setting's quality, time and flops."""
    name = settings.all_measures[0]
    pairs = [(query, text) for query, texts in sample for text in texts]
    seconds = timings.of(grid)
    flops = {setting: _flops(reranker, setting, sample) for setting in grid}
    quality = {setting: mean(result.settings[setting].mean[name] for result in results) for setting in grid}
    full = quality[grid[0]]
    lengths = reranker.engine.token_counts(pairs, reranker.prompt)
    return Profile(
        metric=name,
        collections=tuple(result.name for result in results),
        queries=sum(result.queries for result in results),
        query_tokens=max(1, round(mean(query for query, _ in lengths))),
        passage_tokens=round(mean(passage for _, passage in lengths)),
        device=timings.device,
        dtype=timings.dtype,
        threads=timings.threads,
        relevant=relevant,
        measured_at=timings.measured_at,
        versions=timings.versions,
        noise=timings.noise,
        points=tuple(
            ProfilePoint(
                depth=setting.depth,
                keep_ratio=setting.keep_ratio if isinstance(setting.keep_ratio, float) else dict(setting.keep_ratio),
                quality=quality[setting],
                kept=_share(quality[setting], full),
                min_kept=min(
                    _share(each.settings[setting].mean[name], each.settings[grid[0]].mean[name]) for each in results
                ),
                seconds=seconds[setting] / len(pairs),
                flops=flops[setting] / len(pairs),
            )
            for setting in grid
        ),
    )


def _share(value: float, full: float) -> float:
    return value / full if full else 1.0


def _timing_sample(collections: Sequence[Collection], settings: EvaluateConfig) -> list[tuple[str, list[str]]]:
    """Whole queries with their passages, by turns from each collection, until there are pairs enough."""
    rng = random.Random(settings.seed)
    queues = []
    for collection in collections:
        queries = [query for query in collection.queries if collection.candidates[query]]
        rng.shuffle(queries)
        queues.append([(collection, query) for query in queries])
    sample: list[tuple[str, list[str]]] = []
    pairs = 0
    while pairs < settings.timing_pairs and any(queues):
        for queue in queues:
            if queue and pairs < settings.timing_pairs:
                collection, query = queue.pop()
                texts = [collection.corpus[document] for document in collection.candidates[query]]
                sample.append((collection.queries[query], texts))
                pairs += len(texts)
    return sample


def _timed_run(
    reranker: MatryoshkaReranker, setting: Compression, sample: Sequence[tuple[str, list[str]]]
) -> Callable[[], Any]:
    def run() -> None:
        for query, texts in sample:
            reranker.score(query, texts, depth=setting.depth, keep_ratio=setting.keep_ratio)

    return run


def _flops(reranker: MatryoshkaReranker, setting: Compression, sample: Sequence[tuple[str, list[str]]]) -> float:
    plan = reranker.plan(setting.depth, setting.keep_ratio)
    return sum(
        reranker.engine.flops([(query, text) for text in texts], plan, reranker.prompt) for query, texts in sample
    )


def _cell(result: CollectionResult, setting: Compression, name: str) -> str:
    compared = result.against_full.get(setting, {}).get(name)
    star = "*" if compared is not None and compared.p_value < SIGNIFICANT else ""
    return f"{result.settings[setting].mean[name]:.3f}{star}"


def _write_queries(path: Path, measured: Mapping[Compression, Measured]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "setting": run_name(setting),
            "query": query,
            **{name: by_query[query] for name, by_query in each.by_query.items()},
        }
        for setting, each in measured.items()
        for query in next(iter(each.by_query.values()))
    ]
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: null in its place."""
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _write(evaluation: Evaluation, reranker: MatryoshkaReranker, settings: EvaluateConfig) -> None:
    """results.json, table.md and the pictures."""
    output, profile = settings.output, evaluation.profile
    results = {
        "model": str(reranker.name),
        "seed": settings.seed,
        "ignore_identical_ids": settings.leaves_out_identical_ids,
        "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "profile": profile.model_dump(mode="json"),
        "collections": [
            {
                "name": result.name,
                "source": result.source,
                "queries": result.queries,
                "pairs": result.pairs,
                "identical_ids_left_out": result.identical_ids,
                "first_stage": result.first_stage.mean,
                "settings": {run_name(setting): each.mean for setting, each in result.settings.items()},
                "against_full": {
                    run_name(setting): {name: _without_nan(asdict(compared)) for name, compared in each.items()}
                    for setting, each in result.against_full.items()
                },
            }
            for result in evaluation.collections
        ],
    }
    write_file(output / "results.json", json.dumps(results, indent=1) + "\n")
    write_file(output / "table.md", evaluation.markdown() + "\n")
    title = f"{reranker.name}: {', '.join(profile.collections)} ({profile.queries} queries)"
    draw(profile, title, [output / "frontier.png", output / "frontier.svg"])
