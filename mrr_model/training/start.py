"""The model that a fine-tuning run starts from: this project's checkpoint, another re-ranker or a plain model."""

from typing import Any

from mrr_model import checkpoint
from mrr_model.checkpoint import Checkpoint, is_classifier, is_multi_exit
from mrr_model.checkpoint.formats import is_reranker
from mrr_model.checkpoint.hub import locate
from mrr_model.checkpoint.source import Source
from mrr_model.inference.device import DTYPES
from mrr_model.modeling.families import is_decoder
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.initialize import from_pretrained_backbone, with_exits


def starting_model(config: FinetuneConfig) -> tuple[Checkpoint, str | None]:
    """Open the model that a run starts from.

    Fresh heads are drawn from torch's random state. Compensation that a checkpoint brings goes with it.

    Args:
        config: The run's config.

    Returns:
        The model in training's dtype, and where its heads come from, in words; None if they are the checkpoint's own.

    Raises:
        FileNotFoundError: If there is no such model.
        ValueError: If the config's exits, merge layer, head or stages do not fit the model.
    """
    folder, dtype = locate(config.model), DTYPES[config.dtype]
    source = Source(folder)
    stored = source.config
    if is_multi_exit(stored):
        if any(given is not None for given in (config.exits, config.merge_layer, config.head)):
            raise ValueError(
                f"exits, merge_layer and head are fixed in the checkpoint {config.model!r}; leave them out."
            )
        return checkpoint.load(folder, dtype=dtype), None
    if config.head is None and is_reranker(source):  # each exit starts from its head
        loaded = checkpoint.load(folder, dtype=dtype, dropout=config.dropout)
        start = with_exits(loaded, exits=config.exits, merge_layer=config.merge_layer)
        own = "the model's own classifier" if is_classifier(stored) else "the model's own head"
        return Checkpoint(start.model, start.tokenizer, {}), own
    if "distill" not in config.stages:
        raise ValueError(
            f"{config.model!r} is not a re-ranker yet: the stages {', '.join(config.stages)} need one. Add the stage "
            "distill, or give a checkpoint that it made."
        )
    model, tokenizer = from_pretrained_backbone(
        folder,
        exits=config.exits,
        merge_layer=config.merge_layer,
        head=config.head or "linear",
        dropout=config.dropout,
        dtype=dtype,
    )
    return Checkpoint(model, tokenizer, {}), _origin_of_heads(model, stored)


def _origin_of_heads(model: MatryoshkaModel, stored: dict[str, Any]) -> str:
    if is_decoder(model.config.model_type):
        return 'its language model\'s row for "Yes"'
    instead = ", not from the model's own classifier" if is_classifier(stored) else ""
    return f"fresh {model.matryoshka.head} heads{instead}"
