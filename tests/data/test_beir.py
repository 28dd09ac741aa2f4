"""Reading BEIR folders: their content, plain or gzipped, and the errors about bad rows."""

import gzip
import json
from pathlib import Path

import pytest

from mrr_model.data.beir import candidates_file, is_beir, list_splits, read_corpus, read_qrels, read_queries, read_run
from mrr_model.data.jsonl import read_json_lines

FILES = {
    "corpus.jsonl": [
        {"_id": "d1", "title": "Rain", "text": "It falls."},
        {"_id": "d2", "title": "", "text": "No title\u2028here."},
        {"_id": "d3", "text": "Title missing."},
        {"_id": "d4", "title": "Only a title", "text": ""},
        {"_id": "d5", "title": None, "text": ""},
    ],
    "queries.jsonl": [
        {"_id": "q1", "text": "what falls?"},
        {"_id": "q2", "text": "où?"},
        {"_id": "q3", "text": "unjudged"},
    ],
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\td1\t2\nq1\td3\t0\n",
    "candidates/dev.run": "q1 Q0 d3 1 9.5 bm25\nq1 Q0 d1 2 -1e-3 bm25\nq3 Q0 d1 1 1 bm25\n",
}


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def json_lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    for name, content in FILES.items():
        write(
            tmp_path / "tiny" / f"{name}{request.param}", content if isinstance(content, str) else json_lines(content)
        )
    return tmp_path / "tiny"


def test_a_folder_has_a_corpus_queries_and_judgements(folder: Path) -> None:
    assert is_beir(folder)
    assert read_corpus(folder) == {
        "d1": "Rain It falls.",
        "d2": "No title\u2028here.",
        "d3": "Title missing.",
        "d4": "Only a title",
        "d5": "",
    }
    assert read_queries(folder) == {"q1": "what falls?", "q2": "où?", "q3": "unjudged"}
    assert read_qrels(folder, "dev") == {"q2": {"d2": 1}, "q1": {"d1": 2, "d3": 0}}


def test_run_keeps_scores_and_order(folder: Path) -> None:
    path = candidates_file(folder, "dev")
    assert path is not None
    run = read_run(path)
    assert {query: list(scores.items()) for query, scores in run.items()} == {
        "q1": [("d3", 9.5), ("d1", -1e-3)],
        "q3": [("d1", 1.0)],
    }


def test_splits_are_those_with_judgements(folder: Path) -> None:
    write(folder / "qrels" / "train.tsv.gz", "query-id\tcorpus-id\tscore\n")
    assert list_splits(folder) == ["dev", "train"]
    assert list_splits(folder / "nowhere") == []


def test_missing_split_names_those_found(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'test'.*splits in .*: dev"):
        read_qrels(folder, "test")


def test_missing_file_names_both_forms(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither .*corpus\.jsonl nor corpus\.jsonl\.gz beside it"):
        read_corpus(tmp_path)


def test_a_folder_need_not_have_candidates_nor_a_corpus(folder: Path, tmp_path: Path) -> None:
    assert candidates_file(folder, "train") is None
    assert not is_beir(tmp_path)


def test_a_judgement_may_be_given_twice_when_both_agree(tmp_path: Path) -> None:
    write(tmp_path / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\r\nq\td\t1\r\n\r\nq\td\t1\r\n")
    assert read_qrels(tmp_path, "dev") == {"q": {"d": 1}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"_id": "d1", "text"', r"corpus\.jsonl:2: expected one JSON object a line, but this is not JSON"),
        ('["d1", "text"]', r"corpus\.jsonl:2: expected one JSON object a line, got list"),
        ('{"text": "a"}', r'corpus\.jsonl:2: expected a string under "_id", got nothing'),
        ('{"_id": 1, "text": "a"}', r'corpus\.jsonl:2: expected a string under "_id", got int 1'),
        ('{"_id": "d0", "text": "a"}', r"corpus\.jsonl:2: \"_id\" 'd0' came before; expected a new id on every line"),
        ('{"_id": "", "text": "a"}', r"corpus\.jsonl:2: \"_id\" '' is empty"),
        ('{"_id": "d1", "text": null}', r'corpus\.jsonl:2: expected a string under "text", got nothing'),
        ('{"_id": "d1", "title": [], "text": "a"}', r'corpus\.jsonl:2: expected a string under "title", got list \[\]'),
    ],
)
def test_bad_corpus_row_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    write(tmp_path / "corpus.jsonl", '{"_id": "d0", "text": ""}\n' + row + "\n")
    with pytest.raises(ValueError, match=message):
        read_corpus(tmp_path)


def test_empty_query_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "queries.jsonl", '\n{"_id": "q", "text": " "}\n')
    with pytest.raises(ValueError, match=r'queries\.jsonl:2: "text" is empty; expected a query'):
        read_queries(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q\td\t1\n", r"dev\.tsv:1: expected the header query-id<tab>corpus-id<tab>score, got 'q<tab>d<tab>1'"),
        ("", r"dev\.tsv:1: expected the header"),
        ("query-id\tcorpus-id\tscore\nq 0 d 1\n", r"dev\.tsv:2: expected query-id<tab>corpus-id<tab>score"),
        ("query-id\tcorpus-id\tscore\nq\td\t0.5\n", r"dev\.tsv:2: .*a whole number as score"),
        ("query-id\tcorpus-id\tscore\nq\td\t1\nq\td\t0\n", r"dev\.tsv:3: .*judged 1 before and are 0 here; keep one"),
    ],
)
def test_bad_qrels_row_names_its_line(tmp_path: Path, content: str, message: str) -> None:
    write(tmp_path / "qrels" / "dev.tsv", content)
    with pytest.raises(ValueError, match=message):
        read_qrels(tmp_path, "dev")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q d 1", r"dev\.run:2: expected six fields, qid Q0 docid rank score tag, .*got 'q d 1'"),
        ("q Q0 d1 2 high bm25", r"dev\.run:2: .*a finite number as score"),
        ("q Q0 d1 2 nan bm25", r"dev\.run:2: .*a finite number as score"),
        ("q Q0 d0 2 1 bm25", r"dev\.run:2: document 'd0' came before for query 'q'"),
    ],
)
def test_bad_run_row_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    path = write(tmp_path / "dev.run", f"q Q0 d0 1 2 bm25\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_run(path)


def test_json_lines_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", '{"a": 1}\nbroken\n')
    rows = read_json_lines(path)
    assert next(rows) == (f"{path}:1", {"a": 1})  # the broken second line is not read yet
    rows.close()
