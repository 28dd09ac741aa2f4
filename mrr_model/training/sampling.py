"""Which sub-network a training step uses: a function of (seed, step) and of nothing else, so that a resumed run and
every process of a distributed one draw the same.
"""

import random
from collections.abc import Sequence
from fractions import Fraction


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
    """Draw the merges of one step: ``{layer: 1/ratio}`` (arXiv 2501.16302, cascaded self-distillation).

    One ratio is drawn from ``ratios`` (1 means no merge); every merge layer is then on with ``probability``, and one
    layer at random where none came on. In a ``default_share`` of the steps ``default_layer`` alone merges, as a plain
    keep ratio does; 0 is the paper's rule.

    >>> draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(2,)) == draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(2,))
    True
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
    """Whether a step of horizontal compensation trains the exits below the last layer, with the vertical adapter on,
    or the last one, without it.

    >>> sum(draw_shallow(0, step) for step in range(1000)) // 100
    6
    """
    return random.Random(f"{seed}/{step}/exits").random() < SHALLOW_SHARE


SHALLOW_SHARE = 2 / 3
"""There are many shallow exits and one last."""
