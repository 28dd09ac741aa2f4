"""The texts of requests: strings, or objects that hold them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mrr_model.serving.dialects.body import check_depth, described

NOT_EMPTY = r"\S"
"""What a query must have."""

TEXT_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    ]
}
"""A text in its forms."""

QUERY_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "string", "pattern": NOT_EMPTY},
        {"type": "object", "properties": {"text": {"type": "string", "pattern": NOT_EMPTY}}, "required": ["text"]},
    ]
}
"""A query in its forms."""

DOCUMENT_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "object", "additionalProperties": True}]}
"""A document in its forms; an object has `text`, or the request's `rank_fields`."""


@dataclass(frozen=True)
class Document:
    """A document of a request.

    Args:
        text: What is scored.
        given: What the request gave: the text, or an object.
    """

    text: str
    given: str | Mapping[str, Any]

    @property
    def returned(self) -> dict[str, Any]:
        """What Cohere's API returns of it: an object with `text`."""
        return {"text": self.text} if isinstance(self.given, str) else {"text": self.text, **self.given}


def text_of(name: str, value: object) -> str:
    r"""The text of a string, of an object with `text`, or of vLLM's object with the list `content`.

    Raises:
        ValueError: If it is something else, or its content is not all text.

    Example:
        >>> text_of("query", {"content": [{"type": "text", "text": "who wrote"}, {"type": "text", "text": "Faust?"}]})
        'who wrote\nFaust?'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), str):
            return str(value["text"])
        content = value.get("content")
        texts = [part.get("text") for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
        strings = [text for text in texts if isinstance(text, str)]
        if content and len(strings) == len(content):
            return "\n".join(strings)
    raise ValueError(f'{name} must be a string or an object with the string "text", got {described(value)}.')


def query_of(name: str, value: object) -> str:
    """The text of a query.

    Raises:
        ValueError: If it is no text, or empty.
    """
    text = text_of(name, value)
    if not text.strip():
        raise ValueError(f"{name} is empty. Give the text that the documents are ranked for.")
    return text


def document_of(name: str, value: object, rank_fields: Sequence[str] | None = None) -> Document:
    r"""A document of a request.

    Args:
        name: What the error calls it.
        value: A string or an object.
        rank_fields: The keys of an object that are scored, in this order; None for `text`.

    Raises:
        ValueError: If it is neither, or has none of the keys.

    Example:
        >>> document_of("documents[0]", {"title": "Faust", "year": 1808}, ["title", "year"]).text
        'Faust\n1808'
    """
    if isinstance(value, str):
        return Document(value, value)
    check_depth(name, value)
    if isinstance(value, Mapping) and rank_fields:
        parts = [_written(value[field]) for field in rank_fields if value.get(field) is not None]
        if not parts:
            raise ValueError(f"{name} has none of the rank_fields. Give it one of them, or leave rank_fields out.")
        return Document("\n".join(parts), value)
    text = text_of(name, value)
    return Document(text, value if isinstance(value, Mapping) else text)


def check_list(name: str, value: object) -> list[Any]:
    """Check that a value is a list.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, got {described(value)}.")
    return value


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
