"""LoRA in training: which modules get one, and that its adapter computes what PEFT computed."""

from collections.abc import Callable

import pytest
import torch

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.compensation import fold
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.lora import LoraConfig, adapter_of, linear_modules, with_lora

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]

SPANS = [(5, 21, 4), (3, 9, 4)]


def test_the_layers_that_run_and_their_heads_get_a_lora(make_model: ModelFactory) -> None:
    names = linear_modules(make_model("llama"), (2, 4))
    assert {name for name in names if name.startswith("heads.")} == {"heads.2.linear", "heads.4.linear"}
    layers = {name.split(".")[2] for name in names if name.startswith("model.")}
    assert layers == {"0", "1", "2", "3"}
    assert sum(name.startswith("model.layers.0.") for name in names) == 7  # q, k, v, o, gate, up, down
    assert len(names) == 2 + 4 * 7


def test_fused_projections_get_a_lora(make_model: ModelFactory) -> None:
    names = [name for name in linear_modules(make_model("phi3"), (1,)) if name.startswith("model.")]
    parts = ["self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"]
    assert names == [f"model.layers.0.{part}" for part in parts]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "llama_bidirec"])
def test_the_adapter_adds_what_the_lora_added(make_model: ModelFactory, make_pairs: PairFactory, family: str) -> None:
    batch = collate(make_pairs(SPANS), 0)
    plan = Plan((2, 4))
    size = LoraConfig(rank=3, alpha=5, dropout=0.0)
    trained = with_lora(make_model(family), size, plan.exits).eval()
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
        expected = trained(batch, plan)
        with trained.disable_adapter():
            plain = trained(batch, plan)
        adapter = adapter_of(trained, trained.state_dict())
        folded = fold(make_model(family), [adapter])(batch, plan)
    assert (expected - plain).abs().max() > 1e-2
    torch.testing.assert_close(folded, expected, atol=1e-5, rtol=1e-5)
