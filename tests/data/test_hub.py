"""Datasets structured as BEIR's and MTEB's, read by `datasets` from local repositories."""

import builtins
import gzip
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from mrr_model.data.hub import read_hub
from mrr_model.evaluation.collection import open_collection

CORPUS = [
    {"_id": "1", "title": "Rain", "text": "It falls."},
    {"_id": "2", "title": "", "text": "Stones fall."},
    {"_id": "3", "title": "Light", "text": ""},
]
QUERIES = [{"_id": "10", "title": "", "text": "what falls?"}, {"_id": "20", "title": "", "text": "light"}]
QRELS = {"test": [(10, 1, 1), (20, 3, 2)], "train": [(20, 1, 1)]}
SPLITS = {"corpus": "corpus", "queries": "queries"}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names are paths below the working folder; nothing is asked of the hub; caches stay with the test."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def repository(folder: Path, configurations: Mapping[str, Mapping[str, str]], files: Mapping[str, str]) -> None:
    """A dataset repository: its files, and a card that says which configuration and split they are."""
    card = ["---", "configs:"]
    for configuration, splits in configurations.items():
        card += [f"- config_name: {configuration}", "  data_files:"]
        for split, name in splits.items():
            card += [f"  - split: {split}", f"    path: {name}"]
    for name, text in {"README.md": "\n".join([*card, "---", ""]), **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def beir(folder: Path, corpus: list[dict[str, Any]] = CORPUS, queries: list[dict[str, Any]] = QUERIES) -> None:
    repository(
        folder,
        {"corpus": {"corpus": "corpus.jsonl.gz"}, "queries": {"queries": "queries.jsonl.gz"}},
        {"corpus.jsonl.gz": lines(corpus), "queries.jsonl.gz": lines(queries)},
    )


def beir_qrels(folder: Path, qrels: Mapping[str, list[tuple[Any, ...]]] = QRELS) -> None:
    folder.mkdir(parents=True)
    for split, rows in qrels.items():
        text = "".join("\t".join(map(str, row)) + "\n" for row in [("query-id", "corpus-id", "score"), *rows])
        (folder / f"{split}.tsv").write_text(text)


@pytest.fixture(params=["beir", "mteb, default", "mteb, qrels"])
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "beir":
        beir(tmp_path / "BeIR" / "scifact")
        beir_qrels(tmp_path / "BeIR" / "scifact-qrels")
        return "BeIR/scifact"
    configuration = request.param.split(", ")[1]
    files = {f"qrels/{split}.jsonl": as_rows(rows) for split, rows in QRELS.items()}
    repository(
        tmp_path / "mteb" / "scifact",
        {
            configuration: {split: f"qrels/{split}.jsonl" for split in QRELS},
            "corpus": {"corpus": "corpus.jsonl"},
            "queries": {"queries": "queries.jsonl"},
        },
        {"corpus.jsonl": lines(CORPUS), "queries.jsonl": lines(QUERIES), **files},
    )
    return "mteb/scifact"


def as_rows(qrels: list[tuple[Any, ...]]) -> str:
    return lines([{"query-id": str(q), "corpus-id": str(d), "score": float(score)} for q, d, score in qrels])


@pytest.mark.parametrize("split", ["", "#test"])
def test_a_name(name: str, split: str, capfd: pytest.CaptureFixture[str]) -> None:
    collection = open_collection(name + split)
    assert collection.name == name
    assert collection.queries == {"10": "what falls?", "20": "light"}
    assert collection.qrels == {"10": {"1": 1}, "20": {"3": 2}}
    assert collection.corpus == {"1": "Rain It falls.", "2": "Stones fall.", "3": "Light"}
    assert {query: set(found) for query, found in collection.candidates.items()} == {"10": {"1", "2"}, "20": {"3"}}
    assert len(collection.corpus) == 3
    assert collection.corpus["3"] == "Light"
    with pytest.raises(KeyError):
        collection.corpus["4"]
    assert capfd.readouterr() == ("", "")


def test_another_split_and_one_that_is_not_there(name: str) -> None:
    assert read_hub(name, "train").qrels == {"20": {"1": 1}}
    with pytest.raises(ValueError, match=rf"{name} has no split 'dev' with judgements; its splits: test, train"):
        read_hub(name, "dev")


def test_a_local_folder_in_the_same_layout(name: str, tmp_path: Path) -> None:
    assert open_collection(str(tmp_path / name)).candidates == open_collection(name).candidates


def test_a_name_that_the_cache_has_not_got_is_one_sentence() -> None:
    with pytest.raises(ConnectionError, match=r"'BeIR/nowhere' is not in the cache of datasets, .* Fetch it once with"):
        open_collection("BeIR/nowhere")


def test_a_name_that_the_hub_has_not_got(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *_: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(FileNotFoundError, match=r"'BeIR/nowhere' is neither a folder .*nor a dataset on the hub"):
        open_collection("BeIR/nowhere")


def test_judgements_that_are_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beir(tmp_path / "BeIR" / "half")
    with pytest.raises(ConnectionError, match=r"'BeIR/half-qrels' is not in the cache"):
        read_hub("BeIR/half")
    beir(tmp_path / "BeIR" / "half-qrels")  # there, and something else
    with pytest.raises(ValueError, match=r"'BeIR/half' holds no judgements: neither BeIR/half-qrels nor"):
        read_hub("BeIR/half")


def test_another_layout_is_refused(tmp_path: Path) -> None:
    repository(tmp_path / "own" / "flat", {"default": {"train": "a.jsonl"}}, {"a.jsonl": lines([{"query": "a"}])})
    with pytest.raises(ValueError, match=r"queries"):
        open_collection("own/flat")
    repository(tmp_path / "own" / "odd", {"queries": {"queries": "a.jsonl"}}, {"a.jsonl": lines([{"query": "a"}])})
    with pytest.raises(ValueError, match=r"own/odd, configuration queries: expected the columns _id and text, found q"):
        open_collection("own/odd")
    two = {"queries": {"one": "a.jsonl", "two": "a.jsonl"}}
    repository(tmp_path / "own" / "two", two, {"a.jsonl": lines(QUERIES)})
    with pytest.raises(ValueError, match=r"own/two, configuration queries: expected one split, found one, two"):
        open_collection("own/two")


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    beir(tmp_path / "bad" / "qrels")
    beir_qrels(tmp_path / "bad" / "qrels-qrels", {"test": [(10, 1, 1), (10, 2, 0.5)]})
    with pytest.raises(ValueError, match=r'bad/qrels#test:2: expected a whole number under "score", got 0\.5'):
        read_hub("bad/qrels")
    beir(tmp_path / "bad" / "query", queries=[*QUERIES, {"_id": "30", "title": "", "text": None}])
    beir_qrels(tmp_path / "bad" / "query-qrels")
    with pytest.raises(ValueError, match=r'bad/query queries:3: expected something under "text", got nothing'):
        read_hub("bad/query")
    beir(tmp_path / "bad" / "text", corpus=[*CORPUS, {"_id": "4", "title": "", "text": None}])
    beir_qrels(tmp_path / "bad" / "text-qrels")
    with pytest.raises(ValueError, match=r'bad/text corpus:4: expected something under "text", got nothing'):
        open_collection("bad/text")


def test_the_missing_library_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def refused(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refused)
    with pytest.raises(ImportError, match=r"'BeIR/scifact' needs datasets .*\"matryoshka-reranker\[eval\]\""):
        open_collection("BeIR/scifact")
