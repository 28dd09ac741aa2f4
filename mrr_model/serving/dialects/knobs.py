"""The fields that a request of any dialect may have beside the dialect's own: how much work to do, and how."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, WithJsonSchema

from mrr_model.cascade import CascadeOption
from mrr_model.compression import KeepRatio
from mrr_model.request import CASCADE_SCHEMA, CHECKS
from mrr_model.selection.target import NEEDS, IfUnreachable, Target
from mrr_model.serving.dialects.body import SHOWN_CHARACTERS, check_depth, described
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.work import Knobs
from mrr_model.validation.arguments import DEFAULT, Default

TIMEOUT_HEADER = "X-Request-Timeout"
"""The header that says within how many seconds the answer must be there."""

KNOB_CHARACTERS = 100
"""Characters of a text in a knob, at most."""

TARGET_SCHEMA = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "keep_quality": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
                "speedup": {"type": "number", "minimum": 1},
                "max_latency_ms": {"type": "number", "exclusiveMinimum": 0},
                "if_unreachable": {"enum": list(get_args(IfUnreachable)), "default": "fastest"},
            },
            "additionalProperties": False,
            "minProperties": 1,
        },
        {"type": "null"},
    ],
    "examples": [{"speedup": 3}, {"keep_quality": 0.98}, {"max_latency_ms": 50}],
}

TARGET_KEYS = {*NEEDS, "if_unreachable"}

KEEP_RATIO_SCHEMA = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {
            "type": "object",
            "propertyNames": {"pattern": "^[1-9][0-9]{0,3}$"},
            "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "minProperties": 1,
        },
        {"type": "string"},
        {"type": "null"},
    ],
    "examples": [0.5, {"2": 0.5, "4": 0.25}, "2:0.5,4:0.25"],
}


def whole(value: object) -> object:
    """A whole number as JSON may write it: 3.0 is 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _checked(name: str, value: object) -> Any:
    """A knob's value, checked as the core checks it."""
    check_depth(name, value)
    for text in _strings(value):
        if len(text) > KNOB_CHARACTERS:  # errors show a knob's value, and must not show texts
            raise ValueError(f"{name}: {described(text)} is too long.")
    try:
        return CHECKS[name](whole(value))
    except TypeError as error:
        raise ValueError(str(error)) from None
    except OverflowError:
        raise ValueError(f"{name} has a number that is too large.") from None


def _strings(value: object) -> Iterator[str]:
    """All strings in JSON data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield key
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _keep_ratio(value: object) -> KeepRatio | None:
    return None if value is None else _checked("keep_ratio", value)


def _target(value: object) -> Target | None:
    if value is None:
        return None
    keys = set(value) if isinstance(value, Mapping) else set()
    if not isinstance(value, Mapping) or len(keys & {*NEEDS}) != 1 or not keys <= TARGET_KEYS:
        came = "an object with other keys, or with several" if isinstance(value, Mapping) else described(value)
        raise ValueError(
            f"target must be an object with one of {', '.join(NEEDS)}, and if_unreachable at most, got {came}. "
            'Write {"speedup": 3}, for example.'
        )
    checked: Target = _checked("target", {"if_unreachable": "fastest", **value})
    return checked


def _min_score(value: object) -> object:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"min_score must be a number or null, got {described(value)}.")
    return CHECKS["min_score"](value)


Whole = Annotated[int, BeforeValidator(whole)]
"""A whole number."""

MinScore = Annotated[
    float | None, BeforeValidator(_min_score), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]})
]
"""The lowest score to return."""


class RequestFields(BaseModel):
    """What requests of all dialects may have. Fields that no dialect knows are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, use_attribute_docstrings=True)

    depth: Annotated[
        int | None,
        PlainValidator(partial(_checked, "depth")),
        WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}),
    ] = None
    """Run at most this many layers; null for all. Left out: the server's default."""
    keep_ratio: Annotated[
        float | dict[int, float] | None, PlainValidator(_keep_ratio), WithJsonSchema(KEEP_RATIO_SCHEMA)
    ] = None
    """Share of the passage tokens to keep, or {layer: share}."""
    target: Annotated[Target | None, PlainValidator(_target), WithJsonSchema(TARGET_SCHEMA)] = None
    """A need instead of a setting: the server chooses depth, keep_ratio and cascade."""
    cascade: Annotated[Any, PlainValidator(partial(_checked, "cascade")), CASCADE_SCHEMA] = None
    """Exits at which unpromising documents stop; "auto" for the model's own, null for none."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds within which the answer must be there, else status 504."""

    @property
    def knobs(self) -> Knobs:
        """How much work the request asks for."""
        nulls_count = self.target is None  # some clients send all fields; beside a target, null is no choice
        given = {name for name in self.model_fields_set if nulls_count or getattr(self, name) is not None}
        cascade: CascadeOption | Default = self.cascade if "cascade" in given else DEFAULT
        return Knobs(
            depth=self.depth if "depth" in given else DEFAULT,
            keep_ratio=DEFAULT if self.keep_ratio is None else self.keep_ratio,
            target=self.target,
            cascade=cascade,
        )


class ScoreFields(RequestFields):
    """What requests of all dialects but TEI's may have: what a score is, and how long texts are cut."""

    model: Any = Field(default=None, json_schema_extra={"type": ["string", "null"]})
    """Accepted and ignored: the server has one model, whose name the answer shows."""
    instruction: str | None = None
    """The instruction, for models that take one."""
    normalize: bool | None = None
    """Whether scores are probabilities, which is the default, or raw logits."""
    raw_scores: bool | None = None
    """The same, as TEI says it."""
    use_activation: bool | None = None
    """The same, as vLLM says it."""
    activation: bool | None = None
    """The same, as vLLM said it before."""
    softmax: bool | None = None
    """The same, as vLLM said it at first."""
    truncate_prompt_tokens: Annotated[Whole, Field(ge=-1)] | None = None
    """Tokens of a query with a document, at most; -1 for as many as the server reads."""
    truncation_side: Literal["left", "right"] | None = None
    """Where long documents are cut: left keeps their ends."""

    @property
    def wants_logits(self) -> bool:
        """Whether scores are raw logits."""
        activations = (self.normalize, self.use_activation, self.activation, self.softmax)
        return bool(self.raw_scores) or any(each is False for each in activations)

    @property
    def max_length(self) -> int | None:
        """Tokens of an input; None for the server's own."""
        return None if self.truncate_prompt_tokens == -1 else self.truncate_prompt_tokens


def timeout_of(field: float | None, header: str | None) -> float | None:
    """Seconds within which an answer must be there: the smaller of the field and the header.

    Raises:
        ServingError: INVALID if the header is no number above 0.

    Example:
        >>> timeout_of(5.0, "2"), timeout_of(None, None)
        (2.0, None)
    """
    if header is None:
        return field
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ServingError(
            Fault.INVALID,
            f"{TIMEOUT_HEADER} must be a number of seconds above 0, got {header[:SHOWN_CHARACTERS]!r}.",
        )
    return seconds if field is None else min(field, seconds)
