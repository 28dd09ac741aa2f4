"""What the user asked for (:class:`Compression`) and the same resolved for one model (:class:`Plan`)."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from operator import index

from mrr_model.validation.arguments import whole_number

KeepRatio = float | str | Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int, float]]
"""A ratio in (0, 1], a mapping ``{merge layer: ratio}``, or either in its command-line form (``"0.5"``,
``"8:0.5,16:0.25"``).
"""

MAX_DENOMINATOR = 1024
"""Step ratios are exact fractions with at most this denominator; narrower steps are rounded up to 1/1024."""

MAX_LAYERS = 10_000
"""More than any model has: what a file says beyond it is refused before anything is made of it."""

VERTICAL = "vertical"


@dataclass(frozen=True)
class Compression:
    """How much of a model to run, as the user says it: validated, hashable, the same for models of any size.

    ``depth``: run at most this many layers, from 1; ``None`` runs all of them.
    ``keep_ratio``: the part of the original passage tokens that is left, in (0, 1]: one number merges once, at the
    model's default merge layer; a mapping gives the width from each merge on and must not grow with depth. Stored as a
    float or as a tuple of (merge layer, ratio) pairs in ascending order.

    Raises ``TypeError`` or ``ValueError`` that names the argument, what came and what is allowed.

    >>> Compression(depth=4, keep_ratio={"2": 0.5, 3: 0.25})
    Compression(depth=4, keep_ratio=((2, 0.5), (3, 0.25)))
    >>> Compression(keep_ratio="8:0.5,16:0.25").keep_ratio
    ((8, 0.5), (16, 0.25))
    >>> str(Compression(depth=4, keep_ratio=0.5))
    'depth 4, keep ratio 0.5'
    """

    depth: int | None = None
    keep_ratio: float | tuple[tuple[int, float], ...] = 1.0

    def __init__(self, depth: int | None = None, keep_ratio: KeepRatio = 1.0) -> None:
        object.__setattr__(self, "depth", _validated_depth(depth))
        object.__setattr__(self, "keep_ratio", _validated_keep_ratio(keep_ratio))

    @property
    def keep_ratio_text(self) -> str:
        """The keep ratio in its command-line form.

        >>> Compression(keep_ratio={8: 0.5, 16: 0.25}).keep_ratio_text
        '8:0.5,16:0.25'
        """
        if isinstance(self.keep_ratio, float):
            return f"{self.keep_ratio:g}"
        return ",".join(f"{layer}:{ratio:g}" for layer, ratio in self.keep_ratio)

    def __str__(self) -> str:
        depth = "all layers" if self.depth is None else f"depth {self.depth}"
        return f"{depth}, keep ratio {self.keep_ratio_text}"


@dataclass(frozen=True)
class Plan:
    """A :class:`Compression` resolved for one model: what one forward pass does.

    ``exits``: the layers (counted from 1) after which a score is read, ascending; one at inference, several in
    training.
    ``merges``: ``{layer: step ratio}``: after that many layers groups of passage tokens are merged, token j into group
    floor(j · step). ``adapters``: names of the compensation adapters whose deltas are added.

    >>> Plan(exits=(4,), merges={1: Fraction(1, 2)}).width(3)
    Fraction(1, 2)
    """

    exits: tuple[int, ...]
    merges: Mapping[int, Fraction] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.exits or list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits must be ascending and not empty, got {self.exits}")
        outside = [layer for layer in self.merges if not 1 <= layer < self.last_layer]
        if outside:
            raise ValueError(f"merges must lie in 1 … {self.last_layer - 1}, before the last exit; got {outside}")

    def __hash__(self) -> int:
        return hash((self.exits, tuple(sorted(self.merges.items())), self.adapters))

    @property
    def last_layer(self) -> int:
        """The number of layers that run."""
        return self.exits[-1]

    def width(self, layer: int) -> Fraction:
        """The part of the original passage tokens that layer ``layer`` (from 1) works on."""
        return math.prod((step for at, step in self.merges.items() if at < layer), start=Fraction(1))

    @property
    def mean_width(self) -> float:
        """The part of the original passage tokens that the layers work on, on average.

        >>> Plan(exits=(4,), merges={2: Fraction(1, 2)}).mean_width
        0.75
        """
        total, width, after = Fraction(0), Fraction(1), 0
        for layer, step in sorted(self.merges.items()):
            total += width * (layer - after)
            width, after = width * step, layer
        return float((total + width * (self.last_layer - after)) / self.last_layer)


def resolve(
    compression: Compression,
    *,
    num_layers: int,
    exits: Sequence[int],
    merge_layers: Collection[int],
    default_merge_layer: int,
    vertical: bool = False,
    horizontal: Collection[Fraction] = (),
) -> Plan:
    """The Plan of ``compression`` for a model with these layers, exits, merge layers and trained adapters.

    ``vertical`` says whether the model has a vertical adapter; ``horizontal`` lists the step ratios it has horizontal
    ones for. Raises ``ValueError`` for a depth below the first exit or a merge layer that the model lacks.

    >>> resolve(Compression(5, 0.5), num_layers=6, exits=(2, 4, 6), merge_layers=range(1, 6), default_merge_layer=1)
    Plan(exits=(4,), merges={1: Fraction(1, 2)}, adapters=())
    """
    exit_layer = _resolve_exit(compression.depth, exits)
    merges = _resolve_merges(compression.keep_ratio, merge_layers, default_merge_layer)
    merges = {layer: step for layer, step in merges.items() if layer < exit_layer}

    adapters = []
    if vertical and exit_layer < num_layers:
        adapters.append(VERTICAL)
    if merges and horizontal:
        adapters.append(horizontal_name(nearest_step(tuple(merges.values()), horizontal)))
    return Plan(exits=(exit_layer,), merges=merges, adapters=tuple(adapters))


def as_step(ratio: float | Fraction) -> Fraction:
    """The exact fraction that stands for a ratio in (0, 1]: the nearest with a denominator of at most 1024.

    >>> as_step(0.3), as_step(1 / 3), as_step(1e-9)
    (Fraction(3, 10), Fraction(1, 3), Fraction(1, 1024))
    """
    return max(Fraction(ratio).limit_denominator(MAX_DENOMINATOR), Fraction(1, MAX_DENOMINATOR))


def horizontal_name(step: Fraction) -> str:
    """The name of the horizontal adapter trained for a step ratio.

    >>> horizontal_name(Fraction(1, 2))
    'horizontal_1_2'
    """
    return f"horizontal_{step.numerator}_{step.denominator}"


def nearest_step(steps: Sequence[Fraction], trained: Collection[Fraction]) -> Fraction:
    """The trained step ratio nearest, in log, to the geometric mean of ``steps``; ties go to the narrower.

    >>> nearest_step([Fraction(1, 2), Fraction(1, 8)], [Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)])
    Fraction(1, 4)
    >>> nearest_step([Fraction(1, 4)], [Fraction(1, 2), Fraction(1, 8)])
    Fraction(1, 8)
    """
    mean = sum(math.log(step) for step in steps) / len(steps)
    return min(sorted(trained), key=lambda step: round(abs(math.log(step) - mean), 12))


def _resolve_exit(depth: int | None, exits: Sequence[int]) -> int:
    reachable = [exit_layer for exit_layer in exits if depth is None or exit_layer <= depth]
    if not reachable:
        raise ValueError(
            f"depth={depth} lies below this model's first exit. Its exits are {', '.join(map(str, sorted(exits)))}: "
            f"choose depth >= {min(exits)}."
        )
    return max(reachable)


def _resolve_merges(
    keep_ratio: float | tuple[tuple[int, float], ...], merge_layers: Collection[int], default_merge_layer: int
) -> dict[int, Fraction]:
    widths = ((default_merge_layer, keep_ratio),) if isinstance(keep_ratio, float) else keep_ratio
    if not merge_layers and any(ratio < 1 for _, ratio in widths):
        raise ValueError(
            "keep_ratio must be 1.0 for this model: it is compressed by depth only and cannot merge tokens."
        )
    merges, width = {}, Fraction(1)
    for layer, ratio in widths:
        if layer not in merge_layers and ratio < 1.0:
            raise ValueError(
                f"keep_ratio names merge layer {layer}, which this model lacks. It can merge after layers "
                f"{', '.join(map(str, sorted(merge_layers)))}."
            )
        step = as_step(as_step(ratio) / width)
        if step < 1:
            merges[layer] = step
            width *= step
    return merges


def _validated_depth(depth: object) -> int | None:
    if depth is None:
        return None
    advice = "Give the number of layers to run as a whole number >= 1, or None for all of them."
    return whole_number("depth", depth, advice=advice)


def _validated_keep_ratio(keep_ratio: object) -> float | tuple[tuple[int, float], ...]:
    if isinstance(keep_ratio, str):
        keep_ratio = _parsed_keep_ratio(keep_ratio)
    if isinstance(keep_ratio, Mapping):
        keep_ratio = tuple(keep_ratio.items())
    if not isinstance(keep_ratio, (tuple, list)):
        return _validated_ratio(keep_ratio, "keep_ratio")
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in keep_ratio):
        raise TypeError(
            f"keep_ratio must be a number, a mapping or (merge layer, ratio) pairs, got {keep_ratio!r}. "
            "Write 0.5 or {8: 0.5, 16: 0.25}."
        )

    widths = sorted(
        (_validated_merge_layer(layer), _validated_ratio(ratio, f"keep_ratio[{layer}]")) for layer, ratio in keep_ratio
    )
    for (layer, ratio), (deeper, wider) in itertools.pairwise(widths):
        if layer == deeper:
            raise ValueError(f"keep_ratio names merge layer {layer} twice. Give each merge layer one ratio.")
        if wider > ratio:
            raise ValueError(
                f"keep_ratio must not grow with depth: {wider:g} at merge layer {deeper} after {ratio:g} at {layer}. "
                "Each ratio is the part of the original passage tokens that is left from that merge on."
            )
    return tuple(widths) if widths else 1.0


def _validated_ratio(ratio: object, name: str) -> float:
    advice = "Give the part of the passage tokens to keep, for example 0.5, or a mapping such as {8: 0.5, 16: 0.25}."
    if isinstance(ratio, bool) or not isinstance(ratio, Real):
        raise TypeError(f"{name} must be a number in (0, 1], got {ratio!r} ({type(ratio).__name__}). {advice}")
    value = float(ratio)
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {ratio!r}. {advice}")
    return value


def _validated_merge_layer(layer: object) -> int:
    try:
        value = int(layer) if isinstance(layer, str) else index(layer)  # type: ignore[arg-type]  # TypeError below
    except (TypeError, ValueError):
        raise TypeError(
            f"keep_ratio's merge layers must be whole numbers, got {layer!r} ({type(layer).__name__})."
        ) from None
    if value < 1:
        raise ValueError(f"keep_ratio's merge layers are counted from 1, got {value}.")
    return value


def _parsed_keep_ratio(text: str) -> float | tuple[tuple[int, float], ...]:
    try:
        if ":" not in text:
            return float(text)
        pairs = (part.split(":") for part in text.split(","))
        return tuple((int(layer), float(ratio)) for layer, ratio in pairs)
    except ValueError:
        raise ValueError(
            f"keep_ratio={text!r} cannot be read. Write a ratio (0.5) or pairs of layer:ratio (8:0.5,16:0.25)."
        ) from None
