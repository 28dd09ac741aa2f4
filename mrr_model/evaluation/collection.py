"""Open a collection from any source by its name, with the candidates to re-rank.

Sources:

    FOLDER, FOLDER#SPLIT                 a BEIR folder, its files plain or gzipped
    qrels=FILE,queries=FILE,corpus=FILE  TREC files; add run=FILE for a first stage
    beir/scifact/test                    an id of ir_datasets, its split after a / or a #
    BeIR/scifact, BeIR/scifact#test      a dataset on the Hugging Face hub, or a local folder with the hub's structure
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from mrr_model.data.beir import (
    candidates_file,
    list_splits,
    pop_identical_ids,
    read_corpus,
    read_qrels,
    read_queries,
    read_run,
)
from mrr_model.data.bm25 import bm25_run
from mrr_model.data.collection_source import CollectionSource, FirstStage, Run, chosen_split
from mrr_model.data.hub import read_hub
from mrr_model.data.irds import knows, read_irds
from mrr_model.data.naming import looks_like_a_path, split_name
from mrr_model.data.trec import is_trec, read_trec


@dataclass(frozen=True)
class Collection:
    """The judged queries of a collection, with their relevance judgements and the candidates to re-rank."""

    name: str
    """The folder's name, or the name that the collection was opened by."""
    corpus: Mapping[str, str]
    """Document id -> "title text", at least for the candidates; a large collection's texts may stay on disk."""
    queries: dict[str, str]
    """Query id -> text, for the judged queries."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance; 0 means judged and not relevant."""
    candidates: dict[str, list[str]]
    """Query id -> document ids, best first; an empty list if the first stage found nothing."""
    identical_ids: int = 0
    """Number of candidates that were left out because their id is their query's own."""


def open_collection(
    source: str,
    *,
    run: str | Path | None = None,
    first_stage: FirstStage = "auto",
    candidates: int = 100,
    limit: int | None = None,
    seed: int = 0,
    ignore_identical_ids: bool = True,
) -> Collection:
    r"""Open the judged queries of a source, each with its best candidates, best first.

    Candidates of equal score keep the order of a given run; BM25 orders them by id, descending. A query for which the
    first stage finds nothing has no candidates.

    Args:
        source: A BEIR folder, TREC files, an id of ir_datasets or a hub name, as listed at the top of this module.
        run: A TREC run that replaces the source's own.
        first_stage: Where candidates come from.
        candidates: Candidates per query, at most.
        limit: Number of queries to draw with `seed`; None for all that are judged.
        seed: Seed of the draw.
        ignore_identical_ids: Leave out a candidate that has its query's own id, as BEIR does. In collections whose
            queries are documents themselves (ArguAna, Quora), it is the query.

    Returns:
        The collection. It holds the texts of the candidates, or of the whole corpus after BM25.

    Raises:
        ValueError: For arguments or files that contradict each other, and for a malformed line, which is named.
        FileNotFoundError: If a folder, a file or a first stage is missing.
        ConnectionError: If the hub cannot be reached.
        ImportError: If a library is missing; the message has the command that installs it.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "qrels.txt").write_text("q1 0 d1 1")
        >>> _ = (folder / "queries.tsv").write_text("q1\twhat do bees make?")
        >>> _ = (folder / "corpus.tsv").write_text("d1\tBees make honey.\nd2\tPandas eat bamboo.")
        >>> files = f"qrels={folder}/qrels.txt,queries={folder}/queries.tsv,corpus={folder}/corpus.tsv"
        >>> open_collection(files, first_stage="bm25").candidates
        {'q1': ['d1']}
    """
    _check(first_stage, candidates, limit, run)
    opened = _read(source)
    queries = _judged_queries(opened, limit, seed)
    given = _given_run(opened, queries, run, first_stage)
    corpus = opened.texts(None) if given is None else {}
    found = bm25_run(queries, corpus, candidates + int(ignore_identical_ids)) if given is None else given
    ranked = {query: dict(found.get(query, {})) for query in queries}
    identical = 0
    if ignore_identical_ids:
        identical = pop_identical_ids(ranked)
        _warn_of_relevant_identical_ids(opened, queries)
    if given is None:
        chosen = {query: list(scores)[:candidates] for query, scores in ranked.items()}
    else:
        chosen = {query: _best(query, scores, candidates) for query, scores in ranked.items()}
        corpus = opened.texts({document for documents in chosen.values() for document in documents})
        _check_texts(opened.name, chosen, corpus)
    return Collection(
        name=opened.name,
        corpus=corpus,
        queries=queries,
        qrels={query: opened.qrels[query] for query in queries},
        candidates=chosen,
        identical_ids=identical,
    )


