"""Checkpoints: this project's own format, and the published ones."""

from mrr_model.checkpoint.classifier import is_classifier
from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.formats import is_multi_exit
from mrr_model.checkpoint.io import (
    Checkpoint,
    build,
    load,
    load_outline,
    outline,
    read_checkpoint_config,
    save,
)
from mrr_model.checkpoint.source import read_config

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "Given",
    "build",
    "is_classifier",
    "is_multi_exit",
    "load",
    "load_outline",
    "outline",
    "read_checkpoint_config",
    "read_config",
    "save",
]
