"""Evaluate a model on collections at a grid of settings: metrics, significance, times, the frontier and a profile.

Cascades take no pass of their own: the passes of the settings that they run to read all exits.

The output folder:

    logits/COLLECTION/           logits, from which an interrupted evaluation resumes
    timings/                     each setting's times, which the same call reuses
    runs/COLLECTION/SETTING.run  TREC runs; a cascade's scores are places, since logits of different exits don't compare
    queries/COLLECTION.jsonl     each query's metrics at each setting
    results.json, table.md       all numbers, and the same as a table
    frontier.png, frontier.svg   quality against time and against FLOPs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from statistics import mean

from mrr_model.compression import Compression
from mrr_model.data.run import Run
from mrr_model.evaluation.cascades import (
    CascadedSetting,
    ExitLogits,
    Measured,
    cascade_run,
    fit_margins,
    share_lost,
    simulate,
)
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.grid import CollectionLogits, score_grid
from mrr_model.evaluation.metrics import (
    Comparison,
    RunMetrics,
    compare,
    evaluate_run,
    first_stage_run,
    parse_metric,
    write_run,
)
from mrr_model.evaluation.presets import Preset, preset
from mrr_model.evaluation.report import CollectionResult, Evaluation, write_queries, write_results
from mrr_model.evaluation.timing import Sample, cascade_flops, draw_sample, exit_costs, sample_flops, time_grid
from mrr_model.files.locks import locked
from mrr_model.reranker import DEFAULT, MatryoshkaReranker
from mrr_model.selection.latency import Timings
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint

MAX_LENGTH = 512
"""Tokens per pair if neither the config nor a preset says it."""
COST_QUERIES = 4
"""Queries of the sample on which the costs of exits are compared: they depend on lengths alone."""
CascadeLogits = dict[Compression, dict[str, ExitLogits]]
"""Final setting -> collection's name -> logits at every exit of its pass."""


def evaluate(config: EvaluateConfig, report_to: Callable[[str], object] = lambda _: None) -> Evaluation:
    r"""Evaluate a model on collections, and write everything to `config.output`.

    Call it again with the same config to resume an evaluation that was interrupted.

    Args:
        config: The model, the collections, the grid of settings and the protocol.
        report_to: Called with one line before each long step.

    Returns:
        The results on each collection, and the profile over them.

    Raises:
        ValueError: For a model, a setting, a metric or a collection that cannot be used, and for an output folder that
            holds another evaluation.
        OSError: For a file that is missing or cannot be read or written.
        ImportError: If a library is missing; the message has the command that installs it.
        FolderInUseError: If another process writes to the output folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "qrels.txt").write_text("q1 0 d1 1")
        >>> _ = (folder / "queries.tsv").write_text("q1\twhat do bees make?")
        >>> _ = (folder / "corpus.tsv").write_text("d1\tBees make honey.\nd2\tBears make noise.")
        >>> files = f"qrels={folder}/qrels.txt,queries={folder}/queries.tsv,corpus={folder}/corpus.tsv"
        >>> config = EvaluateConfig(model="mini", collections=(files,), depths=(4, 6), output=folder / "evaluation")
        >>> evaluation = evaluate(config)
        >>> evaluation.profile.metric, evaluation.profile.full.quality
        ('nDCG@10', 1.0)
    """
    with locked(config.output, "mrr evaluate"):
        return _evaluate(config, report_to)


def _evaluate(config: EvaluateConfig, report_to: Callable[[str], object]) -> Evaluation:
    for name in config.all_metrics:
        parse_metric(name)
    reranker = open_reranker(config)
    grid = config.grid(reranker.exits, bool(reranker.merge_layers))
    for setting in grid:
        reranker.plan(setting.depth, setting.keep_ratio)  # a setting that the model lacks is an error before scoring
    for cascade in config.given_cascades:
        cascade.check(reranker.exits, reranker.exits[-1])
    collections = open_collections(config, report_to)
    results: list[CollectionResult] = []
    logits: CascadeLogits = {setting: {} for setting in config.final_settings(grid)}
    for scored in score_collections(reranker, grid, collections, config):
        results.append(_collection_result(scored, config))
        for setting, each in scored.exits.items():
            logits[setting][scored.collection.name] = each
    sample = draw_sample(list(collections.values()), config.pairs_to_time, config.seed)
    cascades = _cascades(reranker, logits, sample, config, report_to)
    results = [
        _with_cascades(result, collections[result.source], logits, tuple(cascades), config) for result in results
    ]
    for result in results:
        write_queries(config.output / "queries" / f"{result.name}.jsonl", result.settings)
    timings = time_grid(reranker, [*grid, *cascades], sample, config, report_to)
    flops: dict[Measured, float] = {setting: sample_flops(reranker, setting, sample) for setting in grid}
    flops |= {
        each: cascade_flops(reranker, each, sample, logits[each.setting], config.cascade_top_n) for each in cascades
    }
    profile = _profile(reranker, results, cascades, sample, timings, flops, _count_relevant(collections.values()))
    evaluation = Evaluation(tuple(results), profile, reranker.fingerprint)
    protocol = {"seed": config.seed, "ignore_identical_ids": config.leaves_out_identical_ids}
    write_results(evaluation, config.output, str(reranker.name), protocol)
    return evaluation


