"""Draw the sub-network of a training step.

A draw is a function of (seed, step) only, so a resumed run and every process of a distributed run draw the same.
"""

import random
from collections.abc import Sequence
from fractions import Fraction

SHALLOW_SHARE = 2 / 3
"""Share of horizontal steps that train the exits below the last layer, of which there are more than one."""


def draw_merges(
    seed: int,
    step: int,
    *,
    merge_layers: Sequence[int],
    ratios: Sequence[int],
    probability: float = 0.5,
    default_layer: int | None = None,
    default_share: float = 0.0,
) -> dict[int, Fraction]:
    """Draw the merges of one step (arXiv 2501.16302, cascaded self-distillation).

    Args:
        seed: The stage's seed.
        step: The step.
        merge_layers: Layers that may merge.
        ratios: Merge ratios, of which one is drawn; 1 means no merge.
        probability: Probability that a layer merges. If none does, one is drawn.
        default_layer: The model's default merge layer.
        default_share: Share of the steps in which only the default layer merges, as with a plain keep ratio; 0 is the
            paper's rule.

    Returns:
        Merge layer -> step ratio, `1/ratio`.

    Example:
        >>> draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(1,))
        {}
        >>> draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(4,), default_layer=1, default_share=1.0)
        {1: Fraction(1, 4)}
    """
    generator = random.Random(f"{seed}/{step}")  # a string seed is hashed with SHA-512: the same on every machine
    ratio = generator.choice(list(ratios))
    layers = [layer for layer in merge_layers if generator.random() < probability]
    if not layers and merge_layers:
        layers = [generator.choice(list(merge_layers))]
    if default_layer is not None and default_layer in merge_layers and generator.random() < default_share:
        layers = [default_layer]
    return {layer: Fraction(1, ratio) for layer in layers} if ratio > 1 else {}


def draw_shallow(seed: int, step: int) -> bool:
    """Draw whether a step of horizontal compensation trains the exits below the last layer, or the last one.

    Below the last layer the vertical adapter is on; at the last one it is off.

    >>> sum(draw_shallow(0, step) for step in range(1000)) // 100
    6
    """
    return random.Random(f"{seed}/{step}/exits").random() < SHALLOW_SHARE
