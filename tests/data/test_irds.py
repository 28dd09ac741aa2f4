"""Collections by ir_datasets' ids, read by the library itself from a cache in its own structure."""

import builtins
import gzip
import importlib
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mrr_model.data import irds
from mrr_model.data.irds import knows, read_irds
from mrr_model.evaluation.collection import open_collection

SCIFACT = {
    "corpus.jsonl": [
        {"_id": "d1", "title": "Rain", "text": "It falls.", "metadata": {}},
        {"_id": "d2", "title": "", "text": "Stones fall.", "metadata": {}},
        {"_id": "d3", "title": "Light", "text": "", "metadata": {}},
    ],
    "queries.jsonl": [
        {"_id": "q1", "text": "what falls?", "metadata": {}},
        {"_id": "q2", "text": "light", "metadata": {}},
        {"_id": "q3", "text": "of the training split", "metadata": {}},
    ],
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t2\n",
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq3\td1\t1\n",
}
PASSAGES = {
    "irds_version.txt": "v2",
    "collection.tsv": "0\tRain falls.\n1\tStones fall.\n2\tEs fließt.\n",
    "dev/small/queries.tsv": "10\twhat falls?\n20\tGerman\n",
    "dev/small/qrels": "10 0 0 1\n20 0 2 1\n",
    "dev/ms.run": "10\t1\n10\t0\n20\t2\n99\t0\n",  # of the official top 1,000 the library keeps the ids alone
}
DOCUMENTS = {
    "collection.tsv.gz": "<DOC>\n<DOCNO>D1</DOCNO>\n<TEXT>\nhttp://a\nRain\nIt falls.\n</TEXT>\n</DOC>\n"
    "<DOC>\n<DOCNO>D2</DOCNO>\n<TEXT>\nhttp://b\nPool\nIt stands.\n</TEXT>\n</DOC>\n",
    "dev/queries.tsv.gz": "1\twhat falls?\n",
    "dev/qrels.gz": "1 0 D1 1\n",
    "dev/ms.run.gz": "1 Q0 D2 1 -5.1 x\n1 Q0 D1 2 -5.2 x\n",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library as a fresh process sees it: it looks for its home when it is imported."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IR_DATASETS_TMP", str(tmp_path / "tmp"))
    others = {name: sys.modules.pop(name) for name in imported()}
    yield tmp_path / "home"
    for name in imported():
        del sys.modules[name]
    sys.modules.update(others)


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "ir_datasets"]


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


@pytest.fixture
def scifact(home: Path) -> None:
    """The archive that BEIR publishes, where the library keeps its download."""
    (home / "beir" / "scifact").mkdir(parents=True)
    with zipfile.ZipFile(home / "beir" / "scifact" / "source.zip", "w") as archive:
        for name, content in SCIFACT.items():
            text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
            archive.writestr(f"scifact/{name}", text)


@pytest.mark.usefixtures("scifact")
@pytest.mark.parametrize("source", ["beir/scifact/test", "beir/scifact", "beir/scifact#test"])
def test_a_beir_name(source: str, capfd: pytest.CaptureFixture[str]) -> None:
    collection = open_collection(source)
    assert collection.name == "beir/scifact/test"
    assert collection.queries == {"q1": "what falls?", "q2": "light"}
    assert collection.qrels == {"q1": {"d1": 1}, "q2": {"d3": 2}}
    assert collection.corpus == {"d1": "Rain It falls.", "d2": "Stones fall.", "d3": "Light"}
    assert {query: set(found) for query, found in collection.candidates.items()} == {"q1": {"d1", "d2"}, "q2": {"d3"}}
    assert len(collection.corpus) == 3
    with pytest.raises(KeyError):
        collection.corpus["nowhere"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("scifact")
def test_another_split_and_one_that_is_not_there() -> None:
    assert read_irds("beir/scifact", "train").qrels == {"q3": {"d1": 1}}
    with pytest.raises(ValueError, match=r"beir/scifact has no split 'dev' with judgements; its splits: test, train"):
        read_irds("beir/scifact", "dev")


def test_ms_marco_passages_keep_their_official_candidates(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(home / "msmarco-passage", PASSAGES)
    collection = open_collection("msmarco-passage/dev/small")
    assert collection.candidates == {"10": ["1", "0"], "20": ["2"]}
    assert collection.corpus["2"] == "Es fließt."
    assert dict(collection.corpus.items()) == {"0": "Rain falls.", "1": "Stones fall.", "2": "Es fließt."}
    by_bm25 = open_collection("msmarco-passage/dev/small", first_stage="bm25", candidates=1)
    assert by_bm25.candidates == {"10": ["1"], "20": []}  # equally long, both hold "fall": by id, descending
    with pytest.raises(ValueError, match=r"all 2 candidates of query '10' have the same score.*candidates=2 or more"):
        open_collection("msmarco-passage/dev/small", candidates=1)
    assert capfd.readouterr() == ("", "")


def test_ms_marco_documents_are_title_and_body(home: Path) -> None:
    write(home / "msmarco-document", DOCUMENTS)
    collection = open_collection("msmarco-document/dev")
    assert collection.candidates == {"1": ["D2", "D1"]}
    assert {name: " ".join(text.split()) for name, text in collection.corpus.items()} == {
        "D1": "Rain It falls.",
        "D2": "Pool It stands.",
    }
    assert open_collection("msmarco-document/dev", candidates=1).candidates == {"1": ["D2"]}


def test_a_name_without_a_clear_split_lists_them() -> None:
    with pytest.raises(ValueError, match=r"name the split, as in msmarco-passage#SPLIT; .*dev/small"):
        read_irds("msmarco-passage")


def test_an_id_without_queries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("ir_datasets")
    library.registry.register("half", library.datasets.base.Dataset(library.load("beir/scifact/test").qrels_handler()))
    with pytest.raises(ValueError, match=r"half has no docs and no queries in ir_datasets"):
        read_irds("half")


def test_what_cannot_be_fetched_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    requests = importlib.import_module("requests")

    def refused(*_: object, **__: object) -> None:
        raise requests.exceptions.ConnectionError("no route\nto the host")

    monkeypatch.setattr(requests, "get", refused)
    with pytest.raises(ConnectionError, match=r"beir/scifact/test: ir_datasets .*\(no route\)\. Fetch"):
        read_irds("beir/scifact/test")
    assert capfd.readouterr() == ("", "")


def test_which_names_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert knows("beir/scifact/test")
    assert knows("vaswani")
    assert not knows("BeIR/scifact")
    monkeypatch.setattr(irds, "find_spec", lambda _: None)
    assert knows("beir/scifact/test")
    assert not knows("vaswani")


def test_the_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refused(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ir_datasets":
            raise ImportError("No module named 'ir_datasets'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(irds, "find_spec", lambda _: None)
    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(ImportError, match=r"'beir/scifact/test' is .*pip install \"matryoshka-reranker\[eval\]\""):
        open_collection("beir/scifact/test")
