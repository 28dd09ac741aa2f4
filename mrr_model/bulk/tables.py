"""Arrow tables of rows and their results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa


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
    for result in results & {*names}:
        name = f"input_{result}"
        while name in names or name in results:
            name = f"input_{name}"
        names[names.index(result)] = name
    table = table.rename_columns(names).replace_schema_metadata(table.schema.metadata)
    for field, column in zip(fields, values, strict=True):
        table = table.append_column(field, pa.array(column, field.type))
    return table


def as_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table. Columns that a row lacks are null.

    Raises:
        ValueError: If a value does not fit its column.
    """
    import pyarrow as pa

    try:
        return pa.Table.from_pylist(rows, schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        raise ValueError(f"a row does not fit the columns of the others: {error}. Choose --format jsonl.") from None


def common_schema(chunks: Iterable[Sequence[dict[str, Any]]]) -> pa.Schema:
    """The columns of all rows, in the order of their appearance, each of the type that holds all its values.

    Raises:
        ValueError: If a column has values that no type holds together; the message names it.
    """
    import pyarrow as pa

    types: dict[str, pa.DataType] = {}
    for rows in chunks:
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            try:
                both = [pa.field(name, types[name])] if name in types else []
                both.append(pa.field(name, pa.array(values).type))
                unified = pa.unify_schemas([pa.schema([each]) for each in both], promote_options="permissive")
                types[name] = unified.field(name).type
            except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
                raise ValueError(
                    f"column {name!r} cannot be written as Parquet: {error}. Choose --format jsonl."
                ) from None
    return pa.schema(list(types.items()))
