"""Opening collections: what a source means, which candidates, how many, which queries."""

import gzip
import json
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mrr_model.data.bm25 import bm25_run
from mrr_model.evaluation.collection import Collection, open_collection

CORPUS = [
    {"_id": "d1", "title": "Rain", "text": "It falls."},
    {"_id": "d2", "title": "", "text": "Stones fall."},
    {"_id": "d3", "text": "Light stands still."},
    {"_id": "d4", "title": "Nothing", "text": ""},
]
QUERIES = [{"_id": f"q{number}", "text": text} for number, text in enumerate(("falling", "light", "nobody", "rain"))]
FILES: dict[str, Any] = {
    "corpus.jsonl": CORPUS,
    "queries.jsonl": QUERIES,
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td3\t1\nq0\td1\t2\nq0\td2\t0\nq2\td1\t1\n",
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq3\td1\t1\n",
    "candidates/test.run": "q0 Q0 d3 1 9 x\nq0 Q0 d1 2 8 x\nq0 Q0 d2 3 8 x\nq1 Q0 d3 1 5 x\n",
}
TEXTS = {"d1": "Rain It falls.", "d2": "Stones fall.", "d3": "Light stands still.", "d4": "Nothing"}


@pytest.fixture(params=["", ".gz"], ids=["plain", "gz"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "tiny", FILES, request.param)


def write(folder: Path, files: Mapping[str, Any], ending: str = "") -> Path:
    for name, content in files.items():
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        path = folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    return folder


def test_a_folder_holds_queries_judgements_and_candidates(folder: Path) -> None:
    expected = Collection(
        name="tiny",
        corpus=TEXTS,
        queries={"q1": "light", "q0": "falling", "q2": "nobody"},
        qrels={"q1": {"d3": 1}, "q0": {"d1": 2, "d2": 0}, "q2": {"d1": 1}},
        candidates={"q1": ["d3"], "q0": ["d3", "d1", "d2"], "q2": []},
    )
    assert open_collection(str(folder)) == open_collection(f"{folder}#test") == expected


def test_a_split_without_a_run_is_searched_by_bm25(folder: Path) -> None:
    collection = open_collection(f"{folder}#dev")
    assert (collection.queries, collection.candidates) == ({"q3": "rain"}, {"q3": ["d1"]})
    with pytest.raises(FileNotFoundError, match=r'first_stage="given": tiny'):
        open_collection(f"{folder}#dev", first_stage="given")


def test_bm25_if_asked_for(folder: Path) -> None:
    collection = open_collection(str(folder), first_stage="bm25", candidates=1)
    assert collection.candidates == {"q1": ["d3"], "q0": ["d2"], "q2": []}  # d2 is the shorter of the two
    found = bm25_run(collection.queries, TEXTS, candidates=1)
    assert collection.candidates == {query: list(scores) for query, scores in found.items()}
    assert collection.corpus == TEXTS


def test_the_best_of_a_run_are_those_of_the_highest_scores_and_ties_keep_its_order(folder: Path) -> None:
    assert open_collection(str(folder), candidates=2).candidates["q0"] == ["d3", "d1"]
    run = folder / "other.run"
    run.write_text("q0 Q0 d1 1 1 x\nq0 Q0 d2 2 7 x\nq0 Q0 d4 3 1 x\n")
    for first_stage in ("auto", "given"):
        collection = open_collection(str(folder), run=run, first_stage=first_stage, candidates=2)  # type: ignore[arg-type]
        assert collection.candidates == {"q1": [], "q0": ["d2", "d1"], "q2": []}


def test_candidates_without_scores_cannot_be_cut(folder: Path) -> None:
    run = folder / "scoreless.run"
    run.write_text("q0 Q0 d1 1 0 x\nq0 Q0 d2 2 0 x\nq0 Q0 d4 3 0 x\n")
    assert open_collection(str(folder), run=run, candidates=3).candidates["q0"] == ["d1", "d2", "d4"]
    with pytest.raises(ValueError, match=r"query 'q0'.*candidates=3"):
        open_collection(str(folder), run=run, candidates=2)


def test_trec_files_hold_the_same_collection(folder: Path, tmp_path: Path) -> None:
    trec = write(
        tmp_path / "trec",
        {
            "tiny.qrels": "q1 0 d3 1\nq0 0 d1 2\nq0 0 d2 0\nq2 0 d1 1\n",
            "queries.tsv": "".join(f"{row['_id']}\t{row['text']}\n" for row in QUERIES),
            "corpus.tsv": "".join(f"{name}\t{text}\n" for name, text in TEXTS.items()),
            "tiny.run": FILES["candidates/test.run"],
        },
    )
    files = f"qrels={trec}/tiny.qrels,queries={trec}/queries.tsv,corpus={trec}/corpus.tsv"
    expected = open_collection(str(folder))
    needed = {name: text for name, text in TEXTS.items() if name != "d4"}  # no candidate
    assert open_collection(f"{files},run={trec}/tiny.run") == replace(expected, corpus=needed)
    assert open_collection(files) == open_collection(str(folder), first_stage="bm25")


def test_the_limit_draws_queries_by_the_seed(folder: Path) -> None:
    whole = open_collection(str(folder))
    for seed in range(3):
        chosen = random.Random(seed).sample(["q0", "q1", "q2"], 2)  # the rule of benchmarks/quality.py
        part = open_collection(str(folder), limit=2, seed=seed)
        assert [*part.queries] == [*part.qrels] == [*part.candidates] == chosen
        assert part.qrels == {query: whole.qrels[query] for query in chosen}
        assert part.candidates == {query: whole.candidates[query] for query in chosen}
    assert open_collection(str(folder), limit=3) == whole


def test_the_only_split_need_not_be_named(folder: Path) -> None:
    for path in folder.glob("qrels/test.tsv*"):
        path.unlink()
    assert [*open_collection(str(folder)).queries] == ["q3"]
    write(folder, {"qrels/train.tsv": "query-id\tcorpus-id\tscore\nq3\td1\t1\n"})
    with pytest.raises(
        ValueError, match=r"tiny: name the split, as in .*tiny#SPLIT; splits with judgements: dev, train"
    ):
        open_collection(str(folder))
    with pytest.raises(ValueError, match=r"no split 'test' with judgements; its splits: dev, train"):
        open_collection(f"{folder}#test")


def test_files_that_contradict_each_other_are_refused(folder: Path) -> None:
    run = folder / "other.run"
    run.write_text("q0 Q0 d9 1 1 x\n")
    with pytest.raises(ValueError, match=r"tiny: document 'd9'.*'q0'"):
        open_collection(str(folder), run=run)
    write(folder, {"qrels/odd.tsv": "query-id\tcorpus-id\tscore\nq9\td1\t1\n"})
    with pytest.raises(ValueError, match=r"tiny: query 'q9'"):
        open_collection(f"{folder}#odd")
    write(folder, {"qrels/odd.tsv": "query-id\tcorpus-id\tscore\n"})
    with pytest.raises(ValueError, match=r"tiny has no judged"):
        open_collection(f"{folder}#odd")


def test_a_bad_row_names_its_line(folder: Path) -> None:
    run = folder / "bad.run"
    run.write_text("q0 Q0 d1 1 1 x\nq0 d2 2\n")
    with pytest.raises(ValueError, match=r"bad\.run:2: expected six fields"):
        open_collection(str(folder), run=run)


def test_what_is_missing_is_named(tmp_path: Path, folder: Path) -> None:
    write(tmp_path / "empty", {"README.md": "A folder with a description.\n"})
    with pytest.raises(FileNotFoundError, match=r"empty .*qrels/SPLIT\.tsv"):
        open_collection(str(tmp_path / "empty"))
    for source in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere/at/all", "#test", str(folder / "other")):
        with pytest.raises(FileNotFoundError, match=r"is not a folder.*qrels=FILE"):
            open_collection(source)
    with pytest.raises(FileNotFoundError, match=r"run='.*nowhere\.run'"):
        open_collection(str(folder), run=folder / "nowhere.run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_stage": "dense"}, r"first_stage must be one of given, bm25, auto, got 'dense'"),
        ({"first_stage": "bm25", "run": "a.run"}, r"run='a\.run' and first_stage="),
        ({"candidates": 0}, r"candidates .*got 0"),
        ({"limit": 0}, r"limit .*got 0"),
    ],
)
def test_bad_arguments_are_named(folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_collection(str(folder), **arguments)


# Queries that are documents of the corpus

TWINS: dict[str, Any] = {
    "corpus.jsonl": [
        {"_id": "q1", "text": "how does rain fall?"},
        {"_id": "q2", "text": "why do stones sink?"},
        {"_id": "d1", "text": "how does the rain fall down?"},
        {"_id": "d2", "text": "why do stones sink in water?"},
        {"_id": "d3", "text": "how do stones fall?"},
    ],
    "queries.jsonl": [{"_id": "q1", "text": "how does rain fall?"}, {"_id": "q2", "text": "why do stones sink?"}],
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n",
}
TWINS_RUN = "q1 Q0 q1 1 9 x\nq1 Q0 d1 2 8 x\nq1 Q0 d3 3 7 x\nq2 Q0 d2 1 9 x\nq2 Q0 q2 2 8 x\n"


@pytest.fixture(params=["bm25", "given", "the folder's own", "trec"])
def twins(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, Any]]:
    """A source whose queries are in its corpus, and the arguments that its candidates take."""
    folder = write(tmp_path / "twins", TWINS)
    (tmp_path / "other.run").write_text(TWINS_RUN)
    if request.param == "given":
        return str(folder), {"run": tmp_path / "other.run"}
    if request.param == "the folder's own":
        write(folder, {"candidates/test.run": TWINS_RUN})
    elif request.param == "trec":
        write(tmp_path, {"qrels.txt": "q1 0 d1 1\nq2 0 d2 1\n"})
        files = f"qrels={tmp_path}/qrels.txt,queries={folder}/queries.jsonl,corpus={folder}/corpus.jsonl"
        return f"{files},run={tmp_path}/other.run", {}
    return str(folder), {}


