"""Data files as they come: with a byte-order mark, with text that is none, cut off, in folders of any name."""

import gzip
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from typer.testing import CliRunner

from mrr_model.cli import app as cli
from mrr_model.cli.flags import read_yaml
from mrr_model.data.beir import read_corpus, read_qrels, read_queries, read_run
from mrr_model.data.groups import Group, read_groups
from mrr_model.data.naming import split_name
from mrr_model.data.sources import corpus_of, read_source
from mrr_model.data.texts import read_texts
from mrr_model.evaluation.collection import open_collection

MARK = b"\xef\xbb\xbf"
GOOD = b'{"query": "q", "pos": ["p"], "neg": []}\n'
READ = Group("q", ("p",))
BAD_ROWS = {
    "a surrogate in the query": rb'{"query": "a \ud83d", "pos": ["p"], "neg": []}',
    "a surrogate in a passage": rb'{"query": "q", "pos": ["p"], "neg": ["\ud800 abc"]}',
    "a surrogate in the prompt": rb'{"query": "q", "pos": ["p"], "neg": [], "prompt": "\udc00"}',
    "bytes that are no UTF-8": b'{"query": "caf\xe9", "pos": ["p"], "neg": []}',
    "nested deeply": b'{"query":' + b"[" * 100_000,
    "a number beyond floats": b'{"query": "q", "pos": ["p"], "neg": [], "pos_scores": [1'
    + b"0" * 400
    + b'], "neg_scores": []}',
    "a number of too many digits": b'{"query": "q", "pos": ["p"], "neg": [], "pos_scores": [1' + b"0" * 9_999 + b"]}",
}


