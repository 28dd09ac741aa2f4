"""What the formats of stock models share: one exit at the last layer, weights renamed, the library's own defaults."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig

from mrr_model.checkpoint import gte
from mrr_model.checkpoint.config import CheckpointConfig, stock_config, stock_type
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.weights import UNUSED, Layout, Part
from mrr_model.modeling.config import MatryoshkaConfig, Pooling, default_merge_layer
from mrr_model.modeling.families import FAMILIES, family_of, is_decoder
from mrr_model.modeling.heads import HeadKind, HeadLayer
from mrr_model.template import InputTemplate

BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq", ".masked_bias")
"""Ends of names that older versions of transformers stored and that are computed."""
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""A norm's weights in checkpoints that were converted from TensorFlow."""
ABSOLUTE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Families of which remote code makes models with other positions under the same `model_type`."""

PREFIXES = {"gte": (gte.PREFIX,)}
"""What checkpoints of a family may write before its names instead of the family's own prefix."""
RENAMED: dict[str, Mapping[str, str]] = {"gte": gte.RENAMED}
"""Names in checkpoints that differ from the modules' in transformers."""
PACKED: dict[str, Mapping[str, tuple[str, ...]]] = {"gte": gte.PACKED}
"""Modules that checkpoints store as one: by that one's name, those in transformers, in the order of their rows."""
FINETUNE = "`mrr finetune --model FOLDER --train ROWS --output OUTPUT`"


@dataclass(frozen=True)
class StockHead:
    """What reads the score of a stock model, and where its weights are stored."""

    pooling: Pooling
    layers: tuple[HeadLayer, ...] = ()
    bias: bool = False
    kind: HeadKind = "linear"
    softcap: float | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    """By stored name, the names in `mrr_model.modeling.heads.ScoreHead`."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """By stored name, the rows of a matrix that are the last layer's weights; named as in `ScoreHead`."""


def check_family(config: Mapping[str, Any]) -> None:
    """Check that a config.json is of a known architecture.

    Raises:
        ValueError: If not; says which are.
    """
    if stock_type(config.get("model_type")) not in FAMILIES:
        raise ValueError(
            f"it has model_type {config.get('model_type')!r} and no 'matryoshka' section, and is of no known family. "
            f"Re-rankers of these families open, and `mrr finetune` makes one from these: {', '.join(FAMILIES)}."
        )


def backbone_config(source: Source) -> PreTrainedConfig:
    """The stock configuration of a folder.

    Raises:
        ValueError: If no model can be built of it.
    """
    config = source.config
    check_family(config)
    positions = config.get("position_embedding_type", "absolute")
    if config.get("model_type") in ABSOLUTE and positions != "absolute":
        raise ValueError(
            f"position_embedding_type {positions!r} of a {config['model_type']} is no stock model: it needs the "
            "repository's own code, which is never run. Choose another model (docs/models.md)."
        )
    return stock_config(config.get("model_type"), config)


def described(
    backbone: PreTrainedConfig,
    head: StockHead,
    *,
    stored: Iterable[str],
    template: InputTemplate,
    defaults: Defaults,
    folder: str = "",
    folders: tuple[str, ...] = ("",),
    **facts: Any,
) -> CheckpointConfig:
    """A stock model with one exit, its last layer.

    It was trained without merging: a causal model's merged tokens keep the middle of their tokens' positions (see
    `Decoder`).

    Args:
        backbone: Its configuration.
        head: What reads its score.
        stored: All stored names.
        template: Its input template.
        defaults: What its own library runs it at.
        folder: The sub-folder of the backbone's weights.
        folders: The sub-folders of all weights.
        facts: The other fields of `CheckpointConfig`.

    Returns:
        The config, which merges after any layer but the last.
    """
    layers = int(backbone.num_hidden_layers)
    matryoshka = MatryoshkaConfig(
        exits=(layers,),
        merge_layers=tuple(range(1, layers)),
        default_merge_layer=default_merge_layer(layers, getattr(backbone, "layer_types", None) or ()),
        merged_positions="middle" if is_decoder(backbone.model_type) else None,
        pooling=head.pooling,
        head=head.kind,
        head_layers=head.layers,
        head_bias=head.bias,
        logit_softcap=head.softcap,
        template=template,
    )
    stock = backbone_layout(backbone, stored, folder)

    def rename(name: str) -> str | None:
        return f"heads.{layers}.{head.weights[name]}" if name in head.weights else stock.rename(name)

    parts = dict(stock.parts)
    for name, part in head.parts.items():
        parts[name] = (*parts.get(name, ()), Part(f"heads.{layers}.{part.name}", part.rows, part.factor))
    return CheckpointConfig(
        backbone, matryoshka, Layout(rename, parts, folders), defaults=defaults, stock=True, folder=folder, **facts
    )


def backbone_layout(backbone: PreTrainedConfig, stored: Iterable[str], folder: str = "") -> Layout:
    """How a stock model's tensors become those of its base model; heads are left out.

    Args:
        backbone: Its configuration.
        stored: Its stored names.
        folder: The sub-folder that holds it, with which its names begin.

    Returns:
        The layout, by the names of the model in `mrr_model.modeling.model`.
    """
    inside, names = f"{folder}/" if folder else "", list(stored)
    prefix = stored_prefix(backbone, [name.removeprefix(inside) for name in names])

    def rename(name: str) -> str | None:
        bare = name.removeprefix(inside)
        known = bare.removeprefix(prefix)
        if not name.startswith(inside) or "/" in bare or not bare.startswith(prefix):
            return None if bare.startswith(UNUSED) else name
        if known.startswith(UNUSED) or bare.endswith(BUFFERS) or name in parts:
            return None
        for old, new in OLD_NAMES.items():
            known = known.removesuffix(old) + new if known.endswith(f"LayerNorm{old}") else known
        return f"model.{_stock_name(backbone.model_type, known)}"

    parts: dict[str, tuple[Part, ...]] = {}
    for name in names:
        for packed, targets in PACKED.get(backbone.model_type, {}).items():
            if f".{packed}." in name:
                size = int(backbone.hidden_size if "qkv" in packed else backbone.intermediate_size)
                known = _stock_name(backbone.model_type, name.removeprefix(inside).removeprefix(prefix))
                parts[name] = tuple(
                    Part(f"model.{known.replace(packed, target)}", slice(index * size, (index + 1) * size))
                    for index, target in enumerate(targets)
                )
    return Layout(rename, parts)


def stored_prefix(backbone: PreTrainedConfig, names: Iterable[str]) -> str:
    """What a checkpoint writes before the names of a stock model's weights."""
    names = list(names)
    own = (family_of(backbone.model_type).prefix, *PREFIXES.get(backbone.model_type, ()))
    return next((prefix for prefix in own if any(name.startswith(prefix) for name in names)), "")


def _stock_name(model_type: str, name: str) -> str:
    """A base model's weight by the name of its module in transformers."""
    for old, new in RENAMED.get(model_type, {}).items():
        name = name.replace(old, new)
    return name
