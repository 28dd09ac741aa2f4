"""`rerank_dataset`: a column of scores for a Ray dataset."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mrr_model.bulk.actors import import_ray, needs_text, room_for_actors, use_cores
from mrr_model.bulk.tables import result_fields, with_results
from mrr_model.compression import Compression
from mrr_model.inference.windows import checked_windows
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

    from mrr_model.reranker import MatryoshkaReranker

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
        document_column: The column of the documents, texts or lists of texts. Without it, `"document"`, else
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
    columns = Columns(query_column, document_column)
    schema = dataset.schema(fetch_if_missing=False)
    if schema is not None:
        batch_rows = batch_rows or (BATCH_LISTS if columns.hold_lists(schema.names, schema.types) else BATCH_ROWS)
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
        fn_constructor_args=(_absolute(model), settings, columns, cpus),
        udf_modifying_row_count=False,
    )
    return scored


class Columns:
    """Which columns hold the queries and the documents.

    Args:
        query: The column of the queries.
        document: The column of the documents; None for `document`, else `documents`.
    """

    def __init__(self, query: str, document: str | None) -> None:
        if not isinstance(query, str):
            raise TypeError(f"query_column must be a column's name, got {query!r}.")
        optional_text("document_column", document)
        self.query, self.document = query, document

    def named(self, names: Sequence[str]) -> tuple[str, str]:
        """The two columns among those of a table.

        Raises:
            ValueError: If one is missing.
        """
        candidates = ("document", "documents") if self.document is None else (self.document,)
        document = next((name for name in candidates if name in names), None)
        known = ", ".join(map(repr, names)) or "none"
        for argument, wanted, found in (
            ("query_column", (self.query,), self.query if self.query in names else None),
            ("document_column", candidates, document),
        ):
            if found is None:
                expected = " or ".join(map(repr, wanted))
                raise ValueError(f"the dataset has no column {expected}; it has {known}. Name one with {argument}.")
        assert document is not None  # checked above
        return self.query, document

    def hold_lists(self, names: Sequence[str], types: Sequence[Any]) -> bool:
        """Whether the documents are lists, by the columns' types."""
        _, document = self.named(names)
        return "list" in str(types[list(names).index(document)])


class DatasetScorer:
    """The actor: it holds the model.

    Args:
        model: The model's name.
        options: Further arguments of the re-ranker.
        columns: Where queries and documents are.
        cpus: Cores that this process may use.
    """

    def __init__(self, model: str, options: Mapping[str, Any], columns: Columns, cpus: float) -> None:
        use_cores(cpus)
        from mrr_model.reranker import MatryoshkaReranker

        self.columns = columns
        self.reranker = MatryoshkaReranker(model, **options)

    def __call__(self, table: "pa.Table") -> "pa.Table":
        return scored_table(table, self.reranker, self.columns)


def scored_table(table: "pa.Table", reranker: "MatryoshkaReranker", columns: Columns) -> "pa.Table":
    """A table with the scores of its rows, and for lists of documents their ranks.

    Raises:
        ValueError: If a column is missing, or a row has no query or document; the message names it.
    """
    if not table.num_columns:  # Ray's block of no rows
        return table
    query, document = columns.named(table.column_names)
    queries, documents = table[query].to_pylist(), table[document].to_pylist()
    lists = _are_lists(table, document, documents)
    for row in range(table.num_rows):
        _check_query(table, row, query, queries[row])
        _check_document(table, row, document, documents[row], lists)
    fields = result_fields(lists=lists, ranked=lists)
    if not lists:
        scores = reranker.score_pairs(list(zip(queries, documents, strict=True)), show_progress=False)
        return with_results(table, fields, [scores])
    found = reranker.score_documents(list(zip(queries, documents, strict=True)))
    scores_of_lists = [[each.score for each in row] for row in found]
    return with_results(table, fields, [scores_of_lists, [_ranks([each.logit for each in row]) for row in found]])


def check_options(model: object, options: Mapping[str, Any]) -> None:
    """Check the arguments of a re-ranker as far as that needs neither the model nor its device.

    Raises:
        TypeError: If one is unknown or of the wrong type.
        ValueError: If one is out of its range.
    """
    from mrr_model.reranker import MatryoshkaReranker

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
    from mrr_model.inference.device import DTYPES
    from mrr_model.selection.target import Target

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


def _absolute(model: str | Path) -> str:
    """A model's name; the whole path of a folder, since actors work in another one."""
    from mrr_model.checkpoint.hub import SHIPPED

    folder = Path(model).expanduser()
    return str(folder.absolute()) if model not in SHIPPED and str(model) and folder.is_dir() else str(model)


def _are_lists(table: "pa.Table", column: str, values: Sequence[Any]) -> bool:
    first = next((value for value in values if value is not None), None)
    return isinstance(first, list) or (first is None and "list" in str(table.schema.field(column).type))


def _check_query(table: "pa.Table", row: int, column: str, query: object) -> None:
    if not isinstance(query, str):
        raise ValueError(_fault(table, row, column, "a text", query))
    if not query.strip():
        raise ValueError(_fault(table, row, column, "a text that is not empty", query))


def _check_document(table: "pa.Table", row: int, column: str, document: object, lists: bool) -> None:
    if not lists and not isinstance(document, str):
        raise ValueError(_fault(table, row, column, "a text", document))
    if lists and not isinstance(document, list):
        raise ValueError(_fault(table, row, column, "a list of texts", document))
    for index, text in enumerate(document if isinstance(document, list) else ()):
        if not isinstance(text, str):
            raise ValueError(_fault(table, row, f"{column}[{index}]", "a text", text))


def _fault(table: "pa.Table", row: int, column: str, wanted: str, value: object) -> str:
    """What is wrong with a row, in one line. Rows of a dataset have no numbers, so it shows the row."""
    [shown] = table.slice(row, 1).to_pylist()
    text = repr(shown)
    text = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    return f"column {column} must hold {wanted}, got {value!r:.50} in the row {text}. Filter such rows out before."


def _ranks(logits: Sequence[float]) -> list[int]:
    """The rank of each, from 1 for the best; equal ones keep their order.

    >>> _ranks([0.1, 0.9, 0.1])
    [2, 1, 3]
    """
    ranks = [0] * len(logits)
    for rank, index in enumerate(sorted(range(len(logits)), key=lambda index: -logits[index]), 1):
        ranks[index] = rank
    return ranks
