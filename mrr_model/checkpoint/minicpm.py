"""The published MiniCPM format: BAAI/bge-reranker-v2-minicpm-layerwise (``model_type`` minicpm), depth only.

MiniCPM is arithmetically a Granite model: its scaled embeddings and residual branches are Granite's multipliers.
"""

import math
from typing import Any

from mrr_model.checkpoint.blueprint import (
    CheckpointConfig,
    published_exits,
    published_merge_layer,
    rename_published,
    stock_config,
)
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.template import RELEASE_TEMPLATE

MODEL_TYPE = "minicpm"

PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


def read(config: dict[str, Any]) -> CheckpointConfig:
    """An exit after every layer from ``start_layer`` on; no merges."""
    if not (config.get("head_multi") and config.get("head_type") == "simple"):
        raise ValueError(
            "a minicpm checkpoint must have head_multi true and head_type 'simple', got "
            f"head_multi {config.get('head_multi')!r} and head_type {config.get('head_type')!r}."
        )
    exits, layers = published_exits(config), config["num_hidden_layers"]
    head_size = config["hidden_size"] // config["num_attention_heads"]
    multipliers = {
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / math.sqrt(layers),
        "attention_multiplier": head_size**-0.5,
        "logits_scaling": 1.0,
    }
    scaled = {key: value for key, value in config.items() if key not in ("scale_emb", "scale_depth", "dim_model_base")}
    matryoshka = MatryoshkaConfig(
        exits=exits,
        merge_layers=(),
        default_merge_layer=published_merge_layer(layers),
        template=RELEASE_TEMPLATE.model_copy(update={"default_prompt": PROMPT}),
    )
    return CheckpointConfig(stock_config("granite", {**scaled, **multipliers}), matryoshka, rename_published(exits))
