"""Long documents are made of an article's neighbouring paragraphs, and judged by the paragraph that they contain."""

import gzip
import json
from pathlib import Path

import long_documents
import pytest

from mrr_model import MatryoshkaReranker


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two articles of five paragraphs, not in order, and two questions."""
    folder = tmp_path / "squad"
    rows = [
        {"_id": f"dev-{article}-{number}", "title": article, "text": f"{article} text {number}."}
        for article in ("The-Panda-2", "Bears")
        for number in (0, 2, 1, 10, 3)
    ]
    (folder / "qrels").mkdir(parents=True)
    (folder / "candidates").mkdir()
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    queries = [{"_id": "q1", "text": "Which bears?"}, {"_id": "q2", "text": "Which pandas?"}]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (folder / "qrels" / "dev500.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq1\tdev-Bears-10\t1\nq2\tdev-The-Panda-2-0\t1\n"
    )
    ids = ["dev-Bears-1", "dev-The-Panda-2-0", "dev-Bears-0", "dev-Bears-10"]
    lines = [
        f"{query} Q0 {each} {rank + 1} {9 - rank} bm25\n" for query in ("q1", "q2") for rank, each in enumerate(ids)
    ]
    (folder / "candidates" / "dev500.run").write_text("".join(lines))
    return tmp_path


def test_paragraphs_are_joined_in_order_and_judged(data: Path) -> None:
    collection = long_documents.joined(data, 2, queries=2, candidates=10)
    assert collection.corpus["dev-Bears-part0"] == "Bears\n\nBears text 0.\n\nBears text 1."
    assert collection.corpus["dev-Bears-part1"] == "Bears\n\nBears text 2.\n\nBears text 3.\n\nBears text 10."
    assert collection.qrels == {"q1": {"dev-Bears-part1": 1}, "q2": {"dev-The-Panda-2-part0": 1}}
    assert collection.candidates["q1"] == ["dev-Bears-part0", "dev-The-Panda-2-part0", "dev-Bears-part1"]
    assert long_documents.joined(data, 2, queries=2, candidates=2).candidates["q2"] == collection.candidates["q2"][:2]


def test_each_way_is_measured(data: Path) -> None:
    reranker = MatryoshkaReranker("mini", dtype="float32", max_length=24)
    collection = long_documents.joined(data, 5, queries=2, candidates=10)
    facts = long_documents.described(reranker, collection)
    assert facts["queries"] == facts["documents"] == 2
    assert facts["with_relevant_candidate"] == 1
    rows = long_documents.windows_compared(reranker, collection)
    assert len(rows) == len(long_documents.WINDOWS) * len(long_documents.STRIDES)
    assert all(0 < row["quality"] <= 1 and row["ms_per_query"] > 0 for row in rows)
    assert rows[0]["windows_per_document"] > rows[2]["windows_per_document"] > 1
