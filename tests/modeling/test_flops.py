"""Counted FLOPs against those that torch itself counts while the model runs."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.compensation import Compensation, LowRank
from mrr_model.modeling.families import FAMILIES
from mrr_model.modeling.flops import pair_flops
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = (5, 21, 4)
PLANS = [
    Plan((6,)),
    Plan((1,)),
    Plan((3,)),
    Plan((6,), {2: Fraction(1, 2)}),
    Plan((5,), {1: Fraction(1, 3), 3: Fraction(2, 3)}),
    Plan((2, 4, 6), {2: Fraction(1, 2)}),
]


def linear_flops(model: MatryoshkaModel, pair: EncodedPair, plan: Plan) -> float:
    """What torch counts of the linear layers: matrix products without a batch; attention's are batched or fused.

    Those that run for the relative positions of a batch, (P, D), instead of for its tokens, are left out.
    """
    shared: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and args[0].ndim == 2 and len(args[0]) > 1:
            shared.append(2 * output.numel() * module.in_features)

    hook = register_module_forward_hook(note)  # for all modules: one with a hook of its own may run another way
    counter = FlopCounterMode(display=False)
    model.requires_grad_(False)  # the counter follows gradients of modules' inputs; a table of embeddings is one
    with counter, torch.inference_mode():
        model(collate([pair], 0), plan)
    hook.remove()
    counted = counter.get_flop_counts()["Global"]
    linear = sum(count for operator, count in counted.items() if str(operator) in ("aten.mm", "aten.addmm"))
    return float(linear - sum(shared))


def attention_and_merging(model: MatryoshkaModel, pair: EncodedPair, plan: Plan) -> float:
    """The rest, by the rules of `mrr_model.modeling.flops`.

    A decoder's token sees those before it, an encoder's sees all. In the last layer the pooled token alone attends. A
    merge takes one attention row and a weighted sum, a similarity head two sums over all tokens. If the mean is pooled,
    all tokens attend in the last layer, a merge takes all attention rows, and an exit a sum over all tokens. A test
    of its own counts what relative positions take.
    """
    size, total = model.backbone.attention_size, 0.0
    mean = model.backbone.pooling == "mean"
    passage = pair.passage_length
    for layer in range(1, plan.last_layer + 1):
        tokens = pair.query_length + passage + pair.prompt_length
        seen = sum(position + 1 for position in range(tokens)) if model.backbone.causal else tokens * tokens
        total += 2 * 2 * size * (seen if layer < plan.last_layer or mean else tokens)  # q·k and weights·v
        merged, whole = any(merge < layer for merge in plan.merges), tokens if layer < plan.last_layer or mean else 1
        total += model.backbone.relative_flops(tokens, whole, merged)
        if layer in plan.exits and model.matryoshka.head == "similarity":
            total += 2 * 2 * tokens * model.config.hidden_size
        if layer in plan.exits and mean:
            total += 2 * tokens * model.config.hidden_size
        if layer in plan.merges:
            row = size * (tokens if mean else 1) if model.matryoshka.merge_weights == "attention" else 0
            total += 2 * tokens * (row + model.config.hidden_size)
            passage = len({int(j * plan.merges[layer]) for j in range(passage)})
    return total


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_take_what_torch_counts(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, plan: Plan
) -> None:
    model, [pair] = make_model(family), make_pairs([SPANS])
    ours = pair_flops(model, plan, pair) - attention_and_merging(model, pair, plan)
    assert ours == linear_flops(model, pair, plan)


@pytest.mark.parametrize("merge_weights", ["attention", "mean"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_mean_pooling_runs_the_last_layer_whole(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, merge_weights: str
) -> None:
    [pair] = make_pairs([SPANS])
    model = make_model(family, own={"pooling": "mean", "merge_weights": merge_weights})
    for plan in PLANS:
        ours = pair_flops(model, plan, pair)
        assert ours - attention_and_merging(model, pair, plan) == linear_flops(model, pair, plan)
        assert ours > pair_flops(make_model(family, own={"merge_weights": merge_weights}), plan, pair)


@pytest.mark.parametrize("kinds", [["c2p"], ["p2c"], ["p2c", "c2p"]])
@pytest.mark.parametrize("merged", [False, True])
def test_relative_positions_take_what_torch_counts(make_model: ModelFactory, kinds: list[str], merged: bool) -> None:
    """Besides them, a block has no product with a batch: its attention is fused."""
    model, tokens = make_model("deberta-v2", pos_att_type=kinds), 9
    spans = Spans(torch.tensor([3]), torch.tensor([5]), torch.tensor([1]))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode():
        hidden = model.backbone.embed(torch.arange(5, 5 + tokens)[None], spans)
        positions = 2 * torch.arange(tokens)[None] if merged else None
        inputs = model.backbone.layer_inputs(hidden, spans, positions=positions)
        with counter:
            model.backbone.block(1, hidden, inputs)
    counted = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    assert counted["aten.bmm"] == model.backbone.relative_flops(tokens, tokens, merged)


@pytest.mark.parametrize(
    "own",
    [
        {"head_layers": ({"kind": "dense", "size": 32, "activation": "tanh"},), "head_bias": True},
        {"head": "yes_no"},
        {"head": "similarity"},
        {"merge_weights": "mean"},
    ],
)
def test_heads_and_merge_weights_are_counted(
    make_model: ModelFactory, make_pairs: PairFactory, own: dict[str, Any]
) -> None:
    model, [pair] = make_model("bert", own=own), make_pairs([SPANS])
    plan = Plan((2, 4, 6), {2: Fraction(1, 2)})
    ours = pair_flops(model, plan, pair) - attention_and_merging(model, pair, plan)
    assert ours == linear_flops(model, pair, plan)


def test_running_deltas_are_counted_and_folded_ones_are_free(
    make_model: ModelFactory, make_pairs: PairFactory, make_adapter: Callable[..., dict[str, LowRank]]
) -> None:
    [pair] = make_pairs([SPANS])
    plan = Plan((4,), {2: Fraction(1, 2)}, (VERTICAL,))
    model = make_model("llama")
    running = Compensation(model, {VERTICAL: make_adapter(model, rank=3)}, fold_limit=0)
    plain = pair_flops(model, plan, pair)
    ours = pair_flops(model, plan, pair, running.running_ranks(plan.adapters))
    with running.applied(plan.adapters):
        counted = linear_flops(model, pair, plan)
    assert ours > plain
    assert ours - attention_and_merging(model, pair, plan) == counted


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_deeper_and_wider_cost_more(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    model, [pair] = make_model(family), make_pairs([(8, 60, 4)])

    @settings(max_examples=40, deadline=None)
    @given(
        layers=st.tuples(st.integers(2, 6), st.integers(2, 6)).map(sorted),
        steps=st.tuples(*[st.sampled_from([Fraction(1, k) for k in (1, 2, 3, 4, 8)])] * 2).map(sorted),
    )
    def check(layers: list[int], steps: list[Fraction]) -> None:
        def cost(depth: int, step: Fraction) -> float:
            return pair_flops(model, Plan((depth,), {1: step} if step < 1 else {}), pair)

        shallow, deep = layers
        narrow, wide = steps
        assert cost(shallow, wide) <= cost(deep, wide)
        assert (cost(shallow, wide) == cost(deep, wide)) == (shallow == deep)
        # Merging itself costs one weighted sum, so a width that saves next to nothing may come out even.
        assert cost(deep, narrow) <= cost(deep, wide)

    check()


def test_longer_texts_cost_more(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model, plan = make_model("llama"), Plan((4,), {1: Fraction(1, 2)})
    costs = [pair_flops(model, plan, pair) for pair in make_pairs([(5, 0, 4), (5, 10, 4), (5, 20, 4), (9, 20, 4)])]
    assert costs == sorted(costs)
    assert len(set(costs)) == 4
