"""Batch jobs: the scores are the core's, a stopped run resumes to the same bytes, and nothing is lost or doubled."""

import csv
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mrr_model import MatryoshkaReranker
from mrr_model.batch import BadRowError, BatchConfig, BatchReport, rerank_files
from mrr_model.bulk import windows
from mrr_model.bulk.job import open_job
from mrr_model.files.locks import FolderInUseError, locked

WORDS = ["what", "is", "the", "panda", "eating", "?"]
ROWS = [
    {"query": f"{WORDS[index % 3]} is the panda ?", "document": " ".join(WORDS[: index % 6]), "id": index}
    for index in range(25)
]
LISTS = [{"query": "the panda", "documents": [" ".join(WORDS[:end]) for end in range(size)]} for size in (3, 0, 5, 1)]


@pytest.fixture(scope="module")
def reranker(saved_encoder: Path) -> MatryoshkaReranker:
    return MatryoshkaReranker(saved_encoder, dtype="float32", depth=4)


@pytest.fixture
def run(tmp_path: Path, reranker: MatryoshkaReranker) -> Callable[..., BatchReport]:
    """`run(file, "scored", depth=..., ...)`: a job in float32 on a tiny encoder."""

    def job(file: Path, output: str = "scored", **fields: Any) -> BatchReport:
        config = BatchConfig(inputs=(file,), output=tmp_path / output, model="tiny", **fields)
        return rerank_files(config, reranker=reranker)

    return job


def write_lines(file: Path, rows: Iterable[object]) -> Path:
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in parts_of(folder) for line in part.read_text(encoding="utf-8").splitlines()]


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in parts_of(folder)}


