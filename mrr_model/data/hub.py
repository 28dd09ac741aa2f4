"""Collections from the Hugging Face hub, structured as BEIR and MTEB do: `BeIR/scifact`, `mteb/scifact`.

    configuration corpus    rows of _id, title, text
    configuration queries   rows of _id, text
    judgements              rows of query-id, corpus-id, score; one split each. In the repository NAME-qrels (BEIR), or
                            in NAME itself as the configuration qrels or default (MTEB)

`datasets` downloads what is missing into its own cache; texts stay on disk. NAME may also be a local folder with the
same structure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mrr_model.data.beir import title_and_text
from mrr_model.data.collection_source import CollectionSource, StoredTexts, chosen_split, only_in_a_terminal
from mrr_model.data.jsonl import valid_text
from mrr_model.files.damage import reading


def read_hub(name: str, split: str = "") -> CollectionSource:
    """Read the queries and judgements of a dataset structured as BEIR's or MTEB's; its corpus is read on demand.

    Args:
        name: The dataset on the hub, or a local folder.
        split: The split to read; if empty, the only one or `test`.

    Returns:
        The collection, without a run.

    Raises:
        ImportError: If `datasets` is not installed.
        FileNotFoundError: If the hub has no such dataset.
        ConnectionError: If the hub cannot be reached and the dataset is not in the cache.
        ValueError: For another structure or a malformed row.
    """
    query_rows = _rows(name, "queries")
    judgements = _judgements(name)
    split = chosen_split(name, sorted(judgements), split)
    qrels: dict[str, dict[str, int]] = {}
    for number, row in enumerate(judgements[split], 1):
        location = f"{name}#{split}:{number}"
        score = _field(location, row, "score")
        if not isinstance(score, int | float) or not abs(score) < 1e9 or score != int(score):
            raise ValueError(f'{location}: expected a whole number under "score", got {score!r}')
        query, document = (str(_field(location, row, key)) for key in ("query-id", "corpus-id"))
        qrels.setdefault(query, {})[document] = int(score)
    queries = {}
    for number, row in enumerate(query_rows, 1):
        location = f"{name} queries:{number}"
        queries[str(_field(location, row, "_id"))] = _text(location, row)
    return CollectionSource(name=name, queries=queries, qrels=qrels, texts=lambda _: _texts(name))


def _texts(name: str) -> StoredTexts:
    rows = _rows(name, "corpus")
    indices = {str(identifier): index for index, identifier in enumerate(rows["_id"])}

    def text(index: int, row: Mapping[str, Any]) -> str:
        return title_and_text(row.get("title") or "", _text(f"{name} corpus:{index + 1}", row))

    return StoredTexts(
        text=lambda identifier: text(indices[identifier], rows[indices[identifier]]),
        stream=lambda: ((str(row["_id"]), text(index, row)) for index, row in enumerate(rows)),
        count=lambda: len(rows),
    )


def _judgements(name: str) -> Any:
    """The splits of the judgements, from whichever repository or configuration has them."""
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
    """The one split of a configuration; if it has several, the one with the configuration's name."""
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
    """Turn the library's errors into one sentence."""
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


def _field(location: str, row: Mapping[str, Any], key: str) -> Any:
    if row.get(key) is None:
        raise ValueError(f'{location}: expected something under "{key}", got nothing')
    return row[key]


def _text(location: str, row: Mapping[str, Any]) -> str:
    text = _field(location, row, "text")
    if not isinstance(text, str):
        raise ValueError(f'{location}: expected a string under "text", got {type(text).__name__} {text!r}')
    try:
        return valid_text(text)
    except ValueError as error:
        raise ValueError(f'{location}: "text" {error}') from None