def marked(folder: Path) -> None:
    """Put a byte-order mark in front of every file of a folder."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.write_bytes(MARK + file.read_bytes())


def cut(file: Path) -> Path:
    """The same file gzipped, and cut off in its middle."""
    zipped = file.with_name(f"{file.name}.gz")
    data = gzip.compress(file.read_bytes(), 0)  # stored as it is, so that half of the bytes are half of the lines
    zipped.write_bytes(data[: len(data) // 2])
    file.unlink()
    return zipped


# A byte-order mark


def test_a_mark_is_read_over_in_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(MARK + GOOD)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write(MARK + GOOD)
    (tmp_path / "triples.tsv").write_bytes(MARK + b"q\tp\tn\n")
    assert list(read_source(str(tmp_path / "rows.jsonl"))) == [READ]
    assert list(read_source(str(tmp_path / "rows.jsonl.gz"))) == [READ]
    assert list(read_source(str(tmp_path / "triples.tsv"))) == [Group("q", ("p",), ("n",))]
    (tmp_path / "texts.jsonl").write_bytes(MARK + b'{"query": "q", "documents": ["a", "b"]}\n')
    assert list(read_texts(str(tmp_path / "texts.jsonl"))) == [Group("q", (), ("a", "b"))]


def test_a_mark_is_read_over_in_a_collection(toy_beir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_beir, tmp_path / "toy"))
    marked(copy)
    for read in (read_corpus, read_queries, lambda folder: read_qrels(folder, "test")):
        assert read(copy) == read(toy_beir)  # type: ignore[no-untyped-call]
    assert read_run(copy / "candidates" / "test.run") == read_run(toy_beir / "candidates" / "test.run")
    assert open_collection(str(copy)).qrels == open_collection(str(toy_beir)).qrels


def test_a_mark_is_read_over_in_trec_and_msmarco_files(tmp_path: Path) -> None:
    trec = {"q.tsv": "q1\twhat?\n", "c.tsv": "d1\ta text\n", "t.qrels": "q1 0 d1 1\n", "t.run": "q1 Q0 d1 1 2.0 x\n"}
    for name, text in trec.items():
        (tmp_path / name).write_bytes(MARK + text.encode())
    parts = zip(("queries", "corpus", "qrels", "run"), trec, strict=True)
    collection = open_collection(",".join(f"{key}={tmp_path / name}" for key, name in parts))
    assert (collection.queries, dict(collection.corpus)) == ({"q1": "what?"}, {"d1": "a text"})

    folder = tmp_path / "ms"
    folder.mkdir()
    for name, text in (("collection.tsv", "1\ta text\n"), ("queries.train.tsv", "7\twhat?\n"),
                       ("qrels.train.tsv", "7\t0\t1\t1\n")):  # fmt: skip
        (folder / name).write_bytes(MARK + text.encode())
    assert list(read_source(str(folder))) == [Group("what?", ("a text",))]


def test_a_byte_order_mark_is_skipped_in_config_files(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(MARK + b"model: mini\n")
    assert read_yaml(tmp_path / "config.yaml") == {"model": "mini"}


# Rows that are none


@pytest.mark.parametrize("row", BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_is_no_text_is_named_or_left_out(
    tmp_path: Path, row: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + row + b"\n" + GOOD)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: "):
        list(read_groups(file))
    with caplog.at_level(logging.WARNING):
        assert list(read_groups(file, "skip")) == [READ] * 2
    [record] = caplog.records
    assert record.getMessage().startswith(f"{file}:2: ")
    assert len(record.getMessage()) < len(str(file)) + 400


def test_bad_rows_of_other_forms_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "triples.tsv").write_bytes(b"q\tp\tn\nq\t\xff\tn\nq\tp\tn\n")
    assert len(list(read_source(str(tmp_path / "triples.tsv"), on_bad_row="skip"))) == 2
    (tmp_path / "texts.jsonl").write_bytes(
        b'{"query": "q", "documents": ["a"]}\n' + rb'{"query": "r", "documents": ["\ud83d"]}' + b"\n"
    )
    assert len(list(read_texts(str(tmp_path / "texts.jsonl"), "skip"))) == 1
    assert [record.getMessage().split(": ")[0] for record in caplog.records] == [
        f"{tmp_path}/triples.tsv:2", f"{tmp_path}/texts.jsonl:2"
    ]  # fmt: skip


def test_bad_texts_of_a_beir_folder_are_left_out(
    make_beir: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_beir(
        tmp_path / "beir",
        {"q1": "what flows?", "q2": "half a pair \ud83d?", "q3": "what stands?"},
        {"d1": "It flows.", "d2": "half a pair \ud83d.", "d3": "It stands."},
        {"q1": {"d1": 1}, "q2": {"d1": 1}, "q3": {"d2": 1}},
        split="train",
    )
    with pytest.raises(ValueError, match=r'corpus\.jsonl:2: "text" holds the lone surrogate'):
        list(read_source(str(folder)))
    assert [group.query for group in read_source(str(folder), on_bad_row="skip")] == ["what flows?"]
    locations = [record.getMessage().removeprefix(f"{folder}/").split(": ")[0] for record in caplog.records]
    assert locations == ["corpus.jsonl:2", "queries.jsonl:2", "qrels/train.tsv", "qrels/train.tsv"]
    with pytest.raises(ValueError, match=r'queries\.jsonl:2: "text" holds the lone surrogate'):
        open_collection(f"{folder}#train")


def test_bad_texts_of_an_msmarco_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_bytes(b"1\tcaf\xe9\n2\tgood\n")
    (tmp_path / "queries.train.tsv").write_bytes(b"7\twhat?\n8\twhich\xff?\n9\tw\n")
    (tmp_path / "qrels.train.tsv").write_bytes(b"7\t0\t1\t1\n8\t0\t2\t1\n9\t0\t2\t1\n")
    with pytest.raises(ValueError, match=r"qrels\.train\.tsv:1: .*collection\.tsv:1: is not UTF-8 text: byte 0xe9"):
        list(read_source(str(tmp_path)))
    assert list(read_source(str(tmp_path), on_bad_row="skip")) == [Group("w", ("good",))]


def test_a_surrogate_in_a_datasets_row_is_named(tmp_path: Path) -> None:
    """Arrow holds none, so only the JSON form brings them: as an error of the row, not of the library."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_bytes(rb'{"query": "\ud83d", "pos": ["p"], "neg": []}' + b"\n")
    with pytest.raises(ValueError, match=rf"{tmp_path}/data#train"):
        list(read_source(str(tmp_path / "data")))


# Files that are cut off


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_a_cut_gzip_is_one_error_that_counts_its_lines(tmp_path: Path, on_bad_row: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD * 10_000)
    read: list[Group] = []
    with pytest.raises(
        ValueError, match=r"rows\.jsonl\.gz is not a complete gzip file: .*, after line \d+\."
    ) as raised:
        read.extend(read_groups(cut(file), on_bad_row))
    assert len(read) > 1_000
    assert f"after line {len(read)}." in str(raised.value)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "candidates/test.run"])
def test_a_cut_gzip_of_a_collection_is_named(toy_beir: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(toy_beir, tmp_path / "toy"))
    cut(copy / name)
    with pytest.raises(ValueError, match=rf"{name}\.gz is not a complete gzip file"):
        open_collection(str(copy))
    (copy / f"{name}.gz").write_bytes(b"no gzip at all")
    with pytest.raises(ValueError, match=rf"{name}\.gz is not a complete gzip file"):
        open_collection(str(copy))


