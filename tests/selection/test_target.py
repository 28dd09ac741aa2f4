"""Targets: one need, said as a value."""

import math
import pickle
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mrr_model.selection.target import DOCUMENTS, Target


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of keep_quality, speedup, max_latency_ms, got none"),
        ({"speedup": 2, "keep_quality": 0.9}, ValueError, "got keep_quality, speedup"),
        ({"speedup": 0.5}, ValueError, "speedup must be at least 1"),
        ({"speedup": math.nan}, ValueError, "speedup must be at least 1.*got nan"),
        ({"speedup": "3"}, TypeError, "speedup must be a number, got '3'"),
        ({"speedup": True}, TypeError, "speedup must be a number, got True"),
        ({"speedup": Decimal(3)}, TypeError, "speedup must be a number"),
        ({"keep_quality": 0}, ValueError, "keep_quality must be a share above 0"),
        ({"keep_quality": 98}, ValueError, "keep_quality must be a share above 0 and at most 1, such as 0.98, got 98"),
        ({"keep_quality": -0.1}, ValueError, "keep_quality must be a share"),
        ({"max_latency_ms": 0}, ValueError, "max_latency_ms must be a number of milliseconds above 0"),
        ({"max_latency_ms": [5]}, TypeError, "max_latency_ms must be a number"),
        ({"max_latency_ms": 5, "documents": 0}, ValueError, "documents must be at least 1"),
        ({"max_latency_ms": 5, "documents": 2.0}, TypeError, "documents must be a whole number"),
        ({"max_latency_ms": 5, "documents": True}, TypeError, "documents must be a whole number"),
        ({"speedup": 5, "documents": 50}, ValueError, "documents goes with max_latency_ms"),
        (
            {"speedup": 5, "if_unreachable": "warn"},
            ValueError,
            "if_unreachable must be 'raise' or 'fastest', got 'warn'",
        ),
        ({"max_latency_ms": 5, "refresh": 1}, TypeError, "refresh must be True or False, got 1"),
        ({"speedup": 5, "refresh": True}, ValueError, "refresh goes with max_latency_ms"),
    ],
)
def test_wrong_needs_are_refused_by_name(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Target(**arguments)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(speedup=3), "Target(speedup=3.0)"),
        (Target(keep_quality=1), "Target(keep_quality=1.0)"),
        (Target(max_latency_ms=50), f"Target(max_latency_ms=50.0, documents={DOCUMENTS})"),
        (Target(max_latency_ms=50, documents=7), "Target(max_latency_ms=50.0, documents=7)"),
        (Target(speedup=2, if_unreachable="fastest"), "Target(speedup=2.0, if_unreachable='fastest')"),
        (Target(max_latency_ms=5, refresh=True), f"Target(max_latency_ms=5.0, documents={DOCUMENTS}, refresh=True)"),
    ],
)
def test_targets_are_values(target: Target, text: str) -> None:
    assert repr(target) == text
    assert pickle.loads(pickle.dumps(target)) == target
    assert hash(target) == hash(eval(text))
    with pytest.raises(AttributeError):
        target.speedup = 2.0  # type: ignore[misc]


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert Target(speedup=np.float32(2)) == Target(speedup=Fraction(2)) == Target(speedup=2)  # type: ignore[arg-type]
    made = Target(max_latency_ms=5, documents=np.int64(3))  # type: ignore[arg-type]
    assert made == Target(max_latency_ms=5, documents=3)
    assert type(made.documents) is int
