"""What one request may change of a re-ranker's settings, and how each is checked."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from numbers import Real
from typing import Annotated, Any, cast

import numpy as np
from pydantic import BeforeValidator, PlainSerializer

from mrr_model.compression import Compression
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import whole_number


def _checked_depth(depth: object) -> int | None:
    return Compression(depth=cast(Any, depth)).depth


def checked_keep_ratio(keep_ratio: object) -> float | dict[int, float]:
    """A keep ratio in any of its forms as a number or ``{merge layer: ratio}``."""
    checked = Compression(keep_ratio=cast(Any, keep_ratio)).keep_ratio
    return dict(checked) if isinstance(checked, tuple) else checked


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


def optional_whole_number(name: str) -> Callable[[object], int | None]:
    """The check of an argument that is a whole number from 1, or None."""

    def checked(value: object) -> int | None:
        return None if value is None else whole_number(name, value, advice="None is allowed too.")

    return checked


def _checked_min_score(min_score: object) -> float | None:
    if min_score is None:
        return None
    if isinstance(min_score, bool) or not isinstance(min_score, Real):
        raise TypeError(f"min_score must be a number or None, got {min_score!r} ({type(min_score).__name__}).")
    if not math.isfinite(min_score):
        raise ValueError(f"min_score must be finite, got {min_score!r}.")
    return float(min_score)


def _checked_prompt(prompt: object) -> str | None:
    if prompt is not None and not isinstance(prompt, str):
        raise TypeError(f"prompt must be a string or None, got {prompt!r} ({type(prompt).__name__}).")
    return prompt


def _checked_normalize(normalize: object) -> bool:
    if not isinstance(normalize, bool | np.bool_):
        raise TypeError(f"normalize must be True or False, got {normalize!r} ({type(normalize).__name__}).")
    return bool(normalize)


CHECKS: dict[str, Callable[[object], Any]] = {
    "depth": _checked_depth,
    "keep_ratio": checked_keep_ratio,
    "target": _checked_target,
    "top_n": optional_whole_number("top_n"),
    "min_score": _checked_min_score,
    "prompt": _checked_prompt,
    "normalize": _checked_normalize,
}
"""What one request may change, and how it is checked."""


def checked_request(changes: Mapping[str, Any]) -> dict[str, Any]:
    """What one request changes, validated. Raises ``ValueError`` that names the argument, for a wrong type too: a
    request's values are data.
    """
    unknown = sorted(changes.keys() - CHECKS.keys())
    if unknown:
        raise ValueError(f"a re-ranking request takes {', '.join(CHECKS)}; got {', '.join(unknown)}.")
    try:
        checked = {name: CHECKS[name](value) for name, value in changes.items()}
    except TypeError as error:
        raise ValueError(str(error)) from error
    check_one_need(checked.get("target"), checked)
    return checked


def check_one_need(target: Target | None, given: Collection[str]) -> None:
    """Raise ``ValueError`` where a target came beside what it chooses."""
    beside = [name for name in ("depth", "keep_ratio") if name in given]
    if target is not None and beside:
        raise ValueError(
            f"target={target!r} chooses depth and keep_ratio: leave {' and '.join(beside)} out, or target."
        )


Depth = Annotated[int | None, BeforeValidator(CHECKS["depth"])]
Ratio = Annotated[float | dict[int, float], BeforeValidator(CHECKS["keep_ratio"])]
Need = Annotated[Target | None, BeforeValidator(CHECKS["target"]), PlainSerializer(_written_target)]
TopN = Annotated[int | None, BeforeValidator(CHECKS["top_n"])]
MinScore = Annotated[float | None, BeforeValidator(CHECKS["min_score"])]
Prompt = Annotated[str | None, BeforeValidator(CHECKS["prompt"])]
Normalize = Annotated[bool, BeforeValidator(CHECKS["normalize"])]
