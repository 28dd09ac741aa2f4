"""Collections from the Hugging Face hub in the layouts of BEIR and MTEB: ``BeIR/scifact``, ``mteb/scifact``.

    configuration corpus    rows of _id, title, text
    configuration queries   rows of _id, text
    judgements              rows of query-id, corpus-id, score; a split each. In the repository NAME-qrels (BEIR), or in
                            NAME itself as the configuration qrels or default (MTEB)

``datasets`` downloads what is missing into its own cache and reads the rest from there; texts stay on disk. NAME may
also be a local folder in the same layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mrr_model.data.beir import title_and_text, whole_text
from mrr_model.data.collection_source import CollectionSource, StoredTexts, chosen_split, only_in_a_terminal
from mrr_model.files.damage import reading


def read_hub(name: str, split: str = "") -> CollectionSource:
    """Queries and judgements of a dataset in BEIR's or MTEB's layout; its corpus is read when it is asked for.

    Without a split: the only one, or ``test``. Raises ImportError without ``datasets``, FileNotFoundError where the hub
    has no such dataset, ConnectionError where it cannot be asked and its cache has not got it, ValueError for another
    layout or a row that is not as it should be.
    """
    asked = _rows(name, "queries")
    judgements = _judgements(name)
    split = chosen_split(name, sorted(judgements), split)
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(judgements[split], 1):
        place = f"{name}#{split}:{number}"
        score = _field(place, row, "score")
        if not isinstance(score, int | float) or not abs(score) < 1e9 or score != int(score):
            raise ValueError(f'{place}: expected a whole number under "score", got {score!r}')
        query, document = (str(_field(place, row, key)) for key in ("query-id", "corpus-id"))
        qrels.setdefault(query, {})[document] = int(score)
    queries = {}
    for number, row in enumerate(asked, 1):
        place = f"{name} queries:{number}"
        queries[str(_field(place, row, "_id"))] = _text(place, row)
    return CollectionSource(name=name, queries=queries, qrels=qrels, texts=lambda _: _texts(name))


def _texts(name: str) -> StoredTexts:
    rows = _rows(name, "corpus")
    places = {str(identifier): place for place, identifier in enumerate(rows["_id"])}

    def text(place: int, row: Mapping[str, Any]) -> str:
        return title_and_text(row.get("title") or "", _text(f"{name} corpus:{place + 1}", row))

    return StoredTexts(
        text=lambda identifier: text(places[identifier], rows[places[identifier]]),
        stream=lambda: ((str(row["_id"]), text(place, row)) for place, row in enumerate(rows)),
        count=lambda: len(rows),
    )


def _judgements(name: str) -> Any:
    """The splits of the judgements, wherever the layout keeps them."""
    unreached = None
    for repository, configuration in ((f"{name}-qrels", None), (name, "qrels"), (name, "default")):
        try:
            splits = _load(repository, configuration)
        except (FileNotFoundError, ValueError):
            continue
        except ConnectionError as error:
            unreached = error
            continue
        columns = {column for rows in splits.values() for column in rows.column_names}
        if {"query-id", "corpus-id", "score"} <= columns:
            return splits
    if unreached is not None:
        raise unreached
    raise ValueError(
        f"{name!r} holds no judgements: neither {name}-qrels nor its configurations qrels or default have the columns "
        "query-id, corpus-id and score"
    )


def _rows(name: str, configuration: str) -> Any:
    """The one split of a configuration: of several, the one that is called as the configuration."""
    splits = _load(name, configuration)
    if len(splits) > 1 and configuration not in splits:
        raise ValueError(f"{name}, configuration {configuration}: expected one split, found {', '.join(splits)}")
    rows = splits.get(configuration) if configuration in splits else next(iter(splits.values()))
    wanted = [column for column in ("_id", "title", "text") if column in rows.column_names]
    if "_id" not in wanted or "text" not in wanted:
        raise ValueError(
            f"{name}, configuration {configuration}: expected the columns _id and text, found "
            f"{', '.join(rows.column_names)}"
        )
    return rows.select_columns(wanted)


def _load(name: str, configuration: str | None) -> Any:
    """All splits of a configuration, by name."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f'reading {name!r} needs datasets ({error}): pip install "matryoshka-reranker[eval]"'
        ) from error
    with reading(name, advice=""), _fetching(name, datasets), only_in_a_terminal():
        return datasets.load_dataset(name, configuration)


@contextmanager
def _fetching(name: str, datasets: Any) -> Iterator[None]:
    """Turn what the library raises into one sentence."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{name!r} is neither a folder or file here, an id of ir_datasets, nor a dataset on the hub: {error}"
        ) from error
    except OSError as error:
        raise ConnectionError(
            f"{name!r} is not in the cache of datasets, and the hub could not be asked for it ({error}). Fetch it once "
            "with a connection, or give a folder in BEIR's form or TREC files."
        ) from error
    except (RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name!r} cannot be read as a dataset: {error}") from error


def _field(place: str, row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise ValueError(f'{place}: expected something under "{key}", got nothing')
    return row[key]


def _text(place: str, row: Mapping[str, Any]) -> str:
    text = _field(place, row, "text")
    if not isinstance(text, str):
        raise ValueError(f'{place}: expected a string under "text", got {type(text).__name__} {text!r}')
    try:
        return whole_text(text)
    except ValueError as error:
        raise ValueError(f'{place}: "text" {error}') from None
