"""Calibration: for each setting a strictly increasing map from its logits to calibrated ones.

A calibrated logit is that of the share of such candidates that are relevant. Stored with the checkpoint as JSON;
`mrr_model.calibration.fit` fits the maps.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import Self

from mrr_model.compression import MAX_LAYERS, Compression, Plan, resolve

MIN_SLOPE, MAX_SLOPE = 1e-6, 1e6
"""Bounds of a map's overall slope: float64 keeps float32 logits apart, and none overflows."""

FEW_RELEVANT = 100
"""With fewer relevant pairs the odds of every probability are off by more than a tenth: the log odds of a share have a
standard error of 1/√n for n relevant pairs.
"""
FEW_QUERIES = 100
"""Pairs of one query are alike: with fewer queries, a few decide what a logit means."""
MAX_SETTINGS = 1_000
"""More than all exits of a large model at a dozen ratios each; finding the nearest compares all of them."""

Slope = Annotated[float, Field(ge=MIN_SLOPE, le=MAX_SLOPE)]
Finite = Annotated[float, Field(ge=-1e6, le=1e6)]
"""Knots and intercepts: far beyond any logit that a model gives."""

FIRST, LAST = (0, 4), (-4, None)
"""The runs of knots whose mean slope extends a map beyond its ends."""


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
    """The calibrated logit of a raw logit of zero."""

    def __call__(self, logit: float) -> float:
        """The calibrated logit."""
        return self.slope * logit + self.intercept


class KnotMap(BaseModel):
    """Lines from knot to knot, extended beyond each end at the mean slope of the (up to) four outermost knots.

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
                f"logits and calibrated must be equally long, got {len(self.logits)} and {len(self.calibrated)}"
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


def setting_of(plan: Plan) -> Compression:
    """The setting of a Plan: its last exit, and the keep ratio from each merge on.

    >>> from fractions import Fraction
    >>> str(setting_of(Plan((4,), {1: Fraction(1, 2), 2: Fraction(1, 2)})))
    'depth 4, keep ratio 1:0.5,2:0.25'
    """
    return Compression(plan.last_layer, {layer: float(plan.width(layer + 1)) for layer in plan.merges})


class CalibratedSetting(BaseModel):
    """One setting and its map.

    >>> half = CalibratedSetting(depth=4, keep_ratio={1: 0.5}, map=PlattMap(slope=0.5, intercept=-2.0))
    >>> str(half), half.plan().merges
    ('depth 4, keep ratio 1:0.5', {1: Fraction(1, 2)})
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: int = Field(ge=1, le=MAX_LAYERS)
    """The exit whose logits are mapped."""
    keep_ratio: float | dict[int, float] = 1.0
    """By merge layer, as in `Compression`; 1.0: nothing merges."""
    map: CalibrationMap
    """From this setting's logits to calibrated ones."""

    @model_validator(mode="after")
    def _check_setting(self) -> Self:
        ratio = self.setting.keep_ratio
        if isinstance(ratio, float):
            if ratio < 1:
                raise ValueError(f"keep_ratio must name its merge layers, such as {{1: {ratio:g}}}, got {ratio:g}")
        elif ratio[-1][0] >= self.depth:
            raise ValueError(f"keep_ratio must name merge layers below depth {self.depth}, got {ratio[-1][0]}")
        return self

    def __str__(self) -> str:
        return str(self.setting)

    @property
    def setting(self) -> Compression:
        """Depth and keep ratio."""
        return Compression(self.depth, self.keep_ratio)

    def plan(self) -> Plan:
        """The setting as a Plan, without adapters."""
        ratio = self.setting.keep_ratio
        layers = () if isinstance(ratio, float) else tuple(layer for layer, _ in ratio)
        return resolve(
            self.setting, num_layers=self.depth, exits=(self.depth,), merge_layers=layers, default_merge_layer=1
        )


class Calibration(BaseModel):
    """The maps of a checkpoint, and what they were fitted on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    settings: tuple[CalibratedSetting, ...] = Field(min_length=1, max_length=MAX_SETTINGS)
    """Each setting once."""
    data: str
    """What the maps were fitted on, in words."""
    targets: Literal["labels", "full size"]
    """What the maps were fitted to: relevance judgements, or full size's own probabilities."""
    pairs: int = Field(ge=1)
    """(query, document) pairs for each setting."""
    queries: int | None = Field(default=None, ge=1)
    """Queries of these pairs; None if they were not counted."""
    relevant_share: float = Field(gt=0, lt=1)
    """The share of the pairs that was relevant. Among candidates with a larger or smaller share, probabilities are too
    low or too high.
    """

    _indices: dict[Compression, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._indices.update({each.setting: index for index, each in enumerate(self.settings)})
        if len(self._indices) < len(self.settings):
            raise ValueError(f"settings must differ from each other, got {'; '.join(map(str, self.settings))}")
        return self

    @property
    def cautions(self) -> tuple[str, ...]:
        """Reasons not to rely on the maps, a sentence each."""
        found, relevant = [], round(self.pairs * self.relevant_share)
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

    def nearest(self, plan: Plan) -> CalibratedSetting:
        """The setting of a Plan if it has a map, else the nearest that has one.

        Nearest by `distance`; of equally near ones the deeper, then the wider, then the one whose merges come first.
        """
        own = self._indices.get(setting_of(plan))
        if own is not None:
            return self.settings[own]

        def rank(setting: CalibratedSetting) -> tuple[float, int, float, Sequence[object]]:
            other = setting.plan()
            return round(distance(plan, other), 12), -setting.depth, -other.mean_width, sorted(other.merges.items())

        return min(self.settings, key=rank)


def distance(one: Plan, other: Plan) -> float:
    """How different two settings' maps may be: 4 · |ln(exit / exit')| + |ln(width / width')|, for mean widths.

    Exits weigh most, because each has a head of its own, while a width changes only what the same head reads. They
    count as ratios, because a layer changes more near the bottom of a model than near its top. (Measured on `mini`'s 15
    combinations of exits 2 to 6 with ratios 1, 1/2 and 1/4: with maps for four of them, the nearest by this distance
    has the smallest error.)

    >>> distance(Plan((4,)), Plan((2,))) == 4 * math.log(2)
    True
    """
    return 4 * abs(math.log(one.last_layer / other.last_layer)) + abs(math.log(one.mean_width / other.mean_width))
