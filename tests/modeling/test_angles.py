"""Rotary angles that depend on the length of the input: each row has those of its own length."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny import longrope, stock_twin
from torch import Tensor

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = [(5, 21, 4), (3, 60, 4), (4, 30, 4), (4, 0, 4)]
"""The two in the middle are longer than 32 tokens."""
SCALED: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", longrope(original=32)),
    "dynamic": ("llama", {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}),
}
EVERY_SCALED = pytest.mark.parametrize(("family", "changes"), SCALED.values(), ids=SCALED)


def logits_of(model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(collate(pairs, 0), plan)
    return logits


@EVERY_SCALED
def test_logits_are_those_of_the_stock_model_for_each_pair_alone(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    """transformers scales a batch by its longest row, and a dynamic scale stays for the next batch."""
    model, pairs = make_model(family, **changes), make_pairs(SPANS)
    expected = []
    for pair in pairs:
        stock = stock_twin(model.model).stock
        with torch.inference_mode():
            hidden = stock(input_ids=torch.tensor([pair.input_ids])).last_hidden_state[:, -1]
            expected.append(model.heads["6"](hidden))
    plan = Plan((6,))
    for _ in range(2):
        torch.testing.assert_close(logits_of(model, pairs, plan)[:, 0], torch.cat(expected), atol=1e-5, rtol=1e-5)
        for pair, logit in zip(pairs, expected, strict=True):
            torch.testing.assert_close(logits_of(model, [pair], plan)[0], logit, atol=1e-5, rtol=1e-5)


@EVERY_SCALED
def test_lengths_of_the_tests_are_felt(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    """Frequencies of short inputs in long ones give other logits; those of short inputs stay."""
    model, pairs, plan = make_model(family, **changes), make_pairs(SPANS), Plan((6,))
    before = logits_of(model, pairs, plan)
    model.backbone.rotary.kind = None  # type: ignore[attr-defined]  # the stock module then picks by the longest row
    after = torch.cat([logits_of(model, [pair], plan) for pair in pairs[::3]])
    torch.testing.assert_close(after, before[::3], atol=1e-5, rtol=1e-5)
    assert (logits_of(model, pairs, plan) - before)[0].abs() > 1e-3


@EVERY_SCALED
@pytest.mark.parametrize("merged_positions", ["renumbered", "middle"])
def test_merged_pairs_have_the_angles_of_their_own_length(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any], merged_positions: str
) -> None:
    model = make_model(family, own={"merged_positions": merged_positions}, **changes)
    pairs = make_pairs(SPANS)
    plan = Plan((3, 6), {2: Fraction(1, 2), 4: Fraction(1, 3)})
    together = logits_of(model, pairs, plan)
    alone = torch.cat([logits_of(model, [pair], plan) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@EVERY_SCALED
def test_pairs_share_no_query(
    make_model: ModelFactory, make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    model, pairs = make_model(family, **changes), make_pairs([(5, 21, 4), (5, 60, 4)])
    assert not model.backbone.shares_prefix
    assert make_model(family).backbone.shares_prefix
    prefix = SharedPrefix(torch.tensor(pairs[0].input_ids[:5]))
    with pytest.raises(ValueError, match="prefix"):
        model(collate(pairs, 0, prefix_length=5), Plan((6,)), prefix)


def test_texts_of_one_query_get_the_scores_of_single_calls(make_checkpoint: Callable[..., Checkpoint]) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("phi3", adapters=False, **longrope(original=64)))
    texts = [f"passage {number} " * (2 * number + 1) for number in range(6)]
    together = reranker.score("what is a panda", texts, normalize=False)
    alone = [reranker.score("what is a panda", [text], normalize=False)[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


def test_scaling_of_single_layer_types_is_refused(make_model: ModelFactory) -> None:
    kinds = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0},
    }
    with pytest.raises(ValueError, match="rope_type 'dynamic' is not supported"):
        make_model("gemma3_text", rope_parameters=kinds)
