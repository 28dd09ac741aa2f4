"""What the formats of stock models share: one exit at the last layer, weights renamed, the library's own defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model.checkpoint.config import CheckpointConfig, stock_config
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.weights import UNUSED, Layout, Part
from mrr_model.modeling.config import MatryoshkaConfig, Pooling, default_merge_layer
from mrr_model.modeling.families import FAMILIES, family_of
from mrr_model.modeling.heads import HeadKind, HeadLayer
from mrr_model.template import InputTemplate

BUFFERS = (".position_ids", ".token_type_ids", ".inv_freq", ".masked_bias")
"""Ends of names that older versions of transformers stored and that are computed."""
OLD_NAMES = {".gamma": ".weight", ".beta": ".bias"}
"""A norm's weights in checkpoints that were converted from TensorFlow."""
ABSOLUTE = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Families of which remote code makes models with other positions under the same `model_type`."""

SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
LONGEST = 10**9
"""Tokenizers without a limit say a number above this."""


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
    if config.get("model_type") not in FAMILIES:
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
    stored: Mapping[str, object],
    template: InputTemplate,
    defaults: Defaults,
    folder: str = "",
    folders: tuple[str, ...] = ("",),
    **facts: Any,
) -> CheckpointConfig:
    """A stock model with one exit, its last layer.

    Args:
        backbone: Its configuration.
        head: What reads its score.
        stored: The backbone's weights by stored name.
        template: Its input template.
        defaults: What its own library runs it at.
        folder: The sub-folder of the backbone's weights.
        folders: The sub-folders of all weights.
        facts: The other fields of `CheckpointConfig`.
    """
    layers = int(backbone.num_hidden_layers)
    matryoshka = MatryoshkaConfig(
        exits=(layers,),
        merge_layers=tuple(range(1, layers)),
        default_merge_layer=default_merge_layer(layers),
        pooling=head.pooling,
        head=head.kind,
        head_layers=head.layers,
        head_bias=head.bias,
        logit_softcap=head.softcap,
        template=template,
    )
    own = family_of(backbone.model_type).prefix
    prefix = own if any(name.startswith(own) for name in stored) else ""
    inside = f"{folder}/" if folder else ""

    def rename(name: str) -> str | None:
        if name in head.weights:
            return f"heads.{layers}.{head.weights[name]}"
        if not name.startswith(inside):
            return name
        bare = name.removeprefix(inside)
        known = bare.removeprefix(prefix)
        if known.startswith(UNUSED) or bare.startswith(UNUSED) or bare.endswith(BUFFERS):
            return None
        for old, new in OLD_NAMES.items():
            known = known.removesuffix(old) + new if known.endswith(f"LayerNorm{old}") else known
        return f"model.{known}" if bare.startswith(prefix) else name

    parts = {name: (Part(f"heads.{layers}.{part.name}", part.rows, part.factor),) for name, part in head.parts.items()}
    return CheckpointConfig(
        backbone, matryoshka, Layout(rename, parts, folders), defaults=defaults, stock=True, **facts
    )


def library_max_length(tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedConfig) -> int | None:
    """The tokens of an input that sentence-transformers allows: the tokenizer's limit and the model's positions.

    None if neither says a number.
    """
    limits = [tokenizer.model_max_length, getattr(backbone, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < LONGEST]
    return min(known, default=None)


def library_activation(config: Mapping[str, Any], modular: Mapping[str, Any] | None = None) -> str:
    """The activation that sentence-transformers applies to one label's logit, by its class.

    Args:
        config: config.json.
        modular: config_sentence_transformers.json, which counts only beside a modules.json.
    """
    own = config.get("sentence_transformers")
    for named in (
        (modular or {}).get("activation_fn"),
        own.get("activation_fn") if isinstance(own, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    ):
        if isinstance(named, str) and named.startswith("torch."):  # others are remote code, and sigmoid is used instead
            return named
    return SIGMOID


def activation_facts(activation: str) -> tuple[bool, tuple[str, ...]]:
    """Whether scores are probabilities by default, and a note if they cannot be what the library returns."""
    name = activation.rpartition(".")[2]
    if name in ("Sigmoid", "Identity"):
        return name == "Sigmoid", ()
    return False, (
        f"its library applies {activation} to the logits; here scores are the logits, or probabilities by a sigmoid "
        "with normalize=True.",
    )
