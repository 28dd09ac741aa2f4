"""What the user asks for (`Compression`), and the same resolved for one model (`Plan`)."""

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from operator import index
from typing import Any

from typing_extensions import Self

from mrr_model.validation.arguments import DEFAULT, Default, whole_number

KeepRatio = float | str | Mapping[int, float] | Mapping[str, float] | Sequence[tuple[int, float]]
"""A ratio in (0, 1], a mapping `{merge layer: ratio}`, or either as command-line text (`"0.5"`, `"8:0.5,16:0.25"`)."""

MAX_DENOMINATOR = 1024
"""Step ratios are exact fractions with at most this denominator; narrower steps are rounded up to 1/1024."""

MAX_LAYERS = 10_000
"""More than any model has. Files that name deeper layers are refused before anything is allocated for them."""

DEFAULT_KEEP_RATIOS = (1.0, 0.5, 0.25)
"""Keep ratios of a grid if none are given."""

VERTICAL = "vertical"
"""The name of the vertical adapter."""


@dataclass(frozen=True)
class Compression:
    """A setting: how much of a model to run, as the user says it. Validated, hashable, and the same for any model.

    Args:
        depth: Run at most this many layers, counted from 1; `None` runs all of them.
        keep_ratio: The share of the original passage tokens to keep, in (0, 1]. One number merges once, at the model's
            default merge layer. A mapping `{merge layer: ratio}` gives the width from each merge on and must not
            increase with depth. The command-line form (`"0.5"`, `"8:0.5,16:0.25"`) is accepted too. Stored as a float,
            or as a tuple of (merge layer, ratio) pairs in ascending order.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range.

    Example:
        >>> setting = Compression(depth=4, keep_ratio={2: 0.5, 3: 0.25})
        >>> setting
        Compression(depth=4, keep_ratio=((2, 0.5), (3, 0.25)))
        >>> str(setting)
        'depth 4, keep ratio 2:0.5,3:0.25'
        >>> setting.to_json()
        {'depth': 4, 'keep_ratio': {'2': 0.5, '3': 0.25}}
        >>> setting.file_name
        'depth-4_keep-ratio-2-0.5_3-0.25'
    """

    depth: int | None = None
    keep_ratio: float | tuple[tuple[int, float], ...] = 1.0

    def __init__(self, depth: int | None = None, keep_ratio: KeepRatio = 1.0) -> None:
        object.__setattr__(self, "depth", _validated_depth(depth))
        object.__setattr__(self, "keep_ratio", _validated_keep_ratio(keep_ratio))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; missing keys mean all layers and full width.

        Raises:
            TypeError: If a value is of the wrong type.
            ValueError: If a key is unknown or a value is out of its range.

        Example:
            >>> Compression.from_json({"depth": 4, "keep_ratio": {"8": 0.5}})
            Compression(depth=4, keep_ratio=((8, 0.5),))
        """
        if unknown := sorted(data.keys() - {"depth", "keep_ratio"}):
            raise ValueError(f"a setting has the keys depth and keep_ratio, got {', '.join(unknown)}.")
        return cls(**data)

    def to_json(self) -> dict[str, Any]:
        """The setting as JSON data: `depth`, and `keep_ratio` as a number or an object keyed by merge layer."""
        ratio = self.keep_ratio
        stored = ratio if isinstance(ratio, float) else {str(layer): width for layer, width in ratio}
        return {"depth": self.depth, "keep_ratio": stored}

    def to_kwargs(self) -> dict[str, Any]:
        """The setting as keyword arguments of a call.

        Example:
            >>> Compression(4, "8:0.5,16:0.25").to_kwargs()
            {'depth': 4, 'keep_ratio': {8: 0.5, 16: 0.25}}
        """
        ratio = self.keep_ratio
        return {"depth": self.depth, "keep_ratio": ratio if isinstance(ratio, float) else dict(ratio)}

    def override(self, depth: int | Default | None = DEFAULT, keep_ratio: KeepRatio | Default = DEFAULT) -> Self:
        """This setting with the given depth or keep ratio instead of its own."""
        return type(self)(
            self.depth if isinstance(depth, Default) else depth,
            self.keep_ratio if isinstance(keep_ratio, Default) else keep_ratio,
        )

    @property
    def keep_ratio_text(self) -> str:
        """The keep ratio in its command-line form, such as `0.5` or `8:0.5,16:0.25`."""
        if isinstance(self.keep_ratio, float):
            return f"{self.keep_ratio:g}"
        return ",".join(f"{layer}:{ratio:g}" for layer, ratio in self.keep_ratio)

    @property
    def file_name(self) -> str:
        """The setting as part of a file's name."""
        depth = "all-layers" if self.depth is None else f"depth-{self.depth}"
        return f"{depth}_keep-ratio-{self.keep_ratio_text.replace(':', '-').replace(',', '_')}"

    def __str__(self) -> str:
        depth = "all layers" if self.depth is None else f"depth {self.depth}"
        return f"{depth}, keep ratio {self.keep_ratio_text}"


