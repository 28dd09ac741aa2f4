"""TREC files: a source string to queries, judgements, run and texts; a bad row names its line."""

import gzip
from pathlib import Path

import pytest

from mrr_model.data.trec import is_trec, read_trec, read_trec_qrels

FILES = {
    "dl.qrels.txt": "q2 0 d2 1\nq1 0 d1 3\nq1 Q0 d3 -1\nq1 0 d1 3\n",
    "queries.tsv": "q1\twhat falls?\nq2\twhere?\u2028here\nq3\tunjudged\n",
    "corpus.tsv": "d1\tRain falls.\nd2\t\nd3\tIt stands.\n",
    "bm25.run": "q1 Q0 d3 1 9.5 bm25\nq1 Q0 d1 2 8 bm25\n",
}


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    return {name: write(tmp_path / f"{name}{request.param}", text) for name, text in FILES.items()}


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def source(files: dict[str, Path], **others: Path | None) -> str:
    named = {
        "run": files.get("bm25.run"),
        "qrels": files.get("dl.qrels.txt"),
        "queries": files.get("queries.tsv"),
        "corpus": files.get("corpus.tsv"),
        **others,
    }
    return ",".join(f"{key}={path}" for key, path in named.items() if path is not None)


def test_what_the_files_hold(files: dict[str, Path]) -> None:
    opened = read_trec(source(files))
    assert opened.name == "dl"
    assert opened.queries == {"q1": "what falls?", "q2": "where?\u2028here", "q3": "unjudged"}
    assert opened.qrels == {"q2": {"d2": 1}, "q1": {"d1": 3, "d3": -1}}
    assert opened.texts(None) == {"d1": "Rain falls.", "d2": "", "d3": "It stands."}
    assert opened.texts({"d3"}) == {"d3": "It stands."}
    assert opened.run is not None
    assert opened.run({"q1"}) == {"q1": {"d3": 9.5, "d1": 8.0}}


def test_json_lines_and_ms_marcos_documents(files: dict[str, Path], tmp_path: Path) -> None:
    queries = write(tmp_path / "queries.jsonl", '{"_id": "q1", "text": "what?"}\n')
    corpus = write(tmp_path / "corpus.jsonl.gz", '{"_id": "d1", "title": "Rain", "text": "It falls."}\n')
    opened = read_trec(source(files, queries=queries, corpus=corpus))
    assert (opened.queries, opened.texts(None)) == ({"q1": "what?"}, {"d1": "Rain It falls."})
    documents = write(tmp_path / "msmarco-docs.tsv", "D1\thttp://a\tRain\tIt falls.\nD2\thttp://b\t\tIt flows.\n")
    opened = read_trec(source(files, corpus=documents))
    assert opened.texts(None) == {"D1": "Rain It falls.", "D2": "It flows."}


def test_the_run_may_be_left_out(files: dict[str, Path]) -> None:
    assert read_trec(source(files, run=None)).run is None


def test_a_source_is_recognised_by_its_first_key() -> None:
    assert is_trec("corpus=a,qrels=b")
    assert not any(map(is_trec, ("folder", "fold=er", "beir/scifact/test", "a#qrels=b")))


def test_missing_and_unknown_files_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"names no queries and no corpus; add queries=FILE"):
        read_trec(f"qrels={files['dl.qrels.txt']}")
    with pytest.raises(ValueError, match=r"expected run=FILE, qrels=FILE, .*each once, got 'topics=x'"):
        read_trec(source(files) + ",topics=x")
    with pytest.raises(ValueError, match=r"each once, got 'run="):
        read_trec(source(files) + f",run={files['bm25.run']}")
    with pytest.raises(ValueError, match=r"got 'corpus='"):
        read_trec("corpus=")
    with pytest.raises(FileNotFoundError, match=r"corpus=.*nowhere: no such file"):
        read_trec(source(files, corpus=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q d 1", r"bad\.qrels:2: expected four fields, qid 0 docid relevance, .*got 'q d 1'"),
        ("q 0 d 0.5", r"bad\.qrels:2: .*a whole number as relevance"),
        ("q 0 d 2", r"bad\.qrels:2: .*were judged 1 before and are 2 here; keep one"),
    ],
)
def test_a_bad_judgement_names_its_line(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_trec_qrels(write(tmp_path / "bad.qrels", f"q 0 d 1\n{row}\n"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("q1", r"bad\.tsv:2: expected id<tab>text, .*got 1 columns"),
        ("q1\ta\tb", r"bad\.tsv:2: .*got 3 columns"),
        ("q0\tagain", r"bad\.tsv:2: id 'q0' came before; expected a new id on every line"),
        ("\tnameless", r"bad\.tsv:2: id '' is empty"),
        ("q1\t ", r"bad\.tsv:2: the text of query 'q1' is empty; expected a query"),
    ],
)
def test_a_bad_query_names_its_line(files: dict[str, Path], tmp_path: Path, row: str, message: str) -> None:
    queries = write(tmp_path / "bad.tsv", f"q0\tgood\n{row}\n")
    with pytest.raises(ValueError, match=message):
        read_trec(source(files, queries=queries))


def test_a_bad_text_names_its_line(files: dict[str, Path], tmp_path: Path) -> None:
    corpus = write(tmp_path / "bad.tsv", "d1\tgood\nd1\tagain\n")
    with pytest.raises(ValueError, match=r"bad\.tsv:2: id 'd1' came before"):
        read_trec(source(files, corpus=corpus)).texts(None)
    corpus = write(tmp_path / "bad.jsonl", '{"_id": "d1", "text": "good"}\n{"_id": "d2"}\n')
    with pytest.raises(ValueError, match=r'bad\.jsonl:2: expected a string under "text", got nothing'):
        read_trec(source(files, corpus=corpus)).texts({"d1"})
