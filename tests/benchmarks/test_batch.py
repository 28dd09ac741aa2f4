"""The rows are the same in every format and all different; a run's samples become memory by tenths and a rate."""

import json
from pathlib import Path

import batch
import pyarrow.parquet as pq


def test_each_format_holds_the_same_rows_and_no_document_twice(tmp_path: Path) -> None:
    files = [tmp_path / f"rows.{kind}" for kind in batch.FORMATS]
    for file in files:
        batch.write(file, 500)
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert rows == pq.read_table(files[1]).to_pylist()
    assert [row["id"] for row in rows] == list(range(500))
    assert len({row["document"] for row in rows}) == 500
    assert rows[:100] == [*batch.rows(100)]  # fewer rows are the first of more


def test_the_machinery_writes_every_row_with_a_prepared_score(tmp_path: Path) -> None:
    for kind in batch.FORMATS:
        file, output = tmp_path / f"rows.{kind}", tmp_path / kind
        batch.write(file, 50)
        assert batch.machinery(file, output, partition_rows=20) > 0
        assert len(batch.parts(output)) == len(batch.records(output)) == 3
    rows = [json.loads(line) for part in batch.parts(tmp_path / "jsonl") for line in part.read_text().splitlines()]
    assert len({row["score"] for row in rows}) == 20  # the same numbers for each partition


def test_memory_is_the_highest_of_each_tenth_and_the_rate_leaves_out_the_start() -> None:
    run = batch.Run(9.0, [(0, 100), (1, 300), (1, 200), (2, 400), (19, 350), (20, 340)], [(4.0, 1), (5.0, 3), (6.0, 5)])
    assert run.tenths(20) == [300, 400, 0, 0, 0, 0, 0, 0, 0, 350]
    assert run.parts_per_second() == 2
