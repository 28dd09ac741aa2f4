"""`Cascade`: which documents of a ranking stop at which exit, so that deeper layers run for the promising ones only.

Shapes: N documents.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import Self

from mrr_model.validation.arguments import optional_whole_number, real_number, whole_number

if TYPE_CHECKING:  # the help of commands is made from `By`: it must not wait for numpy
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

By = Literal["margin", "count"]
"""What a stage's number is: a `margin` of logits below the best documents, or the `count` of documents that survive."""

Stages = Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int, float]] | str
"""`{exit: number}`, pairs of both, or command-line text (`"2:3,3:2,4:1"`)."""

DEFAULT_RANK = 10
"""The rank that margins are measured from if the call does not say how many documents it wants."""


@dataclass(frozen=True)
class Cascade:
    """Exits at which unpromising documents stop. Validated, hashable, and the same for any model.

    All documents run up to the first exit named. There those are dropped that its margin or count says, the others
    continue from their hidden states to the next exit named, and so on to the setting's own exit.

    Args:
        stages: `{exit: margin}` or `{exit: count}`; the command-line form (`"2:3,3:2,4:1"`) is accepted too. Exits are
            counted from 1. A margin is in logits, at least 0: documents that lie more than it below the `top_n`-th best
            at that exit are dropped. A count is how many documents survive that exit; counts must not grow with depth.
            Stored as a tuple of (exit, number) pairs in ascending order.
        by: What the numbers are.
        top_n: The rank that margins are measured from, at least; a call that wants more documents measures from its own
            `top_n`. Without it, from the call's `top_n`, or from 10 if the call has none.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range.

    Example:
        >>> cascade = Cascade({2: 3.0, 4: 1.0})
        >>> str(cascade), Cascade("2:50,4:20", by="count").stages
        ('margins 2:3,4:1', ((2, 50), (4, 20)))
        >>> cascade.survivors(2, [5.0, 4.0, 1.5, 0.5], top_n=2).tolist()
        [True, True, True, False]
    """

    stages: tuple[tuple[int, float], ...]
    by: By = "margin"
    top_n: int | None = None

    def __init__(self, stages: Stages, by: By = "margin", top_n: int | None = None) -> None:
        if not isinstance(by, str) or by not in get_args(By):
            raise ValueError(f"by must be {' or '.join(map(repr, get_args(By)))}, got {by!r}.")
        object.__setattr__(self, "by", by)
        object.__setattr__(self, "stages", _validated_stages(stages, by))
        object.__setattr__(self, "top_n", optional_whole_number("top_n", top_n))
        if by == "count" and top_n is not None:
            raise ValueError(f"top_n={top_n} is the rank that margins are measured from: leave it out with by='count'.")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote.

        Raises:
            TypeError: If `data` is no mapping, or a value is of the wrong type.
            ValueError: If a key is unknown, `stages` is missing, or a value is out of its range.

        Example:
            >>> Cascade.from_json({"stages": {"2": 50, "4": 20}, "by": "count"})
            Cascade(stages=((2, 50), (4, 20)), by='count', top_n=None)
        """
        example = 'Write {"stages": {2: 3.0}}, for example.'
        if not isinstance(data, Mapping):
            raise TypeError(f"a cascade must be a mapping, got {data!r:.200}. {example}")
        if "stages" not in data or not data.keys() <= {"stages", "by", "top_n"}:
            found = ", ".join(map(str, data)) or "nothing"
            raise ValueError(f"a cascade has stages and may have by and top_n, got {found}. {example}")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """The cascade as JSON data: `stages` keyed by exit, `by`, and `top_n` if it is given."""
        stored: dict[str, Any] = {"stages": {str(exit_layer): number for exit_layer, number in self.stages}}
        stored["by"] = self.by
        return stored if self.top_n is None else {**stored, "top_n": self.top_n}

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits at which documents may stop, ascending."""
        return tuple(exit_layer for exit_layer, _ in self.stages)

    @property
    def stages_text(self) -> str:
        """The stages in their command-line form, such as `2:3,4:1`."""
        return ",".join(f"{exit_layer}:{_number_text(number)}" for exit_layer, number in self.stages)

    def __str__(self) -> str:
        return f"{self.by}s {self.stages_text}"

    def check(self, exits: Collection[int], last: int) -> None:
        """Check that the cascade fits a model and a setting.

        Args:
            exits: The model's exits.
            last: The setting's own exit.

        Raises:
            ValueError: If it names an exit that the model lacks or that does not lie before the setting's own.
        """
        possible = ", ".join(str(each) for each in sorted(exits) if each < last)
        advice = f"Choose among {possible}." if possible else "Documents can stop nowhere before it: leave cascade out."
        for exit_layer in self.exits:
            if exit_layer not in exits:
                raise ValueError(f"cascade names exit {exit_layer}, which this model lacks. {advice}")
            if exit_layer >= last:
                raise ValueError(
                    f"cascade names exit {exit_layer}, and the setting ends at exit {last}: all documents that are "
                    f"left run to it. {advice}"
                )

    def rank(self, top_n: int | None) -> int:
        """The rank that margins are measured from in a call that returns `top_n` documents."""
        if self.top_n is None:
            return DEFAULT_RANK if top_n is None else top_n
        return max(self.top_n, top_n or 0)

    def drops(self, documents: int, top_n: int | None = None) -> bool:
        """Whether any of this many documents can stop before the last exit.

        Example:
            >>> Cascade({2: 3.0}).drops(10), Cascade({2: 50, 4: 20}, by="count").drops(30)
            (False, True)
        """
        if self.by == "count":
            return documents > min(number for _, number in self.stages)
        return documents > self.rank(top_n)

    def threshold(self, exit_layer: int, logits: ArrayLike, top_n: int | None = None) -> float:
        """The logit below which documents stop at an exit.

        Args:
            exit_layer: One of the cascade's exits.
            logits: Those of the documents that reached it, (N,).
            top_n: How many documents the call returns; None for all.

        Returns:
            −∞ if all survive, because there are no more documents than the rank or the count.
        """
        import numpy as np

        values = np.asarray(logits, dtype=np.float64)
        number = dict(self.stages)[exit_layer]
        rank = int(number) if self.by == "count" else self.rank(top_n)
        if len(values) <= rank:
            return -math.inf
        best = float(np.partition(values, len(values) - rank)[len(values) - rank])  # the rank-th best
        return best if self.by == "count" else best - number

    def survivors(self, exit_layer: int, logits: ArrayLike, top_n: int | None = None) -> NDArray[np.bool_]:
        """Which documents survive an exit.

        Args:
            exit_layer: One of the cascade's exits.
            logits: Those of the documents that reached it, (N,). Of equal ones, a count keeps the first.
            top_n: How many documents the call returns; None for all.

        Returns:
            Bool (N,).
        """
        import numpy as np

        values = np.asarray(logits, dtype=np.float64)
        kept: NDArray[np.bool_] = values >= self.threshold(exit_layer, values, top_n)
        if self.by == "count":
            count = int(dict(self.stages)[exit_layer])
            kept[np.argsort(-values, kind="stable")[count:]] = False
        return kept


