"""Bad rows and bad inputs: each is named by its file, line and fault."""

import gzip
import json
import os
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bulk_rows import chunks_of, faults, good, opened, write

from mrr_model.bulk.config import BatchConfig
from mrr_model.bulk.job import open_job

GOOD = '{"query": "what falls?", "document": "rain"}'
LISTS = '{"query": "what falls?", "documents": ["rain", {"title": "Snow", "text": "It falls."}, {"text": ""}]}'


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{", "expected one JSON object a line, but this is not JSON"),
        (b"[1]", "expected one JSON object a line, got list"),
        (b'{"query": "q", "document": "\xff"}', "is not UTF-8 text: byte 0xff"),
        (b'{"query": "q", "document": "\\ud83d"}', r'"document" holds the lone surrogate'),
        (b'{"document": "d"}', 'expected a string under "query", got nothing'),
        (b'{"query": "q", "document": null}', 'expected a string under "document", got nothing'),
        (b'{"query": 7, "document": "d"}', 'expected a string under "query", got int 7'),
        (b'{"query": "q", "document": ["d"]}', 'expected a string under "document", got list'),
        (b'{"query": " ", "document": "d"}', '"query" is empty; expected a query'),
    ],
)
def test_bad_json_line_comes_with_its_fault(tmp_path: Path, line: bytes, fault: str) -> None:
    file = write(tmp_path / "a.jsonl", b"\n" + GOOD.encode() + b"\n" + line + b"\n" + GOOD.encode())
    (chunk,) = chunks_of(opened(file))
    assert chunk.queries == ["what falls?"] * 2
    (bad,) = chunk.bad
    assert bad.location == f"{file}:3"
    assert fault in bad.fault
    assert bad.content == line.decode("utf-8", "replace")
    assert json.dumps(chunk.rows) == f"[{GOOD}, {GOOD}]"


@pytest.mark.parametrize(
    ("documents", "fault"),
    [
        ('"d"', 'expected a list under "documents", got str'),
        ("null", 'expected a list under "documents", got nothing'),
        ('["d", null]', '"documents[1]": expected a string, or an object with a string under "text", got nothing'),
        ('[{"title": "t"}]', '"documents[0]": expected a string under "text", got nothing'),
        ('[{"text": "t", "title": 1}]', '"documents[0]": expected a string under "title", got int 1'),
        ('["\\ud83d"]', '"documents[0]": holds the lone surrogate'),
    ],
)
def test_bad_list_comes_with_its_fault(tmp_path: Path, documents: str, fault: str) -> None:
    file = write(tmp_path / "a.jsonl", f'{LISTS}\n{{"query": "q", "documents": {documents}}}\n')
    source = opened(file, rank=True)
    chunks = chunks_of(source)
    assert source.lists
    assert good(chunks) == [("what falls?", ["rain", "Snow It falls.", ""])]
    assert chunks[0].keys is None  # a list is ranked by itself
    assert faults(chunks)[0].startswith(f"{file}:2: {fault}")


def test_bad_csv_rows_name_the_line_that_they_start_on(tmp_path: Path) -> None:
    text = b'n,query,document\r\n1,q,"two\nlines, ""quoted"""\r\n2,q\r\n3,q,d,e\r\n\r\n4,q,\xff\n5,,d\n6,q,\n'
    text += b'7,q,"open\nend\n'
    file = write(tmp_path / "a.csv", text)
    chunks = chunks_of(opened(file))
    assert good(chunks) == [("q", 'two\nlines, "quoted"'), ("q", "")]
    assert chunks[0].rows == [
        {"n": "1", "query": "q", "document": 'two\nlines, "quoted"'},
        {"n": "6", "query": "q", "document": ""},
    ]
    assert faults(chunks) == [
        f"{file}:4: expected 3 fields as in the header, got 2",
        f"{file}:5: expected 3 fields as in the header, got 4",
        f"{file}:7: is not UTF-8 text: byte 0xff at character 4",
        f'{file}:8: "query" is empty; expected a query',
        f"{file}:10: expected a row of CSV, but a quoted field does not end",
    ]
    assert chunks[0].bad[-1].content == '7,q,"open\nend'


