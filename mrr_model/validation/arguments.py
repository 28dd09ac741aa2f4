"""Checks of arguments. Each error names the argument, the value, and what is allowed."""

import math
import operator
import sys
from collections.abc import Iterable, Mapping, MappingView, Set
from enum import Enum
from numbers import Real
from typing import Any, Final


class Default(Enum):
    """Marks an argument as not given where `None` has a meaning of its own: the object's own value is used."""

    DEFAULT = "default"


DEFAULT: Final = Default.DEFAULT
"""The value of an argument that was not given."""

NOT_LISTS = (str, bytes, Mapping, set, frozenset)
"""Types that can be iterated over and are not lists of items."""

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
"""Packages that a warning never points at: the user's own line is further up the stack."""


def whole_number(name: str, value: Any, least: int = 1, advice: str = "") -> int:
    """Check a whole number. Integers of numpy and torch are accepted; a bool is not.

    Args:
        name: What the error calls the argument.
        value: The argument.
        least: The smallest value allowed.
        advice: The last sentence of the error.

    Returns:
        The value as an `int`.

    Raises:
        TypeError: If the value is not a whole number.
        ValueError: If it is below `least`.

    Example:
        >>> import numpy as np
        >>> whole_number("top_n", np.int64(3))
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


def optional_whole_number(name: str, value: Any) -> int | None:
    """Check a whole number from 1 that may be None.

    Raises:
        TypeError: If the value is neither a whole number nor None.
        ValueError: If it is below 1.
    """
    return None if value is None else whole_number(name, value, advice="None is allowed too.")


def real_number(value: Any) -> float:
    """A number as a float; infinite if it is too large for one.

    Example:
        >>> real_number(10**400)
        inf
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def optional_number(name: str, value: Any) -> float | None:
    """Check a finite number that may be None.

    Raises:
        TypeError: If the value is neither a number nor None.
        ValueError: If it is infinite or NaN.

    Example:
        >>> optional_number("min_score", 1)
        1.0
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number or None, got {value!r} ({type(value).__name__}).")
    number = real_number(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number or None, got {value!r}.")
    return number


def optional_milliseconds(name: str, value: Any) -> float | None:
    """Check a time that may be None, for no limit, as infinity is.

    Raises:
        TypeError: If the value is neither a number nor None.
        ValueError: If it is negative or NaN.

    Example:
        >>> optional_milliseconds("deadline_ms", 50)
        50.0
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of milliseconds or None, got {value!r} ({type(value).__name__}).")
    number = real_number(value)
    if not number >= 0:
        raise ValueError(f"{name} must be at least 0, got {value!r}. None is no deadline.")
    return number


def true_or_false(name: str, value: Any) -> bool:
    """Check a bool; numpy's are accepted too.

    Raises:
        TypeError: If the value is anything else.
    """
    if type(value).__name__ not in ("bool", "bool_"):  # numpy's bear these names, and numpy is slow to import
        raise TypeError(f"{name} must be True or False, got {value!r} ({type(value).__name__}).")
    return bool(value)


def optional_text(name: str, value: Any) -> str | None:
    """Check a string that may be None.

    Raises:
        TypeError: If the value is neither a string nor None.
    """
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a string or None, got {value!r} ({type(value).__name__}).")
    return value


def is_table(value: object) -> bool:
    """Whether iterating over a value gives column names, as for pandas, polars, Arrow tables and datasets."""
    return hasattr(value, "columns") or hasattr(value, "column_names")


