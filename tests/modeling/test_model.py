"""The layer loop: against a slow walk over the stock blocks, one pair at a time; and what a Plan may ask for."""

import copy
import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from exits import logits_on_the_way
from pydantic import ValidationError
from tiny import EVERY_CASE, TINY, DecoderWalk, Walk, stock_twin
from torch import Tensor
from transformers import AttentionInterface, AutoModel, PreTrainedConfig

from mrr_model.compression import Compression, Plan
from mrr_model.modeling import attention
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.families import FAMILIES
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix
from mrr_model.modeling.states import HiddenBatch, PooledBatch
from mrr_model.template import BERT_TEMPLATE

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = [(5, 21, 4), (3, 40, 4), (4, 1, 4), (4, 0, 4)]
MERGES = {2: Fraction(1, 2), 3: Fraction(2, 3), 5: Fraction(1, 4)}
DOCUMENT_FIRST = BERT_TEMPLATE.model_copy(update={"query": ("{cls}",), "prompt": ("{sep}", "{query}", "{sep}")})


def logits_of(model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(collate(pairs, model.config.pad_token_id or 0), plan)
    return logits


def slow_logits(model: MatryoshkaModel, pair: EncodedPair, merges: dict[int, Fraction]) -> list[float]:
    """Every exit's logit of one pair: stock blocks with eager attention, and merging as a loop.

    Written from reference/README.md. The attention weights are what eager attention itself returns; nothing of this
    project runs but the heads.
    """
    twin, pooling = stock_twin(model.model), model.backbone.pooling
    query, passage, logits = pair.query_length, pair.passage_length, []
    members = [[token] for token in range(len(pair.input_ids))]  # the tokens that each state stands for

    ids = torch.tensor([pair.input_ids])
    token_types = (torch.arange(ids.shape[1]) >= query).long()[None]
    hidden = twin.embed(ids, token_types if model.matryoshka.template.token_types else torch.zeros_like(ids))
    for layer in range(1, model.num_layers + 1):
        means = slow_means(hidden[0], query, passage) if model.matryoshka.head == "similarity" else None
        kept = [(tokens[0] + tokens[-1]) // 2 for tokens in members]
        positions = kept if model.backbone.keeps_positions else list(range(len(members)))
        hidden, attended = slow_block(twin, layer, hidden, torch.tensor([positions]))
        if pooling == "mean":
            counts = torch.tensor([float(len(tokens)) for tokens in members])
            read = (counts @ twin.norm(hidden)[0] / counts.sum())[None]
            weights = counts * (counts @ attended)
        else:
            index = {"first": 0, "last": -1, "separator": query - 1}[pooling]
            read, weights, counts = twin.norm(hidden[:, index]), attended[index], torch.ones(len(members))
        logits.append(model.heads[str(layer)](read, means)[0].item())
        if layer in merges:
            if model.matryoshka.merge_weights == "mean":
                weights = counts
            groups = slow_groups(query, passage, len(members), merges[layer])
            hidden = slow_merge(hidden[0], weights, groups)[None]
            members = [[token for each in group for token in members[each]] for group in groups]
            passage = len({math.floor(j * merges[layer]) for j in range(passage)})
    return logits


def slow_block(twin: Walk, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """One stock block, and its attention matrix, summed over heads: (1, T, D) and (T, T)."""
    caught: list[Tensor] = []
    hook = twin.attention(layer).register_forward_hook(lambda _, __, output: caught.append(output[1]))
    output = twin.block(layer)(hidden, **twin.inputs(layer, hidden, positions))
    hook.remove()
    return output[0] if isinstance(output, tuple) else output, caught[0][0].sum(0)


def slow_means(hidden: Tensor, query: int, passage: int) -> Tensor:
    """What a similarity head compares, (1, 2, D): the query's tokens but the first, and the passage's."""
    passage_states = hidden[query : query + passage] if passage else torch.zeros(1, hidden.shape[1])
    return torch.stack([hidden[1:query].mean(0), passage_states.mean(0)])[None]


def slow_groups(query: int, passage: int, total: int, step: Fraction) -> list[list[int]]:
    """The states that become one: passage state j goes to group floor(j · step), all others stay alone."""
    groups: dict[int, list[int]] = {}
    for j in range(passage):
        groups.setdefault(math.floor(j * step), []).append(query + j)
    return [*([j] for j in range(query)), *groups.values(), *([j] for j in range(query + passage, total))]


def slow_merge(hidden: Tensor, weights: Tensor, groups: list[list[int]]) -> Tensor:
    """(T, D) to (T', D): a group becomes its weighted average."""
    merged = []
    for members in groups:
        shares = weights[members] if weights[members].sum() > 0 else torch.ones(len(members))
        merged.append((shares[:, None] * hidden[members]).sum(0) / shares.sum())
    return torch.stack(merged)


@pytest.mark.parametrize("merge_weights", ["attention", "mean"])
@pytest.mark.parametrize("pooling", [None, "mean"])
@EVERY_CASE
def test_forward_equals_a_slow_walk(
    make_model: ModelFactory,
    make_pairs: PairFactory,
    family: str,
    changes: dict[str, Any],
    pooling: str | None,
    merge_weights: str,
) -> None:
    model = make_model(family, own={"pooling": pooling, "merge_weights": merge_weights}, **changes)
    pairs = make_pairs(SPANS)
    logits = logits_of(model, pairs, Plan(exits=tuple(range(1, 7)), merges=MERGES))
    for pair, row in zip(pairs, logits, strict=True):
        with torch.inference_mode():
            expected = slow_logits(model, pair, MERGES)
        for actual, logit in zip(row.tolist(), expected, strict=True):
            assert actual == pytest.approx(logit, abs=1e-5 * max(1.0, abs(logit)))


@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("exits", [(1, 2, 3, 4, 5), (3,)], ids=["every exit", "one exit"])
@EVERY_CASE
def test_exits_read_on_the_way_have_the_logits_of_a_plain_pass(
    make_model: ModelFactory,
    make_pairs: PairFactory,
    family: str,
    changes: dict[str, Any],
    exits: tuple[int, ...],
    pooling: str | None,
) -> None:
    """Just before merges, at their layers and just after them, and from the states of whichever pairs are left."""
    model, pairs = make_model(family, own={"pooling": pooling}, **changes), make_pairs([*SPANS, (5, 9, 4), (3, 70, 4)])
    expected = logits_of(model, pairs, Plan((*exits, 6), MERGES)).clone()
    whole = logits_on_the_way(model, pairs, Plan((6,), MERGES), exits)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    stopping = (5, 0)[: len(exits)]  # the longest first: the others' batches become narrower
    some = logits_on_the_way(model, pairs, Plan((6,), MERGES), exits, stopping=stopping)
    for column, row in enumerate(stopping):
        expected[row, column + 1 :] = math.nan
    torch.testing.assert_close(some, expected, atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("rounded", [False, True])
def test_selected_pairs_are_as_wide_as_the_longest_of_them(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, rounded: bool
) -> None:
    model, plan = make_model(family), Plan((6,), MERGES)
    with torch.inference_mode():
        batch = collate(make_pairs(SPANS), 0, rounded=rounded)
        _, hidden = model.read_exit(model.run_layers(model.embed(batch), plan, 2), plan, 3)
        assert hidden.select(range(len(SPANS))) is hidden
        shorter = hidden.select([3, 0])
        assert shorter.spans.total.tolist() == [8, 20]
        assert (len(shorter), shorter.width) == (2, 20)
        assert shorter.keys_values is not None
        assert {shorter.keys_values.key.shape[2], shorter.keys_values.value.shape[2]} == {20}
        assert shorter.states.data_ptr() != hidden.states.data_ptr()
        assert hidden.select([2]).width == (12 if rounded else 9)


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_similarity_heads_equal_a_slow_walk(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    model, pairs = make_model(family, own={"head": "similarity"}), make_pairs(SPANS)
    for merges in ({}, MERGES):
        expected = torch.tensor([slow_logits(model, pair, merges) for pair in pairs])
        together = logits_of(model, pairs, Plan(exits=tuple(range(1, 7)), merges=merges))
        torch.testing.assert_close(together, expected, atol=1e-4, rtol=1e-4)
        for layer in range(1, 7):  # the last exit of a plan runs for the pooled token alone
            alone = logits_of(model, pairs, Plan((layer,), {at: step for at, step in merges.items() if at < layer}))
            torch.testing.assert_close(alone[:, 0], together[:, layer - 1], atol=1e-5, rtol=1e-5)
        on_the_way = logits_on_the_way(model, pairs, Plan((6,), merges), (1, 2, 3, 4, 5))
        torch.testing.assert_close(on_the_way, together, atol=1e-5, rtol=1e-5)
        whole = model.train()(collate(pairs, 0), Plan(tuple(range(1, 7)), merges))
        torch.testing.assert_close(whole.detach(), together, atol=1e-5, rtol=1e-5)
        model.eval()


@pytest.mark.parametrize("family", [family for family, tiny in TINY.items() if issubclass(tiny.walk, DecoderWalk)])
def test_kept_positions_equal_a_slow_walk(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    pairs, plan = make_pairs(SPANS), Plan(exits=tuple(range(1, 7)), merges=MERGES)
    model = make_model(family, own={"merged_positions": "middle"})
    kept = logits_of(model, pairs, plan)
    with torch.inference_mode():
        expected = torch.tensor([slow_logits(model, pair, MERGES) for pair in pairs])
    torch.testing.assert_close(kept, expected, atol=1e-5, rtol=1e-5)
    on_the_way = logits_on_the_way(model, pairs, Plan((6,), MERGES), (1, 2, 3, 4, 5))
    torch.testing.assert_close(on_the_way, expected, atol=1e-5, rtol=1e-5)
    renumbered = logits_of(make_model(family, own={"merged_positions": "renumbered"}), pairs, plan)
    torch.testing.assert_close(kept[:, :2], renumbered[:, :2], atol=1e-5, rtol=1e-5)
    assert (kept - renumbered)[:2, 2:].abs().min() > 1e-4


def run_to_the_end(model: MatryoshkaModel, hidden: HiddenBatch, plan: Plan) -> PooledBatch:
    while hidden.layer < plan.last_layer - 1:
        hidden = model.run_layers(hidden, plan, plan.last_layer - 1)
    return model.pool_last_exit(hidden, plan)


def test_pooled_batches_of_similarity_heads_can_be_copied_together_and_parted(
    make_model: ModelFactory, make_pairs: PairFactory
) -> None:
    model, pairs = make_model("bert", own={"head": "similarity"}), make_pairs(SPANS)
    plan = Plan((2, 5), {1: Fraction(1, 2)})
    with torch.inference_mode():
        first, others = (run_to_the_end(model, model.embed(collate(part, 0)), plan) for part in (pairs[:1], pairs[1:]))
        both = first.new_empty(len(pairs))
        both.part(slice(1)).copy_(first)
        both.part(slice(1, None)).copy_(others)
        expected = logits_of(model, pairs, plan)
        torch.testing.assert_close(model.score_pooled(both, plan.last_layer), expected, atol=1e-5, rtol=1e-5)
        part = model.score_pooled(both.part(slice(1, 3)), plan.last_layer)
        torch.testing.assert_close(part, expected[1:3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_batches_between_merges_can_be_joined_and_parted(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    model, pairs = make_model(family), make_pairs(SPANS)
    plan = Plan((2, 4, 6), {1: Fraction(1, 2), 3: Fraction(1, 2)})
    with torch.inference_mode():
        expected = logits_of(model, pairs, plan)
        merged = [
            model.run_layers(model.embed(collate(part, 0)), plan, plan.last_layer - 1)
            for part in (pairs[:1], pairs[1:])
        ]
        both = HiddenBatch.joined(merged)
        longest = max(int(each.spans.total.max()) for each in merged)
        assert (both.layer, len(both), both.width) == (1, len(pairs), longest)
        for part in (slice(None), slice(1, 3)):
            for _ in range(2):  # a batch can run twice
                pooled = run_to_the_end(model, both.part(part), plan)
            torch.testing.assert_close(
                model.score_pooled(pooled, plan.last_layer), expected[part], atol=1e-5, rtol=1e-5
            )


def test_a_batch_that_was_split_after_its_last_layer_has_inputs_of_its_own(
    make_model: ModelFactory, make_pairs: PairFactory
) -> None:
    model, pairs, plan = make_model("bert"), make_pairs(SPANS), Plan((6,))
    with torch.inference_mode():
        expected = logits_of(model, pairs, plan)
        hidden = model.run_layers(model.embed(collate(pairs, 0)), plan, plan.last_layer - 1)
        for part in (slice(1), slice(1, None)):
            logits = model.score_pooled(model.pool_last_exit(hidden.part(part), plan), plan.last_layer)
            torch.testing.assert_close(logits, expected[part], atol=1e-5, rtol=1e-5)


def test_gradients_reach_both_sides_of_a_similarity(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model = make_model("bert", own={"head": "similarity"}).train()
    with torch.autocast("cpu", torch.bfloat16):
        model(collate(make_pairs(SPANS), 0), Plan((2, 6))).sum().backward()
    for layer in ("2", "6"):
        grads = [parameter.grad for parameter in model.heads[layer].parameters()]
        assert len(grads) == 3
        assert all(grad is not None and grad.isfinite().all() and grad.abs().max() > 0 for grad in grads)
    assert model.model.encoder.layer[4].output.dense.weight.grad.abs().max() > 0


@EVERY_CASE
@pytest.mark.parametrize("merge_weights", ["attention", "mean"])
def test_mean_pooled_logits_depend_on_nothing_but_the_pair(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any], merge_weights: str
) -> None:
    """Alone and in a batch, with rounded widths, at one exit or several, the last block whole or in training."""
    model = make_model(family, own={"pooling": "mean", "merge_weights": merge_weights}, **changes)
    pairs, plan = make_pairs([*SPANS, (3, 90, 4)]), Plan((2, 4, 6), MERGES)
    alone = torch.cat([logits_of(model, [pair], plan) for pair in pairs])
    assert alone.std() > 0.05
    torch.testing.assert_close(logits_of(model, pairs, plan), alone, atol=1e-5, rtol=1e-5)
    pad_id = model.config.pad_token_id or 0
    with torch.inference_mode():
        batch = collate(pairs, pad_id, rounded=True, max_tokens=model.backbone.max_tokens)
        torch.testing.assert_close(model(batch, plan), alone, atol=1e-5, rtol=1e-5)
    for column, exit_layer in enumerate(plan.exits):
        merges = {layer: step for layer, step in MERGES.items() if layer < exit_layer}
        single = logits_of(model, pairs, Plan((exit_layer,), merges))[:, 0]
        torch.testing.assert_close(single, alone[:, column], atol=1e-5, rtol=1e-5)
    trained = model.train()(collate(pairs, pad_id), plan)
    torch.testing.assert_close(trained.detach(), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_mean_pooled_batches_can_be_joined_and_parted(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    model, pairs = make_model(family, own={"pooling": "mean"}), make_pairs(SPANS)
    plan = Plan((2, 6), {1: Fraction(1, 2), 3: Fraction(1, 2)})
    with torch.inference_mode():
        expected = logits_of(model, pairs, plan)
        merged = [
            model.run_layers(model.embed(collate(part, 0)), plan, plan.last_layer - 1)
            for part in (pairs[:1], pairs[1:])
        ]
        both = HiddenBatch.joined(merged)
        assert both.counts is not None
        assert both.counts.sum(1).tolist() == [sum(spans) for spans in SPANS]
        parts = [run_to_the_end(model, both.part(part), plan) for part in (slice(3), slice(3, None))]
        buffer = parts[0].new_empty(len(pairs))
        buffer.part(slice(3)).copy_(parts[0])
        buffer.part(slice(3, None)).copy_(parts[1])
        assert len(buffer) == len(pairs)
        torch.testing.assert_close(model.score_pooled(buffer, plan.last_layer), expected, atol=1e-5, rtol=1e-5)


def test_a_mean_pooled_bfloat16_model_averages_in_float32(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    """512 states of which each is 1: a sum in bfloat16 would stick at 256."""
    model = make_model("llama", own={"pooling": "mean"}).bfloat16()
    hidden = model.embed(collate(make_pairs([(3, 500, 9)]), 0))
    inputs = model.backbone.layer_inputs(hidden.states, hidden.spans)
    hidden = replace(hidden, states=torch.ones_like(hidden.states))
    with torch.autocast("cpu", torch.bfloat16):
        read = model._pooled(hidden, inputs)
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, model.model.norm(hidden.states.float())[:, 0])


@pytest.mark.parametrize(("family", "pooling"), [("llama", "last"), ("bert", "first"), ("bert", "mean")])
def test_kept_positions_are_the_middles_of_the_merged_tokens(
    make_model: ModelFactory,
    make_pairs: PairFactory,
    family: str,
    pooling: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, [pair] = make_model(family, own={"pooling": pooling}), make_pairs([(3, 9, 2)])
    seen: list[list[int] | None] = []
    layer_inputs = model.backbone.layer_inputs

    def watched(hidden: Tensor, spans: Any, prefix: Any = None, positions: Tensor | None = None) -> Any:
        seen.append(None if positions is None else positions[0].tolist())
        return layer_inputs(hidden, spans, prefix)

    monkeypatch.setattr(model.backbone, "layer_inputs", watched)
    plan = Plan((5,), {1: Fraction(1, 2), 3: Fraction(1, 2)})
    logits_of(model, [pair], plan)
    assert seen == [None, None, None]
    seen.clear()
    monkeypatch.setattr(model.backbone, "keeps_positions", True)
    logits_of(model, [pair], plan)
    # 0 1 2 | 3+4 5+6 7+8 9+10 11 | 12 13, then 0 1 2 | 3…6 7…10 11 | 12 13
    assert seen == [None, [0, 1, 2, 3, 5, 7, 9, 11, 12, 13], [0, 1, 2, 4, 8, 11, 12, 13]]


@pytest.mark.parametrize(("family", "pooling"), [("llama", "mean"), ("bert", "first")])
def test_no_query_is_shared_if_it_sees_the_passage_or_is_pooled(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, pooling: str
) -> None:
    model = make_model(family, own={"pooling": pooling})
    assert not model.backbone.shares_prefix
    with pytest.raises(ValueError, match="prefix"):
        model(collate(make_pairs(SPANS), 0, prefix_length=2), Plan((6,)), SharedPrefix(torch.tensor([7, 8])))


@pytest.mark.parametrize("pooling", ["first", "separator"])
def test_a_causal_model_pools_no_token_before_the_passage(make_model: ModelFactory, pooling: str) -> None:
    with pytest.raises(ValueError, match=f"pooling '{pooling}' .*choose last or mean"):
        make_model("llama", own={"pooling": pooling})


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_causal_model_has_no_similarity_heads(make_model: ModelFactory, family: str) -> None:
    with pytest.raises(ValueError, match="similarity heads compare states of an encoder"):
        make_model(family, own={"head": "similarity"})


def test_attention_weights_matter(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    """Or the test above could not tell the weighted average from the plain one."""
    pairs, plan = make_pairs(SPANS), Plan((6,), MERGES)
    for family in FAMILIES:
        weighted, plain = (
            logits_of(make_model(family, own={"merge_weights": kind}), pairs, plan) for kind in ("attention", "mean")
        )
        assert (weighted - plain).abs().max() > 1e-4, family


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_each_layer_works_on_the_planned_width_and_none_runs_beyond_the_exit(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    model = make_model(family)
    widths: dict[int, int] = {}
    for layer, block in enumerate(model.backbone.layers, start=1):
        block.register_forward_pre_hook(lambda _, args, layer=layer: widths.update({layer: args[0].shape[1]}))
    with torch.no_grad():
        for block in model.backbone.layers[5:]:
            for parameter in block.parameters():
                parameter.fill_(float("nan"))
    plan = Plan((2, 5), {1: Fraction(1, 2), 3: Fraction(1, 2)})
    logits = logits_of(model, make_pairs([(5, 20, 4), (2, 8, 1)]), plan)
    assert logits.isfinite().all()
    assert widths == {1: 29, 2: 19, 3: 19, 4: 14}  # block 5 runs in parts, for one token of each pair
    assert [5 + math.ceil(20 * plan.width(layer)) + 4 for layer in range(1, 5)] == list(widths.values())


def test_each_exit_has_its_own_head(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    """Defect 1 of the release: there, asking for one exit scores it with the head of the first."""
    model, pairs = make_model("mistral"), make_pairs(SPANS)
    before = logits_of(model, pairs, Plan((2, 4, 6)))
    with torch.no_grad():
        model.get_parameter("heads.4.linear.weight").mul_(2)
    after = logits_of(model, pairs, Plan((2, 4, 6)))
    torch.testing.assert_close(after, before * torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(logits_of(model, pairs, Plan((4,))), after[:, 1:2])


def test_logits_are_float32_one_column_an_exit(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model = make_model("llama").bfloat16()
    model.heads.float()
    logits = logits_of(model, make_pairs(SPANS), Plan((1, 3, 6)))
    assert logits.shape == (4, 3)
    assert logits.dtype == torch.float32


def test_the_models_heads_are_capped(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    plain, capped = make_model("bert"), make_model("bert", own={"logit_softcap": 0.5})
    pairs, plan = make_pairs(SPANS), Plan((2, 6))
    expected = 0.5 * torch.tanh(logits_of(plain, pairs, plan) / 0.5)
    torch.testing.assert_close(logits_of(capped, pairs, plan), expected)


def test_plan_knows_the_models_own_layers(make_model: ModelFactory) -> None:
    model = make_model("llama", own={"exits": (2, 4, 6), "merge_layers": (1, 3), "default_merge_layer": 3})
    plan = model.plan(Compression(5, 0.5), vertical=True, horizontal=[Fraction(1, 2)])
    assert plan == Plan((4,), {3: Fraction(1, 2)}, ("vertical", "horizontal_1_2"))


def test_weights_have_their_stock_names(make_model: ModelFactory) -> None:
    """So that PEFT, quantization and from_pretrained find what they know."""
    model = make_model("qwen3", own={"exits": (2, 6)})
    stock = {f"model.{name}" for name in AutoModel.from_config(model.config, attn_implementation="eager").state_dict()}
    assert set(model.state_dict()) == stock | {"heads.2.linear.weight", "heads.6.linear.weight"}


def test_model_pickles_into_a_process_that_has_built_none(
    make_model: ModelFactory, make_pairs: PairFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, pairs, plan = make_model("bert"), make_pairs(SPANS), Plan((6,), MERGES)
    expected = logits_of(model, pairs, plan)
    pickled = pickle.dumps(model)
    monkeypatch.delitem(AttentionInterface._global_mapping, attention.NAME)  # as in a fresh process
    torch.testing.assert_close(logits_of(pickle.loads(pickled), pairs, plan), expected, atol=1e-6, rtol=1e-6)


def test_deep_copy_scores_alike_and_stands_alone(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model, pairs, plan = make_model("gemma2"), make_pairs(SPANS), Plan((6,), MERGES)
    expected = logits_of(model, pairs, plan)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(logits_of(twin, pairs, plan), expected, atol=1e-6, rtol=1e-6)


def test_exit_beyond_the_last_layer(make_model: ModelFactory) -> None:
    with pytest.raises(ValueError, match="exit 7 lies beyond the backbone's 6 layers"):
        make_model("llama", own={"exits": (6, 7)})


@pytest.mark.parametrize("exits", [(), (0, 2), (4, 2), (2, 2)])
def test_exits_that_are_no_ascending_layers(exits: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="exits must be ascending layer numbers from 1"):
        MatryoshkaConfig(exits=exits, merge_layers=(1,), default_merge_layer=1, template=BERT_TEMPLATE)


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"pooling": "first"}, "pooling must be separator"),
        ({"pooling": "mean"}, "pooling must be separator"),
        ({"head_layers": ({"kind": "dense", "size": 4},)}, "head_layers must be empty"),
        ({"template": DOCUMENT_FIRST}, "template with the document first"),
    ],
)
def test_similarity_heads_compare_a_query_and_a_passage(own: dict[str, Any], named: str) -> None:
    given = {"exits": (2,), "merge_layers": (1,), "default_merge_layer": 1, "template": BERT_TEMPLATE}
    with pytest.raises(ValidationError, match=named):
        MatryoshkaConfig(**{**given, "head": "similarity", **own})


def test_config_forbids_what_it_does_not_know() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        MatryoshkaConfig(exits=(1,), merge_layers=(), default_merge_layer=1, template=BERT_TEMPLATE, surprise=1)  # type: ignore[call-arg]


def test_unknown_backbone(make_config: Callable[..., PreTrainedConfig]) -> None:
    config: Any = make_config("llama")
    config.model_type = "mamba"
    own = MatryoshkaConfig(exits=(1,), merge_layers=(), default_merge_layer=1, template=BERT_TEMPLATE)
    with pytest.raises(ValueError, match="'mamba' is not a known backbone"):
        MatryoshkaModel.from_config(config, own)


@pytest.mark.parametrize(("layers", "merge_layer"), [(1, 1), (4, 1), (6, 2), (8, 2), (32, 8), (42, 11)])
def test_default_merge_layer_is_a_quarter(layers: int, merge_layer: int) -> None:
    assert default_merge_layer(layers) == merge_layer


@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
def test_rounding_the_widths_changes_no_logit(
    family: str, make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    model = make_model(family)
    pairs = make_pairs([(3, 31, 4), (2, 5, 4), (4, 50, 2)])
    plan = Plan((3, 6), {1: Fraction(1, 2), 4: Fraction(1, 3)})
    pad_id = model.config.pad_token_id or 0
    with torch.no_grad():
        exact = model(collate(pairs, pad_id), plan)
        rounded = model(collate(pairs, pad_id, rounded=True, max_tokens=model.backbone.max_tokens), plan)
    assert (exact - rounded).abs().max() < 1e-5 * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2"])
def test_gradients_flow_through_merge_weights(
    family: str, make_model: ModelFactory, make_pairs: PairFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same forward pass with the weights detached gives the layer before the merge another gradient."""
    batch = collate(make_pairs(SPANS), 0)
    plan = Plan(exits=(3,), merges={1: Fraction(1, 2)})
    whole = attention.row_weights
    grads = []
    for detached in (False, True):
        monkeypatch.setattr(attention, "row_weights", lambda *a, d=detached: whole(*a).detach() if d else whole(*a))
        model = make_model(family).train()
        model(batch, plan).sum().backward()
        first = next(weight for name, weight in model.named_parameters() if "q_proj" in name or "query" in name)
        assert first.grad is not None
        grads.append(first.grad)
    assert (grads[0] - grads[1]).abs().max() > 1e-6