@dataclass(frozen=True)
class Plan:
    """A `Compression` resolved for one model: what one forward pass computes.

    Args:
        exits: The layers, counted from 1, after which a score is read, ascending; one at inference, several in
            training.
        merges: `{layer: step ratio}`. After that many layers groups of passage tokens are merged: token j goes to group
            floor(j · step ratio).
        adapters: Names of the compensation adapters whose deltas are added.

    Raises:
        ValueError: If `exits` is empty or not ascending, or a merge does not lie before the last exit.

    Example:
        >>> plan = Plan(exits=(4,), merges={1: Fraction(1, 2)})
        >>> plan.width(3)
        Fraction(1, 2)
        >>> str(plan), str(Plan(exits=(4, 6)))
        ('exit 4, merges 1:1/2', 'exits 4, 6, no merges')
    """

    exits: tuple[int, ...]
    merges: Mapping[int, Fraction] = field(default_factory=dict)
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.exits or list(self.exits) != sorted(set(self.exits)):
            raise ValueError(f"exits must be ascending and not empty, got {self.exits}.")
        outside = [layer for layer in self.merges if not 1 <= layer < self.last_layer]
        if outside:
            raise ValueError(f"merges must lie in 1 … {self.last_layer - 1}, before the last exit, got {outside}.")

    def __hash__(self) -> int:
        return hash((self.exits, tuple(sorted(self.merges.items())), self.adapters))

    def __str__(self) -> str:
        exits = f"exit{'s' if len(self.exits) > 1 else ''} {', '.join(map(str, self.exits))}"
        merges = ",".join(f"{layer}:{step}" for layer, step in sorted(self.merges.items()))
        return f"{exits}, {f'merges {merges}' if merges else 'no merges'}"

    @property
    def last_layer(self) -> int:
        """The number of layers that run."""
        return self.exits[-1]

    def width(self, layer: int) -> Fraction:
        """The share of the original passage tokens that layer `layer`, counted from 1, works on."""
        return math.prod((step for at, step in self.merges.items() if at < layer), start=Fraction(1))

    def up_to(self, exit_layer: int) -> "Plan":
        """The same pass, read at one of its earlier layers.

        Example:
            >>> str(Plan(exits=(6,), merges={1: Fraction(1, 2), 4: Fraction(1, 2)}).up_to(4))
            'exit 4, merges 1:1/2'
        """
        merges = {layer: step for layer, step in self.merges.items() if layer < exit_layer}
        return Plan((exit_layer,), merges, self.adapters)

    @property
    def mean_width(self) -> float:
        """The share of the original passage tokens that the layers work on, on average.

        Example:
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
    """Resolve a setting for one model.

    Args:
        compression: The setting.
        num_layers: The model's layers.
        exits: The layers after which it can be scored.
        merge_layers: The layers after which its passage tokens can merge.
        default_merge_layer: Where a keep ratio that names no layer merges.
        vertical: Whether the model has a vertical adapter.
        horizontal: The step ratios that it has horizontal adapters for.

    Returns:
        The Plan of one exit.

    Raises:
        ValueError: If the depth lies below the first exit, or the model lacks a merge layer.

    Example:
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