def checked_list(name: str, items: str, given: Any) -> list[Any]:
    """Check an ordered collection, such as a list, an array, a table's column or a generator.

    Args:
        name: What the error calls the argument.
        items: What the error calls its items, in the plural.
        given: The argument.

    Returns:
        The items as a list.

    Raises:
        TypeError: If `given` is a single item, a mapping, a table or a set.

    Example:
        >>> checked_list("documents", "strings", (text for text in "ab"))
        ['a', 'b']
    """
    kind = type(given).__name__
    if is_table(given):
        raise TypeError(f"{name} must be a list of {items}, got a table ({kind}). Pass one or more of its columns.")
    if isinstance(given, Set) and not isinstance(given, MappingView):
        raise TypeError(f"{name} must be a list of {items}, got a {kind}, which has no order. Pass a list.")
    if isinstance(given, NOT_LISTS) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        raise TypeError(f"{name} must be a list of {items}, got a single {kind}. Pass a list.")
    return list(given)


def checked_query(name: str, query: object) -> str:
    """Check the query of a request.

    Raises:
        TypeError: If it is not a string.
        ValueError: If it is empty.
    """
    if not isinstance(query, str):
        raise TypeError(f"{name} must be a string, got {query!r} ({type(query).__name__}).")
    if not query.strip():
        raise ValueError(f"{name} is empty. Give the text that the documents are ranked for.")
    return query


def checked_documents(documents: object, name: str = "documents") -> list[str]:
    """Check the documents of a request; any ordered collection of strings is accepted.

    Args:
        documents: The documents.
        name: What the error calls them.

    Returns:
        The documents as a list.

    Raises:
        TypeError: If `documents` is a single text, a mapping, a table or a set, or one of them is not a string.
    """
    texts = checked_list(name, "strings", documents)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"{name}[{index}] must be a string, got {text!r} ({type(text).__name__}). "
                "An empty string is allowed, None is not."
            )
    return texts


def checked_pairs(pairs: object) -> list[tuple[str, str]]:
    """Check (query, document) pairs; any ordered collection of pairs is accepted.

    Returns:
        The pairs as a list of tuples.

    Raises:
        TypeError: If `pairs` is a single pair, a mapping, a table or a set, or one of them is not two strings.
        ValueError: If a query is empty.
    """
    checked = []
    for index, pair in enumerate(checked_list("pairs", "(query, document) pairs", pairs)):
        texts = [] if isinstance(pair, NOT_LISTS) or not isinstance(pair, Iterable) else list(pair)
        if len(texts) != 2:
            raise TypeError(f"pairs[{index}] must be a (query, document) pair of strings, got {pair!r}.")
        query, document = texts
        if not isinstance(document, str):
            raise TypeError(f"pairs[{index}][1] must be a string, got {document!r} ({type(document).__name__}).")
        checked.append((checked_query(f"pairs[{index}][0]", query), document))
    return checked


def checked_requests(requests: object) -> list[tuple[str, list[str]]]:
    """Check the requests of a call: `{query: documents}`, or any ordered collection of (query, documents) pairs.

    Returns:
        (query, documents) pairs.

    Raises:
        TypeError: If `requests` is neither, a query is not a string, or documents are not a list of strings.
        ValueError: If a query is empty.

    Example:
        >>> checked_requests({"what do bees make?": ["Bees make honey."]})
        [('what do bees make?', ['Bees make honey.'])]
    """
    if isinstance(requests, Mapping):
        requests = list(requests.items())
    checked = []
    for index, request in enumerate(checked_list("requests", "(query, documents) pairs", requests)):
        parts = [] if isinstance(request, NOT_LISTS) or not isinstance(request, Iterable) else list(request)
        if len(parts) != 2:
            raise TypeError(f"requests[{index}] must be a (query, documents) pair, got {request!r:.200}.")
        query, documents = parts
        checked.append(
            (checked_query(f"requests[{index}][0]", query), checked_documents(documents, f"requests[{index}][1]"))
        )
    return checked


def callers_level() -> int:
    """The `stacklevel` that makes a warning of the calling function point at the user's line.

    That is the nearest frame outside of this project and of the frameworks that it is used through.
    """
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in OURS_AND_FRAMEWORKS:
        level, frame = level + 1, frame.f_back
    return level