def close(scores: Sequence[float]) -> Any:
    return pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"inputs": ()}, "INPUT"),
        ({"format": "trec"}, "--format trec needs"),
        ({"collection": "beir", "rank": True}, "--rank does not go with --collection"),
        ({"collection": "beir", "query_column": "q"}, "--query-column does not go with --collection"),
        ({"cpus_per_actor": 2}, "--cpus-per-actor goes with --engine ray"),
    ],
)
def test_fields_that_exclude_each_other_are_named(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        BatchConfig(**{"inputs": "pairs.jsonl", "output": "scored", **fields})


def test_a_config_takes_a_ratio_as_python_and_the_command_line_write_it() -> None:
    for ratio, text in ((0.5, "0.5"), ({8: 0.5, 16: 0.25}, "8:0.5,16:0.25"), ("0.5", "0.5"), (None, None)):
        assert BatchConfig(inputs="a.jsonl", output="scored", keep_ratio=ratio).keep_ratio == text  # type: ignore[arg-type]


def test_pairs_come_back_with_the_cores_scores(
    run: Callable[..., BatchReport], tmp_path: Path, reranker: MatryoshkaReranker
) -> None:
    rows = [{**row, "score": "first", "nested": {"é": [1, None]}} for row in ROWS]
    report = run(write_lines(tmp_path / "pairs.jsonl", rows), partition_rows=10)
    assert (report.parts, report.rows, report.pairs, report.skipped) == (3, 25, 25, 0)
    scored = lines_of(report.output)
    assert [row.pop("score") for row in scored] == close(
        reranker.score_pairs([(row["query"], row["document"]) for row in ROWS])
    )
    assert [{"score": row.pop("input_score"), **row} for row in scored] == rows


def test_lists_come_back_with_scores_and_ranks_in_their_order(
    run: Callable[..., BatchReport], tmp_path: Path, reranker: MatryoshkaReranker
) -> None:
    report = run(write_lines(tmp_path / "lists.jsonl", LISTS), partition_rows=3, raw=True)
    assert (report.parts, report.rows, report.pairs) == (2, 4, 9)
    for row, scored in zip(LISTS, lines_of(report.output), strict=True):
        ranking = MatryoshkaReranker.rank(reranker, row["query"], row["documents"], normalize=False)  # type: ignore[arg-type]
        assert scored["documents"] == row["documents"]
        order = sorted(range(len(ranking)), key=lambda index: scored["rank"][index])
        assert order == [each.index for each in ranking]
        assert [scored["score"][index] for index in order] == close([each.score for each in ranking])


def test_neighbouring_rows_of_one_query_are_ranked(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    rows = [{**row, "rank": 0} for row in sorted(ROWS, key=lambda row: str(row["query"]))]
    report = run(write_lines(tmp_path / "pairs.jsonl", rows), partition_rows=2, rank=True)
    scored = lines_of(report.output)
    assert [(row["id"], row["input_rank"]) for row in scored] == [(row["id"], 0) for row in rows]
    for query in {row["query"] for row in ROWS}:
        own = [row for row in scored if row["query"] == query]
        assert sorted(row["rank"] for row in own) == list(range(1, len(own) + 1))
        assert [row["score"] for row in sorted(own, key=lambda row: row["rank"])] == sorted(
            (row["score"] for row in own), reverse=True
        )


def test_parquet_keeps_its_schema(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{**row, "score": 1, "input_score": 2} for row in ROWS])
    table = table.replace_schema_metadata({"made": "here"})
    pq.write_table(table, tmp_path / "pairs.parquet", row_group_size=4)
    report = run(tmp_path / "pairs.parquet", partition_rows=7)
    assert [path.suffix for path in parts_of(report.output)] == [".parquet"] * 4
    scored = pq.read_table(report.output)  # what begins with _ is hidden from it
    assert scored.column_names == ["query", "document", "id", "input_input_score", "input_score", "score"]
    assert scored.schema.metadata[b"made"] == b"here"
    assert scored.select(["query", "document", "id"]).to_pylist() == ROWS
    assert scored.schema.field("score").type == pa.float64()
    same = run(write_lines(tmp_path / "pairs.jsonl", ROWS), "lines", partition_rows=7)
    assert scored["score"].to_pylist() == close([row["score"] for row in lines_of(same.output)])


def test_json_lines_of_many_forms_become_one_parquet_schema(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    more = [{}, {"a": 1}, {"a": 2.5, "b": {"c": [1]}}, {"b": None}]
    rows = [{**row, **more[index % 4]} for index, row in enumerate(ROWS)]
    report = run(write_lines(tmp_path / "pairs.jsonl", rows), partition_rows=2, format="parquet")
    schemas = {pq.read_schema(part) for part in parts_of(report.output)}
    assert len(schemas) == 1
    table = pq.read_table(report.output)
    assert table.column_names == ["query", "document", "id", "a", "b", "score"]
    assert table["a"].to_pylist()[:4] == [None, 1.0, 2.5, None]
    for number, (one, other) in enumerate(((1, "one"), (-1, 2**63), ({}, {}))):
        mixed = write_lines(tmp_path / "mixed.jsonl", [{**ROWS[0], "x": one}, {**ROWS[1], "x": other}])
        with pytest.raises(ValueError, match=r"'x'.*--format jsonl"):
            run(mixed, f"mixed-{number}", format="parquet")


def test_what_json_cannot_hold_is_named(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    texts = pa.table({"query": ["the panda"], "document": ["eating"]})
    columns = {"x": pa.array([b"x"]), "y": pa.array([2**60], pa.timestamp("us"))}
    tables = {name: texts.append_column(name, column) for name, column in columns.items()}
    tables["z"] = texts.append_column("z", pa.array([1])).append_column("z", pa.array([2]))
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
        with pytest.raises(ValueError, match=f"'{name}'.*--format parquet"):
            run(tmp_path / f"{name}.parquet", name, format="jsonl")


def test_the_index_that_pandas_noted_keeps_its_column(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    names = [f"row {index}" for index in range(25)]
    frame = pd.DataFrame(ROWS).assign(score=names).set_index("score")
    frame.to_parquet(tmp_path / "pairs.parquet")
    scored = pd.read_parquet(run(tmp_path / "pairs.parquet").output)
    assert (scored.index.name, [*scored.index]) == ("input_score", names)
    assert [*scored.columns] == ["query", "document", "id", "score"]


def test_json_lines_keep_dates_decimals_and_half_a_pair(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    own = {"day": date(2026, 1, 2), "price": Decimal("1.50")}
    pq.write_table(pa.Table.from_pylist([{**ROWS[1], **own}]), tmp_path / "pairs.parquet")
    [row] = lines_of(run(tmp_path / "pairs.parquet", format="jsonl").output)
    assert (row["day"], row["price"]) == ("2026-01-02", "1.50")
    half = write_lines(tmp_path / "half.jsonl", [{**ROWS[1], "note": "\ud83d"}])
    assert lines_of(run(half, "half").output)[0]["note"] == "\ud83d"


def test_csv_rows_stay_texts(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    with (tmp_path / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "query", "document"])
        writer.writeheader()
        writer.writerows([{**row, "document": f'{row["document"]}\nthe, "panda"'} for row in ROWS])
    scored = lines_of(run(tmp_path / "pairs.csv", partition_rows=4).output)
    assert [(row["id"], row["document"].endswith('\nthe, "panda"')) for row in scored] == [
        (str(index), True) for index in range(25)
    ]
    table = pq.read_table(run(tmp_path / "pairs.csv", "parquet", format="parquet").output)
    assert table["id"].to_pylist() == [str(index) for index in range(25)]


@pytest.fixture
def collection(tmp_path: Path, make_beir: Callable[..., Path]) -> Path:
    texts = {f"d{end}": " ".join(WORDS[:end]) for end in range(1, 6)}
    return make_beir(tmp_path / "beir", {"q1": "what is the panda ?", "q2": "the panda"}, texts, {"q1": {"d1": 1}})


def test_runs_become_runs(
    run: Callable[..., BatchReport], tmp_path: Path, collection: Path, reranker: MatryoshkaReranker
) -> None:
    lines = [f"{query} Q0 d{end} {end} {9 - end} first" for query in ("q1", "q2") for end in range(1, 6)]
    file = write_lines(tmp_path / "first.run", lines)
    report = run(file, collection=collection, partition_rows=1)
    assert report.parts == 2
    assert not [*report.output.rglob("*.sqlite")]
    fields = [line.split() for line in (report.output / "scored.run").read_text().splitlines()]
    assert len(fields) == 10
    texts = {f"d{end}": " ".join(WORDS[:end]) for end in range(1, 6)}
    ranking = reranker.rank("the panda", list(texts.values()), normalize=False)
    assert [line[2] for line in fields if line[0] == "q2"] == [list(texts)[each.index] for each in ranking]
    assert [float(line[4]) for line in fields if line[0] == "q2"] == close([each.score for each in ranking])
    rows = pq.read_table(run(file, "table", collection=collection, format="parquet").output).to_pylist()
    assert {row["document_id"]: row["document"] for row in rows} == texts
    assert {"query_id", "query", "input_rank", "input_score", "rank", "score"} <= rows[0].keys()


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Ctrl-C at the n-th call of the model; returns how many pairs each call has had."""

    def stop_at(number: int) -> list[int]:
        calls, left = list[int](), number
        score_pairs = MatryoshkaReranker.score_pairs

        def stopped(self: MatryoshkaReranker, pairs: Sequence[tuple[str, str]], **options: Any) -> list[float]:
            nonlocal left
            calls.append(len(pairs))
            left -= 1
            if not left:
                raise KeyboardInterrupt
            return score_pairs(self, pairs, **options)

        monkeypatch.setattr(MatryoshkaReranker, "score_pairs", stopped)
        return calls

    return stop_at


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stopped_run_resumes_to_the_same_bytes(
    run: Callable[..., BatchReport], tmp_path: Path, stopping: Callable[[int], list[int]], kind: str
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    options = {"partition_rows": 6, "format": kind}
    whole = contents(run(file, "whole", **options).output)
    calls = stopping(3)
    with pytest.raises(KeyboardInterrupt):
        run(file, **options)
    folder = tmp_path / "scored"
    assert sorted(contents(folder)) == sorted(whole)[:2]
    assert not [path for path in folder.rglob("*") if path.name.endswith((".unfinished", ".lock"))]
    (folder / "_progress" / "00001.json").unlink()  # as if killed after its part was written
    calls.clear()
    report = run(file, **options)
    assert contents(folder) == whole
    assert calls == [6, 6, 6, 1]  # one partition was done
    assert (report.rows, report.pairs) == (25, 25)
    calls.clear()
    assert run(file, **options) == report
    assert not calls


def test_a_partition_is_scored_in_windows(
    run: Callable[..., BatchReport], tmp_path: Path, stopping: Callable[[int], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = [{**ROWS[index % 25], "id": index} for index in range(2500)]
    file = write_lines(tmp_path / "pairs.jsonl", ["{}", *rows, "{}"])
    calls = stopping(-1)
    whole = lines_of(run(file, on_bad_row="skip").output)
    assert calls == [2500]
    for limit in ("PAIRS", "CHARACTERS"):
        with monkeypatch.context() as patch:
            patch.setattr(windows, limit, 900)
            calls.clear()
            folder = run(file, limit, on_bad_row="skip").output
        assert [(row["id"], row["score"]) for row in lines_of(folder)] == [
            (row["id"], close(row["score"])) for row in whole
        ]
        assert calls == [999, 1000, 501]
        assert len((folder / "_skipped.jsonl").read_text().splitlines()) == 2


def test_the_rows_of_a_query_are_ranked_in_one_window(
    run: Callable[..., BatchReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "PAIRS", 1000)
    rows = write_lines(tmp_path / "pairs.jsonl", [{**ROWS[index % 25], "query": "panda"} for index in range(1500)])
    assert sorted(row["rank"] for row in lines_of(run(rows, rank=True).output)) == [*range(1, 1501)]


def test_a_folder_holds_one_job(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    first = contents(run(file).output)
    with pytest.raises(ValueError, match=r"--rank was False and is True.*--overwrite"):
        run(file, rank=True)
    assert contents(run(file, on_bad_row="skip").output) == first
    write_lines(file, ROWS[:7])
    with pytest.raises(ValueError, match=r"pairs\.jsonl has changed.*--overwrite"):
        run(file)
    assert run(file, overwrite=True, partition_rows=3).rows == 7
    assert len(lines_of(tmp_path / "scored")) == 7
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"other files, such as 'mine\.txt'"):
        run(file, "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_overwriting_removes_nothing_but_a_job(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    write_lines(inputs / "part-00000.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"other files, such as 'part-00000\.jsonl'"):
        run(inputs, "inputs", overwrite=True)
    folder = run(inputs).output
    before = contents(folder)
    with pytest.raises(ValueError, match="is in the output folder"):
        run(folder, overwrite=True)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "missing.jsonl", overwrite=True)
    assert contents(folder) == before
    assert len((inputs / "part-00000.jsonl").read_text().splitlines()) == 25


def test_a_job_without_parts_gives_way_to_another(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ["{}", *ROWS])
    (tmp_path / "scored" / "_progress").mkdir(parents=True)
    killed = [tmp_path / "scored" / name for name in ("._batch.json.x.unfinished", ".part-00000.jsonl.x.unfinished")]
    for path in killed:
        path.touch()
    with pytest.raises(BadRowError):
        run(file)
    assert run(file, rank=True, on_bad_row="skip").rows == 25
    assert not any(path.exists() for path in killed)


def test_an_input_that_changes_meanwhile_is_an_error(
    run: Callable[..., BatchReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    score_pairs = MatryoshkaReranker.score_pairs

    def appending(self: MatryoshkaReranker, pairs: Any, **options: Any) -> list[float]:
        with file.open("a") as opened:
            opened.write(json.dumps(ROWS[0]) + "\n")
        return score_pairs(self, pairs, **options)

    monkeypatch.setattr(MatryoshkaReranker, "score_pairs", appending)
    with pytest.raises(ValueError, match=r"pairs\.jsonl has changed since"):
        run(file)


def test_other_weights_do_not_go_on(run: Callable[..., BatchReport], tmp_path: Path, saved_encoder: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    folder = run(file, partition_rows=5).output
    (folder / "part-00002.jsonl").unlink()
    other = MatryoshkaReranker(saved_encoder, dtype="float32", depth=2)
    config = BatchConfig(inputs=(file,), output=folder, model="tiny", partition_rows=5)
    with pytest.raises(ValueError, match=r"setting exit 4.*exit 2"):
        rerank_files(config, reranker=other)


def test_a_bad_row_is_named_or_left_out(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    rows: list[object] = [*ROWS[:8], '{"query": 1}', *ROWS[8:], "no JSON"]
    file = write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(BadRowError, match=r"pairs\.jsonl:9: .*--on-bad-row skip"):
        run(file, partition_rows=4)
    assert len(parts_of(tmp_path / "scored")) == 2  # those before it
    report = run(file, partition_rows=4, on_bad_row="skip")
    assert (report.rows, report.skipped) == (25, 2)
    assert [row["id"] for row in lines_of(report.output)] == list(range(25))
    skipped = [json.loads(line) for line in (report.output / "_skipped.jsonl").read_text().splitlines()]
    assert [row["location"] for row in skipped] == [f"{file}:9", f"{file}:27"]
    assert skipped[1]["content"] == "no JSON"
    only_bad = run(write_lines(tmp_path / "bad.jsonl", [*rows[:1], *["[]"] * 3]), "bad", partition_rows=2,
                   on_bad_row="skip", format="parquet")  # fmt: skip
    assert (only_bad.parts, only_bad.rows, only_bad.skipped) == (2, 1, 3)
    assert pq.read_table(only_bad.output).num_rows == 1


def test_no_rows_make_no_parts(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    report = run(write_lines(tmp_path / "empty.jsonl", []))
    assert (report.parts, report.rows) == (0, 0)


def test_arguments_of_other_types_are_named(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    config = BatchConfig(inputs=file, output=tmp_path / "scored", model=tmp_path)  # type: ignore[arg-type]  # a path
    assert config.model == str(tmp_path)
    assert BatchConfig(inputs=file, output="~/scored").output == Path.home() / "scored"  # type: ignore[arg-type]
    for arguments in ({"config": {"inputs": file}}, {"config": config, "reranker": "mini"}):
        with pytest.raises(TypeError, match=f"^{[*arguments][-1]} must be"):
            rerank_files(**arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "scored").exists()


def test_one_process_writes_to_a_folder(run: Callable[..., BatchReport], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", ROWS)
    with locked(tmp_path / "scored", "mrr batch"):
        job = open_job(BatchConfig(inputs=(file,), output=tmp_path / "scored", model="tiny"))
        assert job.pending()
    found: list[BaseException] = []

    def other() -> None:
        try:
            run(file)
        except FolderInUseError as error:
            found.append(error)

    with locked(tmp_path / "scored", "mrr batch"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(found) == 1
