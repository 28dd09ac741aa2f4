"""Sources of training rows: every form gives the groups it holds, and a row that cannot be read is named."""

import gzip
import json
import logging
import re
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrr_model.data import msmarco
from mrr_model.data.groups import Group, OnBadRow, write_groups
from mrr_model.data.msmarco import TextTable
from mrr_model.data.sources import corpus_of, read_source

ROWS = [Group("q1", ("p1",), ("n1", "n2")), Group("q2", ("p2", "p3"), ("n3",), (0.5, 1.0), (0.25,), "Find it.")]

BEIR = {
    "corpus.jsonl": [
        {"_id": "d1", "title": "Rain", "text": "It falls."},
        {"_id": "d2", "text": "It flows."},
        {"_id": "d3", "text": "It stands."},
        {"_id": "d4", "text": "It flies."},
    ],
    "queries.jsonl": [{"_id": "q1", "text": "what falls?"}, {"_id": "q2", "text": "what flows?"}],
    "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\nq1\td1\t2\nq1\td3\t0\n",
    "qrels/dev.tsv": "query-id\tcorpus-id\tscore\nq2\td2\t1\n",
}
CANDIDATES = {
    "candidates/train.run": "q1 Q0 d4 1 9 x\nq1 Q0 d1 2 8 x\nq1 Q0 d2 3 7 x\nq3 Q0 d1 1 1 x\n",
    "candidates/dev.run": "q2 Q0 d3 1 9 x\n",
}

PASSAGES = {
    "collection.tsv": "0\tIt falls.\n1\tIt flows.\n2\tEs fließt.\n3\tIt stands.\n",
    "queries.train.tsv": "10\twhat falls?\n20\twhat flows?\n30\tunjudged\n",
    "qrels.train.tsv": "20\t0\t1\t1\n10\t0\t0\t1\n20\t0\t2\t1\n10\t0\t3\t0\n",
    "queries.dev.tsv": "40\twhat stands?\n",
    "qrels.dev.tsv": "40 0 3 1\n",
}
TRIPLES = {"qidpidtriples.train.full.2.tsv": "10\t0\t3\n20\t1\t0\n10\t0\t2\n20\t1\t2\n20\t2\t0\n99\t1\t2\n"}
PASSAGE_GROUPS = [
    Group("what flows?", ("It flows.", "Es fließt."), ("It falls.",)),
    Group("what falls?", ("It falls.",), ("It stands.", "Es fließt.")),
]

DOCUMENTS = {
    "msmarco-docs.tsv": "D1\thttp://a\tRain\tIt falls.\nD2\thttp://b\t\tIt flows.\nD3\thttp://c\tPool\t\n",
    "msmarco-doctrain-queries.tsv": "1\twhat falls?\n",
    "msmarco-doctrain-qrels.tsv": "1 0 D1 1\n",
    "msmarco-doctrain-top100": "1 Q0 D3 1 -5.1 x\n1 Q0 D1 2 -5.2 x\n1 Q0 D2 3 -5.3 x\n",
}

ENDINGS = pytest.mark.parametrize("ending", ["", ".gz"], ids=["plain", "gz"])


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is asked of the hub; what datasets keeps, it keeps with the test."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(socket, "create_connection", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    datasets.disable_progress_bars()


def write(folder: Path, files: Mapping[str, Any], ending: str = "") -> Path:
    """Texts as they are, lists as JSON lines."""
    for name, content in files.items():
        path = folder / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else json_lines(content)
        path.write_bytes(gzip.compress(text.encode()) if ending else text.encode())
    return folder


