"""MPNet's relative position bias, and its attention modules, which stay stock modules to everyone else."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tiny import stock_twin
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

HEADS = 4


def test_bias_is_made_once_a_width_for_all_layers_and_pairs(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    backbone = make_model("mpnet").backbone
    batch = collate(make_pairs([(4, 20, 1), (4, 20, 1)]), 1)
    hidden = backbone.embed(batch.input_ids, batch.spans)
    assert backbone.layer_inputs(hidden, batch.spans).block_inputs["attention_mask"].shape == (1, HEADS, 25, 25)
    shorter = collate(make_pairs([(4, 20, 1), (4, 9, 1)]), 1)
    mask = backbone.layer_inputs(hidden, shorter.spans).block_inputs["attention_mask"]
    assert mask.isinf().all((1, 2)).tolist() == [[False] * 25, [False] * 14 + [True] * 11]


@pytest.mark.parametrize("rows", [[list(range(25))], [[0, 1, 3, 7, 40, 41]], [[0, 2, 4], [0, 50, 100]]])
def test_tokens_at_given_positions_attend_as_the_stock_model_s_there(
    make_model: ModelFactory, rows: list[list[int]]
) -> None:
    model, positions = make_model("mpnet"), torch.tensor(rows)
    hidden = torch.randn(*positions.shape, 32, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((len(rows),), positions.shape[1])
    spans = collate([EncodedPair([5] * length, 1, length - 2, 1) for length in lengths.tolist()], 1).spans
    twin = stock_twin(model.model)
    with torch.inference_mode():
        inputs = model.backbone.layer_inputs(hidden, spans, positions=positions)
        whole = model.backbone.block(2, hidden, inputs)
        keys_values = model.backbone.keys_values(2, hidden, inputs)
        pooled = model.backbone.pooled_output(2, model.backbone.pooled_attention(2, hidden, inputs, keys_values))
        for index in range(len(rows)):
            one = hidden[index : index + 1]
            expected = twin.block(2)(one, **twin.inputs(2, one, positions[index : index + 1]))[0]
            torch.testing.assert_close(whole[index : index + 1], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(pooled[index : index + 1], expected[:, 0], atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_bias(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model = make_model("mpnet").train()
    model(collate(make_pairs([(4, 20, 1), (4, 9, 1)]), 1), Plan((6,))).sum().backward()
    grad = model.get_parameter("model.encoder.relative_attention_bias.weight").grad
    assert grad is not None
    assert grad.abs().max() > 0


def test_a_copied_or_pickled_model_scores_alike(make_model: ModelFactory, make_pairs: PairFactory) -> None:
    model, batch, plan = make_model("mpnet"), collate(make_pairs([(4, 20, 1), (4, 9, 1)]), 1), Plan((6,))
    with torch.inference_mode():
        expected = model(batch, plan)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(batch, plan), expected, atol=1e-6, rtol=1e-6)
            assert isinstance(twin.model.encoder.layer[0].attention.attn, MPNetSelfAttention)
