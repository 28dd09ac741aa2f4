"""GTE's files: the hub's `new` architecture is transformers' `gte`, and both store some modules as one."""

from collections.abc import Mapping
from typing import Any

PREFIX = "new."
"""What both write before the base model's weights."""
RENAMED = {
    "encoder.layer.": "layers.",
    "attention.o_proj": "self_attn.o_proj",
    "attn_ln": "post_attention_layernorm",
    "mlp_ln": "post_mlp_layernorm",
}
"""Stored names, and those of the modules in transformers."""
PACKED = {
    "attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
}
"""Modules that are stored as one, in the order of their rows."""

REQUIRED = {
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "pack_qkv": True,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
}
"""Options of the hub's code, and the values with which it computes what transformers does."""
SWITCHES = ("unpad_inputs", "use_memory_efficient_attention", "rope_theta", "rope_scaling", "model_type")


def gte_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The stock configuration's fields of a config.json of the hub's `new` architecture.

    The hub's `ntk` scaling multiplies the rotary base by the factor, and divides all frequencies by
    factor^(2 / head size): transformers' `linear` scaling of the larger base.

    Raises:
        ValueError: If an option asks for what transformers does not compute.
    """
    for name, value in REQUIRED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} must be {value!r} for a 'new' model, got {config[name]!r}: only stock GTE opens.")
    theta, scaling = float(config.get("rope_theta", 10_000.0)), config.get("rope_scaling")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if scaling is not None:
        if not isinstance(scaling, dict) or scaling.get("type") != "ntk" or scaling.get("mixed_b") is not None:
            raise ValueError(f"rope_scaling must be of type 'ntk', without mixed_b, got {scaling!r}.")
        factor, size = float(scaling["factor"]), config["hidden_size"] // config["num_attention_heads"]
        rope = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / size)}
    kept = {name: value for name, value in config.items() if name not in (*REQUIRED, *SWITCHES)}
    return {**kept, "rope_parameters": rope}
