"""Collections by an id of ir_datasets: `beir/scifact/test`, `msmarco-passage/dev/small`, `msmarco-document/dev`.

The library downloads what is missing into its own cache (`IR_DATASETS_HOME`). Texts stay on disk; a document is
"title text", as in BEIR's folders, or the library's own default text.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from itertools import chain, islice
from typing import Any
from zipfile import BadZipFile

from mrr_model.data.beir import title_and_text
from mrr_model.data.collection_source import CollectionSource, Run, StoredTexts, chosen_split, only_in_a_terminal

HEADS = ("beir", "msmarco-passage", "msmarco-document")
"""First parts of ids that are meant for the library even if it is not installed."""


def knows(name: str) -> bool:
    """Whether a name is an id of ir_datasets, or would be if the library were installed."""
    if find_spec("ir_datasets") is None:
        return name.split("/")[0] in HEADS
    try:
        with only_in_a_terminal():
            _library(name).load(name)
    except KeyError:
        return False
    return True


def read_irds(name: str, split: str = "") -> CollectionSource:
    """Read the queries and judgements of an id; its documents and candidates are read on demand.

    Args:
        name: The id.
        split: A split below the id. If it is empty and the id has no judgements itself: the only split, or `test`.

    Returns:
        The collection, with a run if the library has candidates for it.

    Raises:
        ImportError: If ir_datasets is not installed.
        ValueError: For an id without documents, queries or such a split.
        ConnectionError: If something is not in the library's cache and cannot be downloaded.
    """
    library = _library(name)
    with _fetching(name):
        dataset = library.load(name)
        if split or not dataset.has_qrels():
            name = f"{name}/{chosen_split(name, _splits(library, name), split)}"
            dataset = library.load(name)
        if missing := [part for part in ("docs", "queries") if not dataset.has(part)]:
            raise ValueError(f"{name} has no {' and no '.join(missing)} in ir_datasets; name another collection")
        qrels: dict[str, dict[str, int]] = {}
        for row in dataset.qrels_iter():
            qrels.setdefault(row.query_id, {})[row.doc_id] = int(row.relevance)
        queries = {query.query_id: _query_text(query) for query in dataset.queries_iter()}
    return CollectionSource(
        name=name,
        queries=queries,
        qrels=qrels,
        texts=partial(_texts, name, dataset),
        run=partial(_run, name, dataset) if dataset.has_scoreddocs() else None,
    )


def _texts(name: str, dataset: Any, _: set[str] | None) -> StoredTexts:
    with _fetching(name):
        store = dataset.docs_store()
        for document in islice(dataset.docs_iter(), 1):
            store.get(document.doc_id)  # builds the store and opens its files
    return StoredTexts(
        text=lambda identifier: _document_text(store.get(identifier)),
        stream=lambda: ((document.doc_id, _document_text(document)) for document in _documents(dataset)),
        count=partial(_count, dataset),
    )


def _documents(dataset: Any) -> Iterator[Any]:
    """All documents; the library reports what it opens when it yields the first."""
    with only_in_a_terminal():
        documents = dataset.docs_iter()
        first = list(islice(documents, 1))
    return chain(first, documents)


def _count(dataset: Any) -> int:
    with only_in_a_terminal():
        known = dataset.docs_count()
    return sum(1 for _ in _documents(dataset)) if known is None else int(known)


def _run(name: str, dataset: Any, queries: set[str]) -> Run:
    run: dict[str, dict[str, float]] = {}
    with _fetching(name):
        for row in dataset.scoreddocs_iter():
            if row.query_id in queries:
                run.setdefault(row.query_id, {})[row.doc_id] = float(row.score)
    return run


def _document_text(document: Any) -> str:
    text = getattr(document, "text", None) or getattr(document, "body", None)
    title = getattr(document, "title", "")
    if isinstance(title, str) and (title or text) and (text is None or isinstance(text, str)):
        return title_and_text(title, text or "")
    return str(document.default_text()).strip()


def _query_text(query: Any) -> str:
    text = getattr(query, "text", None)
    return text if isinstance(text, str) else str(query.default_text())


def _splits(library: Any, name: str) -> list[str]:
    """The registered ids below `name` that have judgements, without `name`."""
    below = [identifier for identifier in list(library.registry) if identifier.startswith(f"{name}/")]
    return sorted(identifier.removeprefix(f"{name}/") for identifier in below if library.load(identifier).has_qrels())


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Turn the errors of a download into one sentence, and keep the library's report out of logs."""
    try:
        with only_in_a_terminal():
            yield
    except (OSError, RuntimeError, EOFError, BadZipFile, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(
            f"{name}: ir_datasets has only a part of it in its cache and could not fetch the rest ({reason}). Fetch it "
            "once with a connection, or give a folder in BEIR's form or TREC files."
        ) from error


def _library(name: str) -> Any:
    try:
        import ir_datasets
    except ImportError as error:
        raise ImportError(
            f'{name!r} is a collection of ir_datasets ({error}): pip install "matryoshka-reranker[eval]"'
        ) from error
    return ir_datasets
