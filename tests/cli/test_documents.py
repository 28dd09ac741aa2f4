"""What `mrr rerank` reads and writes."""

import gzip
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mrr_model.cli.documents import RESULT_FIELDS, Document, read_documents, well_formed, write_json_lines
from mrr_model.data.jsonl import with_fields_kept
from mrr_model.reranker import RankedDocument


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`stdin(b"...")` makes it what is piped in."""
    return lambda content: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


CONTENTS = [
    (b"a\n\n b \r\n", ["a", " b "]),
    (b"\xef\xbb\xbfa\nb", ["a", "b"]),
    ("one\u2028line\n".encode(), ["one\u2028line"]),
    (b'\xef\xbb\xbf{"text": "a"}\n{"text": "b", "title": "t"}', ["a", "t b"]),
    (b"", []),
    (b"\n \n", []),
]


@pytest.mark.parametrize(("content", "expected"), CONTENTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_and_stdin_are_read_alike_gzipped_or_not(
    tmp_path: Path, stdin: Any, content: bytes, expected: list[str], zipped: bool
) -> None:
    content = gzip.compress(content) if zipped else content
    file = tmp_path / ("documents.gz" if zipped else "documents")
    file.write_bytes(content)
    assert texts(read_documents(file)) == expected
    stdin(content)
    assert texts(read_documents(None)) == expected
    stdin(content)
    assert texts(read_documents(Path("-"))) == expected


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.ndjson"])
def test_a_name_says_that_lines_are_json(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    content = b'"text"\n'
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(ValueError, match=f"{name}:1: expected one JSON object a line, got str"):
        read_documents(file)


def test_the_text_field_is_scored_after_the_title(tmp_path: Path) -> None:
    rows = [{"body": "a", "title": "t", "text": "not this"}, {"body": "", "title": "t"}, {"body": "b", "title": None}]
    file = tmp_path / "documents"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    documents = read_documents(file, text_field="body")
    assert texts(documents) == ["t a", "t", "b"]
    assert [document.row for document in documents] == rows
    with pytest.raises(
        ValueError, match=r"documents:2: expected a string under \"text\".*'body', 'title'.*--text-field"
    ):
        read_documents(file)


def test_a_title_that_is_scored_is_not_repeated(stdin: Any) -> None:
    stdin(b'{"title": "t", "text": "not this"}\n')
    assert texts(read_documents(None, text_field="title")) == ["t"]


def test_a_text_field_makes_lines_json(stdin: Any) -> None:
    stdin(b"plain\n")
    with pytest.raises(ValueError, match="stdin:1: expected one JSON object a line"):
        read_documents(None, text_field="body")
    with pytest.raises(ValueError, match="--text-field body is for JSON lines"):
        read_documents(None, "text", text_field="body")


def test_nesting_that_is_too_deep_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "documents"
    file.write_text("[" * 100_000, encoding="utf-8")
    assert len(read_documents(file)) == 1, "a plain text"
    with pytest.raises(ValueError, match=r"documents:1: .*deep"):
        read_documents(file, "jsonl")


def test_what_cannot_be_read_is_named(tmp_path: Path, stdin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = gzip.compress(b"a\n" * 1000)[:-9]
    (tmp_path / "cut.gz").write_bytes(cut)
    (tmp_path / "no.gz").write_bytes(b"text")
    for name, part in (
        ("cut.gz", "ended before"),
        ("no.gz", "ot a gzip"),
        (".", "Is a directory"),
        ("absent", "No such"),
    ):
        with pytest.raises(ValueError, match=f"{name}.*{part}"):
            read_documents(tmp_path / name)
    stdin(cut)
    with pytest.raises(ValueError, match=r"stdin.*ended before"):
        read_documents(None)
    stdin(b"ok\n\xff")
    with pytest.raises(ValueError, match="stdin is not UTF-8 text"):
        read_documents(None)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="stdin is closed"):
        read_documents(None)
    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(ValueError, match="no documents: give a FILE"):
        read_documents(None)


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ("plain é 日 😀", "plain é 日 😀"),
        ("half \ud83d", "half \ufffd"),
        ("\ude00 other half", "\ufffd other half"),
        ("both \ud83d\ude00", "both 😀"),
        ("caf\udce9", "caf\ufffd"),
        ("", ""),
    ],
)
def test_halves_of_surrogate_pairs_are_replaced(text: str, scored: str) -> None:
    assert well_formed(text) == scored


def test_a_half_pair_in_json_is_scored_replaced_and_comes_back_as_it_was(
    stdin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin(b'{"text": "a \\ud83d", "\\udc00": 1}\n')
    documents = read_documents(None)
    assert texts(documents) == ["a \ufffd"]
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out))
    write_json_lines([RankedDocument(0, 0.5, "a \ufffd", depth=6)], documents)
    assert out.getvalue() == b'{"text": "a \\ud83d", "\\udc00": 1, "index": 0, "rank": 1, "score": 0.5}\n'


def test_the_callers_fields_are_kept_through_any_number_of_rounds() -> None:
    row = {"text": "x", "score": 7.0, "rank": 3, "index": "i"}
    once = {**with_fields_kept(row, RESULT_FIELDS), "index": 0, "rank": 1, "score": 0.5}
    assert once == {
        "text": "x", "input_score": 7.0, "input_rank": 3, "input_index": "i", "index": 0, "rank": 1, "score": 0.5
    }  # fmt: skip
    twice = with_fields_kept(once, RESULT_FIELDS)
    assert twice["input_score"] == 7.0
    assert twice["input_input_score"] == 0.5
    assert not {"index", "rank", "score"} & twice.keys()