def _warn_of_relevant_identical_ids(source: CollectionSource, queries: Mapping[str, str]) -> None:
    """A document with the query's own id that is judged relevant is a mistake, or it is not the query."""
    relevant = [query for query in queries if source.qrels[query].get(query, 0) > 0]
    if relevant:
        warnings.warn(
            f"{source.name}: {len(relevant)} queries (for example {relevant[0]!r}) have a relevant document with the "
            "query's own id. It is left out as the query itself and counts as not found, as in BEIR. If queries and "
            "documents only happen to have equal ids, keep it: ignore_identical_ids=False, --keep-identical-ids.",
            UserWarning,
            stacklevel=3,
        )


def _read(source: str) -> CollectionSource:
    """Read a source: files and folders on the disk come first, then names of ir_datasets and of the hub."""
    if is_trec(source):
        return read_trec(source)
    name, split = split_name(source)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return read_hub(str(folder), split) if _is_hub_folder(folder) else _read_folder(folder, split)
    known = bool(name) and not folder.exists() and not name.startswith((".", "/", "~")) and knows(name)
    if not known and (not name or folder.exists() or looks_like_a_path(name)):
        raise FileNotFoundError(
            f"{name!r} is not a folder. Give a folder in BEIR's form, TREC files as "
            "qrels=FILE,queries=FILE,corpus=FILE, an id of ir_datasets such as beir/scifact/test, or a hub name such "
            "as BeIR/scifact."
        )
    return read_irds(name, split) if known else read_hub(name, split)


def _is_hub_folder(folder: Path) -> bool:
    """Whether a folder has no BEIR judgements, but a dataset card that names configurations."""
    card = folder / "README.md"
    if list_splits(folder) or not card.is_file():
        return False
    return "config_name:" in card.read_text(encoding="utf-8", errors="replace")


def _read_folder(folder: Path, split: str) -> CollectionSource:
    splits = list_splits(folder)
    if not splits:
        raise FileNotFoundError(f"{folder} has no judgements: qrels/SPLIT.tsv, plain or gzipped, is missing.")
    split = chosen_split(str(folder), splits, split)
    existing = candidates_file(folder, split)
    return CollectionSource(
        name=folder.resolve().name,
        queries=read_queries(folder),
        qrels=read_qrels(folder, split),
        texts=lambda _: read_corpus(folder),
        run=partial(_read_file, existing) if existing else None,
    )


def _read_file(path: Path, _: set[str]) -> Run:
    return read_run(path)


def _judged_queries(source: CollectionSource, limit: int | None, seed: int) -> dict[str, str]:
    """The texts of the judged queries, or of `limit` randomly drawn ones."""
    for query in source.qrels:
        if not source.queries.get(query, "").strip():
            raise ValueError(f"{source.name}: query {query!r} is judged, but the queries have no text for it. Add one.")
    if not source.qrels:
        raise ValueError(f"{source.name} has no judged queries.")
    chosen = list(source.qrels)
    if limit is not None and limit < len(chosen):
        chosen = random.Random(seed).sample(sorted(chosen), limit)
    return {query: source.queries[query] for query in chosen}


def _given_run(
    source: CollectionSource, queries: Mapping[str, str], run: str | Path | None, first_stage: FirstStage
) -> Run | None:
    """The run to take candidates from; None for BM25."""
    if run is not None:
        path = Path(run).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"run={str(run)!r}: there is no such file.")
        return read_run(path)
    if first_stage == "bm25" or (first_stage == "auto" and source.run is None):
        return None
    if source.run is None:
        raise FileNotFoundError(
            f'first_stage="given": {source.name} has no run of its own. Give a TREC run, or first_stage="bm25".'
        )
    return source.run(set(queries))


def _best(query: str, scores: Mapping[str, float], candidates: int) -> list[str]:
    """The best documents of a given run; equal scores keep the run's order."""
    if len(scores) > candidates and len(set(scores.values())) == 1:
        raise ValueError(
            f"all {len(scores)} candidates of query {query!r} have the same score, so the best {candidates} cannot be "
            f'chosen. Set candidates={len(scores)} or more, give a TREC run, or first_stage="bm25".'
        )
    return sorted(scores, key=lambda document: -scores[document])[:candidates]


def _check_texts(name: str, chosen: Mapping[str, list[str]], corpus: Mapping[str, str]) -> None:
    for query, documents in chosen.items():
        for document in documents:
            if document not in corpus:
                raise ValueError(
                    f"{name}: document {document!r}, a candidate of query {query!r}, is not in the corpus. Make the run"
                    " from this corpus."
                )


def _check(first_stage: str, candidates: int, limit: int | None, run: str | Path | None) -> None:
    if first_stage not in get_args(FirstStage):
        raise ValueError(f"first_stage must be one of {', '.join(get_args(FirstStage))}, got {first_stage!r}.")
    if run is not None and first_stage == "bm25":
        raise ValueError(f'run={str(run)!r} and first_stage="bm25" contradict each other. Give only one.')
    for argument, value in (("candidates", candidates), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}.")
