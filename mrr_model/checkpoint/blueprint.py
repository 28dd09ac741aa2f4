"""What a checkpoint folder holds, read from its config.json as data: enough to build the model and to name its
weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.checkpoint.fields import check_fields, checked_config
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.families import is_decoder

PUBLISHED_MERGE_LAYER = 8
"""Where a plain keep ratio merges in the published checkpoints, which were trained with merges at 8, 16 …"""


@dataclass(frozen=True)
class CheckpointConfig:
    """A stock configuration, this project's own, and the name in :class:`MatryoshkaModel` of each stored weight.

    ``rename`` maps a stored module or weight name to the model's, or to None for weights that are not used.
    """

    backbone: PreTrainedConfig
    matryoshka: MatryoshkaConfig
    rename: Callable[[str], str | None]
    defaults: Defaults = NO_DEFAULTS
    """What the checkpoint runs at if its user names nothing else."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """By name, the fingerprint of each compensation adapter with the weights that it was trained for."""


FOREIGN = {
    "model_type",
    "architectures",
    "auto_map",
    "matryoshka",
    "start_layer",
    "layer_sep",
    "layer_wise",
    "head_multi",
    "head_type",
}
"""Fields that a stock base model has no use for, those that would lead to remote code among them."""


def stock_config(model_type: str | None, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A stock configuration of ``model_type`` from the fields of a config.json.

    Raises ``ValueError`` for a family that is not known, and for numbers and names of which no model can be built.
    """
    is_decoder(model_type)  # an error that lists the known families where this is none
    check_fields(fields)
    known = {key: value for key, value in fields.items() if key not in FOREIGN}
    if known.get("pad_token_id") == -1:
        known["pad_token_id"] = None
    return checked_config(CONFIG_MAPPING[str(model_type)].from_dict(known))


def published_exits(config: dict[str, Any]) -> tuple[int, ...]:
    """The exits of a published layer-wise checkpoint: every ``layer_sep`` layers from ``start_layer`` on."""
    check_fields(config)
    return tuple(range(config["start_layer"], config["num_hidden_layers"] + 1, config.get("layer_sep", 1)))


def published_merge_layer(num_layers: int) -> int:
    """Where a plain keep ratio merges in a published checkpoint."""
    return PUBLISHED_MERGE_LAYER if num_layers > PUBLISHED_MERGE_LAYER else default_merge_layer(num_layers)


def rename_published(exits: tuple[int, ...]) -> Callable[[str], str | None]:
    """The renaming that the published formats share: ``lm_head.{i}.linear_head`` is the head of exit i.

    >>> rename_published((4, 5))("lm_head.1.linear_head.weight")
    'heads.5.linear.weight'
    """

    def rename(name: str) -> str | None:
        if not name.startswith("lm_head."):
            return name
        number, _, rest = name.removeprefix("lm_head.").partition(".")
        if not number.isdigit() or int(number) >= len(exits):
            return name
        return f"heads.{exits[int(number)]}.{rest.replace('linear_head', 'linear')}"

    return rename
