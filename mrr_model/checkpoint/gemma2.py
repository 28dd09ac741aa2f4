"""The published Gemma 2 format: BAAI/bge-reranker-v2.5-gemma2-lightweight (``model_type`` cost_wise_gemma)."""

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

MODEL_TYPE = "cost_wise_gemma"


def read(config: dict[str, Any]) -> CheckpointConfig:
    """Exits every ``layer_sep`` layers from ``start_layer``; merges anywhere by the plain mean; logits capped as Gemma
    2 caps them.
    """
    exits, layers = published_exits(config), config["num_hidden_layers"]
    matryoshka = MatryoshkaConfig(
        exits=exits,
        merge_layers=tuple(range(1, layers)),
        default_merge_layer=published_merge_layer(layers),
        merge_weights="mean",
        logit_softcap=config.get("final_logit_softcapping"),
        template=RELEASE_TEMPLATE,
    )
    return CheckpointConfig(stock_config("gemma2", config), matryoshka, rename_published(exits))
