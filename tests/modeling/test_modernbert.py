"""ModernBERT's packed projections, and windows of merged tokens."""

from collections.abc import Callable
from fractions import Fraction

import torch

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.merging import Spans
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]


def test_packed_projections_run_whole_if_something_hooks_into_them(
    make_model: ModelFactory, make_pairs: PairFactory
) -> None:
    """Adapters add their deltas to the module's output: a part of its weights would miss them."""
    model = make_model("modernbert", local_attention=14)
    batch, plan = collate(make_pairs([(5, 21, 1), (3, 60, 1)]), 0), Plan((3, 6), {2: Fraction(1, 2)})
    with torch.inference_mode():
        expected = model(batch, plan)
        for block in model.backbone.layers:
            block.attn.Wqkv.register_forward_hook(lambda _, __, output: output)
        torch.testing.assert_close(model(batch, plan), expected, atol=1e-5, rtol=1e-5)
        for block in model.backbone.layers:
            block.attn.Wqkv.register_forward_hook(lambda _, __, output: 1.1 * output)
        assert (model(batch, plan) - expected).abs().max() > 1e-3


def test_windows_reach_as_many_original_positions_after_merges(make_model: ModelFactory) -> None:
    backbone = make_model("modernbert", local_attention=4).backbone
    spans = Spans(torch.tensor([2, 1]), torch.tensor([3, 1]), torch.tensor([1, 1]))
    positions = torch.tensor([[0, 1, 2, 4, 6, 8], [0, 3, 9, 9, 9, 9]])
    local = backbone.layer_inputs(torch.zeros(2, 6, 32), spans, positions=positions).block_inputs["sliding_attention"]
    seen = local.block_inputs["attention_mask"][:, 0]
    near = [[abs(a - b) <= 2 for b in row] for row in positions[:1].tolist() for a in row]
    assert seen[0].tolist() == near
    assert seen[1, :3, :3].tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert not seen[1, :3, 3:].any()
    assert seen[1].any(1).all()  # padding sees padding
    assert local.valid.tolist() == [[True, True, True, False, False, False], [True, *[False] * 5]]