def test_a_querys_own_document_is_no_candidate(twins: tuple[str, dict[str, Any]]) -> None:
    source, given = twins
    kept = open_collection(source, **given, ignore_identical_ids=False)
    assert all(query in kept.candidates[query] for query in ("q1", "q2"))
    assert kept.identical_ids == 0
    made = open_collection(source, **given)
    assert made.identical_ids == 2
    assert made.candidates == {
        query: [document for document in kept.candidates[query] if document != query] for query in ("q1", "q2")
    }


def test_a_querys_own_document_does_not_count_among_the_candidates(twins: tuple[str, dict[str, Any]]) -> None:
    source, given = twins
    assert open_collection(source, **given, candidates=1).candidates == {"q1": ["d1"], "q2": ["d2"]}
    assert open_collection(source, **given, candidates=1, ignore_identical_ids=False).candidates["q1"] == ["q1"]


def test_a_relevant_identical_id_is_a_warning(tmp_path: Path) -> None:
    folder = write(tmp_path / "twins", {**TWINS, "qrels/test.tsv": TWINS["qrels/test.tsv"] + "q2\tq2\t1\nq1\tq1\t0\n"})
    with pytest.warns(UserWarning, match=r"twins: 1 queries .*'q2'.*ignore_identical_ids=False, --keep-identical-ids"):
        made = open_collection(str(folder))
    assert made.qrels["q2"] == {"d2": 1, "q2": 1}  # BEIR leaves judgements as they are
    assert open_collection(str(folder), ignore_identical_ids=False).candidates["q2"][0] == "q2"