CascadeOption = Cascade | Literal["auto"] | None
"""A cascade; `"auto"` for the one in the checkpoint's profile; None for none: every document runs to the same exit."""


def checked_cascade(cascade: object) -> CascadeOption:
    """Check the `cascade` of a call.

    Raises:
        TypeError: If it is neither a `Cascade`, `"auto"` nor None.
    """
    if cascade is None or isinstance(cascade, Cascade):
        return cascade
    if isinstance(cascade, str) and cascade == "auto":
        return "auto"
    raise TypeError(
        f"cascade must be a Cascade, 'auto' or None, got {cascade!r:.200}. Write cascade=Cascade({{2: 3.0}}), for "
        "example."
    )


def _validated_stages(stages: object, by: By) -> tuple[tuple[int, float], ...]:
    example = "{2: 3.0, 4: 1.0}" if by == "margin" else "{2: 50, 4: 20}"
    if isinstance(stages, str):
        stages = _parsed_stages(stages)
    pairs = tuple(stages.items()) if isinstance(stages, Mapping) else stages
    if not isinstance(pairs, (tuple, list)) or not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs
    ):
        raise TypeError(f"stages must be a mapping {{exit: {by}}}, got {stages!r}. Write {example}.")
    if not pairs:
        raise ValueError(f"stages must name at least one exit, got none. Write {example}, or leave cascade out.")
    validated = sorted(
        (_validated_exit(exit_layer), _validated_number(exit_layer, number, by)) for exit_layer, number in pairs
    )
    for (exit_layer, number), (deeper, larger) in itertools.pairwise(validated):
        if exit_layer == deeper:
            raise ValueError(f"stages names exit {exit_layer} twice. Give each exit one {by}.")
        if by == "count" and larger > number:
            raise ValueError(
                f"stages: counts must not grow with depth, got {larger} at exit {deeper} after {number} at "
                f"{exit_layer}. Each is how many documents survive that exit."
            )
    return tuple(validated)


def _validated_exit(exit_layer: object) -> int:
    number = int(exit_layer) if isinstance(exit_layer, str) and exit_layer.isdecimal() else exit_layer
    return whole_number("stages' exits", number, advice="They are layers, counted from 1.")


def _validated_number(exit_layer: object, number: object, by: By) -> float:
    name = f"stages[{exit_layer}]"
    if by == "count":
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        return whole_number(name, number, advice="It is how many documents survive that exit.")
    advice = "It is how many logits below the best documents a document may lie."
    if isinstance(number, bool) or not isinstance(number, Real):
        raise TypeError(f"{name} must be a number, got {number!r} ({type(number).__name__}). {advice}")
    margin = real_number(number)
    if not 0 <= margin < math.inf:
        raise ValueError(f"{name} must be a finite margin of at least 0, got {number!r}. {advice}")
    return margin


def _number_text(number: float) -> str:
    """The shortest text that is read as the same number."""
    return repr(number).removesuffix(".0")


def _parsed_stages(text: str) -> tuple[tuple[int, float], ...]:
    try:
        pairs = (part.split(":") for part in text.split(","))
        return tuple((int(exit_layer), float(number)) for exit_layer, number in pairs)
    except ValueError:
        raise ValueError(f"stages={text!r} cannot be read. Write pairs of exit:number, such as 2:3,3:2,4:1.") from None