def test_csv_takes_long_fields_and_tabs_leave_quotes_alone(tmp_path: Path) -> None:
    long = "long " * 100_000
    assert good(chunks_of(opened(write(tmp_path / "a.csv", f"query,document\nq,{long}\n")))) == [("q", long)]
    file = write(tmp_path / "a.tsv.gz", 'query\tdocument\nq\t"open, and shut\nq\td\n')
    assert good(chunks_of(opened(file))) == [("q", '"open, and shut'), ("q", "d")]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_texts_may_have_any_string_type(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table(
        {
            "document": pa.array(["rain", None, "snow", ""], pa.string()).cast(kind),
            "query": pa.array(["q", "q", " ", "r"], pa.string()).cast(kind),
            "n": [b"0", b"1", b"2", b"3"],
        }
    ).replace_schema_metadata({"made": "here"})
    pq.write_table(table, file := tmp_path / "a.parquet")
    (chunk,) = chunks_of(opened(file, rank=True))
    assert isinstance(chunk.rows, pa.Table)
    assert (chunk.queries, chunk.documents, chunk.keys) == (["q", "r"], ["rain", ""], ["q", "r"])
    assert chunk.rows.schema.equals(pq.read_schema(file), check_metadata=True)
    assert chunk.rows["n"].to_pylist() == [b"0", b"3"]
    assert faults([chunk]) == [
        f'{file}: row 2: expected a string under "document", got nothing',
        f'{file}: row 3: "query" is empty; expected a query',
    ]
    assert chunk.bad[0].content == "{'document': None, 'query': 'q', 'n': b'1'}"  # JSON has no bytes


def test_parquet_lists_of_texts_and_of_objects(tmp_path: Path) -> None:
    for name, lists in {
        "texts": [["rain", ""], [], None, [None]],
        "objects": [[{"title": "Rain", "text": "falls"}, {"title": None, "text": ""}], [], None, [{"text": None}]],
    }.items():
        pq.write_table(pa.table({"query": ["q"] * 4, "documents": lists}), file := tmp_path / f"{name}.parquet")
        chunks = chunks_of(opened(file))
        assert good(chunks) == [("q", ["rain", ""] if name == "texts" else ["Rain falls", ""]), ("q", [])]
        assert [row.location for row in chunks[0].bad] == [f"{file}: row 3", f"{file}: row 4"]
        assert chunks[0].bad[0].content == {"query": "q", "documents": None}


def test_parquet_row_that_is_not_utf8_is_bad(tmp_path: Path) -> None:
    documents = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"rain"]).buffers())
    pq.write_table(pa.table({"query": ["q", "q"], "document": documents}), file := tmp_path / "a.parquet")
    (chunk,) = chunks_of(opened(file))
    assert chunk.documents == ["rain"]
    assert faults([chunk])[0].startswith(f'{file}: row 1: "document" is not UTF-8 text')
    assert chunk.bad[0].content == {"query": "q", "document": "\ufffd"}


def test_columns_are_found_in_the_first_good_row_or_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"id": 1}\n{"q": "x", "passage": ["d"], "document": "e"}\n')
    assert good(chunks_of(opened(file, query_column="q"))) == [("x", "e")]
    named = opened(file, query_column="q", document_column="passage")
    assert (named.lists, good(chunks_of(named))) == (True, [("x", ["d"])])
    pq.write_table(pa.table({"query": ["x"], "document": [["d"]]}), file := tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'"document" must hold texts, got list.*--document-column document'):
        opened(file)
    assert opened(file, document_column="document").lists


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.xml": ""}, r"a\.xml has an unknown ending.*\.parquet"),
        ({"a.parquet.gz": ""}, r"a\.parquet\.gz has an unknown ending"),
        ({"a.csv": "query,document\n", "b.jsonl": GOOD}, r"several kinds: .*a\.csv is csv and .*b\.jsonl is jsonl"),
        ({"a.jsonl": GOOD, "b.jsonl": LISTS}, r'b\.jsonl has lists under "documents".*texts under "document"'),
        ({"a.jsonl": '{"id": 1, "document": ""}'}, r'no column "query"; .* "id", "document"\..*--query-column'),
        ({"a.jsonl": '{"query": "q", "text": ""}'}, r'no column "document" or "documents".*--document-column'),
        ({"a.jsonl": "[\n1\n]"}, r"a\.jsonl has no JSON object.*line 1: "),
        ({"a.jsonl": b"\x1f\x8b\x08"}, r"a\.jsonl has no JSON object"),
        ({"a.csv": "query,query,document\n"}, r"a\.csv:1: the header has the column 'query' twice"),
        ({"a.csv": b"query,d\xff\n"}, r"a\.csv:1: the header is not UTF-8"),
        ({"a.csv": "query,documents\n"}, r'a\.csv has "documents", and CSV holds no lists.*Parquet'),
        ({"a.csv": "query;document\n"}, r'a\.csv has no column "query"; its columns are "query;document"'),
        ({"a.parquet": "PAR1"}, r"a\.parquet"),
    ],
)
def test_bad_input_is_named(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunks_of(opened(*(write(tmp_path / name, text) for name, text in files.items())))


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"b\.jsonl does not exist"):
        opened(tmp_path / "b.jsonl")
    with pytest.raises(FileNotFoundError, match=r"has no file that ends in \.parquet"):
        opened(tmp_path)
    file = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ValueError, match=r"a\.jsonl is given twice"):
        opened(tmp_path, file)
    with pytest.raises(ValueError, match=r"a\.jsonl is given twice"):
        opened(file, tmp_path / ".." / tmp_path.name / "a.jsonl")


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.parquet", "")
    monkeypatch.delitem(sys.modules, "mrr_model.bulk.parquet_source", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"matryoshka-reranker\[batch\]"):
        opened(file)
    lines = write(tmp_path / "a.jsonl", GOOD)
    with pytest.raises(ImportError, match=r"--format parquet.*matryoshka-reranker\[batch\]"):
        open_job(BatchConfig(inputs=lines, output=tmp_path / "out", format="parquet"))


