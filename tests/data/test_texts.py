"""Unlabelled texts: the forms they are read in, and errors about bad rows."""

import json
from pathlib import Path

import pytest

from mrr_model.data.texts import read_texts


def test_texts_are_lists_single_documents_or_labelled_rows(tmp_path: Path) -> None:
    rows = [
        {"query": "a", "documents": ["1", "2"]},
        {"query": "b", "document": "3"},
        {"query": "b", "document": "4"},
        {"query": "c", "pos": ["5"], "neg": ["6"], "pos_scores": [1.0], "neg_scores": [0.0]},
        {"query": "b", "document": "7"},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    expected = [("a", ("1", "2")), ("b", ("3", "4")), ("c", ("5", "6")), ("b", ("7",))]
    assert [(group.query, group.negatives) for group in read_texts(str(file))] == expected
    assert not any(group.positives or group.negative_scores for group in read_texts(str(file)))


def test_bad_texts_are_named_or_left_out(tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"query": "a", "documents": ["1", "2"]}\n{"query": "a"}\n', "utf-8")
    with pytest.raises(ValueError, match=r'texts\.jsonl:2: expected "documents"'):
        list(read_texts(str(file)))
    assert len(list(read_texts(str(file), on_bad_row="skip"))) == 1
