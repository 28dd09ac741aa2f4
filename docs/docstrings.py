"""Teaches mkdocstrings what it does not read by itself: `Example:`, doctests without a heading, and `Annotated`."""

import re
from typing import Any

import griffe

HEADING = re.compile(r"^Example:$", re.MULTILINE)
BARE_DOCTEST = re.compile(r"(?<=\n\n)>>> .*?(?=\n\n|\Z)", re.DOTALL)


class ReadDocstrings(griffe.Extension):
    """Shows examples as code, and fields with their type instead of their flag."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Give every example the heading that griffe knows."""
        if obj.docstring is not None:
            text = HEADING.sub("Examples:", obj.docstring.value)
            obj.docstring.value = BARE_DOCTEST.sub(lambda found: "Examples:\n" + _indented(found[0]), text)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Show `Annotated[type, flag]` as the type."""
        annotation = attr.annotation
        if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) == "Annotated":
            assert isinstance(annotation.slice, griffe.ExprTuple)
            attr.annotation = annotation.slice.elements[0]


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
