"""Texts on disk as a mapping, the split that is meant, and a library's own output."""

import io
import sys

import pytest

from mrr_model.data.collection_source import StoredTexts, chosen_split, only_in_a_terminal

TEXTS = {"b": "Rain.", "a": "Stone."}


def stored() -> StoredTexts:
    return StoredTexts(text=TEXTS.__getitem__, stream=TEXTS.items, count=TEXTS.__len__)


def test_stored_texts_are_a_mapping() -> None:
    texts = stored()
    assert (texts["a"], len(texts), list(texts), list(texts.items())) == ("Stone.", 2, ["b", "a"], list(TEXTS.items()))
    assert texts == TEXTS
    assert "b" in texts
    assert "c" not in texts
    with pytest.raises(KeyError):
        texts["c"]


def test_items_are_streamed_and_not_looked_up() -> None:
    texts = StoredTexts(text=lambda _: pytest.fail("looked up"), stream=TEXTS.items, count=TEXTS.__len__)
    assert dict(texts.items()) == TEXTS
    assert list(texts) == ["b", "a"]


@pytest.mark.parametrize(
    ("splits", "given", "chosen"),
    [(["dev"], "", "dev"), (["dev", "test"], "", "test"), (["dev", "test"], "dev", "dev")],
)
def test_chosen_split(splits: list[str], given: str, chosen: str) -> None:
    assert chosen_split("here", splits, given) == chosen


@pytest.mark.parametrize(
    ("splits", "given", "message"),
    [
        (["dev", "train"], "", r"here: name the split, as in here#SPLIT; splits with judgements: dev, train"),
        ([], "", r"splits with judgements: none"),
        (["dev"], "test", r"here has no split 'test' with judgements; its splits: dev"),
    ],
)
def test_a_split_that_is_not_clear_is_refused(splits: list[str], given: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chosen_split("here", splits, given)


def test_what_a_library_writes_shows_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with only_in_a_terminal():
            sys.stderr.write("50%")
        assert stream.getvalue() == ("50%" if is_terminal else "")
