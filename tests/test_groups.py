"""Training rows: what is written is read back, and what a bad row is told."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrr_model.training.groups import Group, read_groups, write_groups

GROUPS = [
    Group("plain", ("p",), ("n1", "n2")),
    Group("no negatives", ("p",)),
    Group("an empty passage is a passage", ("",), ("line one\nline two\u2028three",), (0.25,), (-1.5,), "What for?"),
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
scores = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    positives, negatives = draw(st.lists(texts, min_size=1, max_size=3)), draw(st.lists(texts, max_size=3))
    scored = draw(st.booleans())
    return Group(
        query=draw(texts.filter(str.strip)),
        positives=tuple(positives),
        negatives=tuple(negatives),
        positive_scores=tuple(draw(scores) for _ in positives) if scored else None,
        negative_scores=tuple(draw(scores) for _ in negatives) if scored else None,
        prompt=draw(st.none() | texts),
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(rows=st.lists(groups(), max_size=3))
def test_what_is_written_is_read_back(tmp_path: Path, name: str, rows: list[Group]) -> None:
    assert write_groups(tmp_path / name, rows) == len(rows)
    assert list(read_groups(tmp_path / name)) == rows


def test_gzip_holds_the_same_bytes_as_plain_and_depends_on_the_rows_alone(tmp_path: Path) -> None:
    for name in ("plain.jsonl", "one.jsonl.gz", "two.jsonl.gz"):
        write_groups(tmp_path / name, GROUPS)
    zipped = (tmp_path / "one.jsonl.gz").read_bytes()
    assert gzip.decompress(zipped) == (tmp_path / "plain.jsonl").read_bytes()
    assert zipped == (tmp_path / "two.jsonl.gz").read_bytes()


def test_written_form_is_the_fields_without_what_is_missing(tmp_path: Path) -> None:
    write_groups(tmp_path / "rows.jsonl", GROUPS)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[0]) == {"query": "plain", "pos": ["p"], "neg": ["n1", "n2"]}
    assert list(json.loads(lines[2])) == ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt"]


def test_other_keys_and_nulls_are_accepted(tmp_path: Path) -> None:
    row = {"query": "q", "pos": ["p"], "neg": [], "pos_scores": None, "neg_scores": None, "prompt": None, "id": 7}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n\n")
    assert list(read_groups(tmp_path / "rows.jsonl")) == [Group("q", ("p",))]


def test_rows_stream(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"query": "q", "pos": ["p"], "neg": []}\nbroken\n')
    rows = read_groups(tmp_path / "rows.jsonl")
    assert next(rows).query == "q"
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: expected one JSON object a line, but this is not JSON"):
        next(rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": 3}, r'expected a string under "query", got int 3'),
        ({"query": " "}, r'"query" is empty; expected a text'),
        ({"pos": []}, r'"pos" is empty; expected at least one passage'),
        ({"pos": "p"}, r"expected a list of strings under \"pos\", got str 'p'"),
        ({"pos": ["p", None]}, r'expected strings in "pos", got NoneType None at index 1'),
        ({"neg": None}, r'expected a list of strings under "neg", got NoneType None; write "neg": \[\] where there'),
        ({"pos_scores": [1.0]}, r'"pos_scores" came without "neg_scores"; expected both lists or neither'),
        ({"neg_scores": [1, 1]}, r'"neg_scores" came without "pos_scores"'),
        (
            {"pos_scores": [1.0], "neg_scores": [1]},
            r'"neg_scores" holds 1 scores for 2 passages in "neg"; expected one a',
        ),
        ({"pos_scores": [], "neg_scores": [1, 2]}, r'"pos_scores" holds 0 scores for 1 passages in "pos"'),
        ({"pos_scores": 1, "neg_scores": [1, 2]}, r'expected a list of numbers or null under "pos_scores", got int 1'),
        (
            {"pos_scores": ["1"], "neg_scores": [1, 2]},
            r"expected finite numbers in \"pos_scores\", got str '1' at index 0",
        ),
        ({"pos_scores": [True], "neg_scores": [1, 2]}, r'expected finite numbers in "pos_scores", got bool True'),
        (
            {"pos_scores": [float("nan")], "neg_scores": [1, 2]},
            r'expected finite numbers in "pos_scores", got float nan',
        ),
        ({"prompt": ["a"]}, r'expected a string or null under "prompt", got list'),
    ],
)
def test_bad_row_names_its_line(tmp_path: Path, change: dict[str, object], message: str) -> None:
    good = {"query": "q", "pos": ["p"], "neg": ["n", "m"]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: " + message):
        list(read_groups(tmp_path / "rows.jsonl"))


@pytest.mark.parametrize("key", ["query", "pos", "neg"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["n"]}
    del row[key]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf'rows\.jsonl:1: expected .* under "{key}", got nothing'):
        list(read_groups(tmp_path / "rows.jsonl"))
