"""The routes' descriptions, from which /docs and /openapi.json are made."""

from collections.abc import Mapping, Sequence
from typing import Any, Union

from pydantic import BaseModel

from mrr_model.serving.dialects.answering import SETTING_HEADER
from mrr_model.serving.dialects.errors import Dialect, error_model, status_of
from mrr_model.serving.dialects.knobs import TIMEOUT_HEADER
from mrr_model.serving.errors import Fault

DESCRIPTIONS = {
    Fault.MALFORMED: "The body is no JSON, or TEI's `texts` is empty.",
    Fault.UNAUTHORIZED: "The API key is missing or wrong.",
    Fault.NOT_ALLOWED: "This server does not let requests choose this setting.",
    Fault.TOO_SLOW: "The request did not arrive in time.",
    Fault.TOO_LARGE: "The body is too large, or has too many documents.",
    Fault.INVALID: "A field is missing, or has a wrong type or value.",
    Fault.OVERLOADED: "The queue is full; Retry-After says when it may work.",
    Fault.FAILED: "The model failed on this request.",
    Fault.UNAVAILABLE: "The model is not loaded yet, or the server is about to stop.",
    Fault.TIMED_OUT: "The answer would have come too late.",
}
"""What each fault of a route means."""

SCORING = tuple(DESCRIPTIONS)
"""The faults of routes that score."""

WITHOUT_BODY = (Fault.UNAUTHORIZED, Fault.TOO_SLOW, Fault.UNAVAILABLE)
"""The faults of routes that take no body."""

TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds within which the answer must be there, else status 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


SETTING_HEADER_FORM = {"description": "The setting that ran, and why.", "schema": {"type": "string"}}
RETRY_AFTER_FORM = {"description": "Seconds after which it may work.", "schema": {"type": "integer", "minimum": 1}}
RETRYABLE = (Fault.OVERLOADED.value, Fault.UNAVAILABLE.value)


def request_form(models: Sequence[type[BaseModel]], examples: Mapping[str, Any]) -> dict[str, Any]:
    """The OpenAPI of a route whose body has one of several forms.

    Args:
        models: The forms.
        examples: Bodies by name.
    """
    schemas = [inlined(model.model_json_schema()) for model in models]
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
    content = {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}
    return {
        "requestBody": {"required": True, "content": {"application/json": content}},
        "parameters": [TIMEOUT_PARAMETER],
    }


def responses(
    answer: Any, dialects: Sequence[Dialect], example: Any = None, faults: Sequence[Fault] = SCORING
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route.

    Args:
        answer: The model of its body.
        dialects: The forms of its errors.
        example: An answer.
        faults: Why it may fail.
    """
    found: dict[int | str, dict[str, Any]] = {200: {"model": answer, "description": "OK."}}
    if example is not None:
        found[200]["content"] = {"application/json": {"example": example}}
    if faults == SCORING:
        found[200]["headers"] = {SETTING_HEADER: SETTING_HEADER_FORM}
    for status, speakers in _speakers(dialects, faults).items():
        model: Any = Union[tuple(map(error_model, dict.fromkeys(dialect for dialect, _ in speakers)))]  # noqa: UP007
        means = dict.fromkeys(DESCRIPTIONS[fault] for _, fault in speakers)
        found[status] = {"model": model, "description": " ".join(means)}
        if status in RETRYABLE:
            found[status]["headers"] = {"Retry-After": RETRY_AFTER_FORM}
    return found


def _speakers(dialects: Sequence[Dialect], faults: Sequence[Fault]) -> dict[int, list[tuple[Dialect, Fault]]]:
    """For each status, the dialects that answer with it, and why."""
    found: dict[int, list[tuple[Dialect, Fault]]] = {}
    for fault in faults:
        for dialect in dialects:
            found.setdefault(status_of(fault, dialect), []).append((dialect, fault))
    return found


def inlined(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A model's JSON schema with its definitions in their places.

    Example:
        >>> inlined({"$defs": {"A": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/A"}}})
        {'properties': {'a': {'type': 'string'}}}
    """
    definitions = schema.get("$defs", {})

    def resolved(part: Any) -> Any:
        if isinstance(part, list):
            return [resolved(each) for each in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return resolved(definitions[part["$ref"].rpartition("/")[2]])
        return {key: resolved(value) for key, value in part.items() if key != "$defs"}

    found: dict[str, Any] = resolved(schema)
    return found
