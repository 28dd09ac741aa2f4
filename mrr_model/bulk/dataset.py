"""`rerank_dataset`: a column of scores for a Ray dataset."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrr_model.bulk.actors import import_ray, needs_text, room_for_actors, use_cores, whole_path
from mrr_model.bulk.columns import Columns, document_column, missing
from mrr_model.bulk.scoring import ranked_scores
from mrr_model.bulk.tables import result_fields, with_results
from mrr_model.compression import Compression
from mrr_model.files.damage import short
from mrr_model.inference.device import DTYPES
from mrr_model.inference.windows import checked_windows
from mrr_model.reranker import MatryoshkaReranker
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import (
    DEFAULT,
    Default,
    callers_level,
    optional_text,
    optional_whole_number,
    real_number,
    true_or_false,
    whole_number,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

BATCH_ROWS, BATCH_LISTS = 1000, 100
"""Rows of a batch: of single documents, and of lists."""
SHOWN = 200
"""Characters of a bad row that its error shows."""


def rerank_dataset(
    dataset: "Dataset",
    model: str | Path = "mini",
    *,
    query_column: str = "query",
    document_column: str | None = None,
    normalize: bool | Default = DEFAULT,
    actors: int | tuple[int, int] = 1,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    batch_rows: int | None = None,
    **options: Any,
) -> "Dataset":
    """Score the rows of a Ray dataset, on an actor pool in which each actor holds the model.

    Lazy, as every transformation of Ray's: the work starts when the result is written, iterated over or shown. Ray
    retries batches if an actor or a node is lost, and holds back the reading if scoring is slower.

    Args:
        dataset: Rows with a query and a document each, or a query and a list of documents.
        model: `"mini"`, a folder that every node can read, or the id of a hub repository.
        query_column: The column of the queries.
        document_column: The column of the documents, texts or lists of them. Without it, `"document"`, else
            `"documents"`.
        normalize: Return probabilities, or raw logits with `False`. Without it, as the checkpoint was saved.
        actors: Processes that each hold the model; `(1, 8)` grows from 1 to 8 with the work.
        cpus_per_actor: Processor cores of each.
        gpus_per_actor: GPUs of each; 0.5 lets two share one.
        batch_rows: Rows that an actor scores at once, and does again after a fault. Without it, 1000, or 100 if the
            documents are known to be lists.
        options: Further arguments of `MatryoshkaReranker`, such as `depth`, `keep_ratio`, `dtype` or `max_length`.

    Returns:
        The same rows with the column `score`. For lists of documents it has a list of scores, and the column `rank` a
        list of ranks, from 1 for the best; both are in the order of the documents. Columns of these names in the input
        become `input_score` and `input_rank`.

    Raises:
        ImportError: If Ray is not installed.
        TypeError: If an argument is unknown or of the wrong type.
        ValueError: If an argument is out of its range, or the dataset is known to lack a column. While the dataset is
            scored, a row without a query or a document raises one too; Ray wraps it.
    """
    ray = import_ray()
    settings = {**options} if isinstance(normalize, Default) else {**options, "normalize": normalize}
    check_options(model, settings)
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(
            f"dataset must be a ray.data.Dataset, got {type(dataset).__name__}. ray.data.from_pandas, from_arrow and "
            "read_parquet make one."
        )
    pool = _checked_pool(actors)
    cpus, gpus = _checked_share("cpus_per_actor", cpus_per_actor), _checked_share("gpus_per_actor", gpus_per_actor)
    if not cpus and not gpus:
        raise ValueError("cpus_per_actor and gpus_per_actor are both 0. Give each actor at least a part of one.")
    batch_rows = optional_whole_number("batch_rows", batch_rows)
    optional_text("query_column", query_column)
    optional_text("document_column", document_column)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        document = _document_column(schema.names, query_column, document_column)
        lists = "list" in str(schema.types[list(schema.names).index(document)])
        batch_rows = batch_rows or (BATCH_LISTS if lists else BATCH_ROWS)
    if ray.is_initialized() and (room := room_for_actors(ray.nodes(), cpus, gpus)) < pool[0]:
        warnings.warn(
            f"actors={actors!r}: the cluster has room for {room} of {needs_text(cpus, gpus)} now. Ray waits for the "
            "others.",
            stacklevel=callers_level(),
        )
    scored: Dataset = dataset.map_batches(
        DatasetScorer,
        batch_size=batch_rows or BATCH_ROWS,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool[0], max_size=pool[1]),
        num_cpus=cpus,
        num_gpus=gpus,
        fn_constructor_args=(whole_path(model), settings, (query_column, document_column), cpus),
        udf_modifying_row_count=False,
    )
    return scored


class DatasetScorer:
    """The actor: it holds the model.

    Args:
        model: The model's name.
        options: Further arguments of the re-ranker.
        columns: The columns of the query and of the documents, as `rerank_dataset` takes them.
        cpus: Cores that this process may use.
    """

    def __init__(self, model: str, options: Mapping[str, Any], columns: tuple[str, str | None], cpus: float) -> None:
        use_cores(cpus)
        self.columns = columns
        self.reranker = MatryoshkaReranker(model, **options)

    def __call__(self, table: "pa.Table") -> "pa.Table":
        return scored_table(table, self.reranker, *self.columns)


def scored_table(table: "pa.Table", reranker: MatryoshkaReranker, query: str, document: str | None) -> "pa.Table":
    """A table with the scores of its rows, and for lists of documents their ranks.

    Args:
        table: The rows.
        reranker: The model.
        query: The column of the queries.
        document: The column of the documents; None for `document`, else `documents`.

    Raises:
        ValueError: If a column is missing, or a row has no query or document; the message names it.
    """
    if not table.num_columns:  # Ray's block of no rows
        return table
    document = _document_column(table.column_names, query, document)
    values = table[document].to_pylist()
    columns = Columns(query, document, lists=_are_lists(table, document, values))
    texts = []
    for row, (text, value) in enumerate(zip(table[query].to_pylist(), values, strict=True)):
        try:
            texts.append(columns.texts({query: text, document: value}))
        except ValueError as error:
            [shown] = table.slice(row, 1).to_pylist()  # rows of a dataset have no numbers
            raise ValueError(f"{error}, in the row {short(shown, SHOWN)}. Filter such rows out before.") from None
    fields = result_fields(lists=columns.lists, ranked=columns.lists)
    if not columns.lists:
        return with_results(table, fields, [reranker.score_pairs(texts, show_progress=False)])
    return with_results(table, fields, ranked_scores(reranker, texts, show_progress=False))


def check_options(model: object, options: Mapping[str, Any]) -> None:
    """Check the arguments of a re-ranker as far as that needs neither the model nor its device.

    Raises:
        TypeError: If one is unknown or of the wrong type.
        ValueError: If one is out of its range.
    """
    if not isinstance(model, str | Path):
        raise TypeError(
            f"model must be a name, a folder or a hub id, got {type(model).__name__}: each actor opens its own. Save "
            "a loaded re-ranker with save_pretrained(folder) and give the folder."
        )
    known = [name for name in inspect.signature(MatryoshkaReranker).parameters if name not in ("model", "cascade")]
    if "cascade" in options:
        raise TypeError("cascade does not go with a dataset: every document is scored at the same exit. Leave it out.")
    if unknown := sorted(options.keys() - set(known)):
        raise TypeError(f"MatryoshkaReranker takes no argument {unknown[0]!r}. It takes {', '.join(known)}.")
    _check_values(options)


def _check_values(options: Mapping[str, Any]) -> None:
    """Check the values of a re-ranker's arguments."""
    setting = Compression().override(options.get("depth", DEFAULT), options.get("keep_ratio", DEFAULT))
    target = options.get("target")
    if target is not None and not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {target!r}. Write target=Target(speedup=3), for example.")
    if target is not None and setting != Compression():
        raise ValueError(f"target={target!r} chooses depth and keep_ratio: give it or them, not both ({setting}).")
    checked_windows(options.get("long_documents", "truncate"), options.get("window"), options.get("stride"))
    for name in ("max_length", "query_max_length", "batch_tokens"):
        optional_whole_number(name, options.get(name))
    for name in ("normalize", "local_files_only"):
        if not isinstance(options.get(name, DEFAULT), Default):
            true_or_false(name, options[name])
    if not isinstance(options.get("prompt", DEFAULT), Default):
        optional_text("prompt", options["prompt"])
    dtype = str(options.get("dtype", "auto")).removeprefix("torch.")
    if dtype not in ("auto", *DTYPES):
        raise ValueError(f"dtype must be 'auto', {', '.join(map(repr, DTYPES))}, got {options['dtype']!r}.")


def _checked_pool(actors: object) -> tuple[int, int]:
    """The least and the most actors of a pool."""
    if not isinstance(actors, tuple | list):
        number = whole_number("actors", actors, advice="(1, 8) grows from 1 to 8.")
        return number, number
    if len(actors) != 2:
        raise ValueError(f"actors must be a number or (least, most), got {actors!r}.")
    least, most = (whole_number(f"actors[{index}]", number) for index, number in enumerate(actors))
    if least > most:
        raise ValueError(f"actors={actors!r}: the least number is more than the most.")
    return least, most


def _checked_share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r} ({type(value).__name__}).")
    number = real_number(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"{name} must be at least 0, got {value!r}.")
    return number


def _document_column(names: Sequence[str], query: str, document: str | None) -> str:
    """The column of the documents among those of a dataset. Raises ValueError if it lacks a column."""
    found = document_column(names, document)
    if found is None or query not in names:
        raise missing("the dataset", names, query, document, advice="query_column and document_column name others")
    return found


def _are_lists(table: "pa.Table", column: str, values: Sequence[Any]) -> bool:
    first = next((value for value in values if value is not None), None)
    return isinstance(first, list) or (first is None and "list" in str(table.schema.field(column).type))
