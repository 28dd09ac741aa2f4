"""Checkpoints: this project's own format, and the published ones."""

from mrr_model.checkpoint.formats import CheckpointConfig, is_classifier, is_reranker
from mrr_model.checkpoint.io import (
    Checkpoint,
    build,
    load,
    load_outline,
    outline,
    read_checkpoint_config,
    read_config,
    save,
)

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "build",
    "is_classifier",
    "is_reranker",
    "load",
    "load_outline",
    "outline",
    "read_checkpoint_config",
    "read_config",
    "save",
]
