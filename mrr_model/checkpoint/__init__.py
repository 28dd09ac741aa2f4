"""Checkpoints: this project's own format, and the published ones."""

from mrr_model.checkpoint.io import (
    Checkpoint,
    build,
    is_classifier,
    load,
    load_outline,
    outline,
    read_checkpoint_config,
    read_config,
    save,
)

__all__ = [
    "Checkpoint",
    "build",
    "is_classifier",
    "load",
    "load_outline",
    "outline",
    "read_checkpoint_config",
    "read_config",
    "save",
]