def evenly_spread(exits: Sequence[int], count: int) -> tuple[int, ...]:
    """Choose at most `count` of a model's exits, evenly spread, deepest first.

    >>> evenly_spread((2, 3, 4, 5, 6), 3), evenly_spread((1, 2), 5)
    ((6, 4, 2), (2, 1))
    """
    if count == 1:
        return (exits[-1],)
    last = len(exits) - 1
    return tuple(sorted({exits[round(last * step / (count - 1))] for step in range(count)}, reverse=True))


def as_step(ratio: float | Fraction) -> Fraction:
    """The nearest fraction to a ratio in (0, 1], with a denominator of at most 1024.

    Example:
        >>> as_step(0.3), as_step(1 / 3), as_step(1e-9)
        (Fraction(3, 10), Fraction(1, 3), Fraction(1, 1024))
    """
    return max(Fraction(ratio).limit_denominator(MAX_DENOMINATOR), Fraction(1, MAX_DENOMINATOR))


def horizontal_name(step: Fraction) -> str:
    """The name of the horizontal adapter trained for a step ratio.

    Example:
        >>> horizontal_name(Fraction(1, 2))
        'horizontal_1_2'
    """
    return f"horizontal_{step.numerator}_{step.denominator}"


def nearest_step(steps: Sequence[Fraction], trained: Collection[Fraction]) -> Fraction:
    """The trained step ratio nearest, in log, to the geometric mean of `steps`; ties go to the narrower.

    Example:
        >>> nearest_step([Fraction(1, 2), Fraction(1, 8)], [Fraction(1, 2), Fraction(1, 4), Fraction(1, 8)])
        Fraction(1, 4)
        >>> nearest_step([Fraction(1, 4)], [Fraction(1, 2), Fraction(1, 8)])
        Fraction(1, 8)
    """
    mean = sum(math.log(step) for step in steps) / len(steps)
    return min(sorted(trained), key=lambda step: round(abs(math.log(step) - mean), 12))


def _resolve_exit(depth: int | None, exits: Sequence[int]) -> int:
    reachable = [exit_layer for exit_layer in exits if depth is None or exit_layer <= depth]
    if not reachable and len(exits) == 1:
        raise ValueError(
            f"depth={depth} is below this model's only exit, {exits[0]}. Choose depth >= {exits[0]}, or give the model "
            "more exits: mrr self-distill MODEL --texts TEXTS --output OUTPUT."
        )
    if not reachable:
        raise ValueError(
            f"depth={depth} is below this model's first exit. Its exits are {', '.join(map(str, sorted(exits)))}. "
            f"Choose depth >= {min(exits)}."
        )
    return max(reachable)


def _resolve_merges(
    keep_ratio: float | tuple[tuple[int, float], ...], merge_layers: Collection[int], default_merge_layer: int
) -> dict[int, Fraction]:
    widths = ((default_merge_layer, keep_ratio),) if isinstance(keep_ratio, float) else keep_ratio
    if not merge_layers and any(ratio < 1 for _, ratio in widths):
        raise ValueError(
            "keep_ratio must be 1.0 for this model, which cannot merge tokens. Choose a smaller depth instead."
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
                f"keep_ratio must not increase with depth, got {wider:g} at merge layer {deeper} after {ratio:g} at "
                f"{layer}. Each ratio is the share of the original passage tokens kept from that merge on."
            )
    return tuple(widths) if widths else 1.0


def _validated_ratio(ratio: object, name: str) -> float:
    advice = "Give the share of the passage tokens to keep, such as 0.5 or {8: 0.5, 16: 0.25}."
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
