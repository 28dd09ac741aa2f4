"""Load shedding: smaller settings as the queue grows, for requests that ask for none."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mrr_model.compression import Compression
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import real_number

EXAMPLE = '"queue>200ms: speedup=2; queue>500ms: speedup=4"'
RULE = re.compile(r"\s*queue\s*>\s*(?P<number>[\d.]+)\s*(?P<unit>ms|s)\s*:\s*(?P<action>.*\S)\s*", re.DOTALL)
RETURN = 0.5
"""A step ends when the queue is below this share of its threshold, so that settings don't flicker."""

AUTO_SPEEDUPS = (1.5, 2.0, 3.0, 4.0)
"""The speedups that `auto` tries; those that the model reaches are its steps."""


@dataclass(frozen=True)
class Step:
    """One step of a policy.

    Args:
        seconds: The queue's length above which it is in force.
        action: The need or the setting of requests meanwhile.
    """

    seconds: float
    action: Target | Compression

    def __str__(self) -> str:
        if isinstance(self.action, Compression):
            return f"queue>{1000 * self.seconds:g}ms: {self.action}"
        need = "speedup" if self.action.speedup is not None else "keep_quality"
        return f"queue>{1000 * self.seconds:g}ms: {need}={getattr(self.action, need):g}"


def parse_policy(text: str) -> tuple[Step, ...]:
    """Read a policy: rules with a semicolon between them, their thresholds ascending.

    Args:
        text: `queue>NUMBER(ms|s): ACTION`, where the action is `speedup=X`, `keep_quality=X`, or `depth=N`,
            `keep_ratio=X` or both with a comma between them.

    Raises:
        ValueError: If a rule is not of this form, a value is out of its range, or thresholds don't ascend.

    Example:
        >>> for step in parse_policy("queue>200ms: speedup=2; queue>1s: depth=3, keep_ratio=0.5"):
        ...     print(step)
        queue>200ms: speedup=2
        queue>1000ms: depth 3, keep ratio 0.5
    """
    steps = []
    for rule in filter(str.strip, text.split(";")):
        found = RULE.fullmatch(rule)
        if found is None:
            raise ValueError(f"a rule has the form queue>NUMBERms: ACTION, got {rule.strip()!r}. Write {EXAMPLE}.")
        seconds = _number(found["number"], rule) / (1000 if found["unit"] == "ms" else 1)
        steps.append(Step(seconds, _action(found["action"], rule)))
    thresholds = [step.seconds for step in steps]
    if not steps or thresholds != sorted(set(thresholds)):
        raise ValueError(f"the thresholds of a policy must ascend, got {text!r}. Write {EXAMPLE}.")
    return tuple(steps)


def automatic_policy(seconds: float, reaches: Callable[[Target], bool]) -> tuple[Step, ...]:
    """A policy for a model on its device.

    Args:
        seconds: Time that a usual request takes at the default setting: the first threshold; the others are multiples.
        reaches: Whether the model has a setting for a target that is faster than the default.

    Example:
        >>> [str(step) for step in automatic_policy(0.1, lambda target: target.speedup < 3)]
        ['queue>100ms: speedup=1.5', 'queue>200ms: speedup=2']
    """
    targets = [target for target in map(_speedup, AUTO_SPEEDUPS) if reaches(target)]
    return tuple(Step(seconds * number, target) for number, target in enumerate(targets, 1))


class Shedding:
    """Which step of a policy is in force. A step starts above its threshold and ends below half of it.

    Args:
        steps: Ascending; none for no shedding.

    Example:
        >>> shedding = Shedding(parse_policy("queue>200ms: speedup=2; queue>500ms: speedup=4"))
        >>> [shedding.level(seconds) for seconds in (0.1, 0.3, 0.9, 0.3, 0.2, 0.05)]
        [0, 1, 2, 2, 1, 0]
    """

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.steps = tuple(steps)
        self._level = 0

    def level(self, seconds: float) -> int:
        """How many steps are in force, now that the queue has this length."""
        reached = sum(seconds > step.seconds for step in self.steps)
        kept = sum(seconds > step.seconds * RETURN for step in self.steps[: self._level])
        self._level = max(reached, kept)
        return self._level


def _speedup(speedup: float) -> Target:
    return Target(speedup=speedup)


def _action(text: str, rule: str) -> Target | Compression:
    given = {name.strip(): value.strip() for name, _, value in (part.partition("=") for part in text.split(","))}
    try:
        if given.keys() == {"speedup"}:
            return Target(speedup=_number(given["speedup"], rule))
        if given.keys() == {"keep_quality"}:
            return Target(keep_quality=_number(given["keep_quality"], rule))
        if given and given.keys() <= {"depth", "keep_ratio"}:
            depth = given.get("depth")
            if depth is not None and not depth.isdecimal():
                raise ValueError(f"depth must be a whole number, got {depth!r}.")
            return Compression(None if depth is None else int(depth), given.get("keep_ratio", 1.0))
    except (TypeError, ValueError) as error:
        raise ValueError(f"rule {rule.strip()!r}: {error}") from None
    raise ValueError(
        f"rule {rule.strip()!r} must say speedup=X, keep_quality=X, or depth=N, keep_ratio=X. Write {EXAMPLE}."
    )


def _number(text: str, rule: str) -> float:
    try:
        return real_number(float(text))
    except ValueError:
        raise ValueError(f"rule {rule.strip()!r}: {text!r} is no number. Write {EXAMPLE}.") from None
