"""Checks of what users pass, which name the argument, what came, and what is allowed."""

import operator
import sys
from collections.abc import Iterable, Mapping, MappingView, Set
from typing import Any

NOT_LISTS = (str, bytes, Mapping, set, frozenset)
"""What can be iterated over, and is no list of items."""

OURS_AND_FRAMEWORKS = frozenset(
    {
        "mrr_model",
        "mrr_integrations",
        "asyncio",
        "concurrent",
        "contextlib",
        "functools",
        "langchain",
        "langchain_classic",
        "langchain_core",
        "llama_index",
        "llama_index_instrumentation",
        "pydantic",
        "sentence_transformers",
        "threading",
        "torch",
        "wrapt",
    }
)
"""Packages whose lines say nothing to a user who reads a warning."""


def whole_number(name: str, value: Any, least: int = 1, advice: str = "") -> int:
    """``value`` as an int. Whatever counts as an index is taken, numpy's whole numbers too; a bool is not.

    >>> import numpy
    >>> whole_number("top_n", numpy.int64(3))
    3
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        message = f"{name} must be a whole number, got {value!r} ({type(value).__name__}). {advice}"
        raise TypeError(message.rstrip()) from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}. {advice}".rstrip())
    return number


def is_table(value: object) -> bool:
    """Whether iterating over ``value`` gives column names: a data frame of pandas or polars, an Arrow table, a
    dataset.
    """
    return hasattr(value, "columns") or hasattr(value, "column_names")


def checked_list(name: str, items: str, given: Any) -> list[Any]:
    """What is ``given`` as a list of its ``items``: any ordered collection, a generator too. Raises ``TypeError`` that
    names the argument for a single item, a mapping, a table or a set.

    >>> checked_list("documents", "strings", (text for text in "ab"))
    ['a', 'b']
    """
    kind = type(given).__name__
    if is_table(given):
        raise TypeError(f"{name} must be a list of {items}, got a table ({kind}). Give its column or columns.")
    if isinstance(given, Set) and not isinstance(given, MappingView):
        raise TypeError(f"{name} must be a list of {items}, got a {kind}, which has no order to give scores in.")
    if isinstance(given, NOT_LISTS) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise TypeError(f"{name} must be a list of {items}, got a single {kind}.")
    return list(given)


def callers_level() -> int:
    """The ``stacklevel`` that makes a warning of the calling function point at the user's line: the nearest outside of
    this project and of the frameworks that it is used through.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS_AND_FRAMEWORKS:
        level, frame = level + 1, frame.f_back
    return level