def test_a_cut_gzip_of_msmarco_is_named(tmp_path: Path) -> None:
    (tmp_path / "collection.tsv").write_text("".join(f"{number}\ta text\n" for number in range(99)))
    cut(tmp_path / "collection.tsv")
    (tmp_path / "queries.train.tsv").write_text("7\twhat?\n")
    (tmp_path / "qrels.train.tsv").write_text("7\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"collection\.tsv\.gz is not a complete gzip file: .*, after line \d+"):
        list(read_source(str(tmp_path)))


def test_the_command_line_names_a_cut_gzip(tmp_path: Path, toy_beir: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(GOOD * 100)
    result = CliRunner().invoke(cli.app, ["mine", str(cut(rows)), "--output", str(tmp_path / "mined.jsonl")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "rows.jsonl.gz is not a complete gzip file" in result.stderr
    copy = Path(shutil.copytree(toy_beir, tmp_path / "toy"))
    cut(copy / "corpus.jsonl")
    result = CliRunner().invoke(cli.app, ["evaluate", "mini", str(copy), "--output", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "corpus.jsonl.gz is not a complete gzip file" in result.stderr


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    for name, content in (("train.parquet", b"PAR1 no more"), ("train.jsonl", b'{"query": ')):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=str(folder)):
            list(read_source(str(folder)))
    saved = tmp_path / "saved"
    datasets.Dataset.from_list([{"query": "q", "positive": "p", "negative": "n"}]).save_to_disk(str(saved))
    for file, content in ((next(saved.glob("*.arrow")), b"none"), (saved / "state.json", b"{"),
                          (saved / "dataset_info.json", b"[]")):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(ValueError, match=str(saved)):
            list(read_source(str(saved)))


# Names


def test_what_exists_wins_over_a_split(tmp_path: Path) -> None:
    for name in ("a", "a#b", "a#b#c"):
        (tmp_path / name).mkdir()
    (tmp_path / "rows#1.jsonl").touch()
    for source, name, split in (
        ("a", "a", ""), ("a#b", "a#b", ""), ("a#x", "a", "x"), ("a#b#x", "a#b", "x"), ("a#b#c", "a#b#c", ""),
        ("a#b#c#x", "a#b#c", "x"), ("rows#1.jsonl", "rows#1.jsonl", ""), ("none#x", "none", "x"),
    ):  # fmt: skip
        assert split_name(f"{tmp_path}/{source}") == (f"{tmp_path}/{name}", split)


def test_a_folder_with_a_hash_is_read_in_training_and_evaluation(toy_beir: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(toy_beir, tmp_path / "C# and F#"))
    expected = open_collection(str(toy_beir)).qrels
    assert open_collection(str(copy)).qrels == expected
    assert open_collection(f"{copy}#test").qrels == expected
    assert corpus_of(str(copy)) == corpus_of(str(toy_beir))
    assert list(read_source(f"{copy}#test", on_bad_row="skip")) == list(
        read_source(f"{toy_beir}#test", on_bad_row="skip")
    )
    rows = tmp_path / "rows #1.jsonl"
    rows.write_bytes(GOOD)
    assert list(read_source(str(rows))) == [READ]


@pytest.mark.parametrize(
    "name", ["./absent", "absent/", "~/absent", "/absent/a#b", "data/rows.jsonl", "rows.parquet", "a/b/c", "C:\\data"]
)
def test_no_hub_is_asked_for_what_can_only_be_a_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object, **__: object) -> None:
        pytest.fail("the hub was asked")

    monkeypatch.setattr("datasets.load_dataset", asked)
    with pytest.raises(FileNotFoundError, match=r"absent|rows|a/b|data"):
        list(read_source(name))
    with pytest.raises(FileNotFoundError, match=r"absent|rows|a/b|data"):
        open_collection(name)


def test_what_is_no_text_names_the_key_of_an_evaluations_row(make_beir: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_beir(tmp_path / "beir", {"q1": "what?"}, {"d1": "half \ud83d"}, {"q1": {"d1": 1}})
    assert json.loads((folder / "corpus.jsonl").read_text(encoding="utf-8"))["text"] == "half \ud83d"
    with pytest.raises(ValueError, match=r"corpus\.jsonl:1: \"text\" holds the lone surrogate .* at character 5"):
        open_collection(str(folder))
