"""Checkpoint formats: which one a config.json is of, and what it says of the model. One table, `FORMATS`.

This project's own format is a stock config.json with a `matryoshka` section, beside safetensors, a tokenizer, a model
card and adapters. No other library opens it with heads of its own making: transformers does not know the `model_type`
and refuses; sentence-transformers' CrossEncoder loads this project's module, or refuses if that is not trusted.

A published format is an entry of the table: which stock model it is, and what it adds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import ValidationError
from transformers import PreTrainedConfig

from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.checkpoint.fields import check_fields, checked_config
from mrr_model.checkpoint.weights import Rename
from mrr_model.files.damage import faults_of
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.families import FAMILIES, config_class
from mrr_model.template import RELEASE_TEMPLATE

SECTION = "matryoshka"
"""The section of config.json, and its `model_type`; the section's `backbone` is the stock model's."""
VERSION = 1
"""Of this project's format."""

MODULE = "mrr_integrations.sentence_transformers.MatryoshkaModule"
ACTIVATIONS = {True: "torch.nn.modules.activation.Sigmoid", False: "torch.nn.modules.linear.Identity"}
"""What CrossEncoder applies to logits, by whether scores are normalized."""

MINICPM_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)

NOT_STOCK = {
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
"""Fields that a stock base model does not use, those that would lead to remote code among them."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint's config.json says: enough to build the model and to name its weights."""

    backbone: PreTrainedConfig
    """The stock model's configuration."""
    matryoshka: MatryoshkaConfig
    """Exits, merges, heads and the input template."""
    rename: Rename
    """The model's name for each stored weight."""
    defaults: Defaults = NO_DEFAULTS
    """What the checkpoint runs at unless its user says otherwise."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """By name, the fingerprint of each compensation adapter with the weights that it was trained for."""


class Format(Protocol):
    """An entry of `FORMATS`."""

    def read(self, config: dict[str, Any]) -> CheckpointConfig:
        """Read a config.json.

        Raises:
            KeyError: If it lacks a field that the format needs.
            ValueError: If no model can be built of it.
        """
        ...


@dataclass(frozen=True)
class LayerwiseFormat:
    """A published format: a stock decoder with a head for every `layer_sep`-th layer from `start_layer`.

    Args:
        backbone: The stock model's `model_type`.
        merges: Whether tokens may merge, after any layer but the last.
        merge_weights: How merged states are weighted.
        softcap: The field of config.json that caps logits.
        prompt: The default prompt; None: the release's.
        stock_fields: The stock configuration's fields, from those of config.json.
    """

    backbone: str
    merges: bool = True
    merge_weights: Literal["attention", "mean"] = "attention"
    softcap: str | None = None
    prompt: str | None = None
    stock_fields: Callable[[dict[str, Any]], dict[str, Any]] = dict

    def read(self, config: dict[str, Any]) -> CheckpointConfig:
        check_fields(config)
        layers = config["num_hidden_layers"]
        exits = tuple(range(config["start_layer"], layers + 1, config.get("layer_sep", 1)))
        prompt = {} if self.prompt is None else {"default_prompt": self.prompt}
        matryoshka = MatryoshkaConfig(
            exits=exits,
            merge_layers=tuple(range(1, layers)) if self.merges else (),
            default_merge_layer=8 if layers > 8 else default_merge_layer(layers),  # trained with merges at 8, 16 …
            merge_weights=self.merge_weights,
            logit_softcap=config.get(self.softcap) if self.softcap else None,
            template=RELEASE_TEMPLATE.model_copy(update=prompt),
        )
        return CheckpointConfig(stock_config(self.backbone, self.stock_fields(config)), matryoshka, rename_heads(exits))


class NativeFormat:
    """This project's own format."""

    def read(self, config: dict[str, Any]) -> CheckpointConfig:
        if not isinstance(config[SECTION], dict):
            raise ValueError(f"the {SECTION!r} section must be a JSON object, got {type(config[SECTION]).__name__}.")
        section = dict(config[SECTION])
        version = section.pop("format", None)
        if version != VERSION:
            raise ValueError(
                f"this checkpoint has format {version!r}, this version of mrr_model reads {VERSION}: "
                "upgrade matryoshka-reranker."
            )
        if config.get("model_type") != SECTION:
            raise ValueError(f"config.json has a {SECTION!r} section, so its model_type must be {SECTION!r}.")
        backbone, adapters = section.pop("backbone", None), section.pop("adapters", {})
        if not isinstance(adapters, dict):
            raise ValueError(f"adapters in the {SECTION!r} section must map names to fingerprints, got {adapters!r}.")
        try:
            defaults = Defaults(**section.pop("defaults", {}))
            matryoshka = MatryoshkaConfig(**section)
        except ValidationError as error:
            raise ValueError(f"the {SECTION!r} section of config.json cannot be read: {faults_of(error)}") from None
        except TypeError as error:
            raise ValueError(f"the {SECTION!r} section of config.json cannot be read: {error}") from None
        return CheckpointConfig(stock_config(backbone, config), matryoshka, lambda name: name, defaults, adapters)

    def write(self, config: CheckpointConfig) -> dict[str, Any]:
        """The config.json of a model."""
        fields = config.backbone.to_dict()
        for unused in ("_name_or_path", "architectures"):
            fields.pop(unused, None)
        section: dict[str, Any] = {"format": VERSION, "backbone": config.backbone.model_type}
        if defaults := config.defaults.model_dump(mode="json", exclude_defaults=True):
            section["defaults"] = defaults
        if config.adapters:
            section["adapters"] = dict(config.adapters)
        return {**fields, "model_type": SECTION, SECTION: {**section, **config.matryoshka.model_dump(mode="json")}}


def _granite_fields(config: dict[str, Any]) -> dict[str, Any]:
    """MiniCPM as a Granite model, whose multipliers do what MiniCPM's scaled embeddings and residual branches do."""
    if not (config.get("head_multi") and config.get("head_type") == "simple"):
        raise ValueError(
            "a minicpm checkpoint must have head_multi true and head_type 'simple', got "
            f"head_multi {config.get('head_multi')!r} and head_type {config.get('head_type')!r}."
        )
    stock = {key: value for key, value in config.items() if key not in ("scale_emb", "scale_depth", "dim_model_base")}
    return {
        **stock,
        "embedding_multiplier": config["scale_emb"],
        "residual_multiplier": config["scale_depth"] / math.sqrt(config["num_hidden_layers"]),
        "attention_multiplier": (config["hidden_size"] // config["num_attention_heads"]) ** -0.5,
        "logits_scaling": 1.0,
    }


NATIVE = NativeFormat()

FORMATS: dict[str, Format] = {
    SECTION: NATIVE,
    # the three models BAAI/Matroyshka-ReRanker-*
    "cost_wise_mistral": LayerwiseFormat("mistral"),
    # BAAI/bge-reranker-v2.5-gemma2-lightweight
    "cost_wise_gemma": LayerwiseFormat("gemma2", merge_weights="mean", softcap="final_logit_softcapping"),
    # BAAI/bge-reranker-v2-minicpm-layerwise, of depth alone
    "minicpm": LayerwiseFormat("granite", merges=False, prompt=MINICPM_PROMPT, stock_fields=_granite_fields),
}
"""Every format that opens, by its `model_type`."""


def cross_encoder_files(defaults: Defaults) -> dict[str, Any]:
    """By file name, what makes CrossEncoder open a folder of this project's format with `MatryoshkaModule`."""
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": MODULE}],
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": ACTIVATIONS[defaults.normalize],
            "prompts": {},
            "default_prompt_name": None,
        },
    }


