"""Which sub-network a training step uses: a function of (seed, step) and of nothing else, so that a resumed run draws
the same.
"""

import random
from collections.abc import Sequence
from fractions import Fraction


def draw_merges(
    seed: int, step: int, *, merge_layers: Sequence[int], ratios: Sequence[int], probability: float
) -> dict[int, Fraction]:
    """Draw the merges of one step: ``{layer: 1/ratio}`` (arXiv 2501.16302, cascaded self-distillation).

    One ratio is drawn from ``ratios`` (1 means no merge); every merge layer is then on with ``probability``, and one
    layer at random where none came on.

    >>> draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(2,), probability=0.5) == draw_merges(
    ...     0, 7, merge_layers=(1, 2, 3), ratios=(2,), probability=0.5
    ... )
    True
    >>> draw_merges(0, 7, merge_layers=(1, 2, 3), ratios=(1,), probability=0.5)
    {}
    """
    generator = random.Random(f"{seed}/{step}")  # a string seed is hashed with SHA-512: the same on every machine
    ratio = generator.choice(list(ratios))
    layers = [layer for layer in merge_layers if generator.random() < probability]
    if not layers and merge_layers:
        layers = [generator.choice(list(merge_layers))]
    return {layer: Fraction(1, ratio) for layer in layers} if ratio > 1 else {}
