"""The options of one re-ranking request, and how each is checked."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from functools import partial
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator, InstanceOf, PlainSerializer, WithJsonSchema

from mrr_model.cascade import By, Cascade, CascadeOption, checked_cascade
from mrr_model.compression import Compression
from mrr_model.inference.windows import LongDocuments, checked_windows
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import (
    optional_milliseconds,
    optional_number,
    optional_text,
    optional_whole_number,
    true_or_false,
)

CASCADE_SCHEMA = WithJsonSchema(
    {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "stages": {"type": "object", "additionalProperties": {"type": "number"}},
                    "by": {"enum": list(get_args(By))},
                    "top_n": {"type": ["integer", "null"]},
                },
                "required": ["stages"],
                "additionalProperties": False,
            },
            {"const": "auto"},
            {"type": "null"},
        ]
    }
)
"""The JSON forms of a cascade."""

CHOSEN = ("depth", "keep_ratio", "cascade")
"""The options that a target chooses."""

LONG_DOCUMENTS = ("long_documents", "window", "stride")
"""The options that say how long documents are treated."""


def _checked_depth(depth: object) -> int | None:
    return Compression(depth=cast(Any, depth)).depth


def _checked_keep_ratio(keep_ratio: object) -> float | dict[int, float]:
    """A keep ratio in any of its forms as a number or `{merge layer: ratio}`."""
    checked: float | dict[int, float] = Compression(keep_ratio=cast(Any, keep_ratio)).to_kwargs()["keep_ratio"]
    return checked


def _checked_target(target: object) -> Target | None:
    if target is None or isinstance(target, Target):
        return target
    names = [field.name for field in fields(Target)]
    if not isinstance(target, Mapping) or not set(target) <= set(names):
        raise ValueError(
            f"target must be a Target or a dict with some of {', '.join(names)}, got {target!r:.200}. "
            'Write target={"speedup": 3}, for example.'
        )
    return Target(**target)


def _written_target(target: Target | None) -> dict[str, Any] | None:
    if target is None:
        return None
    values = {field.name: (getattr(target, field.name), field.default) for field in fields(target)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _checked_cascade(cascade: object) -> CascadeOption:
    """A cascade in any of its forms, of which a dict such as `{"stages": {2: 3.0}, "by": "margin"}` is one."""
    if not isinstance(cascade, Mapping):
        return checked_cascade(cascade)
    try:
        return Cascade.from_json(cascade)
    except (TypeError, ValueError) as error:
        raise type(error)(f"cascade={cascade!r:.200}: {error}") from error


def written_cascade(cascade: CascadeOption) -> dict[str, Any] | str | None:
    """A cascade as JSON data."""
    return cascade.to_json() if isinstance(cascade, Cascade) else cascade


def _checked_long_documents(long_documents: object) -> LongDocuments:
    checked_windows(cast(Any, long_documents))
    return cast(LongDocuments, long_documents)


CHECKS: dict[str, Callable[[object], Any]] = {
    "depth": _checked_depth,
    "keep_ratio": _checked_keep_ratio,
    "target": _checked_target,
    "cascade": _checked_cascade,
    "deadline_ms": partial(optional_milliseconds, "deadline_ms"),
    "long_documents": _checked_long_documents,
    "window": partial(optional_whole_number, "window"),
    "stride": partial(optional_whole_number, "stride"),
    "top_n": partial(optional_whole_number, "top_n"),
    "min_score": partial(optional_number, "min_score"),
    "prompt": partial(optional_text, "prompt"),
    "normalize": partial(true_or_false, "normalize"),
}
"""The options of a request by name, each with its check."""


def checked_request(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Check the options that one request gives.

    Raises:
        ValueError: If an option is unknown or its value is wrong, also if it is of the wrong type: a request is data.
    """
    unknown = sorted(changes.keys() - CHECKS.keys())
    if unknown:
        raise ValueError(f"a re-ranking request takes the options {', '.join(CHECKS)}, got {', '.join(unknown)}.")
    checked = checked_values(changes)
    check_target_alone(checked.get("target"), checked)
    return checked


def checked_values(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Check the value of each option that one request gives.

    Raises:
        ValueError: If a value is wrong, also if it is of the wrong type.
    """
    try:
        return {name: CHECKS[name](value) for name, value in changes.items()}
    except TypeError as error:
        raise ValueError(str(error)) from error


def check_target_alone(target: Target | None, given: Collection[str]) -> None:
    """Check that a target comes without what it chooses.

    Raises:
        ValueError: If a depth, a keep ratio or a cascade was given too.
    """
    beside = [name for name in CHOSEN if name in given]
    if target is not None and beside:
        raise ValueError(
            f"target={target!r} chooses depth, keep_ratio and cascade: leave {' and '.join(beside)} out, or target."
        )


DepthOption = Annotated[int | None, BeforeValidator(CHECKS["depth"])]
RatioOption = Annotated[float | dict[int, float], BeforeValidator(CHECKS["keep_ratio"])]
TargetOption = Annotated[Target | None, BeforeValidator(CHECKS["target"]), PlainSerializer(_written_target)]
CascadeField = Annotated[
    CascadeOption, BeforeValidator(CHECKS["cascade"]), PlainSerializer(written_cascade), CASCADE_SCHEMA
]
CascadeForm = Annotated[InstanceOf[Cascade] | dict[str, Any] | Literal["auto"] | None, CASCADE_SCHEMA]
"""What a request's schema takes as a cascade."""
DeadlineOption = Annotated[float | None, BeforeValidator(CHECKS["deadline_ms"])]
LongDocumentsOption = Annotated[LongDocuments, BeforeValidator(CHECKS["long_documents"])]
WindowOption = Annotated[int | None, BeforeValidator(CHECKS["window"])]
StrideOption = Annotated[int | None, BeforeValidator(CHECKS["stride"])]
TopNOption = Annotated[int | None, BeforeValidator(CHECKS["top_n"])]
MinScoreOption = Annotated[float | None, BeforeValidator(CHECKS["min_score"])]
PromptOption = Annotated[str | None, BeforeValidator(CHECKS["prompt"])]
NormalizeOption = Annotated[bool, BeforeValidator(CHECKS["normalize"])]