def is_reranker(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a format that opens as it is."""
    return SECTION in config or config.get("model_type") in FORMATS


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a sequence-classification model, such as a trained cross-encoder."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return str(first).endswith("ForSequenceClassification")


def read_format(config: dict[str, Any]) -> CheckpointConfig:
    """Read a config.json in its format.

    Raises:
        ValueError: If the format is not known, or no model can be built of the configuration.
    """
    if not is_reranker(config):
        raise ValueError(_advice(config))
    model_type = SECTION if SECTION in config else config["model_type"]
    try:
        return FORMATS[model_type].read(config)
    except KeyError as error:
        raise ValueError(f"it lacks {error}, which the {model_type} format needs.") from None


def stock_config(model_type: str | None, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A stock configuration from the fields of a config.json.

    Raises:
        ValueError: For a family that is not known, and for numbers and names of which no model can be built.
    """
    stock_class = config_class(model_type)  # raises an error that lists the known families
    check_fields(fields)
    known = {key: value for key, value in fields.items() if key not in NOT_STOCK}
    if known.get("pad_token_id") == -1:
        known["pad_token_id"] = None
    return checked_config(stock_class.from_dict(known))


def rename_heads(exits: tuple[int, ...]) -> Rename:
    """The renaming that the published formats share: `lm_head.{i}.linear_head` is the head of exit i.

    >>> rename_heads((4, 5))("lm_head.1.linear_head.weight")
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


def _advice(config: Mapping[str, Any]) -> str:
    """What to do with a model of no format in the table."""
    model_type, labels = config.get("model_type"), config.get("id2label")
    what = f"it has model_type {model_type!r} and no {SECTION!r} section"
    train = "`mrr finetune --model FOLDER --train ROWS --output OUTPUT`"
    if model_type not in FAMILIES:
        published = ", ".join(name for name in FORMATS if name != SECTION)
        return (
            f"{what}, and is of no known family. A re-ranker is a checkpoint that this project saved or of a published "
            f"format ({published}); `mrr finetune` makes one from these families: {', '.join(FAMILIES)}."
        )
    if not is_classifier(config):
        return (
            f"{what}: it is a plain model. Train a re-ranker from it: {train}. If it is a causal re-ranker that "
            "answers yes or no, `mrr self-distill --model FOLDER --texts TEXTS --output OUTPUT` takes it as it is."
        )
    if isinstance(labels, dict) and len(labels) > 1:
        return (
            f"{what}: it is a classifier of {len(labels)} labels ({', '.join(map(str, labels.values()))}), and a "
            f"re-ranker has one, the relevance. Train fresh heads instead: {train} --head linear."
        )
    return (
        f"{what}: it is a trained cross-encoder. `mrr self-distill --model FOLDER --texts TEXTS --output OUTPUT` gives "
        f"it every smaller size and leaves its full-size scores as they are; {train} trains it further. Open OUTPUT."
    )
