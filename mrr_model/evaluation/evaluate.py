"""Evaluate a model on collections at a grid of settings: metrics, significance, times, the frontier and a profile.

The output folder:

    logits/COLLECTION/           logits, from which an interrupted evaluation resumes
    timings/                     each setting's times, which the same call reuses
    runs/COLLECTION/SETTING.run  TREC runs
    queries/COLLECTION.jsonl     each query's metrics at each setting
    results.json, table.md       all numbers, and the same as a table
    frontier.png, frontier.svg   quality against time and against FLOPs
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import mean

from mrr_model.compression import Compression
from mrr_model.evaluation.collection import Collection, open_collection
from mrr_model.evaluation.config import EvaluateConfig
from mrr_model.evaluation.grid import Runs, score_grid
from mrr_model.evaluation.metrics import compare, evaluate_run, first_stage_run, parse_metric, write_run
from mrr_model.evaluation.presets import Preset, preset
from mrr_model.evaluation.report import CollectionResult, Evaluation, write_queries, write_results
from mrr_model.evaluation.timing import Sample, draw_sample, sample_flops, time_grid
from mrr_model.files.locks import locked
from mrr_model.reranker import DEFAULT, MatryoshkaReranker
from mrr_model.selection.latency import Timings
from mrr_model.selection.profile import Profile, ProfilePoint

MAX_LENGTH = 512
"""Tokens per pair if neither the config nor a preset says it."""


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
    collections = open_collections(config, report_to)
    results = [
        _collection_result(source, collection, runs, config)
        for source, collection, runs in score_collections(reranker, grid, collections, config)
    ]
    sample = draw_sample(list(collections.values()), config.timing_pairs, config.seed)
    timings = time_grid(reranker, grid, sample, config, report_to)
    profile = _profile(reranker, results, sample, timings, _count_relevant(collections.values()))
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
) -> Iterator[tuple[str, Collection, Runs]]:
    """Score each collection at every setting, with the protocol's prompts; logits are written to the output folder.

    Raises:
        ValueError: If the output folder holds the logits of another evaluation.
    """
    prompts = {source: _prompt(reranker, source, config) for source in collections}
    return score_grid(reranker, grid, collections, config.output / "logits", prompts=prompts)


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


def _collection_result(source: str, collection: Collection, runs: Runs, config: EvaluateConfig) -> CollectionResult:
    """Compute one collection's metrics; write its runs and its queries' values."""
    protocol = _preset_of(config)
    names = config.all_metrics
    if protocol and not config.metrics:
        names = tuple(dict.fromkeys((*names, *protocol.metrics_for(source))))
    full = next(iter(runs))
    metrics = {setting: evaluate_run(names, collection.qrels, run) for setting, run in runs.items()}
    for setting, run in runs.items():
        write_run(config.output / "runs" / collection.name / f"{setting.file_name}.run", run, setting.file_name)
    write_queries(config.output / "queries" / f"{collection.name}.jsonl", metrics)
    return CollectionResult(
        name=collection.name,
        source=source,
        queries=len(collection.queries),
        pairs=sum(map(len, collection.candidates.values())),
        identical_ids=collection.identical_ids,
        first_stage=evaluate_run(names, collection.qrels, first_stage_run(collection.candidates)),
        settings=metrics,
        against_full={
            setting: {name: compare(each.by_query[name], metrics[full].by_query[name]) for name in names}
            for setting, each in metrics.items()
            if setting != full
        },
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
    sample: Sample,
    timings: Timings,
    relevant: int,
) -> Profile:
    """Every setting's quality, time and FLOPs; full size is the first setting."""
    grid, metric = list(results[0].settings), next(iter(results[0].first_stage.mean))
    pairs = [(query, text) for query, texts in sample for text in texts]
    lengths = reranker.engine.token_counts(pairs, reranker.prompt)
    seconds = timings.of(grid)
    quality = {setting: [result.settings[setting].mean[metric] for result in results] for setting in grid}
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
                **setting.to_kwargs(),
                quality=mean(values),
                kept=_share(mean(values), mean(full)),
                min_kept=min(map(_share, values, full)),
                seconds=seconds[setting] / len(pairs),
                flops=sample_flops(reranker, setting, sample) / len(pairs),
            )
            for setting, values in quality.items()
        ),
    )


def _share(value: float, full: float) -> float:
    return value / full if full else 1.0