def open_reranker(config: EvaluateConfig) -> MatryoshkaReranker:
    """The model at the protocol's lengths.

    Raises:
        ValueError: For a model or an argument that cannot be used.
        FileNotFoundError: If the model cannot be found.
    """
    protocol = _preset_of(config)
    query_max_length = config.query_max_length or (protocol.query_max_length if protocol else None)
    reranker = MatryoshkaReranker(
        config.model,
        depth=None,  # every setting of the grid is explicit, so the checkpoint's own default plays no part
        keep_ratio=1.0,
        device=config.device,
        dtype=config.dtype,
        max_length=config.max_length or MAX_LENGTH,
        query_max_length=query_max_length,
        prompt=DEFAULT if config.prompt is None else config.prompt,
        batch_tokens=config.batch_tokens,
        local_files_only=config.local_files_only,
        template=config.template,
        answers=config.answers,
    )
    if protocol and not config.max_length:
        reranker = reranker.copy(max_length=protocol.max_length_for(reranker.model.backbone.max_tokens))
    return reranker.copy(compensated=False) if config.without_compensation else reranker


def open_collections(
    config: EvaluateConfig, report_to: Callable[[str], object] = lambda _: None
) -> dict[str, Collection]:
    """Source -> collection, with the protocol's candidates.

    Raises:
        ValueError: For two collections of one name, for one without candidates, for ids that a TREC run cannot hold,
            and as `open_collection`.
        OSError: As `open_collection`.
        ImportError: As `open_collection`.
    """
    protocol = _preset_of(config)
    opened: dict[str, Collection] = {}
    for source in config.all_collections:
        report_to(f"opening {source}")
        collection = open_collection(
            source,
            run=config.run,
            first_stage=config.first_stage or (protocol.first_stage if protocol else "auto"),
            candidates=config.candidates or (protocol.candidates if protocol else 100),
            limit=config.limit_queries,
            seed=config.seed,
            ignore_identical_ids=config.leaves_out_identical_ids,
        )
        if not any(collection.candidates.values()):
            raise ValueError(f"{source} has no candidates to re-rank: its first stage found nothing.")
        _check_ids(source, collection)
        if collection.name in (other.name for other in opened.values()):
            raise ValueError(f"collections: two are called {collection.name!r}. Evaluate them one at a time.")
        opened[source] = collection
    return opened


def score_collections(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    collections: Mapping[str, Collection],
    config: EvaluateConfig,
) -> Iterator[CollectionLogits]:
    """Score each collection at every setting, with the protocol's prompts; logits are written to the output folder.

    The passes of the settings that the config's cascades run to read every exit.

    Raises:
        ValueError: If the output folder holds the logits of another evaluation.
    """
    prompts = {source: _prompt(reranker, source, config) for source in collections}
    folder, final_settings = config.output / "logits", config.final_settings(grid)
    return score_grid(reranker, grid, collections, folder, prompts=prompts, final_settings=final_settings)


def _check_ids(source: str, collection: Collection) -> None:
    for identifier in (*collection.queries, *chain.from_iterable(collection.candidates.values())):
        if identifier.split() != [identifier]:
            raise ValueError(
                f"{source}: the id {identifier!r} contains a space, which TREC runs do not allow. Rename it."
            )


def _preset_of(config: EvaluateConfig) -> Preset | None:
    return preset(config.preset) if config.preset else None


def _prompt(reranker: MatryoshkaReranker, source: str, config: EvaluateConfig) -> str | None:
    """The config's prompt, else the preset's if the template takes one, else the reranker's own."""
    protocol = _preset_of(config)
    if config.prompt is not None or protocol is None or not reranker.model.matryoshka.template.takes_prompt:
        return reranker.prompt
    own = protocol.prompt_for(source)
    return reranker.prompt if own is None else own


def _metric_names(source: str, config: EvaluateConfig) -> tuple[str, ...]:
    protocol = _preset_of(config)
    names = config.all_metrics
    if protocol and not config.metrics:
        names = tuple(dict.fromkeys((*names, *protocol.metrics_for(source))))
    return names


