"""Counted FLOPs against those that torch itself counts while the model runs."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from exits import logits_on_the_way
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.compensation import Compensation, LowRank
from mrr_model.modeling.families import FAMILIES, is_decoder
from mrr_model.modeling.flops import call_flops, pair_flops
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = (5, 21, 4)
HALF = Fraction(1, 2)
PACKED = ("phi3", "modernbert")
"""Families whose queries, keys and values are one product."""
PLANS = [
    Plan((6,)),
    Plan((1,)),
    Plan((3,)),
    Plan((6,), {2: Fraction(1, 2)}),
    Plan((5,), {1: Fraction(1, 3), 3: Fraction(2, 3)}),
    Plan((2, 4, 6), {2: Fraction(1, 2)}),
]


def all_linear_flops(run: Callable[[], object]) -> float:
    """What torch counts of products without a batch while something runs."""
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode():
        run()
    counted = counter.get_flop_counts()["Global"]
    return float(sum(count for operator, count in counted.items() if str(operator) in ("aten.mm", "aten.addmm")))


def linear_flops(model: MatryoshkaModel, pair: EncodedPair, plan: Plan) -> float:
    """What torch counts of the linear layers: matrix products without a batch; attention's are batched or fused.

    Those that run for the relative positions of a batch, (P, D), instead of for its tokens, are left out.
    """
    shared: list[int] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Linear) and args[0].ndim == 2 and len(args[0]) > 1:
            shared.append(2 * output.numel() * module.in_features)

    hook = register_module_forward_hook(note)  # for all modules: one with a hook of its own may run another way
    model.requires_grad_(False)  # the counter follows gradients of modules' inputs; a table of embeddings is one
    linear = all_linear_flops(lambda: model(collate([pair], 0), plan))
    hook.remove()
    return linear - sum(shared)


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


@pytest.mark.parametrize("family", ["llama", *PACKED])
def test_running_deltas_are_counted_and_folded_ones_are_free(
    make_model: ModelFactory, make_pairs: PairFactory, make_adapter: Callable[..., dict[str, LowRank]], family: str
) -> None:
    [pair] = make_pairs([SPANS])
    plan = Plan((4,), {2: Fraction(1, 2)}, (VERTICAL,))
    model = make_model(family)
    running = Compensation(model, {VERTICAL: make_adapter(model, rank=3)}, fold_limit=0)
    plain = pair_flops(model, plan, pair)
    ours = pair_flops(model, plan, pair, running.running_ranks(plan.adapters))
    with running.applied(plan.adapters):
        counted = linear_flops(model, pair, plan)
    assert ours > plain
    assert ours - attention_and_merging(model, pair, plan) == counted


@pytest.mark.parametrize(("pooling", "running"), [(None, False), (None, True), ("mean", False)])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "deberta-v2"])
def test_an_exit_on_the_way_takes_what_its_pooled_token_takes_and_nothing_runs_twice(
    make_model: ModelFactory,
    make_pairs: PairFactory,
    make_adapter: Callable[..., dict[str, LowRank]],
    family: str,
    pooling: str | None,
    running: bool,
) -> None:
    """Every linear layer, counted by torch. DeBERTa's run for relative positions too, once per batch and use."""
    model, pairs = make_model(family, own={"pooling": pooling}).requires_grad_(False), make_pairs([SPANS] * 5)
    mean = model.backbone.pooling == "mean"
    plan, exits, reached = Plan((6,), {1: Fraction(1, 2), 3: Fraction(1, 2)}), (2, 4, 5), [6, 2, 4, 6, 5]
    compensation = Compensation(model, {VERTICAL: make_adapter(model)} if running else {}, fold_limit=0)
    active = (VERTICAL,) if running else ()
    ours = call_flops(model, plan, pairs, (), compensation.running_ranks(active), exits=exits, reached=reached)
    for pair, last in zip(pairs, reached, strict=True):
        passed = [exit_layer for exit_layer in exits if exit_layer < last]
        merges = {layer: step for layer, step in plan.merges.items() if layer < last}
        ours -= attention_and_merging(model, pair, Plan((*passed, last), merges))
        for layer in () if mean else passed:  # the pooled tokens' queries meet all keys and values
            tokens = {2: 5 + 11 + 4, 4: 5 + 6 + 4, 5: 5 + 6 + 4}[layer]
            ours -= 2 * 2 * model.backbone.attention_size * tokens
    with compensation.applied(active):
        counted = all_linear_flops(
            lambda: logits_on_the_way(model, pairs, plan, exits, stopping=(1, 2, 4), rounded=False)
        )
    assert ours == pytest.approx(counted, rel=1e-12)


@pytest.mark.parametrize("family", [family for family in FAMILIES if is_decoder(family) and family != "llama_bidirec"])
def test_a_shared_query_takes_what_it_takes_for_the_deepest_of_its_pairs(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    model, [first, *others] = make_model(family).requires_grad_(False), make_pairs([SPANS] * 4)
    query = SPANS[0]
    pairs = [first, *(replace(pair, input_ids=first.input_ids[:query] + pair.input_ids[query:]) for pair in others)]
    plan, exits, reached = Plan((5,), {1: Fraction(1, 2)}), (2, 3), [2, 3, 3, 0]

    def counted(prefix: SharedPrefix | None) -> float:
        return all_linear_flops(lambda: [read(pairs[:1], 2, prefix), read(pairs[1:3], 3, prefix)])

    def read(some: list[EncodedPair], last: int, prefix: SharedPrefix | None) -> None:
        until = {layer: step for layer, step in plan.merges.items() if layer < last}
        passed = tuple(exit_layer for exit_layer in exits if exit_layer < last)
        if passed:
            logits_on_the_way(model, some, Plan((last,), until), passed, prefix=prefix, rounded=False)
        else:
            model(collate(some, 0, prefix_length=0 if prefix is None else query), Plan((last,), until), prefix)

    ours = [
        call_flops(model, plan, pairs, shared, exits=exits, reached=reached) for shared in ((), [(query, range(4))])
    ]
    # All pairs but one of the deepest save the span's linear layers, and its attention in the layers before the last.
    attention = sum(4 * model.backbone.attention_size * (last - 1) * query * (query + 1) / 2 for last in (2, 3))
    saved = counted(None) - counted(SharedPrefix(torch.tensor(first.input_ids[:query])))
    assert ours[0] - ours[1] - attention == saved


def test_a_pair_that_stops_costs_what_the_plan_to_its_exit_does(
    make_model: ModelFactory, make_pairs: PairFactory
) -> None:
    model, pairs, plan = make_model("bert"), make_pairs([SPANS, (3, 40, 1)]), Plan((6,), {1: HALF, 3: HALF})
    assert call_flops(model, plan, pairs) == sum(pair_flops(model, plan, pair) for pair in pairs)
    stopped = call_flops(model, plan, pairs, exits=(2, 4), reached=[2, 0])
    assert stopped == pair_flops(model, Plan((2,), {1: HALF}), pairs[0])
    passing = call_flops(model, plan, pairs, exits=(2, 4)) - call_flops(model, plan, pairs)
    assert 0 < passing < 0.1 * call_flops(model, plan, pairs)


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
