"""TREC runs: texts come from the BEIR folder, and a query's lines stay together."""

import json
import pickle
from pathlib import Path

import pytest
from bulk_rows import chunks_of, faults, good, opened, write

from mrr_model.bulk.records import Source
from mrr_model.bulk.sources import TEXTS

RUN = ["q1 Q0 d1 1 9.5 bm25", "q1 Q0 d2 2 9 bm25", "q2 Q0 q2 1 3 bm25", "q2 Q0 d1 2 1e-1 bm25", "q3 Q0 d2 1 1 bm25"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "collection"
    folder.mkdir()
    queries = [{"_id": name, "text": f"query {name}"} for name in ("q1", "q2", "q3")]
    corpus = [{"_id": name, "title": "T", "text": f"text {name}"} for name in ("d1", "d2", "q2")]
    write(folder / "queries.jsonl", "\n".join(map(json.dumps, queries)))
    write(folder / "corpus.jsonl.gz", "\n".join(map(json.dumps, corpus)))
    return folder


def of_run(folder: Path, *lines: str, name: str = "a.run") -> Source:
    return opened(write(folder.parent / name, "\n".join(lines)), collection=folder)


def test_run_rows_have_their_fields_and_texts(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(of_run(folder, *RUN)))
    partitions = list(source.partitions(1))
    assert [(partition.first, partition.rows) for partition in partitions] == [(1, 2), (3, 2), (5, 1)]
    chunks = [chunk for partition in partitions for chunk in source.chunks(partition)]
    assert good(chunks)[:3] == [("query q1", "T text d1"), ("query q1", "T text d2"), ("query q2", "T text q2")]
    assert [chunk.keys for chunk in chunks] == [["q1", "q1"], ["q2", "q2"], ["q3"]]
    assert chunks[0].rows[0] == {
        "query_id": "q1", "document_id": "d1", "rank": 1, "score": 9.5, "tag": "bm25", "query": "query q1",
        "document": "T text d1",
    }  # fmt: skip
    assert [path.name for path in source.paths] == ["a.run", "queries.jsonl", "corpus.jsonl.gz"]
    assert good(chunks_of(of_run(folder, *RUN, name="a.run.gz"))) == good(chunks)


def test_a_fault_of_the_texts_names_their_file(folder: Path) -> None:
    source = of_run(folder, *RUN)
    write(folder.parent / TEXTS, "no database " * 100)
    with pytest.raises(OSError, match=TEXTS):
        chunks_of(source)


def test_bad_run_lines_belong_to_the_query_before(folder: Path) -> None:
    bad = ["q1 Q0 d9 3 1 t", "q1 d1", "q1 Q0 d1 x 1 t", "q1 Q0 d1 4 nan t", "q1 Q0 d1 5 1 t", "q1 Q0 \udcff 5 1 t"]
    source = of_run(folder, *RUN[:2], *bad, "q9 Q0 d1 1 1 t", *RUN[2:])
    assert [partition.rows for partition in source.partitions(1)] == [8, 1, 2, 1]
    chunks = chunks_of(source, 1)
    assert len(good(chunks)) == len(RUN)
    place = folder.parent / "a.run"
    for fault, expected in zip(
        faults(chunks),
        [
            f"{place}:3: document 'd9' is not in the collection's corpus.jsonl",
            f"{place}:4: expected six fields",
            f"{place}:5: expected a whole number as rank",
            f"{place}:6: expected six fields, qid Q0 docid rank score tag, with a finite number",
            f"{place}:7: document 'd1' came before for query 'q1'",
            f"{place}:8: is not UTF-8 text",
            f"{place}:9: query 'q9' is not in the collection's queries.jsonl",
        ],
        strict=True,
    ):
        assert fault.startswith(expected)


def test_a_query_whose_lines_are_apart_is_an_error(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.run:6: query 'q1' came before.*sort the run"):
        chunks_of(of_run(folder, *RUN, RUN[0]))
    first, second = write(folder.parent / "a.run", RUN[0]), write(folder.parent / "b.run", RUN[1])
    with pytest.raises(ValueError, match=r"b\.run:1: query 'q1' came before"):
        chunks_of(opened(first, second, collection=folder))


def test_texts_are_stored_once(folder: Path) -> None:
    of_run(folder, *RUN)
    before = (folder.parent / "texts.sqlite").stat().st_ino
    of_run(folder, *RUN)
    assert (folder.parent / "texts.sqlite").stat().st_ino == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"_id": "q1", "text": "x"}', r"queries\.jsonl:3: \"_id\" 'q1' came before"),
        ('{"_id": "q2", "text": " "}', r'queries\.jsonl:3: "text" is empty'),
        ('{"_id": "q2"}', r'queries\.jsonl:3: expected a string under "text"'),
    ],
)
def test_bad_row_of_the_collection_is_an_error(folder: Path, row: str, message: str) -> None:
    write(folder / "queries.jsonl", f'{{"_id": "q1", "text": "x"}}\n\n{row}\n{row}\n')
    with pytest.raises(ValueError, match=message):
        of_run(folder, *RUN)
    assert [path.name for path in folder.parent.iterdir() if "sqlite" in path.name] == []


def test_inputs_with_a_collection_are_runs(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"queries\.jsonl has an unknown ending. Allowed: TREC runs"):
        opened(folder / "queries.jsonl", collection=folder)
    (folder / "corpus.jsonl.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"corpus\.jsonl"):
        of_run(folder, *RUN)
