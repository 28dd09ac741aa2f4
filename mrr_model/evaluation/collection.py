"""One door to every collection: a source's name in, a collection with the candidates to re-rank out.

FOLDER, FOLDER#SPLIT                 a BEIR folder, its files plain or gzipped
qrels=FILE,queries=FILE,corpus=FILE  TREC files, with run=FILE where there is a first stage
beir/scifact/test                    an id of ir_datasets, its split after a / or a #
BeIR/scifact, BeIR/scifact#test      a dataset on the Hugging Face hub, or a local folder in the hub's layout
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias, get_args

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
from mrr_model.data.collection_source import CollectionSource, Run, chosen_split
from mrr_model.data.hub import read_hub
from mrr_model.data.irds import knows, read_irds
from mrr_model.data.naming import looks_like_a_path, split_name
from mrr_model.data.trec import is_trec, read_trec

FirstStage: TypeAlias = Literal["given", "bm25", "auto"]
"""Where candidates come from: the source's own run, BM25 over its corpus, or its own run where it has one."""


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
    """The judged queries of a source, each with its best candidates, best first.

    ``run``: a TREC run that takes the place of the source's own. ``candidates``: so many of each query. ``limit``: so
    many queries, drawn with ``seed``; without one, all that are judged. ``ignore_identical_ids``: leave out a candidate
    that has its query's own id, as BEIR does: where queries are documents themselves (ArguAna, Quora), it is the query.

    Candidates of equal score keep the order of a given run, and stand by id, descending, where BM25 found them. A query
    for which the first stage found nothing has none. Raises ValueError for arguments that contradict each other and for
    files that do, naming file and line where it is one line's fault; FileNotFoundError, ConnectionError and ImportError
    where something is missing, and say what to do.
    """
    _check(first_stage, candidates, limit, run)
    judged = _read(source)
    queries = _judged_queries(judged, limit, seed)
    given = _given(judged, queries, run, first_stage)
    corpus = judged.texts(None) if given is None else {}
    found = bm25_run(queries, corpus, candidates + int(ignore_identical_ids)) if given is None else given
    ranked = {query: dict(found.get(query, {})) for query in queries}
    identical = 0
    if ignore_identical_ids:
        identical = pop_identical_ids(ranked)
        _warn_of_judged_identical_ids(judged, queries)
    if given is None:
        chosen = {query: list(scores)[:candidates] for query, scores in ranked.items()}
    else:
        chosen = {query: _best(query, scores, candidates) for query, scores in ranked.items()}
        corpus = judged.texts({document for documents in chosen.values() for document in documents})
        _check_texts(judged.name, chosen, corpus)
    return Collection(
        name=judged.name,
        corpus=corpus,
        queries=queries,
        qrels={query: judged.qrels[query] for query in queries},
        candidates=chosen,
        identical_ids=identical,
    )


def _warn_of_judged_identical_ids(judged: CollectionSource, queries: Mapping[str, str]) -> None:
    """If it is judged relevant, a document of the query's own id is a mistake, or not the query at all."""
    relevant = [query for query in queries if judged.qrels[query].get(query, 0) > 0]
    if relevant:
        warnings.warn(
            f"{judged.name}: {len(relevant)} queries, {relevant[0]!r} for one, have a document with the query's own id "
            "judged relevant. It is left out as the query itself and counts as not found, as in BEIR. If the ids of "
            "queries and documents only happen to be equal, keep it: ignore_identical_ids=False, "
            "--keep-identical-ids.",
            UserWarning,
            stacklevel=3,
        )


def _read(source: str) -> CollectionSource:
    """The reader of a source, told by what is on the disk and then by the name."""
    if is_trec(source):
        return read_trec(source)
    name, split = split_name(source)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return read_hub(str(folder), split) if _in_hub_layout(folder) else _read_folder(folder, split)
    known = bool(name) and not folder.exists() and not name.startswith((".", "/", "~")) and knows(name)
    if not known and (not name or folder.exists() or looks_like_a_path(name)):
        raise FileNotFoundError(
            f"{name!r} is no folder. Give a folder in BEIR's form, TREC files as qrels=FILE,queries=FILE,corpus=FILE, "
            "an id of ir_datasets such as beir/scifact/test, or a hub name such as BeIR/scifact."
        )
    return read_irds(name, split) if known else read_hub(name, split)


def _in_hub_layout(folder: Path) -> bool:
    """Whether a folder without BEIR's judgements has a dataset card that names configurations."""
    card = folder / "README.md"
    if list_splits(folder) or not card.is_file():
        return False
    return "config_name:" in card.read_text(encoding="utf-8", errors="replace")


def _read_folder(folder: Path, split: str) -> CollectionSource:
    splits = list_splits(folder)
    if not splits:
        raise FileNotFoundError(f"{folder} holds no qrels/SPLIT.tsv, plain or gzipped, and so nothing to evaluate with")
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


def _judged_queries(judged: CollectionSource, limit: int | None, seed: int) -> dict[str, str]:
    """The texts of the judged queries, or of ``limit`` drawn ones."""
    for query in judged.qrels:
        if not judged.queries.get(query, "").strip():
            raise ValueError(f"{judged.name}: query {query!r} is judged, but the queries have no text for it; add one")
    if not judged.qrels:
        raise ValueError(f"{judged.name} has no judged query")
    chosen = list(judged.qrels)
    if limit is not None and limit < len(chosen):
        chosen = random.Random(seed).sample(sorted(chosen), limit)
    return {query: judged.queries[query] for query in chosen}


def _given(
    judged: CollectionSource, queries: Mapping[str, str], run: str | Path | None, first_stage: FirstStage
) -> Run | None:
    """The run to take the candidates from; None for BM25."""
    if run is not None:
        path = Path(run).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"run={str(run)!r}: there is no such file")
        return read_run(path)
    if first_stage == "bm25" or (first_stage == "auto" and judged.run is None):
        return None
    if judged.run is None:
        raise FileNotFoundError(
            f'{judged.name} has no candidates of its own, which first_stage="given" asks for; give a TREC run, or '
            'first_stage="bm25"'
        )
    return judged.run(set(queries))


def _best(query: str, scores: Mapping[str, float], candidates: int) -> list[str]:
    """The best documents of a given run; those of equal score in the run's order."""
    if len(scores) > candidates and len(set(scores.values())) == 1:
        raise ValueError(
            f"all {len(scores)} candidates of query {query!r} have the same score, so that the best {candidates} are "
            f'unknown; ask for candidates={len(scores)} or more, give a TREC run, or first_stage="bm25"'
        )
    return sorted(scores, key=lambda document: -scores[document])[:candidates]


def _check_texts(name: str, chosen: Mapping[str, list[str]], corpus: Mapping[str, str]) -> None:
    for query, documents in chosen.items():
        for document in documents:
            if document not in corpus:
                raise ValueError(
                    f"{name}: document {document!r}, a candidate of query {query!r}, is not in the corpus; make the run"
                    " from this corpus"
                )


def _check(first_stage: str, candidates: int, limit: int | None, run: str | Path | None) -> None:
    if first_stage not in get_args(FirstStage):
        raise ValueError(f"first_stage must be one of {', '.join(get_args(FirstStage))}, got {first_stage!r}")
    if run is not None and first_stage == "bm25":
        raise ValueError(f'run={str(run)!r} and first_stage="bm25" contradict each other; give one of the two')
    for argument, value in (("candidates", candidates), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
