"""Calibration: for each setting a strictly increasing map from its logits to ones whose logistic function is the share
of such candidates that are relevant.

Stored with the checkpoint as JSON. How maps are fitted is :mod:`mrr_model.calibration.fit`'s affair.
"""

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, PrivateAttr, model_validator
from typing_extensions import Self

from mrr_model.compression import MAX_LAYERS, Plan

MIN_SLOPE, MAX_SLOPE = 1e-6, 1e6
"""No map is flatter or steeper on the whole, so that float64 keeps float32 logits apart and none overflows."""

FEW_RELEVANT = 100
"""With fewer relevant pairs the odds of every probability are off by more than a tenth: the log odds of a share of n
pairs have the standard error 1/√n.
"""
FEW_QUERIES = 100
"""Pairs of one query are alike; of fewer queries than this a few decide what a logit means."""
MAX_SETTINGS = 1_000
"""More than all exits of a large model at a dozen ratios each; a setting without a map looks at all of them."""

Slope = Annotated[float, Field(ge=MIN_SLOPE, le=MAX_SLOPE)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Knots and intercepts: far beyond any logit that a model gives."""


FIRST, LAST = (0, 4), (-4, None)
"""The runs of knots that say how steeply a map goes on beyond its ends."""


class PlattMap(BaseModel):
    """A line through the logits (Platt, 1999): slope · logit + intercept.

    >>> PlattMap(slope=2.0, intercept=-1.0)(3.0)
    5.0
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["platt"] = "platt"
    slope: Slope
    """How much the calibrated logit rises with the raw one."""
    intercept: Finite
    """The calibrated logit where the raw one is zero."""

    def __call__(self, logit: float) -> float:
        """The calibrated logit."""
        return self.slope * logit + self.intercept


class KnotMap(BaseModel):
    """Lines from knot to knot; beyond each end it goes on at the mean slope of the (up to) four outermost knots.

    >>> steep = KnotMap(logits=(0.0, 1.0, 2.0), calibrated=(0.0, 3.0, 4.0))
    >>> [steep(logit) for logit in (-1.0, 0.5, 1.5, 3.0)]
    [-2.0, 1.5, 3.5, 6.0]
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["isotonic"] = "isotonic"
    logits: tuple[Finite, ...] = Field(min_length=2)
    """The knots' raw logits, strictly ascending."""
    calibrated: tuple[Finite, ...]
    """Their calibrated logits, strictly ascending."""

    @model_validator(mode="after")
    def _check_knots(self) -> Self:
        if len(self.logits) != len(self.calibrated):
            raise ValueError(
                f"logits and calibrated must be as many, got {len(self.logits)} and {len(self.calibrated)}"
            )
        for (left, low), (right, high) in itertools.pairwise(zip(self.logits, self.calibrated, strict=True)):
            if not (left < right and low < high):
                raise ValueError(
                    "logits and calibrated must both be strictly ascending, "
                    f"got the knots {left, low} and {right, high}"
                )
        slopes = self._slope(*FIRST), self._slope(*LAST)
        if not all(MIN_SLOPE <= slope <= MAX_SLOPE for slope in slopes):
            raise ValueError(
                f"the slopes beyond the knots must lie in {MIN_SLOPE:g} … {MAX_SLOPE:g}, got {slopes[0]:g} before and "
                f"{slopes[1]:g} after them"
            )
        return self

    def __call__(self, logit: float) -> float:
        """The calibrated logit."""
        right = bisect_right(self.logits, logit)
        if right == 0:
            return self.calibrated[0] + (logit - self.logits[0]) * self._slope(*FIRST)
        if right == len(self.logits):
            return self.calibrated[-1] + (logit - self.logits[-1]) * self._slope(*LAST)
        rise = self.calibrated[right] - self.calibrated[right - 1]
        share = (logit - self.logits[right - 1]) / (self.logits[right] - self.logits[right - 1])
        # Rounding must not lift a point above the knot to its right.
        return min(self.calibrated[right - 1] + share * rise, self.calibrated[right])

    def _slope(self, start: int, stop: int | None) -> float:
        """The mean slope of a run of knots."""
        logits, calibrated = self.logits[start:stop], self.calibrated[start:stop]
        return (calibrated[-1] - calibrated[0]) / (logits[-1] - logits[0])


CalibrationMap = Annotated[PlattMap | KnotMap, Field(discriminator="kind")]
"""From a setting's raw logits to calibrated ones."""


def _as_merges(merges: object) -> tuple[tuple[int, Fraction], ...]:
    """``{layer: step}`` or pairs of them, layers and steps as numbers or texts, in ascending order of layers."""
    pairs = merges.items() if isinstance(merges, Mapping) else merges
    try:
        return tuple(sorted((int(layer), _as_fraction(step)) for layer, step in pairs))  # type: ignore[attr-defined]  # TypeError below
    except (TypeError, ValueError, ArithmeticError):
        raise ValueError(
            f'merges must be a mapping such as {{1: "1/2"}}, layer to step ratio; got {merges!r}'
        ) from None


def _as_fraction(step: Any) -> Fraction:
    """A step as a number, or as a text of a few digits: 1e999999999 is a fraction too, of a gigabyte."""
    if isinstance(step, str) and not re.fullmatch(r"\d{1,9}(/\d{1,9}|\.\d{1,20})?", step):
        raise ValueError
    return Fraction(step)


Merges = Annotated[
    tuple[tuple[int, Fraction], ...],
    PlainValidator(_as_merges),
    PlainSerializer(lambda merges: {str(layer): str(step) for layer, step in merges}),
]


def setting_name(exit_layer: int, merges: Mapping[int, Fraction]) -> str:
    """A resolved setting in words.

    >>> setting_name(6, {}), setting_name(4, {1: Fraction(1, 2)})
    ('exit 6, no merges', 'exit 4, merges 1:1/2')
    """
    named = ",".join(f"{layer}:{step}" for layer, step in sorted(merges.items()))
    return f"exit {exit_layer}, " + (f"merges {named}" if named else "no merges")


class CalibratedSetting(BaseModel):
    """One setting, resolved for a model, and its map.

    >>> half = CalibratedSetting(exit_layer=4, merges={1: "1/2"}, map=PlattMap(slope=0.5, intercept=-2.0))
    >>> str(half), half.merges
    ('exit 4, merges 1:1/2', ((1, Fraction(1, 2)),))
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    exit_layer: int = Field(ge=1, le=MAX_LAYERS)
    """The layer that is read last, from 1."""
    merges: Merges = ()
    """(layer, step ratio) of each merge before that exit, ascending; in JSON ``{"1": "1/2"}``."""
    map: CalibrationMap
    """From this setting's logits to calibrated ones."""

    @model_validator(mode="after")
    def _check_setting(self) -> Self:
        layers = [layer for layer, _ in self.merges]
        if len(set(layers)) < len(layers) or any(not 0 < step < 1 for _, step in self.merges):
            raise ValueError(f"merges must name each layer once, with a step between 0 and 1; got {self.merges}")
        self.plan()
        return self

    def __str__(self) -> str:
        return setting_name(self.exit_layer, dict(self.merges))

    def plan(self) -> Plan:
        """The setting as a Plan of one exit, without what only the model knows."""
        return Plan((self.exit_layer,), dict(self.merges))

    def matches(self, exit_layer: int, merges: Mapping[int, Fraction]) -> bool:
        """Whether this is that very setting."""
        return self.exit_layer == exit_layer and dict(self.merges) == dict(merges)


class Calibration(BaseModel):
    """The maps of a checkpoint and what they were fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    settings: tuple[CalibratedSetting, ...] = Field(min_length=1, max_length=MAX_SETTINGS)
    """Each setting once."""
    data: str
    """What the maps were fitted on, in words."""
    targets: Literal["labels", "full size"]
    """Whether pairs were judged, or full size's own probabilities stood in for judgements."""
    pairs: int = Field(ge=1)
    """How many (query, document) pairs that was, for each setting."""
    queries: int | None = Field(default=None, ge=1)
    """How many queries the pairs are of; None where it was not counted."""
    relevant: float = Field(gt=0, lt=1)
    """The share of them that was relevant. Where candidates are richer or poorer in relevant ones than that,
    probabilities are too low or too high.
    """

    _places: dict[tuple[int, tuple[tuple[int, Fraction], ...]], int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        known = [(setting.exit_layer, setting.merges) for setting in self.settings]
        if len(set(known)) < len(known):
            raise ValueError(f"settings must differ from each other, got {', '.join(map(str, self.settings))}")
        self._places.update({name: place for place, name in enumerate(known)})
        return self

    @property
    def cautions(self) -> tuple[str, ...]:
        """What speaks against relying on it, a sentence each."""
        found, relevant = [], round(self.pairs * self.relevant)
        if self.queries is not None and self.queries < FEW_QUERIES:
            found.append(
                f"The maps are fitted on {self.queries} queries only: with fewer than {FEW_QUERIES}, a few queries "
                "decide what a probability means. Fit them on more."
            )
        if relevant < FEW_RELEVANT:
            found.append(
                f"The maps are fitted on {relevant} relevant pairs only: with fewer than {FEW_RELEVANT}, probabilities "
                "are off by chance. Fit them on more."
            )
        return tuple(found)

    def nearest(self, exit_layer: int, merges: Mapping[int, Fraction]) -> CalibratedSetting:
        """The setting itself where it has a map (:meth:`CalibratedSetting.matches` tells), else the nearest that has.

        Near is what is near in :func:`distance`; among equally near ones the deeper, then the wider, then the one
        whose merges come first.
        """
        own = self._places.get((exit_layer, tuple(sorted(merges.items()))))
        if own is not None:
            return self.settings[own]
        plan = Plan((exit_layer,), merges)

        def rank(setting: CalibratedSetting) -> tuple[float, int, float, Sequence[object]]:
            other = setting.plan()
            return round(distance(plan, other), 12), -setting.exit_layer, -other.mean_width, setting.merges

        return min(self.settings, key=rank)


def distance(one: Plan, other: Plan) -> float:
    """How unlike two settings' maps may be: 4 · |ln(exit / exit')| + |ln(width / width')|, widths being means.

    Exits count most, because each has a head of its own, while a width changes only what the same head reads; and they
    count as ratios, because a layer changes more near the bottom of a model than near its top. (``mini``'s 15
    combinations of exits 2 to 6 with ratios 1, 1/2 and 1/4 say so: of the maps of four the one that is nearest in this
    sense errs least.)

    >>> distance(Plan((4,)), Plan((2,))) == 4 * math.log(2)
    True
    """
    return 4 * abs(math.log(one.last_layer / other.last_layer)) + abs(math.log(one.mean_width / other.mean_width))
