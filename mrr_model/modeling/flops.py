"""How many FLOPs a forward pass takes under a Plan: the arithmetic that this implementation executes.

Counted: matrix products (2 FLOPs per multiply-add), attention over the positions that a token sees, the attention rows
that weigh merges, and weighted sums of states. Not counted: norms, activations, look-ups, the zeros with which a
merge's row is computed for all heads at once, the projections of relative positions, which the pairs of a batch share,
and the merge after an exit that reads the mean over tokens, for pairs that stop there. They are a few percent at most.
Nor is what a cascade's pass runs beyond an exit that it reads in passing for pairs that stop there
(`mrr_model.inference.staged`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from fractions import Fraction

from torch import nn

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel


def pair_flops(
    model: MatryoshkaModel, plan: Plan, pair: EncodedPair, low_ranks: Mapping[str, int] | None = None
) -> float:
    """FLOPs of one pair's forward pass.

    Args:
        model: The model.
        plan: What to run.
        pair: Its span lengths count, its ids do not.
        low_ranks: By module name, the rank of the deltas that are added as the model runs. Folded deltas cost nothing
            and are left out.

    Returns:
        Floating-point operations, 2 per multiply-add.
    """
    return _PlanFlops(model, plan, low_ranks or {}).pair(pair)


def call_flops(
    model: MatryoshkaModel,
    plan: Plan,
    pairs: Sequence[EncodedPair],
    shared_queries: Iterable[tuple[int, Sequence[int]]] = (),
    low_ranks: Mapping[str, int] | None = None,
    *,
    exits: Collection[int] = (),
    reached: Sequence[int] | None = None,
) -> float:
    """FLOPs of all pairs of a call.

    A pair that stops at an exit costs what it costs under the plan with that exit as its last. At each exit that it
    passes, the pooled token's part of the layer and the head are added: the layer then runs for all tokens.

    Args:
        model: The model.
        plan: What to run.
        pairs: The pairs; their span lengths count, their ids do not.
        shared_queries: The query spans that are computed once for several pairs: the tokens of each, and the indices of
            the pairs that share it. A span runs as deep as the deepest of its pairs.
        low_ranks: See `pair_flops`.
        exits: The exits that a cascade reads before the plan's last.
        reached: The exit at which each pair stops; 0 for a pair that does not start. None: the plan's last, for all.

    Returns:
        Floating-point operations, 2 per multiply-add.
    """
    reached = [plan.last_layer] * len(pairs) if reached is None else reached
    flops = {
        last: _PlanFlops(model, _until(plan, last), low_ranks or {}, [each for each in exits if each < last])
        for last in set(reached) - {0}
    }
    by_shape: dict[tuple[int, int, int, int], float] = {}
    total = 0.0
    for pair, last in zip(pairs, reached, strict=True):
        shape = (last, pair.query_length, pair.passage_length, pair.prompt_length)
        if last and shape not in by_shape:
            by_shape[shape] = flops[last].pair(pair)
        total += by_shape.get(shape, 0.0)
    for tokens, sharing in shared_queries:
        each = sorted(reached[index] for index in sharing)
        total -= sum(flops[last].shared_query(tokens) for last in each[:-1] if last)  # but once, for the deepest
    return total


def _until(plan: Plan, last: int) -> Plan:
    """The plan with `last` as its last exit."""
    exits = (*(exit_layer for exit_layer in plan.exits if exit_layer < last), last)
    return Plan(exits, {layer: step for layer, step in plan.merges.items() if layer < last}, plan.adapters)


class _PlanFlops:
    """The FLOPs of one model under one plan, for spans of any length.

    `passed`: exits that are read and passed besides the plan's own.
    """

    def __init__(
        self, model: MatryoshkaModel, plan: Plan, low_ranks: Mapping[str, int], passed: Sequence[int] = ()
    ) -> None:
        self.model, self.plan, self.low_ranks, self.passed = model, plan, low_ranks, passed
        self._names = {module: name for name, module in model.named_modules()}
        self._per_token = {layer: self._linear_per_token(layer) for layer in range(1, plan.last_layer + 1)}

    def pair(self, pair: EncodedPair) -> float:
        """One pair, from its first token to its logits."""
        model, hidden_size = self.model, self.model.config.hidden_size
        mean = model.backbone.pooling == "mean"
        passage, total = pair.passage_length, 0.0
        for layer in self._per_token:
            tokens = pair.query_length + passage + pair.prompt_length
            merged = any(merge < layer for merge in self.plan.merges)
            if layer == self.plan.last_layer and not mean:
                total += self._layer(layer, tokens, whole=1, seen=tokens, merged=merged)  # the pooled token alone
            else:
                total += self._layer(layer, tokens, whole=tokens, seen=self._seen(tokens), merged=merged)
            if layer in self.passed and not mean:
                total += self._rest(layer, tokens, whole=1, seen=tokens, merged=merged)
            if layer in self.plan.exits or layer in self.passed:
                total += sum(map(self._linear, model.heads[str(layer)].modules()))
                total += 4 * tokens * hidden_size if model.matryoshka.head == "similarity" else 0  # both means
                total += 2 * tokens * hidden_size if mean else 0
            if layer in self.plan.merges:
                rows = (tokens if mean else 1) if model.matryoshka.merge_weights == "attention" else 0
                total += 2 * tokens * (hidden_size + rows * model.backbone.attention_size)
                passage = _groups(passage, self.plan.merges[layer])
        return total

    def shared_query(self, tokens: int) -> float:
        """The part of a causal model's pair that its query span of `tokens` tokens takes."""
        *below, last = self._per_token
        total = sum(self._layer(layer, tokens, whole=tokens, seen=self._seen(tokens)) for layer in below)
        return total + self._layer(last, tokens, whole=0, seen=0)

    def _layer(self, layer: int, tokens: int, whole: int, seen: float, merged: bool = False) -> float:
        """One block: keys and values of `tokens` tokens, all else of `whole` tokens, which see `seen` positions."""
        return tokens * self._per_token[layer][0] + self._rest(layer, tokens, whole, seen, merged)

    def _rest(self, layer: int, tokens: int, whole: int, seen: float, merged: bool) -> float:
        """The same without keys and values."""
        backbone = self.model.backbone
        attention = 4 * backbone.attention_size * seen + backbone.relative_flops(tokens, whole, merged)
        return whole * self._per_token[layer][1] + attention

    def _seen(self, tokens: int) -> float:
        """The positions that all tokens of a span see, added up."""
        return tokens * (tokens + 1) / 2 if self.model.backbone.causal else tokens**2

    def _linear_per_token(self, layer: int) -> tuple[float, float]:
        """FLOPs per token of a block's linear modules: those of keys and values, and all other modules."""
        backbone = self.model.backbone
        projections = backbone.key_value_projections(layer)
        packed = sum(self._linear(module) for projection in projections for module in projection.modules())
        keys_and_values = packed * backbone.key_value_share(layer)
        return keys_and_values, sum(map(self._linear, backbone.token_modules(layer))) - keys_and_values

    def _linear(self, module: nn.Module) -> float:
        """FLOPs per token of a linear module; 0 for any other."""
        if not isinstance(module, nn.Linear):
            return 0.0
        outputs, inputs = module.weight.shape
        return 2.0 * (inputs * outputs + self.low_ranks.get(self._names[module], 0) * (inputs + outputs))


def _groups(length: int, step: Fraction) -> int:
    return (length - 1) * step.numerator // step.denominator + 1 if length else 0
