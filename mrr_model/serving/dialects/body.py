"""Bytes to JSON data, and JSON data to a request. All that can be wrong with either is one `ServingError`."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mrr_model.serving.config import ServeConfig
from mrr_model.serving.errors import Fault, ServingError

JSON_TYPE = re.compile(r"(application|text)/(json|[\w.+-]+\+json)", re.IGNORECASE)

MAX_DEPTH = 64
"""Lists and objects inside each other, at most, in what is used of a body."""

MANY_COMMAS = 1_000_000
"""A body with more may have millions of numbers. They are read by a function of ours then: it is slow, but other
threads run meanwhile.
"""

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that may be half a character."""

SHOWN_CHARACTERS = 40
"""Characters of a name or a number that errors show."""

WANTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "int_type": "a whole number",
    "list_type": "a list",
    "string_type": "a string",
}
"""What each of pydantic's errors asks for."""

Body = TypeVar("Body", bound=BaseModel)


def check_content_type(header: str | None) -> None:
    """Check that a body is said to be JSON, or nothing is said.

    Raises:
        ServingError: MALFORMED if it is said to be something else.
    """
    kind = (header or "application/json").partition(";")[0].strip()
    if not JSON_TYPE.fullmatch(kind):
        raise ServingError(
            Fault.MALFORMED, f"content-type must be application/json, got {kind[:SHOWN_CHARACTERS]!r}. Send JSON."
        )


def parse(body: bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ServingError: MALFORMED if it is no JSON, INVALID if it is no object or has a text that is no Unicode.

    Example:
        >>> parse(b'{"query": "who wrote Faust?"}')
        {'query': 'who wrote Faust?'}
    """
    if not body.strip():
        raise ServingError(Fault.MALFORMED, "the body is empty: send a JSON object.")
    try:
        data = json.loads(
            body.decode("utf-8-sig"),
            object_pairs_hook=_object,
            parse_constant=_not_a_number,
            parse_int=_int if body.count(b",") > MANY_COMMAS else None,
        )
        if SURROGATE.search(body):
            json.dumps(data, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ServingError(Fault.MALFORMED, f"the body is not UTF-8: byte {error.start} is wrong.") from None
    except UnicodeEncodeError:
        raise ServingError(
            Fault.INVALID, r"a text has half a surrogate pair (\ud800 to \udfff), which is no character."
        ) from None
    except json.JSONDecodeError as error:
        raise ServingError(
            Fault.MALFORMED, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except ValueError:
        raise ServingError(Fault.MALFORMED, "a whole number has too many digits.") from None
    except RecursionError:
        raise ServingError(Fault.MALFORMED, "the body has too many lists and objects inside each other.") from None
    if not isinstance(data, dict):
        raise ServingError(Fault.INVALID, f"the body must be a JSON object, got {described(data)}.")
    return data


def check_depth(name: str, value: object) -> None:
    """Check that a value can be walked, compared and printed.

    Raises:
        ValueError: If it has too many lists and objects inside each other.
    """
    layer = [value]
    for _ in range(MAX_DEPTH):
        layer = [part for each in layer for part in _parts(each) if isinstance(part, list | dict)]
        if not layer:
            return
    raise ValueError(f"{name} has more than {MAX_DEPTH} lists and objects inside each other.")


def check_counts(data: Mapping[str, Any], names: Iterable[str], config: ServeConfig) -> None:
    """Check that no list of texts is longer than the server takes, before anything is made of it.

    Raises:
        ServingError: TOO_LARGE if one is.
    """
    for name in names:
        value = data.get(name)
        if isinstance(value, list) and len(value) > config.max_documents:
            raise ServingError(
                Fault.TOO_LARGE,
                f"{name} has {len(value)} entries, and this server takes {config.max_documents} per request "
                "(--max-documents). Send fewer.",
            )


def validated(model: type[Body], data: Mapping[str, Any]) -> Body:
    """Check JSON data against a dialect's request.

    Raises:
        ServingError: INVALID; names the first field that is wrong, what came, and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ServingError(Fault.INVALID, _message(first)) from None


def described(value: object) -> str:
    """A value of the request as errors show it: never its texts.

    Example:
        >>> [described(value) for value in (None, True, 2.5, "Goethe", [1], {"a": 1})]
        ['null', 'true', '2.5', 'a string of 6 characters', 'a list', 'an object']
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return str(value)[:SHOWN_CHARACTERS]
    if isinstance(value, str):
        return f"a string of {len(value)} characters"
    return "a list" if isinstance(value, list) else "an object"


def _message(error: ErrorDetails) -> str:
    name, kind, came = ".".join(map(str, error["loc"])), error["type"], described(error["input"])
    context = error.get("ctx", {})
    if kind == "missing":
        return f"{name} is missing. Give it."
    if kind == "value_error":
        return str(context["error"])
    if kind in WANTED:
        return f"{name} must be {WANTED[kind]}, got {came}."
    bounds = {"greater_than_equal": ("at least", "ge"), "greater_than": ("more than", "gt")}
    if kind in bounds:
        words, key = bounds[kind]
        return f"{name} must be {words} {context[key]:g}, got {came}."
    if kind == "too_long":
        return f"{name} must have at most {context['max_length']} entries."
    if kind == "literal_error":
        return f"{name} must be {context['expected']}, got {came}."
    return f"{name}: {error['msg']}, got {came}."


def _parts(value: object) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ServingError(Fault.MALFORMED, f"an object has the key {twice[:SHOWN_CHARACTERS]!r} twice.")
    return found


def _not_a_number(name: str) -> NoReturn:
    raise ServingError(Fault.MALFORMED, f"{name} is no JSON number.")


def _int(digits: str) -> int:
    return int(digits)