def _collection_result(scored: CollectionLogits, config: EvaluateConfig) -> CollectionResult:
    """Compute one collection's metrics at each setting, and write its runs."""
    collection, names = scored.collection, _metric_names(scored.source, config)
    metrics: dict[Measured, RunMetrics] = {
        setting: _measured(setting, run, collection, names, config) for setting, run in scored.runs.items()
    }
    full = next(iter(scored.runs))
    return CollectionResult(
        name=collection.name,
        source=scored.source,
        queries=len(collection.queries),
        pairs=sum(map(len, collection.candidates.values())),
        identical_ids=collection.identical_ids,
        first_stage=evaluate_run(names, collection.qrels, first_stage_run(collection.candidates)),
        settings=metrics,
        against_full={setting: _against(each, metrics[full]) for setting, each in metrics.items() if setting != full},
    )


def _measured(
    measured: Measured, run: Run, collection: Collection, names: Sequence[str], config: EvaluateConfig
) -> RunMetrics:
    """Compute a run's metrics, and write the run."""
    write_run(config.output / "runs" / collection.name / f"{measured.file_name}.run", run, measured.file_name)
    return evaluate_run(names, collection.qrels, run)


def _against(metrics: RunMetrics, full: RunMetrics) -> dict[str, Comparison]:
    return {name: compare(values, full.by_query[name]) for name, values in metrics.by_query.items()}


def _cascades(
    reranker: MatryoshkaReranker,
    logits: CascadeLogits,
    sample: Sample,
    config: EvaluateConfig,
    report_to: Callable[[str], object],
) -> dict[CascadedSetting, ProfileCascade]:
    """The cascades to measure: those fitted to each final setting, then those given, at full size."""
    top_n = config.cascade_top_n
    found: dict[CascadedSetting, ProfileCascade] = {}
    for setting, by_collection in logits.items() if config.cascade else ():
        known = list(by_collection.values())
        costs = exit_costs(reranker, setting, known[0].exits, sample[:COST_QUERIES])
        fitted = fit_margins(known, costs, top_n=top_n, lost=config.cascade_loss, seed=config.seed)
        if fitted is None:
            report_to(f"no cascade to {setting} saves enough")
        else:
            found[CascadedSetting(setting, fitted.cascade)] = ProfileCascade(
                **fitted.cascade.to_json(), lost=config.cascade_loss, held_out=fitted.held_out, queries=fitted.queries
            )
    for cascade in config.given_cascades:
        full, by_collection = next(iter(logits.items()))
        lost = share_lost(cascade, list(by_collection.values()), top_n)
        given = ProfileCascade(**cascade.to_json(), held_out=lost)
        found.setdefault(CascadedSetting(full, cascade), given)
    return found


def _with_cascades(
    result: CollectionResult,
    collection: Collection,
    logits: CascadeLogits,
    cascades: Sequence[CascadedSetting],
    config: EvaluateConfig,
) -> CollectionResult:
    """Add what the cascades do on a collection to its result."""
    full = next(iter(result.settings.values()))
    metrics: dict[Measured, RunMetrics] = {}
    for each in cascades:
        known = logits[each.setting][collection.name]
        outcomes = {
            query: simulate(each.cascade, known.exits, values, config.cascade_top_n)
            for query, values in known.by_query.items()
        }
        run = cascade_run(outcomes, collection.candidates)
        metrics[each] = _measured(each, run, collection, tuple(full.mean), config)
    return replace(
        result,
        settings={**result.settings, **metrics},
        against_full={**result.against_full, **{each: _against(found, full) for each, found in metrics.items()}},
    )


def _count_relevant(collections: Iterable[Collection]) -> int:
    """The number of relevant candidates."""
    return sum(
        collection.qrels[query].get(document, 0) > 0
        for collection in collections
        for query, documents in collection.candidates.items()
        for document in documents
    )


def _profile(
    reranker: MatryoshkaReranker,
    results: Sequence[CollectionResult],
    cascades: Mapping[CascadedSetting, ProfileCascade],
    sample: Sample,
    timings: Timings,
    flops: Mapping[Measured, float],
    relevant: int,
) -> Profile:
    """The quality, time and FLOPs of every setting and cascade; full size comes first."""
    grid, metric = list(results[0].settings), next(iter(results[0].first_stage.mean))
    pairs = [pair for each in sample for pair in each.pairs]
    lengths = reranker.engine.token_counts(pairs, reranker.prompt)
    seconds = timings.of(grid)
    quality = {measured: [result.settings[measured].mean[metric] for result in results] for measured in grid}
    full = quality[grid[0]]
    return Profile(
        metric=metric,
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
                **_setting_of(measured).to_kwargs(),
                cascade=cascades[measured] if isinstance(measured, CascadedSetting) else None,
                quality=mean(values),
                kept=_share(mean(values), mean(full)),
                min_kept=min(map(_share, values, full)),
                seconds=seconds[measured] / len(pairs),
                flops=flops[measured] / len(pairs),
            )
            for measured, values in quality.items()
        ),
    )


def _share(value: float, full: float) -> float:
    return value / full if full else 1.0


def _setting_of(measured: Measured) -> Compression:
    return measured.setting if isinstance(measured, CascadedSetting) else measured
