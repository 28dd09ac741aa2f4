"""GTE's weights: transformers stores them under the names of the hub's own code, and some modules as one."""

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
