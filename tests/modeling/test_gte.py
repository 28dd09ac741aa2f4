"""The stock configuration of a GTE with the hub's own code."""

import pytest
import torch
from transformers import GteConfig, GteModel

from mrr_model.modeling.gte import stock_fields

HUB = {
    "model_type": "new",
    "architectures": ["NewForSequenceClassification"],
    "auto_map": {"AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig"},
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "position_embedding_type": "rope",
    "rope_theta": 20000,
    "rope_scaling": {"type": "ntk", "factor": 8.0},
    "layer_norm_type": "layer_norm",
    "layer_norm_eps": 1e-12,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "pack_qkv": True,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
    "type_vocab_size": 1,
}
"""The fields of Alibaba-NLP/gte-multilingual-reranker-base."""


@pytest.mark.parametrize("scaling", [None, {"type": "ntk", "factor": 8.0}, {"type": "ntk", "factor": 2.0}])
def test_rotary_frequencies_are_those_of_the_hub_s_code(scaling: dict[str, object] | None) -> None:
    fields = stock_fields({**HUB, "rope_scaling": scaling})
    size, factor = 32, 1.0 if scaling is None else float(str(scaling["factor"]))
    expected = [(20000 * factor) ** (-2 * index / size) / factor ** (2 / size) for index in range(size // 2)]
    model = GteModel(GteConfig(**fields))
    torch.testing.assert_close(model.rotary_emb.inv_freq, torch.tensor(expected))
    assert model.rotary_emb.attention_scaling == 1.0


def test_only_fields_of_the_stock_configuration_are_left() -> None:
    fields = stock_fields(HUB)
    assert fields.keys() <= set(GteConfig().to_dict())
    assert (fields["model_type"], fields["architectures"]) == ("gte", ["GteForSequenceClassification"])
    assert {name: fields[name] for name in ("vocab_size", "layer_norm_eps")} == {
        "vocab_size": 100,
        "layer_norm_eps": 1e-12,
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "absolute"),
        ("layer_norm_type", "rms_norm"),
        ("logn_attention_scale", True),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("rope_scaling", {"type": "ntk", "factor": 2.0, "mixed_b": 0.6}),
    ],
)
def test_what_the_stock_model_cannot_compute_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        stock_fields({**HUB, name: value})