def json_lines(rows: Iterable[object]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def saved(folder: Path, **columns: list[Any]) -> str:
    datasets.Dataset.from_dict(columns).save_to_disk(folder)
    return str(folder)


def read(source: object, on_bad_row: OnBadRow = "fail") -> list[Group]:
    return list(read_source(str(source), on_bad_row=on_bad_row))


def read_around(source: object, message: str, caplog: pytest.LogCaptureFixture) -> list[Group]:
    """The good rows of a source with one bad row, which is raised or logged in the same words."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read(source)
    good = read(source, "skip")
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{caught.value}; the row is left out"
    return good


# JSON lines and text triples


@ENDINGS
def test_json_lines(tmp_path: Path, ending: str) -> None:
    write_groups(tmp_path / f"rows.jsonl{ending}", ROWS)
    assert read(tmp_path / f"rows.jsonl{ending}") == ROWS


@ENDINGS
def test_text_triples(tmp_path: Path, ending: str) -> None:
    write(tmp_path, {"triples.train.small.tsv": "q1\tp1\tn1\r\nq1\tp1\u2028p\tn2\n"}, ending)
    expected = [Group("q1", ("p1",), ("n1",)), Group("q1", ("p1\u2028p",), ("n2",))]
    assert read(tmp_path / f"triples.train.small.tsv{ending}") == expected


@pytest.mark.parametrize(
    ("name", "good", "bad", "message"),
    [
        ("rows.jsonl", '{"query": "q", "pos": ["p"], "neg": []}', "{", "expected one JSON object a line, but this"),
        ("rows.jsonl", '{"query": "q", "pos": ["p"], "neg": []}', '{"query": "q"}', "expected a list of"),
        ("triples.tsv", "q\tp\tn", "q\tp", "expected 3 tab-separated columns, got 2"),
        ("triples.tsv", "q\tp\tn", " \tp\tn", '"query" is empty'),
    ],
)
@ENDINGS
def test_bad_line_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, good: str, bad: str, message: str, ending: str
) -> None:
    write(tmp_path, {name: f"{good}\n\n{bad}\n{good}\n"}, ending)
    path = tmp_path / f"{name}{ending}"
    assert len(read_around(path, f"{path}:3: {message}", caplog)) == 2


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "triples.tsv", "triples.tsv.gz"])
def test_files_are_read_a_line_at_a_time(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    good = "q\tp\tn\n" if "tsv" in name else '{"query": "q", "pos": ["p"], "neg": ["n"]}\n'
    write(tmp_path, {name.removesuffix(".gz"): good * 2000 + "bad\n"}, ".gz" if name.endswith(".gz") else "")
    made = []
    check = Group.__post_init__
    monkeypatch.setattr(Group, "__post_init__", lambda group: (made.append(1), check(group)))
    rows = read_source(str(tmp_path / name))
    assert next(rows).positives == ("p",)
    assert len(made) == 1
    for _ in range(1999):
        next(rows)
    with pytest.raises(ValueError, match=r":2001: expected"):
        next(rows)


# BEIR folders


@ENDINGS
def test_beir_folder_without_candidates(tmp_path: Path, ending: str) -> None:
    write(tmp_path, BEIR, ending)
    assert read(tmp_path) == [
        Group("what flows?", ("It flows.",)),
        Group("what falls?", ("Rain It falls.",), ("It stands.",)),
    ]
    assert read(f"{tmp_path}#dev") == [Group("what flows?", ("It flows.",))]


@ENDINGS
def test_beir_candidates_are_negatives_after_those_judged_so(tmp_path: Path, ending: str) -> None:
    write(tmp_path, {**BEIR, **CANDIDATES}, ending)
    assert read(f"{tmp_path}#train") == [
        Group("what flows?", ("It flows.",)),
        Group("what falls?", ("Rain It falls.",), ("It stands.", "It flies.", "It flows.")),
    ]
    assert read(f"{tmp_path}#dev") == [Group("what flows?", ("It flows.",), ("It stands.",))]


def test_beir_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split 'test': .*splits in .*: dev, train"):
        read(f"{write(tmp_path, BEIR)}#test")


@pytest.mark.parametrize(
    ("judgement", "message"),
    [
        ("q1\td9\t1\n", "query 'q1': document 'd9' is not in corpus.jsonl"),
        ("q9\td1\t1\n", "query 'q9': its text is not in queries.jsonl"),
        ("q1\td1\t0\n", "query 'q1' has no relevant document"),
    ],
)
def test_bad_beir_query_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, judgement: str, message: str
) -> None:
    header = "query-id\tcorpus-id\tscore\n"
    write(tmp_path, {**BEIR, "qrels/train.tsv": f"{header}{judgement}q2\td2\t1\n"})
    good = read_around(tmp_path, f"{tmp_path}/qrels/train.tsv: {message}", caplog)
    assert good == [Group("what flows?", ("It flows.",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", "{}\n", r"corpus\.jsonl:1: expected a string under \"text\""),
        ("queries.jsonl", "\nx\n", r"queries\.jsonl:2: expected one JSON object a line"),
        ("qrels/train.tsv", "query-id\tcorpus-id\tscore\nq1 d1 1\n", r"train\.tsv:2: expected query-id<tab>corpus-id"),
        ("candidates/train.run", "q1 d1\n", r"train\.run:1: expected six fields"),
    ],
)
def test_bad_line_of_a_beir_folder_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    write(tmp_path, {**BEIR, name: content})
    for on_bad_row in get_args(OnBadRow):
        with pytest.raises(ValueError, match=message):
            read(tmp_path, on_bad_row)


def test_a_querys_own_document_is_no_negative_of_it(tmp_path: Path) -> None:
    content = "q1 Q0 q1 1 9 x\nq1 Q0 d2 2 8 x\n"
    corpus = [*BEIR["corpus.jsonl"], {"_id": "q1", "text": "what falls?"}]
    write(tmp_path, {**BEIR, "corpus.jsonl": corpus, "candidates/train.run": content})
    negatives = {group.query: group.negatives for group in read_source(str(tmp_path))}
    assert negatives["what falls?"] == ("It stands.", "It flows.")


@ENDINGS
def test_corpus_of(tmp_path: Path, ending: str) -> None:
    write(tmp_path / "beir", BEIR, ending)
    write(tmp_path / "ms", PASSAGES, ending)
    corpus = corpus_of(f"{tmp_path}/beir#dev")
    assert corpus is not None
    assert list(corpus.values()) == ["Rain It falls.", "It flows.", "It stands.", "It flies."]
    assert corpus_of(f"{tmp_path}/ms") is None
    assert corpus_of(f"{tmp_path}/rows.jsonl") is None


# MS MARCO folders


@ENDINGS
def test_passage_folder_with_triples(tmp_path: Path, ending: str) -> None:
    assert read(write(tmp_path, {**PASSAGES, **TRIPLES}, ending)) == PASSAGE_GROUPS


@ENDINGS
def test_passage_folder_without_triples_has_no_negatives(tmp_path: Path, ending: str) -> None:
    write(tmp_path, PASSAGES, ending)
    assert read(tmp_path) == [Group(group.query, group.positives) for group in PASSAGE_GROUPS]
    assert read(f"{tmp_path}#dev") == [Group("what stands?", ("It stands.",))]


@ENDINGS
def test_document_folder(tmp_path: Path, ending: str) -> None:
    write(tmp_path, DOCUMENTS, ending)
    assert read(tmp_path) == [Group("what falls?", ("Rain It falls.",), ("Pool", "It flows."))]


def test_a_query_keeps_at_most_so_many_negatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msmarco, "MAX_NEGATIVES", 1)
    write(tmp_path, {**PASSAGES, **TRIPLES})
    assert [group.negatives for group in read(tmp_path)] == [group.negatives[:1] for group in PASSAGE_GROUPS]


fields = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n"), max_size=12).map(str.strip)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(texts=st.lists(fields, min_size=1, max_size=5), line_end=st.sampled_from(["\n", "\r\n"]))
def test_texts_of_plain_and_gzipped_collections_are_those_written(
    tmp_path: Path, texts: list[str], line_end: str
) -> None:
    content = "".join(f"{index}\t{text}{line_end}" for index, text in enumerate(texts))
    for ending in ("", ".gz"):
        write(tmp_path, {"collection.tsv": content}, ending)
        table = TextTable(tmp_path / f"collection.tsv{ending}")
        assert [table.text(str(index)) for index in reversed(range(len(texts)))] == texts[::-1]


@pytest.mark.parametrize("name", ["queries.train.tsv", "qrels.train.tsv"])
def test_file_that_an_ms_marco_folder_lacks_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, {key: content for key, content in PASSAGES.items() if key != name})
    with pytest.raises(FileNotFoundError, match=f"has no {name}, plain or gzipped"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qrels.train.tsv", "10\t0\t0\t1\n10\t1\n", "qrels.train.tsv{}:2: expected qid, 0, id and a whole relevance"),
        (
            "qrels.train.tsv",
            "10\t0\t0\t1\n10 0 1 x\n",
            "qrels.train.tsv{}:2: expected qid, 0, id and a whole relevance",
        ),
        ("qrels.train.tsv", "10 0 0 1\n9 0 0 1\n", "qrels.train.tsv{}:2: query '9' is not in queries.train.tsv"),
        ("qrels.train.tsv", "10 0 0 1\n20 0 7 1\n", "qrels.train.tsv{0}:2: '7' is not in collection.tsv{0}"),
        ("queries.train.tsv", "10\tq\n20\n", 'qrels.train.tsv{}:1: "query" is empty'),
        ("collection.tsv", "0\tIt falls.\n\n2\tx\n1\n", "collection.tsv{}:4: expected id and passage, or docid"),
        ("collection.tsv", "0\tIt falls.\n2\tx\n1\ta\tb\n", "collection.tsv{}:3: expected id and passage, or docid"),
        ("qidpidtriples.train.full.tsv", "10 0 3\n10 0\n", "qidpidtriples.train.full.tsv{}:2: expected 3 fields"),
    ],
)
@ENDINGS
def test_bad_row_of_a_passage_folder_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str, message: str, ending: str
) -> None:
    write(tmp_path, {**PASSAGES, name: content}, ending)
    good = read_around(tmp_path, message.format(ending), caplog)
    assert ("It falls.",) in [group.positives for group in good]


def test_bad_row_of_a_top_100_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, {**DOCUMENTS, "msmarco-doctrain-top100": "1 Q0 D3 1\n1 Q0 D2 2 -5.2 x\n"})
    good = read_around(tmp_path, "msmarco-doctrain-top100:1: expected 6 fields", caplog)
    assert good == [Group("what falls?", ("Rain It falls.",), ("It flows.",))]


# Hugging Face datasets

FORMS: dict[str, tuple[dict[str, list[Any]], list[Group]]] = {
    "pairs": ({"query": ["q"], "answer": ["p"]}, [Group("q", ("p",))]),
    "triplets": (
        {"anchor": ["q", "r"], "positive": ["p", "s"], "negative": ["n", "m"]},
        [Group("q", ("p",), ("n",)), Group("r", ("s",), ("m",))],
    ),
    "tuples with lists": (
        {"query": ["q", "r"], "positive": ["p", "s"], "negative_1": ["n", "m"], "more": [["a", "b"], []]},
        [Group("q", ("p",), ("n", "a", "b")), Group("r", ("s",), ("m",))],
    ),
    "pairs with labels": (
        {"query": ["q", "q", "q", "r"], "passage": ["a", "b", "c", "d"], "label": [0, 1, 0, 1]},
        [Group("q", ("b",), ("a", "c")), Group("r", ("d",))],
    ),
    "labels first": ({"labels": [1.0, 0.0], "query": ["q", "q"], "text": ["a", "b"]}, [Group("q", ("a",), ("b",))]),
    "true and false": ({"query": ["q", "q"], "text": ["a", "b"], "label": [False, True]}, [Group("q", ("b",), ("a",))]),
    "lists with labels": (
        {"query": ["q", "r"], "documents": [["a", "b", "c"], ["d"]], "labels": [[0, 2, -1], [1]]},
        [Group("q", ("b",), ("a", "c")), Group("r", ("d",))],
    ),
    "pairs with scores": (
        {"query": ["q", "q"], "passage": ["a", "b"], "score": [0.5, 1.0]},
        [Group("q", (), ("a", "b"), (), (0.5, 1.0))],
    ),
    "lists with scores": (
        {"query": ["q"], "passages": [["a", "b"]], "scores": [[-3.25, 7.0]]},
        [Group("q", (), ("a", "b"), (), (-3.25, 7.0))],
    ),
    "the JSON-lines form": (
        {
            "query": ["q1", "q2"],
            "pos": [["p1"], ["p2", "p3"]],
            "neg": [["n1", "n2"], ["n3"]],
            "pos_scores": [None, [0.5, 1.0]],
            "neg_scores": [None, [0.25]],
            "prompt": [None, "Find it."],
            "id": [1, 2],
        },
        ROWS,
    ),
    "the JSON-lines form without negatives": (
        {"query": ["q", "r"], "pos": [["p"], ["s"]], "neg": [None, []]},
        [Group("q", ("p",)), Group("r", ("s",))],
    ),
}


def to_disk(folder: Path, columns: dict[str, list[Any]]) -> None:
    datasets.Dataset.from_dict(columns).save_to_disk(folder)


def to_splits(folder: Path, columns: dict[str, list[Any]]) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(folder)


def to_parquet(folder: Path, columns: dict[str, list[Any]]) -> None:
    folder.mkdir()
    datasets.Dataset.from_dict(columns).to_parquet(folder / "train.parquet")


def to_jsonl(folder: Path, columns: dict[str, list[Any]]) -> None:
    write(
        folder, {"train.jsonl": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("store", [to_disk, to_splits, to_parquet, to_jsonl])
def test_dataset_of_every_form(tmp_path: Path, form: str, store: Callable[[Path, dict[str, list[Any]]], None]) -> None:
    columns, groups = FORMS[form]
    store(tmp_path / "data", columns)
    assert read(tmp_path / "data") == groups


def test_dataset_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"query": ["q", "r"], "positive": ["p", "s"]})
    datasets.DatasetDict({"train": rows, "dev": rows.select([1])}).save_to_disk(tmp_path / "saved")
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files" / "train.parquet")
    rows.select([1]).to_parquet(tmp_path / "files" / "test.parquet")
    assert read(f"{tmp_path}/saved#dev") == read(f"{tmp_path}/files#test") == [Group("r", ("s",))]
    assert read(f"{tmp_path}/saved") == read(f"{tmp_path}/files#train") == [Group("q", ("p",)), Group("r", ("s",))]
    with pytest.raises(ValueError, match=r"saved has no split 'test'; its splits: train, dev"):
        read(f"{tmp_path}/saved#test")
    with pytest.raises(ValueError, match="dev"):
        read(f"{tmp_path}/files#dev")


def test_dataset_without_rows_gives_none(tmp_path: Path) -> None:
    to_parquet(tmp_path / "data", {"query": [], "positive": []})
    assert read(tmp_path / "data") == []


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a"]},
        {"id": [1], "query": ["q"], "passage": ["a"], "label": [1]},
        {"query": ["q"], "label": [1]},
        {"query": ["q"], "passage": ["a"], "label": [1], "score": [0.5]},
    ],
)
@pytest.mark.parametrize("on_bad_row", get_args(OnBadRow))
def test_columns_of_no_known_form_are_listed(
    tmp_path: Path, columns: dict[str, list[Any]], on_bad_row: OnBadRow
) -> None:
    source = saved(tmp_path / "data", **columns)
    with pytest.raises(ValueError, match=rf"data#train: the columns {', '.join(columns)} .*Expected"):
        read(source, on_bad_row)


LABELLED = {"query": ["q", "r"], "passages": [["a", "b"], ["c"]]}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": ["q", "r"], "positive": ["p", None]}, 'expected strings in "pos", got NoneType None'),
        ({"query": ["q", " "], "positive": ["p", "s"]}, '"query" is empty'),
        ({"query": ["q", None], "positive": ["p", "s"]}, 'expected a string under "query", got NoneType None'),
        ({"query": ["q", "r"], "positive": ["p", "s"], "negatives": [["n"], [None]]}, 'expected strings in "neg"'),
        ({"query": ["q", "r"], "pos": [["p"], []], "neg": [[], []]}, '"pos" and "neg" are both empty'),
        ({"query": ["q", "r"], "text": ["a", "b"], "label": [1, 0]}, "no passage is labelled relevant"),
        (
            {"query": ["q", "r"], "text": ["a", "b"], "label": [1, None]},
            "expected finite numbers as labels, got [None]",
        ),
        (
            {"query": ["q", "r"], "text": ["a", "b"], "score": [1, float("inf")]},
            "expected finite numbers as labels, got [inf]",
        ),
        (
            {"query": ["q", "r"], "text": ["a", "b"], "score": [0.5, float("nan")]},
            "expected finite numbers as labels, got [nan]",
        ),
        ({**LABELLED, "labels": [[1, 0], [1, 0]]}, "expected one label per passage, got [1, 0] for ['c']"),
        ({**LABELLED, "labels": [[1, 0], None]}, "expected one label per passage, got None for ['c']"),
        ({**LABELLED, "labels": [[1, 0], [None]]}, "expected finite numbers as labels, got [None]"),
        (
            {"query": ["q", "r"], "passages": [["a"], None], "labels": [[1], [1]]},
            "expected one label per passage, got [1] for None",
        ),
    ],
)
def test_bad_row_of_a_dataset_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, columns: dict[str, list[Any]], message: str
) -> None:
    source = saved(tmp_path / "data", **columns)
    [good] = read_around(source, f"{source}#train:2: {message}", caplog)
    assert good.query == "q"


def test_labels_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data#train:1: expected finite numbers as labels, got \['yes'\]"):
        read(saved(tmp_path / "data", query=["q"], text=["a"], label=["yes"]))
    with pytest.raises(ValueError, match=r"data#train:1: expected finite numbers as labels, got \[\[1\], \[0\]\]"):
        read(saved(tmp_path / "nested" / "data", query=["q"], texts=[["a", "b"]], labels=[[[1], [0]]]))


def test_dataset_rows_stream(tmp_path: Path) -> None:
    rows = read_source(saved(tmp_path / "data", query=["q", "r"], positive=["p", None]))
    assert next(rows) == Group("q", ("p",))
    with pytest.raises(ValueError, match="data#train:2: "):
        next(rows)


# What is not there


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "triples.tsv", "folder/folder"])
def test_missing_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=rf"there is no file or folder '.*{name}', which the training data"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.jsonl", "./rows", "~/rows", "a/b/rows", "rows.jsonl#dev", "triples.tsv.gz"])
def test_missing_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        read(name)


@pytest.mark.parametrize("name", ["data/train", "nothing", "nothing:configuration", "data/train#dev"])
def test_missing_name_is_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'{name.partition('#')[0]}' is neither a file or folder"):
        read(name)


def test_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="doesn't contain any data files"):
        read(tmp_path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_groups(tmp_path / "rows.jsonl", ROWS)
    write(tmp_path / "beir", BEIR)
    assert read("~/rows.jsonl") == ROWS
    assert len(read("~/beir")) == 2
    assert corpus_of("~/beir") is not None


def test_without_datasets_the_command_to_get_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'needs datasets: pip install "matryoshka-reranker\[train\]"'):
        read(tmp_path)
