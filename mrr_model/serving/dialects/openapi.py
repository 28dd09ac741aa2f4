"""The routes' descriptions, from which /docs and /openapi.json are made."""

from collections.abc import Mapping, Sequence
from typing import Any, Union

from pydantic import BaseModel

from mrr_model.serving.dialects.answering import SETTING_HEADER
from mrr_model.serving.dialects.errors import Dialect, error_model, status_of
from mrr_model.serving.dialects.knobs import TIMEOUT_HEADER
from mrr_model.serving.errors import Fault

DESCRIPTIONS = {
    Fault.MALFORMED: "The body is no JSON.",
    Fault.UNAUTHORIZED: "The API key is missing or wrong.",
    Fault.NOT_ALLOWED: "This server does not let requests choose this setting.",
    Fault.NOT_FOUND: "No such route.",
    Fault.TOO_SLOW: "The request did not arrive in time.",
    Fault.TOO_LARGE: "The body is too large, or has too many documents.",
    Fault.INVALID: "A field is missing, or has a wrong type or value.",
    Fault.OVERLOADED: "The queue is full; Retry-After says when it may work.",
    Fault.FAILED: "The model failed on this request.",
    Fault.UNAVAILABLE: "The model is not loaded yet, or the server is about to stop.",
    Fault.TIMED_OUT: "The answer would have come too late.",
}
"""What each fault means."""

WITHOUT_BODY = (Fault.UNAUTHORIZED, Fault.TOO_SLOW, Fault.UNAVAILABLE)
"""The faults of routes that take no body."""

TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds within which the answer must be there, else status 504.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
}


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
    answer: Any, dialects: Sequence[Dialect], faults: Sequence[Fault] = ()
) -> dict[int | str, dict[str, Any]]:
    """The answers of a route.

    Args:
        answer: The model of its body.
        dialects: The forms of its errors.
        faults: Why it may fail; none for those of a route that scores.
    """
    header = {"description": "The setting that ran, and why.", "schema": {"type": "string"}}
    headers = {} if faults else {"headers": {SETTING_HEADER: header}}
    found: dict[int | str, dict[str, Any]] = {200: {"model": answer, "description": "OK.", **headers}}
    by_status: dict[int, tuple[list[Dialect], str]] = {}
    for fault in faults or [fault for fault in Fault if fault in DESCRIPTIONS]:
        for dialect in dialects:
            speakers, _ = by_status.setdefault(status_of(fault, dialect), ([], DESCRIPTIONS[fault]))
            speakers.append(dialect)
    for status, (speakers, description) in by_status.items():
        model: Any = Union[tuple(error_model(dialect) for dialect in speakers)]  # noqa: UP007  # made from a list
        found[status] = {"model": model, "description": description}
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
