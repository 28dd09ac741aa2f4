"""Sources give every row of their files once, with its location, however they are divided and read."""

import csv
import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_rows import good, opened, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrr_model.bulk import parquet_source, text_source
from mrr_model.bulk.records import Source

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIRST = ("what falls?", "rain")
"""The row that shows the columns."""

texts = st.text(st.sampled_from('ab é\n",\t\u2028'), max_size=6)
row_lists = st.lists(st.tuples(st.sampled_from(["q1", "q2", "", "q3\nq", " "]), st.none() | texts), max_size=12)
"""Rows with a query and a document; those with an empty query, or no document, are bad."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (text_source, parquet_source):
        monkeypatch.setattr(module, "CHUNK_PAIRS", 3)


def is_good(query: str, document: str | None) -> bool:
    return bool(query.strip()) and document is not None


def json_lines(rows: Sequence[tuple[Any, Any]], blank: Sequence[bool]) -> tuple[str, list[int]]:
    """The text of rows with a blank line before some, and the line of each row."""
    lines: list[str] = []
    numbers = []
    for at, (query, document) in enumerate(rows):
        lines += [" "] * (at < len(blank) and blank[at])
        lines.append(json.dumps({"query": query, "document": document, "n": at}))
        numbers.append(len(lines))
    return "\n".join(lines) + "\n" * (len(rows) % 2), numbers


def csv_lines(rows: Sequence[tuple[str, str | None]], blank: Sequence[bool]) -> tuple[str, list[int]]:
    """As `json_lines`; a row without a document has one field less."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("query", "document"))
    numbers = []
    for at, (query, document) in enumerate(rows):
        text.write("\r\n" * (at < len(blank) and blank[at]))
        numbers.append(text.getvalue().count("\n") + 1)
        writer.writerow(("-",) if document is None else (query, document))
    return text.getvalue(), numbers


def check(source: Source, rows: Sequence[tuple[str, str | None]], places: list[str], data: st.DataObject) -> None:
    """Whether partitions in any order, read by a pickled source, hold the rows."""
    size = data.draw(st.integers(1, 5))
    partitions = list(pickle.loads(pickle.dumps(source)).partitions(size))
    assert [partition.index for partition in partitions] == list(range(len(partitions)))
    assert all(partition.rows == size for partition in partitions[:-1])
    order = data.draw(st.permutations(partitions))
    found = {partition.index: list(source.chunks(partition)) for partition in order}
    for own in found.values():  # the order in which partitions are read makes no difference to the bytes of parts
        assert all(len(chunk.queries) + len(chunk.bad) == 3 for chunk in own[:-1])
    chunks = [chunk for index in sorted(found) for chunk in found[index]]
    assert good(chunks) == [row for row in rows if is_good(*row)]
    assert [row.location for chunk in chunks for row in chunk.bad] == [
        place for place, row in zip(places, rows, strict=True) if not is_good(*row)
    ]


@QUICK
@given(rows=row_lists, blank=st.lists(st.booleans(), max_size=12), zipped=st.booleans(), data=st.data())
def test_json_lines_give_each_row_once(tmp_path: Path, rows: Any, blank: Any, zipped: bool, data: Any) -> None:
    rows = [FIRST, *rows]
    text, numbers = json_lines(rows, blank)
    file = write(tmp_path / f"a.jsonl{'.gz' * zipped}", "\ufeff" * data.draw(st.booleans()) + text)
    check(opened(file), rows, [f"{file}:{number}" for number in numbers], data)


@QUICK
@given(rows=row_lists, blank=st.lists(st.booleans(), max_size=12), zipped=st.booleans(), data=st.data())
def test_csv_gives_each_row_once(tmp_path: Path, rows: Any, blank: Any, zipped: bool, data: Any) -> None:
    rows = [FIRST, *rows]
    text, numbers = csv_lines(rows, blank)
    file = write(tmp_path / f"a.csv{'.gz' * zipped}", "\ufeff" * data.draw(st.booleans()) + text)
    check(opened(file), rows, [f"{file}:{number}" for number in numbers], data)


@QUICK
@given(rows=row_lists, group=st.integers(1, 6), data=st.data())
def test_parquet_gives_each_row_once(tmp_path: Path, rows: Any, group: int, data: Any) -> None:
    rows, file = [FIRST, *rows], tmp_path / "a.parquet"
    table = pa.table({"query": [query for query, _ in rows], "document": [document for _, document in rows]})
    pq.write_table(table, file, row_group_size=group)
    check(opened(file), rows, [f"{file}: row {number}" for number in range(1, len(rows) + 1)], data)


@QUICK
@given(rows=row_lists, size=st.integers(1, 5), kind=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_ranked_partitions_end_where_the_query_changes(tmp_path: Path, rows: Any, size: int, kind: str) -> None:
    rows, file = [FIRST, *rows], tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"query": [row[0] for row in rows], "document": [row[1] for row in rows]}), file)
    else:
        write(file, {"jsonl": json_lines, "csv": csv_lines}[kind](rows, ())[0])
    source, keys, last = opened(file, rank=True), [], None
    for partition in source.partitions(size):
        chunks = list(source.chunks(partition))
        found = [key for chunk in chunks for key in chunk.keys or ()]
        assert not found or found[0] != last
        assert partition.rows >= size or partition.index == len(list(source.partitions(size))) - 1
        if partition.index:  # a bad row belongs to the group before it
            assert is_good(*rows[len(keys)])
        last = found[-1] if found else last
        keys += [""] * partition.rows
    assert len(keys) == len(rows)
