"""Every family run layer by layer: equal to transformers' own forward pass, and independent of the batch."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny import EVERY_CASE, TINY, WINDOWS, stock_twin
from torch import Tensor

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling import attention
from mrr_model.modeling.attention import UNFUSED_ROWS, AttentionRow, row_attention, row_weights, visible_positions
from mrr_model.modeling.batch import Batch, EncodedPair, collate
from mrr_model.modeling.compensation import Compensation, LowRank
from mrr_model.modeling.families import FAMILIES
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = [(5, 21, 4), (3, 90, 4), (8, 1, 4), (4, 0, 4), (5, 30, 4)]
"""The second pair is longer than what soft-capped attention takes at a time; the fourth has an empty passage."""
HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
MERGES = {2: HALF, 3: THIRD}


def close(actual: Tensor, expected: Tensor) -> None:
    """Within 1e-5 · max(1, |logit|), the contract's float32 tolerance."""
    limit = 1e-5 * expected.abs().clamp(min=1.0)
    worst = ((actual - expected).abs() / limit).max()
    assert worst <= 1, f"off by {worst:.2f} times the tolerance"


def logits_of(model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(collate(pairs, model.config.pad_token_id or 0), plan)
    return logits


def stock_logits(model: MatryoshkaModel, batch: Batch) -> Tensor:
    """The logits of every layer (B, L) from transformers' own forward pass over the padded batch."""
    lengths = batch.spans.total
    positions = torch.arange(batch.input_ids.shape[1])[None, :]
    valid = positions < lengths[:, None]
    inputs = {"input_ids": batch.input_ids, "attention_mask": valid.long()}
    if model.matryoshka.template.token_types is not None:
        inputs["token_type_ids"] = (positions >= batch.spans.query[:, None]).long()
    twin = stock_twin(model.model)
    with torch.no_grad():
        output = twin.stock(**inputs, output_hidden_states=True)

    def pooled(hidden: Tensor) -> Tensor:
        pooling = model.backbone.pooling
        if pooling == "mean":
            return torch.stack([row[mask].mean(0) for row, mask in zip(hidden, valid, strict=True)])
        return hidden[torch.arange(len(lengths)), lengths - 1 if pooling == "last" else 0]

    logits = []
    for layer in range(1, model.num_layers + 1):
        # A stock model norms its last state by itself, the others not.
        last = layer == model.num_layers
        hidden = output.last_hidden_state if last else twin.norm(output.hidden_states[layer])
        logits.append(model.heads[str(layer)](pooled(hidden)))
    return torch.stack(logits, 1)


@EVERY_CASE
def test_full_width_equals_transformers_at_every_exit(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    model = make_model(family, **changes)
    pairs = make_pairs(SPANS)
    batch = collate(pairs, model.config.pad_token_id)
    expected = stock_logits(model, batch)
    assert expected.std() > 0.1, "the logits of a random model must differ, or equality shows nothing"
    assert batch.input_ids.shape[1] > UNFUSED_ROWS
    close(logits_of(model, pairs, Plan(exits=tuple(range(1, 7)))), expected)
    # One pair alone, read at the last layer: no padding, and the last block runs for the pooled token only.
    for index, pair in enumerate(pairs):
        close(logits_of(model, [pair], Plan(exits=(6,)))[:, 0], expected[index, -1:])


@pytest.mark.parametrize("family", WINDOWS)
def test_windows_of_the_tests_are_felt(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    pairs, plan = make_pairs(SPANS), Plan(exits=(6,))
    windowed = logits_of(make_model(family, **WINDOWS[family]), pairs, plan)
    assert (windowed - logits_of(make_model(family), pairs, plan)).abs().max() > 1e-2


@EVERY_CASE
@pytest.mark.parametrize("merge_weights", ["attention", "mean"])
def test_logit_depends_on_nothing_but_the_pair(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any], merge_weights: str
) -> None:
    model = make_model(family, own={"merge_weights": merge_weights}, **changes)
    pairs = make_pairs(SPANS)
    for exit_layer in (3, 6):
        merges = {layer: step for layer, step in MERGES.items() if layer < exit_layer}
        plan = Plan(exits=(exit_layer,), merges=merges)
        alone = torch.cat([logits_of(model, [pair], plan) for pair in pairs])[:, 0]
        assert alone.std() > 0.05
        together = logits_of(model, pairs, plan)[:, 0]
        close(together, alone)
        order = [3, 1, 4, 0, 2]
        close(logits_of(model, [pairs[index] for index in order], plan)[:, 0], alone[order])
        close(logits_of(model, [pairs[0], pairs[4]], plan)[:, 0], alone[[0, 4]])

    plan = Plan(exits=(2, 3, 5, 6), merges=MERGES)
    several = logits_of(model, pairs, plan)
    for column, exit_layer in enumerate(plan.exits):
        merges = {layer: step for layer, step in MERGES.items() if layer < exit_layer}
        close(logits_of(model, pairs, Plan((exit_layer,), merges))[:, 0], several[:, column])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_id_and_amount_do_not_matter(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    model = make_model(family)
    pairs, plan = make_pairs([(5, 21, 4), (3, 11, 4)]), Plan(exits=(4, 6), merges=MERGES)
    expected = logits_of(model, pairs, plan)
    long = make_pairs([(5, 70, 4)], seed=1)
    close(logits_of(model, pairs + long, plan)[:2], expected)
    with torch.inference_mode():
        close(model(collate(pairs, 77), plan), expected)


@EVERY_CASE
def test_pooled_token_alone_equals_the_whole_block(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    """Evaluation runs the last block for the pooled tokens, training runs it whole, through its own attention."""
    model = make_model(family, **changes)
    pairs = make_pairs(SPANS)
    batch = collate(pairs, model.config.pad_token_id)
    for plan in (Plan(exits=(1,)), Plan(exits=(4,), merges=MERGES), Plan(exits=(2, 6), merges={2: HALF})):
        expected = logits_of(model.eval(), pairs, plan)
        model.train()
        close(model(batch, plan).detach(), expected)  # with gradients: plain matrix products
        with torch.no_grad():
            close(model(batch, plan), expected)  # without: the fused kernel


@EVERY_CASE
@pytest.mark.parametrize("pooling", [None, "mean"])
@pytest.mark.parametrize("running", [False, True], ids=["plain", "adapters"])
def test_a_block_finished_from_its_keys_and_values_equals_the_whole_block(
    make_model: ModelFactory,
    make_pairs: PairFactory,
    make_adapter: Callable[..., dict[str, LowRank]],
    family: str,
    changes: dict[str, Any],
    pooling: str | None,
    running: bool,
) -> None:
    """At every width, with padding; with adapters that run as hooks, of which a part of a weight knows nothing."""
    model = make_model(family, own={"pooling": pooling}, **changes)
    backbone, plan = model.backbone, Plan((6,), MERGES)
    compensation = Compensation(model, {VERTICAL: make_adapter(model)} if running else {}, fold_limit=0)
    with torch.inference_mode(), compensation.applied((VERTICAL,) if running else ()):
        hidden = model.embed(collate(make_pairs(SPANS), model.config.pad_token_id))
        for _ in range(len(MERGES) + 1):  # once per width
            inputs, states = model._layer_inputs(hidden), hidden.states
            for layer in range(hidden.layer + 1, hidden.layer + 3):
                row, own_row = (inputs.attention_row(hidden.counts) for _ in range(2))
                whole = backbone.block(layer, states, inputs, row)
                keys_values = backbone.keys_values(layer, states, inputs)
                for request in (None, own_row):
                    finished = backbone.finish_block(layer, states, inputs, keys_values, request)
                    torch.testing.assert_close(finished, whole, atol=2e-6, rtol=1e-6)
                assert row.weights is not None
                torch.testing.assert_close(own_row.weights, row.weights, atol=1e-6, rtol=1e-5)
                if backbone.pooling != "mean":
                    pooled = backbone.pooled_attention(layer, states, inputs, keys_values)
                    output = backbone.pooled_output(layer, pooled)
                    torch.testing.assert_close(output, inputs.pooled(whole), atol=2e-6, rtol=1e-6)
                states = whole
            hidden = model.run_layers(hidden, plan, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_layer_and_head(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    model = make_model(family).train()
    model(collate(make_pairs(SPANS), 0), Plan(exits=(2, 6), merges=MERGES)).sum().backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if (parameter.grad is None or not parameter.grad.isfinite().all()) and not name.startswith("heads.")
    }
    assert without == set()
    reached = {name for name, parameter in model.heads.named_parameters() if parameter.grad is not None}
    assert reached == {"2.linear.weight", "6.linear.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_checkpointing_changes_no_gradient(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    model, batch, plan = make_model(family).train(), collate(make_pairs(SPANS), 0), Plan((2, 6), MERGES)
    if not model.model.supports_gradient_checkpointing:
        with pytest.raises(ValueError, match="does not support activation checkpointing"):
            model.activation_checkpointing_enable()
        return
    runs: list[int] = []
    # Keys are projected inside the block, so that running it again for its gradients shows.
    model.backbone.key_value_projections(3)[0].register_forward_hook(lambda *_: runs.append(3))
    grads, once = [], 0
    for factor in (1, 2):
        runs.clear()
        model.zero_grad()
        model(batch, plan).sum().backward()
        once = once or len(runs)  # DeBERTa projects its relative positions by the same module
        assert len(runs) == factor * once > 0
        grads.append({name: parameter.grad for name, parameter in model.named_parameters()})
        model.activation_checkpointing_enable()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_near_float32(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    """bfloat16 has three digits: a logit of this size may move by a few hundredths, a wrong path moves it by more."""
    model, pairs = make_model(family), make_pairs(SPANS)
    plan = Plan(exits=(6,), merges=MERGES)
    expected = logits_of(model, pairs, plan)
    model.bfloat16()
    model.heads.float()
    actual = logits_of(model, pairs, plan)
    assert actual.dtype == torch.float32
    assert (actual - expected).abs().max() < 0.15 * expected.std().clamp(min=1.0)


@EVERY_CASE
def test_merge_weights_are_the_pooled_tokens_attention(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    """Against the attention matrices that transformers' eager attention returns."""
    model = make_model(family, **changes)
    pairs = make_pairs(SPANS)
    batch = collate(pairs, model.config.pad_token_id)
    backbone, rows = model.backbone, {}
    with torch.inference_mode():
        hidden = backbone.embed(batch.input_ids, batch.spans)
        inputs = backbone.layer_inputs(hidden, batch.spans)
        for layer in (1, 2, 3):
            rows[layer] = inputs.attention_row()
            hidden = backbone.block(layer, hidden, inputs, rows[layer])
        twin = stock_twin(model.model).stock
        for index, pair in enumerate(pairs):
            ids = torch.tensor([pair.input_ids])
            types = {"token_type_ids": (torch.arange(ids.shape[1]) >= pair.query_length).long()[None]}
            needed = {} if model.matryoshka.template.token_types is None else types
            output = twin(input_ids=ids, output_attentions=True, **needed)
            for layer, row in rows.items():
                attention = output.attentions[layer - 1][0]  # (H, T, T)
                mean = backbone.pooling == "mean"
                expected = (attention.mean(1) if mean else attention[:, -1 if backbone.causal else 0]).sum(0)
                assert row.weights is not None
                torch.testing.assert_close(row.weights[index, : ids.shape[1]], expected, atol=1e-6, rtol=1e-5)
                assert row.weights[index, ids.shape[1] :].eq(0).all()


def test_pooled_token_sees_its_window_only() -> None:
    row = AttentionRow(torch.tensor([5, 2]), torch.tensor([[True] * 6, [True] * 3 + [False] * 3]))
    seen = visible_positions(row, 6, 2)
    assert seen is not None
    assert seen.tolist() == [[False] * 4 + [True] * 2, [False, True, True] + [False] * 3]
    assert visible_positions(AttentionRow(torch.tensor([5]), None), 6, None) is None


@pytest.mark.parametrize("family", ["bert", "xlm-roberta"])
def test_pad_tokens_in_a_text_are_read_as_transformers_reads_them(
    make_model: ModelFactory, make_pairs: PairFactory, family: str
) -> None:
    """A tokenizer turns a literal "<pad>" into that id; XLM-RoBERTa does not count it as a position."""
    model = make_model(family)
    [pair] = make_pairs([(4, 12, 1)])
    ids = list(pair.input_ids)
    ids[6] = ids[9] = model.config.pad_token_id
    batch = collate([replace(pair, input_ids=ids)], model.config.pad_token_id)
    with torch.inference_mode():
        close(model(batch, Plan(exits=(6,))), stock_logits(model, batch)[:, -1:])


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 6), (6, 2), (6, 1)])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_attention_rows_equal_whole_attention_in_any_memory_order_of_keys(
    heads: int, key_heads: int, softcap: float | None
) -> None:
    """Token by token, as projections leave them, or head by head, as joining spans does."""
    batch, tokens, size = 3, 9, 4
    generator = torch.Generator().manual_seed(0)

    def drawn(heads: int) -> torch.Tensor:
        return torch.randn(batch, tokens, heads, size, generator=generator).transpose(1, 2)

    query, key, value = drawn(heads), drawn(key_heads), drawn(key_heads)
    valid = torch.arange(tokens) < torch.tensor([9, 5, 1])[:, None]
    row = AttentionRow(torch.tensor([8, 3, 0]), valid)
    whole_key, whole_value = (part.repeat_interleave(heads // key_heads, 1) for part in (key, value))
    scores = query @ whole_key.transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * (scores / softcap).tanh()
    weights = scores.masked_fill(~valid[:, None, None], float("-inf")).softmax(-1)  # (B, H, T, T)
    each = torch.arange(batch)
    expected = (weights @ whole_value)[each, :, row.index].flatten(1)  # (B, H · d)

    pooled = query[each, :, row.index][:, :, None]  # (B, H, 1, d)
    for keys in (key, key.contiguous()):
        torch.testing.assert_close(row_weights(query, keys, row, 0.3, softcap), weights[each, :, row.index].sum(1))
        torch.testing.assert_close(row_attention(pooled, keys, value, row, 0.3, softcap), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_longest_input_runs(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    model = make_model(family)
    longest = model.backbone.max_tokens
    assert longest == TINY[family].max_tokens
    if longest is not None:
        full = make_pairs([(8, longest - 9, 1)])
        expected = stock_logits(model, collate(full, model.config.pad_token_id))
        close(logits_of(model, full, Plan(exits=(6,))), expected[:, -1:])


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_sliding_window_s_mask_is_made_once_a_width(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    band = attention._band

    def counted(size: int, window: int, device: torch.device, known: dict[int, Tensor]) -> Tensor:
        if window not in known:
            made.append(size)
        return band(size, window, device, known)

    monkeypatch.setattr(attention, "_band", counted)
    model, pairs = make_model(family, **WINDOWS[family]), make_pairs(SPANS)
    plan = Plan(exits=(6,), merges={3: Fraction(1, 2)})
    logits_of(model, pairs, plan)
    assert len(made) == 2
    assert made[0] > made[1]
