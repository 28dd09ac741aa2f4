"""What is wrong with a config, in plain words: pydantic's findings for the command line and for YAML files."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from reprlib import Repr
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a smaller whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be text",
    "string_sub_type": "must be text",
    "string_unicode": "must be text in UTF-8",
    "path_type": "must be a path",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "too_short": "needs at least {min_length}",
    "too_long": "takes at most {max_length}",
    "string_too_short": "needs at least {min_length} characters",
    "string_too_long": "takes at most {max_length} characters",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "mapping_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dataclass_type": "must be a mapping",
    "json_invalid": "is not JSON: {error}",
}
"""pydantic's types of errors, as what a value must be. Of other types a value "is not valid"."""

short = Repr()
short.maxstring = short.maxother = 80

Path = tuple[str, ...]
Name = Callable[[Path], str]


class ConfigError(ValueError):
    """A config that cannot be used.

    Args:
        lines: A sentence per fault.
    """

    def __init__(self, lines: list[str]) -> None:
        super().__init__(" ".join(lines))
        self.lines = lines


def dotted(path: Path) -> str:
    """A field's name: the keys that lead to it, joined by dots.

    Example:
        >>> dotted(("distill", "lora", "rank"))
        'distill.lora.rank'
    """
    return ".".join(path)


def lines_of(error: ValidationError, config: type[BaseModel] | None = None, name: Name = dotted) -> list[str]:
    """Describe a pydantic error.

    Args:
        error: The error.
        config: The model that was validated, from which similar names are suggested for an unknown one.
        name: What a field is called where the user gave it, such as a flag.

    Returns:
        A sentence per fault.
    """
    faults = error.errors()
    lists_with_faults = {fault["loc"][:-1] for fault in faults if fault["loc"] and isinstance(fault["loc"][-1], int)}
    # pydantic also calls a list too short whose items are wrong.
    reported = [fault for fault in faults if fault["type"] != "too_short" or fault["loc"] not in lists_with_faults]
    return [_line(fault, config, name) for fault in reported]


def sentence(subject: str, fault: Mapping[str, Any]) -> str:
    """One of pydantic's findings about a subject.

    Example:
        >>> sentence("--top-k", {"type": "greater_than_equal", "ctx": {"ge": 2}, "input": 1})
        '--top-k must be at least 2, got 1.'
        >>> sentence("--ratios", {"type": "value_error", "ctx": {"error": ValueError("they increase")}, "input": 1})
        '--ratios: they increase, got 1.'
    """
    context = fault.get("ctx") or {}
    got = f", got {short.repr(fault['input'])}"
    if fault["type"] in ("value_error", "assertion_error"):  # a validator's own words
        said = str(context["error"]).rstrip(".")
        return f"{subject}: {said}{got}." if subject else f"{said}."
    if fault["type"] == "missing":
        return f"{subject} is missing."
    words = WORDS.get(fault["type"], "is not valid").format_map(context)
    return f"{subject} {words}{'' if fault['type'] == 'json_invalid' else got}.".strip()


def _line(fault: Mapping[str, Any], config: type[BaseModel] | None, name: Name) -> str:
    if fault["loc"][-1:] == ("[key]",):  # the key is before it
        path = tuple(map(str, fault["loc"][:-2]))
        return sentence(f"a key of {name(path)}" if path else "a key", fault)
    keys = list(fault["loc"])
    item = f", item {keys.pop() + 1}," if keys and isinstance(keys[-1], int) else ""
    path = tuple(map(str, keys))
    if fault["type"] == "extra_forbidden":
        return f"{name(path)} is not an option.{_suggested(path, config)}"
    if fault["type"] == "invalid_key":
        return sentence(f"a key of {name(path)}" if path else "a key", {**fault, "type": "string_type"})
    return sentence(name(path) + item if path else item.strip(" ,"), fault)


def _suggested(path: Path, config: type[BaseModel] | None) -> str:
    """The most similar name in the same section; else the sections that have an option of that exact name."""
    if config is None:
        return ""
    leaves = list(_paths(config))
    *above, unknown = path
    beside = {leaf[len(above)] for leaf in leaves if leaf[: len(above)] == tuple(above) and len(leaf) > len(above)}
    nearest = get_close_matches(unknown.replace("-", "_"), beside, n=1)
    found = [(*above, nearest[0])] if nearest else [leaf for leaf in leaves if leaf[-1] == unknown]
    return f" Did you mean {' or '.join(map(dotted, found))}?" if found else ""


def _paths(config: type[BaseModel], above: Path = ()) -> Iterator[Path]:
    for name, field in config.model_fields.items():
        nested = model_in(field.annotation)
        if nested is None:
            yield (*above, name)
        else:
            yield from _paths(nested, (*above, name))


def model_in(annotation: Any) -> type[BaseModel] | None:
    """The nested config that a field holds, or may hold; None for other fields."""
    from pydantic import BaseModel

    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)
