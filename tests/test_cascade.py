"""Which documents stop at which exit: the rule against a slow loop, what is validated, and its forms as data."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr_model import Cascade
from mrr_model.cascade import checked_cascade

LOGITS = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.5]), max_size=12)


def slow_survivors(cascade: Cascade, exit_layer: int, logits: list[float], top_n: int | None) -> list[bool]:
    number = dict(cascade.stages)[exit_layer]
    best_first = sorted(range(len(logits)), key=lambda index: (-logits[index], index))
    if cascade.by == "count":
        kept = set(best_first[: int(number)])
    else:
        rank = max(cascade.top_n, top_n or 0) if cascade.top_n else (top_n or 10)
        kept = set(best_first)
        if len(logits) > rank:
            bar = logits[best_first[rank - 1]] - number
            kept = {index for index in best_first if logits[index] >= bar}
    return [index in kept for index in range(len(logits))]


@given(
    logits=LOGITS,
    number=st.integers(1, 5),
    by=st.sampled_from(["margin", "count"]),
    own=st.one_of(st.none(), st.integers(1, 6)),
    top_n=st.one_of(st.none(), st.integers(1, 6)),
)
def test_survivors_are_those_of_a_slow_loop(
    logits: list[float], number: int, by: Any, own: int | None, top_n: int | None
) -> None:
    cascade = Cascade({3: number}, by, None if by == "count" else own)
    found = cascade.survivors(3, logits, top_n).tolist()
    assert found == slow_survivors(cascade, 3, logits, top_n)
    assert all(logit >= cascade.threshold(3, logits, top_n) for logit, kept in zip(logits, found, strict=True) if kept)


@given(logits=LOGITS.filter(bool), margin=st.floats(0, 4), top_n=st.integers(1, 6))
def test_more_documents_never_save_one_that_would_stop(logits: list[float], margin: float, top_n: int) -> None:
    """By this rule the states of a document that would stop among those read so far can be forgotten at once."""
    for cascade in (Cascade({2: margin}), Cascade({2: top_n}, by="count")):
        whole = cascade.survivors(2, logits, top_n)
        for count in range(1, len(logits)):
            part = cascade.survivors(2, logits[:count], top_n)
            assert not (whole[:count] & ~part).any()


@given(logits=LOGITS, number=st.integers(0, 4), top_n=st.one_of(st.none(), st.integers(1, 6)))
def test_nothing_stops_where_nothing_can(logits: list[float], number: int, top_n: int | None) -> None:
    for cascade in (Cascade({2: 0.0}), Cascade({2: number + 1}, by="count"), Cascade({2: 0.0}, top_n=4)):
        if not cascade.drops(len(logits), top_n):
            assert cascade.survivors(2, logits, top_n).all()


def test_the_best_documents_survive_any_margin() -> None:
    assert Cascade({2: 0.0}).survivors(2, [1.0, 3.0, 2.0, 0.0], top_n=2).tolist() == [False, True, True, False]


def test_stages_take_every_form_and_are_stored_in_ascending_order() -> None:
    cascade = Cascade({4: 1, 2: 3.0})
    assert cascade == Cascade("2:3,4:1") == Cascade({"2": 3, "4": 1.0}) == Cascade([(2, 3), (4, 1)])
    assert cascade.stages == ((2, 3.0), (4, 1.0))
    assert cascade.exits == (2, 4)
    assert len({cascade, Cascade("2:3,4:1")}) == 1


@pytest.mark.parametrize(
    "cascade", [Cascade({2: 3.0, 4: 0.5}), Cascade({2: 50, 3: 20}, by="count"), Cascade({5: 1}, top_n=20)]
)
def test_json_round_trip(cascade: Cascade) -> None:
    assert Cascade.from_json(json.loads(json.dumps(cascade.to_json()))) == cascade


@pytest.mark.parametrize("data", [{}, {"stages": {"2": 1}, "margins": 1}, {2: 3.0}])
def test_json_with_other_keys_is_an_error(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a cascade has stages"):
        Cascade.from_json(data)


@pytest.mark.parametrize("data", [[2, 3.0], "stages", None])
def test_json_that_is_no_mapping_is_an_error(data: Any) -> None:
    with pytest.raises(TypeError, match="a cascade must be a mapping"):
        Cascade.from_json(data)


@pytest.mark.parametrize("stages", [{2: 3.0, 4: 0.1}, {2: 1.2345678901, 3: 1e-9}, {2: 12_345_678.0}])
@pytest.mark.parametrize("by", ["margin", "count"])
def test_the_text_of_stages_says_all_digits(stages: dict[int, float], by: Any) -> None:
    counts = dict.fromkeys(stages, 10**7 + 1)
    cascade = Cascade(stages if by == "margin" else counts, by)
    assert Cascade(cascade.stages_text, by) == cascade


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (({},), ValueError, "stages"),
        (({2: -1.0},), ValueError, r"stages\[2\]"),
        (({2: math.nan},), ValueError, r"stages\[2\]"),
        (({2: math.inf},), ValueError, r"stages\[2\]"),
        (({2: 10**400},), ValueError, r"stages\[2\]"),
        (({2: "3"},), TypeError, r"stages\[2\]"),
        (({2: True},), TypeError, r"stages\[2\]"),
        (({0: 1.0},), ValueError, "stages"),
        (({2.5: 1.0},), TypeError, "stages"),
        (({"two": 1.0},), TypeError, "stages"),
        (([2, 3],), TypeError, "stages"),
        ((3.0,), TypeError, "stages"),
        (("2:3;4:1",), ValueError, "stages"),
        (([(2, 1.0), (2, 2.0)],), ValueError, "twice"),
        (({2: 20, 4: 50}, "count"), ValueError, "grow"),
        (({2: 0}, "count"), ValueError, r"stages\[2\]"),
        (({2: 2.5}, "count"), TypeError, r"stages\[2\]"),
        (({2: 1.0}, "share"), ValueError, "by"),
        (({2: 1.0}, np.array(["margin", "count"])), ValueError, "by"),
        (({2: 1.0}, "margin", 0), ValueError, "top_n"),
        (({2: 10}, "count", 10), ValueError, "top_n"),
    ],
)
def test_bad_cascades_are_errors_that_name_the_argument(
    arguments: tuple[Any, ...], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        Cascade(*arguments)


def test_exits_must_be_the_models_and_lie_before_the_settings_own() -> None:
    cascade = Cascade({2: 1.0, 4: 1.0})
    cascade.check((2, 3, 4, 6), 6)
    with pytest.raises(ValueError, match=r"cascade names exit 4, which this model lacks\. Choose among 2, 3"):
        cascade.check((2, 3, 6), 6)
    with pytest.raises(ValueError, match="cascade names exit 4, and the setting ends at exit 4"):
        cascade.check((2, 4, 6), 4)
    with pytest.raises(ValueError, match="leave cascade out"):
        cascade.check((6,), 6)


@pytest.mark.parametrize("value", ["fast", 3.0, {2: 1.0}, True, np.array(["auto", "auto"])])
def test_a_call_takes_cascades_only(value: Any) -> None:
    with pytest.raises(TypeError, match="cascade must be"):
        checked_cascade(value)
