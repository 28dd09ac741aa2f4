"""A tiny configuration of every family, one row each, and how a test calls the parts of its stock model one by one.

Shapes: T tokens, D hidden size; one pair at a time.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from mrr_model.modeling.families import config_class, model_class, without_pooler
from mrr_model.template import BERT_TEMPLATE, RELEASE_TEMPLATE, InputTemplate

LAYERS = 6


class Walk:
    """The parts of a stock encoder of BERT's block. A family that differs overrides what differs.

    Args:
        stock: The base model, with eager attention.
    """

    def __init__(self, stock: Any) -> None:
        self.stock = stock

    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        """Ids and token type ids (1, T) to the states before the first block, (1, T, D)."""
        return self.stock.embeddings(input_ids=ids, token_type_ids=token_types)

    def block(self, layer: int) -> nn.Module:
        return self.stock.encoder.layer[layer - 1]

    def attention(self, layer: int) -> nn.Module:
        """The module whose second output is the attention matrices, (1, H, T, T)."""
        return self.block(layer).attention.self

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        """What a block takes besides its states; `positions` (1, T): the tokens' positions."""
        return {"attention_mask": None}

    def norm(self, hidden: Tensor) -> Tensor:
        """The model's last norm, if it has one."""
        return hidden


class ElectraWalk(Walk):
    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        hidden = super().embed(ids, token_types)
        return self.stock.embeddings_project(hidden) if hidden.shape[-1] != self.stock.config.hidden_size else hidden


class DistilBertWalk(Walk):
    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        return self.stock.embeddings(ids)

    def block(self, layer: int) -> nn.Module:
        return self.stock.transformer.layer[layer - 1]

    def attention(self, layer: int) -> nn.Module:
        return self.block(layer).attention


class MPNetWalk(Walk):
    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        return self.stock.embeddings(ids)

    def attention(self, layer: int) -> nn.Module:
        return self.block(layer).attention.attn

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        """The stock model's bias, for tokens that may lie apart: rows and columns of that of all positions."""
        whole = self.stock.encoder.compute_position_bias(hidden.new_zeros(1, int(positions.max()) + 1, 1))
        bias = whole[:, :, positions[0]][:, :, :, positions[0]]
        return {"position_bias": bias, "output_attentions": True}