def test_a_stream_is_no_input(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl is a stream"):
        opened(tmp_path / "a.jsonl")


def test_folders_give_their_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.ndjson", "c.json.gz", "_skipped.jsonl", ".hidden.jsonl", "notes.md"):
        write(tmp_path / name, GOOD.replace("rain", name))
    write(tmp_path / "empty.jsonl", "\n\n")
    source = opened(tmp_path)
    assert [document for _, document in good(chunks_of(source, 10))] == ["a.ndjson", "b.jsonl", "c.json.gz"]
    assert [path.name for path in source.paths] == ["a.ndjson", "b.jsonl", "c.json.gz", "empty.jsonl"]


def test_empty_inputs_have_no_partitions(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "document": pa.array([], pa.string())}),
                   parquet := tmp_path / "a.parquet")  # fmt: skip
    for file in (write(tmp_path / "a.jsonl", ""), write(tmp_path / "a.csv", "query,document\n"), parquet):
        assert list(opened(file).partitions(None)) == []


def test_a_file_that_became_shorter_is_noticed(tmp_path: Path) -> None:
    rows = [json.loads(GOOD)] * 3
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        for count in (3, 2):
            if name.endswith("parquet"):
                pq.write_table(pa.Table.from_pylist(rows[:count]), file := tmp_path / name)
            else:
                lines = [GOOD] * count if name == "a.jsonl" else ["query,document", *["q,d"] * count]
                file = write(tmp_path / name, "\n".join(lines))
            if count == 3:
                (partition,) = opened(file).partitions(None)
        with pytest.raises(ValueError, match=rf"{name} is shorter than when the job was planned, by 1 row\."):
            list(opened(file).chunks(partition))


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress((GOOD + "\n").encode() * 5000)[:-50])
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz is not a complete gzip file"):
        chunks_of(opened(file))


def test_readers_that_overlap_do_not_disturb_each_other(tmp_path: Path) -> None:
    rows = [{"query": "q", "document": str(at)} for at in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), parquet := tmp_path / "a.parquet")
    for file in (parquet, write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))):
        source = opened(file)
        (partition,) = source.partitions(None)
        chunks = [chunk for both in zip(*(source.chunks(partition) for _ in "ab"), strict=True) for chunk in both]
        assert good(chunks[::2]) == good(chunks[1::2]) == [("q", row["document"]) for row in rows]
        copy = pickle.loads(pickle.dumps(source))  # a file is held open
        next(reader := source.chunks(partition))
        reader.close()
        assert len(good(list(copy.chunks(partition)))) == len(good(list(source.chunks(partition)))) == 2500


def test_reading_parquet_holds_no_row_group(tmp_path: Path) -> None:
    documents = [random.Random(at).randbytes(1000).hex() for at in range(8000)]
    table = pa.table({"query": ["q"] * len(documents), "document": documents})
    pq.write_table(table, file := tmp_path / "a.parquet", row_group_size=4000)
    del table
    source, before, held = opened(file), pa.total_allocated_bytes(), []
    for partition in source.partitions(1000):
        for chunk in source.chunks(partition):
            held.append(pa.total_allocated_bytes() - before)
            assert len(chunk.rows)
    assert max(held) < 1e7 < file.stat().st_size
