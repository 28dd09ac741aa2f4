"""Checks of the numbers and names in a config.json that decide what a model computes, before anything is built.

A stock configuration checks few of its values: a negative window hides every token, and a wrong name fails far from the
file.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typing_extensions import Self

from mrr_model.compression import MAX_LAYERS

ROPE_TYPES = ("default", *ROPE_INIT_FUNCTIONS)
MAY_BE_ZERO = ("mscale", "mscale_all_dim")
"""Numbers of the rotary parameters for which 0 stands for "not used"."""

MAX_POSITIONS, MAX_HEAD_SIZE = 2**24, 2**16
"""Far beyond any model. Tables of these sizes are allocated before weights can be read."""


def _known_activation(name: str) -> str:
    if name not in ACT2FN:
        raise ValueError(f"must be an activation that transformers knows: {', '.join(ACT2FN)}")
    return name


def _known_dtype(name: str) -> str:
    if not isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype):
        raise ValueError("must be a torch dtype such as float32, bfloat16 or float16")
    return name


Size = Annotated[int, Field(ge=1, lt=2**31)]
Index = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(gt=0)]
Epsilon = Annotated[float, Field(gt=0, lt=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Activation = Annotated[str, AfterValidator(_known_activation)]
Dtype = Annotated[str, AfterValidator(_known_dtype)]
LayerType = Literal["full_attention", "sliding_attention"]


class StockFields(BaseModel):
    """The fields of a stock or published config.json that are checked; each may be missing, others are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    num_hidden_layers: Annotated[int, Field(ge=1, le=MAX_LAYERS)] | None = None
    hidden_size: Size | None = None
    embedding_size: Size | None = None
    intermediate_size: Size | None = None
    hidden_dim: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size | None = None
    type_vocab_size: Index | None = None
    """0 for models without token types."""
    max_position_embeddings: Annotated[int, Field(ge=1, le=MAX_POSITIONS)] | None = None
    pad_token_id: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    """-1 stands for none in configs of early Llama models."""

    hidden_act: Activation | None = None
    hidden_activation: Activation | None = None
    activation: Activation | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None

    sliding_window: Size | None = None
    max_window_layers: Index | None = None
    layer_types: list[LayerType] | None = None
    relative_attention_num_buckets: Annotated[int, Field(ge=32, lt=2**31)] | None = None
    """Of MPNet, whose code looks up 32 whatever its configuration says."""
    rope_theta: Positive | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: Annotated[float, Field(gt=0, le=1)] | None = None
    original_max_position_embeddings: Annotated[int, Field(ge=1, le=MAX_POSITIONS)] | None = None

    rms_norm_eps: Epsilon | None = None
    layer_norm_eps: Epsilon | None = None
    attention_dropout: Dropout | None = None
    hidden_dropout_prob: Dropout | None = None
    attention_probs_dropout_prob: Dropout | None = None
    classifier_dropout: Dropout | None = None
    dropout: Dropout | None = None

    query_pre_attn_scalar: Positive | None = None
    attn_logit_softcapping: Positive | None = None
    final_logit_softcapping: Positive | None = None
    embedding_multiplier: Positive | None = None
    residual_multiplier: Positive | None = None
    attention_multiplier: Positive | None = None
    logits_scaling: Positive | None = None
    temperature: Positive | None = None

    # The published layer-wise formats
    start_layer: Size | None = None
    layer_sep: Size | None = None
    scale_emb: Positive | None = None
    scale_depth: Positive | None = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        heads, groups, layers = self.num_attention_heads, self.num_key_value_heads, self.num_hidden_layers
        if heads and groups and heads % groups:
            raise ValueError(f"num_attention_heads must be a multiple of num_key_value_heads, got {heads} and {groups}")
        if heads and self.hidden_size and self.head_dim is None and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got {self.hidden_size} and {heads}"
            )
        if self.pad_token_id is not None and self.vocab_size and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id must lie below vocab_size, got {self.pad_token_id} and {self.vocab_size}")
        if layers and self.layer_types is not None and len(self.layer_types) != layers:
            raise ValueError(
                f"layer_types must name num_hidden_layers kinds, got {len(self.layer_types)} for {layers} layers"
            )
        if layers and self.start_layer and self.start_layer > layers:
            raise ValueError(f"start_layer must be at most num_hidden_layers, got {self.start_layer} and {layers}")
        size = self.head_dim or (self.hidden_size or 0) // (heads or 1)
        if size > MAX_HEAD_SIZE:
            raise ValueError(f"the size of a head must be at most {MAX_HEAD_SIZE}, got {size}")
        for rope in (self.rope_parameters, self.rope_scaling):
            _check_rope(rope or {})
            if rope and size % 2:
                raise ValueError(f"a head must have an even size to be rotated, got {size}")
        return self


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check the fields of a config.json.

    Raises:
        ValueError: For a value of which no model can be built.
    """
    StockFields.model_validate(dict(fields))


def checked_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Check a stock configuration, which has the family's defaults for what the file left out, and return it.

    Raises:
        ValueError: As `check_fields`.
    """
    check_fields({name: getattr(config, name, None) for name in StockFields.model_fields if "dtype" not in name})
    return config


def _check_rope(rope: Mapping[str, Any]) -> None:
    """Check rotary parameters: a known type, and numbers that rotate."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type must be one of {', '.join(ROPE_TYPES)}, got {kind!r}")
    for name, value in rope.items():
        if name in ("rope_type", "type"):
            continue
        if isinstance(value, Mapping):  # of one type of layer
            _check_rope(value)
            continue
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float | None):
                raise ValueError(f"{name} of the rotary parameters must be a number, got {value!r}")
            if number is None or isinstance(number, bool) or (number == 0 and name in MAY_BE_ZERO):
                continue
            if not 0 < number < float("inf"):
                raise ValueError(f"{name} of the rotary parameters must be above 0 and finite, got {number!r}")
