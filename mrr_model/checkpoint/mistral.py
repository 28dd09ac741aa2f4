"""The published Mistral format: BAAI/Matroyshka-ReRanker-{passage,document,beir} (``model_type`` cost_wise_mistral)."""

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

MODEL_TYPE = "cost_wise_mistral"


def read(config: dict[str, Any]) -> CheckpointConfig:
    """Exits every ``layer_sep`` layers from ``start_layer``; merges anywhere, weighted by attention."""
    exits, layers = published_exits(config), config["num_hidden_layers"]
    matryoshka = MatryoshkaConfig(
        exits=exits,
        merge_layers=tuple(range(1, layers)),
        default_merge_layer=published_merge_layer(layers),
        template=RELEASE_TEMPLATE,
    )
    return CheckpointConfig(stock_config("mistral", config), matryoshka, rename_published(exits))