class DecoderWalk(Walk):
    """The parts of a stock causal model."""

    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        return self.stock.embed_tokens(ids) * getattr(self.stock, "embedding_multiplier", 1.0)

    def block(self, layer: int) -> nn.Module:
        return self.stock.layers[layer - 1]

    def attention(self, layer: int) -> nn.Module:
        return self.block(layer).self_attn

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        size, window = hidden.shape[1], self.window(layer)
        distance = torch.arange(size)[:, None] - torch.arange(size)[None, :]
        hidden_positions = (distance < 0) | (distance >= (window or size))
        mask = torch.zeros(size, size).masked_fill(hidden_positions, torch.finfo(torch.float32).min)[None, None]
        return {
            "attention_mask": mask,
            "position_ids": positions,
            "position_embeddings": self.rotary(layer, hidden, positions),
        }

    def rotary(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary angles of a layer."""
        angles: tuple[Tensor, Tensor] = self.stock.rotary_emb(hidden, position_ids=positions)
        return angles

    def window(self, layer: int) -> int | None:
        """How many tokens back a layer sees."""
        config = self.stock.config
        full = getattr(config, "layer_types", None) and config.layer_types[layer - 1] == "full_attention"
        return None if full else getattr(config, "sliding_window", None)

    def norm(self, hidden: Tensor) -> Tensor:
        return self.stock.norm(hidden)


class Gemma3Walk(DecoderWalk):
    """Gemma 3's local and global layers have rotary angles of their own."""

    def rotary(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles: tuple[Tensor, Tensor] = self.stock.rotary_emb(
            hidden, positions, self.stock.config.layer_types[layer - 1]
        )
        return angles


class BidirectionalWalk(DecoderWalk):
    """A causal model's parts, and no mask."""

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {**super().inputs(layer, hidden, positions), "attention_mask": None}


class GteWalk(Walk):
    """The parts of a stock GTE."""

    def block(self, layer: int) -> nn.Module:
        return self.stock.layers[layer - 1]

    def attention(self, layer: int) -> nn.Module:
        return self.block(layer).self_attn

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        return {"attention_mask": None, "position_embeddings": self.stock.rotary_emb(hidden, positions)}


class ModernBertWalk(GteWalk):
    """The parts of a stock ModernBERT."""

    def embed(self, ids: Tensor, token_types: Tensor) -> Tensor:
        return self.stock.embeddings(input_ids=ids)

    def attention(self, layer: int) -> nn.Module:
        return self.block(layer).attn

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        kind = self.stock.config.layer_types[layer - 1]
        mask = None
        if kind == "sliding_attention":
            distance = (positions[:, :, None] - positions[:, None, :]).abs()  # (1, T, T)
            far = distance > self.stock.config.local_attention // 2
            mask = torch.zeros(far.shape).masked_fill(far, torch.finfo(torch.float32).min)[:, None]
        return {"attention_mask": mask, "position_embeddings": self.stock.rotary_emb(hidden, positions, kind)}

    def norm(self, hidden: Tensor) -> Tensor:
        return self.stock.final_norm(hidden)


class DebertaWalk(Walk):
    """The parts of a stock DeBERTa-v2."""

    def inputs(self, layer: int, hidden: Tensor, positions: Tensor) -> dict[str, Any]:
        encoder = self.stock.encoder
        relative = positions[:, :, None] - positions[:, None, :]  # (1, T, T)
        if encoder.position_buckets > 0:
            relative = make_log_bucket_position(relative, encoder.position_buckets, encoder.max_relative_positions)
        return {
            "attention_mask": torch.ones(1, 1, *relative.shape[1:]),
            "relative_pos": relative.long(),
            "rel_embeddings": encoder.get_rel_embedding(),
            "output_attentions": True,
        }


@dataclass(frozen=True)
class Tiny:
    """One family.

    Attributes:
        config: The stock configuration's fields. Layers, sizes and no dropout; `initializer_range` is large, so that
            the logits of random models differ.
        variants: Configurations that run through other code, by name: the fields that change. `window` is a window
            shorter than the tests' inputs.
        template: How pairs become spans.
        own: Fields of `MatryoshkaConfig`.
        max_tokens: The positions that the configuration has.
        walk: The stock model's parts.
    """

    config: Mapping[str, Any]
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    template: InputTemplate = RELEASE_TEMPLATE
    own: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    walk: type[Walk] = Walk


DECODER: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
ENCODER: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 130,
    "initializer_range": 0.15,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
XLM_ROBERTA_TEMPLATE = InputTemplate(
    query=("{cls}", "{query}", "{sep}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="longest_first"
)
"""`<s> query </s></s> passage </s>`."""
ROBERTA = Tiny({**ENCODER, "type_vocab_size": 1}, template=XLM_ROBERTA_TEMPLATE, max_tokens=128)
NO_TOKEN_TYPES = BERT_TEMPLATE.model_copy(update={"token_types": None})
DEBERTA: dict[str, Any] = {
    **ENCODER,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": 20,  # both shorter than the tests' inputs
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
MODERNBERT: dict[str, Any] = {
    **{name: value for name, value in ENCODER.items() if "dropout" not in name},
    "max_position_embeddings": 1024,
    "local_attention": 128,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}
"""Qwen's windows hold from the fourth layer on."""


def longrope(original: int) -> dict[str, Any]:
    """The fields of a Phi-3 that was trained on inputs of `original` tokens and extended to longer ones."""
    factors = {"short_factor": [1.0, 1.2, 1.5, 2.0], "long_factor": [1.5, 3.0, 6.0, 12.0]}
    return {
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": original,
        "rope_parameters": {"rope_type": "longrope", "factor": 1024 / original, **factors},
    }


TINY: dict[str, Tiny] = {
    "mistral": Tiny(DECODER, {"window": {"sliding_window": 7}}, walk=DecoderWalk),
    "llama": Tiny(DECODER, walk=DecoderWalk),
    "qwen2": Tiny(DECODER, {"window": QWEN_WINDOW}, walk=DecoderWalk),
    "qwen3": Tiny({**DECODER, "head_dim": 12}, {"window": QWEN_WINDOW}, walk=DecoderWalk),
    "gemma": Tiny({**DECODER, "head_dim": 12}, walk=DecoderWalk),
    # A low cap, so that capping shows; a head size that is not hidden size / heads, as in the real model.
    "gemma2": Tiny(
        {**DECODER, "head_dim": 12, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
        {"window": {"sliding_window": 7}},  # in every other layer
        own={"logit_softcap": 30.0},
        walk=DecoderWalk,
    ),
    "gemma3_text": Tiny(
        {
            **DECODER,
            "head_dim": 12,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            },
        },
        {"window": {"sliding_window": 7}},
        walk=Gemma3Walk,
    ),
    # Half of each head is rotated, as in Phi-4-mini. LongRoPE's long factors hold for every input of the tests.
    "phi3": Tiny(
        {**DECODER, "partial_rotary_factor": 0.5},
        {"window": {"sliding_window": 7}, "longrope": longrope(original=6)},
        walk=DecoderWalk,
    ),
    "llama_bidirec": Tiny(DECODER, walk=BidirectionalWalk),
    "granite": Tiny(
        {
            **DECODER,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.3,
            "logits_scaling": 2.0,
        },
        walk=DecoderWalk,
    ),
    "bert": Tiny(ENCODER, template=BERT_TEMPLATE, max_tokens=130),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": Tiny(
        {**ENCODER, "embedding_size": 32},
        {"projected": {"embedding_size": 24}},
        template=BERT_TEMPLATE,
        max_tokens=130,
        walk=ElectraWalk,
    ),
    "distilbert": Tiny(
        {
            **{field: ENCODER[field] for field in ("vocab_size", "max_position_embeddings", "initializer_range")},
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": LAYERS,
            "n_heads": 4,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "pad_token_id": 1,
        },
        template=NO_TOKEN_TYPES,
        max_tokens=130,
        walk=DistilBertWalk,
    ),
    "mpnet": Tiny(ENCODER, template=XLM_ROBERTA_TEMPLATE, max_tokens=128, walk=MPNetWalk),
    "deberta-v2": Tiny(
        DEBERTA,
        {
            # The first version's way: absolute positions too, token types, relative ones without buckets.
            "absolute": {
                "position_biased_input": True,
                "type_vocab_size": 2,
                "position_buckets": -1,
                "max_relative_positions": -1,
                "share_att_key": False,
                "norm_rel_ebd": "none",
                "embedding_size": 24,
            },
            "c2p": {"pos_att_type": ["c2p"]},
            "p2c": {"pos_att_type": ["p2c"], "share_att_key": False},
        },
        template=BERT_TEMPLATE,
        walk=DebertaWalk,
    ),
    "modernbert": Tiny(
        MODERNBERT,
        {
            "window": {"local_attention": 14},
            "biased": {
                "attention_bias": True,
                "mlp_bias": True,
                "norm_bias": True,
                "classifier_bias": True,
                "classifier_activation": "relu",
                "classifier_pooling": "mean",
            },
        },
        template=NO_TOKEN_TYPES,
        walk=ModernBertWalk,
    ),
    "gte": Tiny(
        {**ENCODER, "max_position_embeddings": 1024, "type_vocab_size": 2},
        {"untyped": {"type_vocab_size": 0}},
        template=BERT_TEMPLATE,
        walk=GteWalk,
    ),
}
"""Every family by its `model_type`."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{family}-{name}" if name else family: (family, dict(changes))
    for family, tiny in TINY.items()
    for name, changes in {"": {}, **tiny.variants}.items()
}
"""Every family and each of its variants: the `model_type` and the fields that change, by a name for the test."""
EVERY_CASE = pytest.mark.parametrize(("family", "changes"), VARIANTS.values(), ids=VARIANTS)
WINDOWS = {family: dict(tiny.variants["window"]) for family, tiny in TINY.items() if "window" in tiny.variants}
"""The families that can look at a window of tokens only, with the fields that set it."""


def stock_config(family: str, **changes: Any) -> PreTrainedConfig:
    """A tiny stock configuration."""
    return config_class(family)(**{**TINY[family].config, **changes})


def stock_twin(model: PreTrainedModel) -> Walk:
    """The parts of a stock model with the same weights and the plainest attention."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"
    stock: Any = model_class(config.model_type)
    twin = stock._from_config(config, attn_implementation="eager", **without_pooler(stock)).eval()
    twin.load_state_dict(model.state_dict())
    return TINY[config.model_type].walk(twin)
