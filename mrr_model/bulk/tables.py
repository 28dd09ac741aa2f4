"""Arrow tables of rows and their results."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

PANDAS = b"pandas"
"""The key of pandas' notes in a schema's metadata."""


def result_fields(*, lists: bool, ranked: bool) -> list[pa.Field]:
    """The columns that results are written to.

    Args:
        lists: Whether each row has a list of documents.
        ranked: Whether documents are ranked.
    """
    import pyarrow as pa

    fields = [("score", pa.float64()), *([("rank", pa.int64())] if ranked else [])]
    return [pa.field(name, pa.list_(kind) if lists else kind) for name, kind in fields]


def with_results(table: pa.Table, fields: Sequence[pa.Field], values: Sequence[Sequence[Any]]) -> pa.Table:
    """A table with more columns; its own columns of their names are renamed to `input_…`.

    Args:
        table: The rows.
        fields: What `result_fields` gives.
        values: A value per row, for each field.

    Example:
        >>> import pyarrow as pa
        >>> table = pa.table({"score": [1], "text": ["a"]})
        >>> with_results(table, result_fields(lists=False, ranked=False), [[0.5]]).to_pydict()
        {'input_score': [1], 'text': ['a'], 'score': [0.5]}
    """
    import pyarrow as pa

    names, results = list(table.column_names), {field.name for field in fields}
    renamed = {}
    for at, result in enumerate(names):
        if result in results:
            name = f"input_{result}"
            while name in names or name in results:
                name = f"input_{name}"
            names[at] = renamed[result] = name
    table = table.rename_columns(names).replace_schema_metadata(_with_names(table.schema.metadata, renamed))
    for field, column in zip(fields, values, strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


def _with_names(metadata: dict[bytes, bytes] | None, renamed: Mapping[str, str]) -> dict[bytes, bytes] | None:
    """A schema's metadata with the new names of columns in what pandas has noted: which ones are its index."""
    if not renamed or not metadata or PANDAS not in metadata:
        return metadata
    try:
        notes = json.loads(metadata[PANDAS])
        index = [renamed.get(each, each) if isinstance(each, str) else each for each in notes["index_columns"]]
        keys = ("name", "field_name")
        columns = [{**each, **{key: renamed.get(each[key], each[key]) for key in keys}} for each in notes["columns"]]
    except (ValueError, TypeError, LookupError):  # other notes than pandas makes
        return metadata
    return {**metadata, PANDAS: json.dumps({**notes, "index_columns": index, "columns": columns}).encode()}


def as_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Columns that a row lacks are null.

    Raises:
        ValueError: If a value does not fit its column.
    """
    import pyarrow as pa

    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"a row does not fit the columns of the others: {error}. Choose --format jsonl.") from None


def common_schema(chunks: Iterable[Sequence[dict[str, Any]]]) -> pa.Schema:
    """The columns of all rows, in the order of their appearance, each of the type that holds all its values.

    Raises:
        ValueError: If a column has values that no type holds together; the message names it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[str, pa.DataType] = {}
    for rows in chunks:
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                both = [pa.field(name, types[name])] if name in types else []
                both.append(pa.field(name, pa.array(values).type))
                unified = pa.unify_schemas([pa.schema([each]) for each in both], promote_options="permissive")
                types[name] = unified.field(name).type
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError) as error:
                raise ValueError(
                    f"column {name!r} cannot be written as Parquet: {error}. Choose --format jsonl."
                ) from None
    schema = pa.schema(list(types.items()))
    try:
        pq.write_metadata(schema, io.BytesIO())
    except pa.ArrowNotImplementedError as error:  # objects without any key
        raise ValueError(f"the rows cannot be written as Parquet: {error} Choose --format jsonl.") from None
    return schema
