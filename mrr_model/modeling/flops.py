"""How many FLOPs one pair takes under a Plan: the arithmetic that this implementation executes.

Counted: matrix products (2 per multiply-add), attention over the places that a token sees, the reading token's row and
the weighted sums of merges. Not counted: norms, activations, look-ups, and the zeros with which a merge's row is
computed for all heads at once; they are a few percent at most.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from torch import nn

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, sharing_groups
from mrr_model.modeling.model import MatryoshkaModel


def pair_flops(
    model: MatryoshkaModel, plan: Plan, pair: EncodedPair, low_ranks: Mapping[str, int] | None = None
) -> float:
    """FLOPs of one pair's forward pass.

    ``low_ranks``: by module name, the rank of deltas that are added as they run; folded deltas cost nothing and are
    left out.
    """
    backbone, hidden_size = model.backbone, model.config.hidden_size
    names = {module: name for name, module in model.named_modules()}
    ranks = low_ranks or {}
    passage, total = pair.passage_length, 0.0
    for layer in range(1, plan.last_layer + 1):
        tokens = pair.query_length + passage + pair.prompt_length
        reads = layer == plan.last_layer
        everywhere = backbone.key_value_projections(layer)
        for module in backbone.layers[layer - 1].modules():
            if isinstance(module, nn.Linear):
                rows = tokens if not reads or module in everywhere else 1
                total += rows * _linear_flops(module, ranks.get(names[module], 0))
        seen = tokens if reads else tokens * (tokens + 1) / 2 if backbone.causal else tokens**2
        total += 4 * backbone.attention_size * seen
        if layer in plan.exits:
            head = model.heads[str(layer)]
            total += 4 * tokens * hidden_size if model.matryoshka.head == "similarity" else 0  # both means
            total += sum(
                _linear_flops(part, ranks.get(names[part], 0)) for part in head.modules() if isinstance(part, nn.Linear)
            )
        if layer in plan.merges:
            weighted = model.matryoshka.merge_weights == "attention"
            total += 2 * tokens * (hidden_size + (backbone.attention_size if weighted else 0))
            passage = _groups(passage, plan.merges[layer])
    return total


def call_flops(
    model: MatryoshkaModel, plan: Plan, pairs: Sequence[EncodedPair], low_ranks: Mapping[str, int] | None = None
) -> float:
    """FLOPs of all pairs of a call; a query span that a causal model's pairs share counts once."""
    shapes: dict[tuple[int, int, int], float] = {}
    for pair in pairs:
        shape = (pair.query_length, pair.passage_length, pair.prompt_length)
        if shape not in shapes:
            shapes[shape] = pair_flops(model, plan, pair, low_ranks)
    total = sum(shapes[pair.query_length, pair.passage_length, pair.prompt_length] for pair in pairs)
    for prefix, group in sharing_groups(pairs) if model.backbone.causal else ():
        if prefix is not None:
            total -= (len(group) - 1) * _query_flops(model, plan, prefix.size, low_ranks or {})
    return total


def _query_flops(model: MatryoshkaModel, plan: Plan, tokens: int, ranks: Mapping[str, int]) -> float:
    """What a causal model's query span takes of one pair."""
    backbone, total = model.backbone, 0.0
    names = {module: name for name, module in model.named_modules()}
    for layer in range(1, plan.last_layer + 1):
        reads = layer == plan.last_layer
        everywhere = backbone.key_value_projections(layer)
        total += sum(
            tokens * _linear_flops(module, ranks.get(names[module], 0))
            for module in backbone.layers[layer - 1].modules()
            if isinstance(module, nn.Linear) and (not reads or module in everywhere)
        )
        total += 0 if reads else 4 * backbone.attention_size * tokens * (tokens + 1) / 2
    return total


def _linear_flops(module: nn.Linear, rank: int) -> float:
    outputs, inputs = module.weight.shape
    return 2.0 * (inputs * outputs + rank * (inputs + outputs))


def _groups(length: int, step: Fraction) -> int:
    return (length - 1) * step.numerator // step.denominator + 1 if length else 0
