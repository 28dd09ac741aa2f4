"""Training rows: what is written is read back, and the errors about bad rows."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mrr_model.data.groups import Group, OnBadRow, read_groups, write_groups

GROUPS = [
    Group("plain", ("p",), ("n1", "n2")),
    Group("no negatives", ("p",)),
    Group("an empty passage is a passage", ("",), ("line one\nline two\u2028three",), (0.25,), (-1.5,), "What for?"),
    Group("unlabelled", (), ("n1", "n2"), (), (0.5, 0.25)),
]

texts = st.text(st.characters(exclude_categories=["Cs"]))
scores = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    positives = draw(st.lists(texts, max_size=3))
    negatives = draw(st.lists(texts, min_size=0 if positives else 1, max_size=3))
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


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_lone_carriage_return_is_no_line_end(tmp_path: Path, ending: str) -> None:
    row = '{"query": "q",\r"pos": ["p"], "neg": []}'
    (tmp_path / "rows.jsonl").write_bytes(f"{row}{ending}{row}{ending}".encode())
    assert list(read_groups(tmp_path / "rows.jsonl")) == [Group("q", ("p",))] * 2


@pytest.mark.parametrize("on_bad_row", ["fail", "skip"])
def test_what_is_no_text_is_named(tmp_path: Path, on_bad_row: OnBadRow) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\xac\xff")
    with pytest.raises(ValueError, match=r"rows\.parquet is not UTF-8 text"):
        list(read_groups(tmp_path / "rows.parquet", on_bad_row))


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
        ({"pos": [], "neg": []}, r'"pos" and "neg" are both empty; expected at least one passage'),
        ({"pos": "p"}, r"expected a list of strings under \"pos\", got str 'p'"),
        ({"pos": ["p", None]}, r'expected strings in "pos", got NoneType None at index 1'),
        ({"neg": "n"}, r"expected a list of strings under \"neg\", got str 'n'; write \"neg\": \[\] if there"),
        ({"pos": [], "neg": None}, r'expected a list of strings under "neg", got NoneType None'),
        ({"pos_scores": [1.0]}, r'"pos_scores" came without "neg_scores"; expected both lists or neither'),
        ({"neg_scores": [1, 1]}, r'"neg_scores" came without "pos_scores"'),
        (
            {"pos_scores": [1.0], "neg_scores": [1]},
            r'"neg_scores" holds 1 scores for 2 passages in "neg"; expected one per',
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


@pytest.mark.parametrize("neg", [{}, {"neg": None}, {"neg": []}])
def test_a_row_to_be_mined_needs_no_negatives(tmp_path: Path, neg: dict[str, object]) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "q", "pos": ["p"], **neg}))
    assert list(read_groups(tmp_path / "rows.jsonl")) == [Group("q", ("p",))]


@pytest.mark.parametrize("key", ["query", "pos"])
def test_missing_key_is_named(tmp_path: Path, key: str) -> None:
    row = {"query": "q", "pos": ["p"], "neg": ["n"]}
    del row[key]
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=rf'rows\.jsonl:1: expected .* under "{key}", got nothing'):
        list(read_groups(tmp_path / "rows.jsonl"))


def test_bad_rows_can_be_left_out_with_a_warning_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = '{"query": "q", "pos": ["p"], "neg": []}'
    lines = [good, "broken", "", '{"query": "q", "pos": [], "neg": []}', "[]", good]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    assert list(read_groups(tmp_path / "rows.jsonl", on_bad_row="skip")) == [Group("q", ("p",))] * 2
    messages = [
        "rows.jsonl:2: expected one JSON object a line, but this is not JSON",
        'rows.jsonl:4: "pos" and "neg" are both empty; expected at least one passage',
        "rows.jsonl:5: expected one JSON object a line, got list",
    ]
    assert len(caplog.records) == len(messages)
    for record, message in zip(caplog.records, messages, strict=True):
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(str(tmp_path / message))
        assert record.getMessage().endswith("; the row is left out")


def test_an_unlabelled_row_needs_no_list_of_positive_scores(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        '{"query": "q", "pos": [], "neg": ["a", "b"], "neg_scores": [1, 0]}\n', "utf-8"
    )
    [row] = read_groups(tmp_path / "rows.jsonl")
    assert (row.positive_scores, row.negative_scores) == ((), (1.0, 0.0))
