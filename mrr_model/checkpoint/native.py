"""This project's own format: a stock config.json with a `matryoshka` section.

It lies beside safetensors, a tokenizer, a model card and adapters. No other library opens it with heads of its own
making: transformers does not know the `model_type` and refuses; sentence-transformers' CrossEncoder loads this
project's module, or refuses if that is not trusted.
"""

from typing import Any

from pydantic import ValidationError

from mrr_model.checkpoint.config import CheckpointConfig, Given, stock_config, with_given
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.source import Source
from mrr_model.files.damage import faults_of
from mrr_model.modeling.config import MatryoshkaConfig

SECTION = "matryoshka"
"""The section of config.json, and its `model_type`; the section's `backbone` is the stock model's."""
VERSION = 1
"""Of this project's format."""

MODULE = "mrr_integrations.sentence_transformers.MatryoshkaModule"
ACTIVATIONS = {True: "torch.nn.modules.activation.Sigmoid", False: "torch.nn.modules.linear.Identity"}
"""What CrossEncoder applies to logits, by whether scores are normalized."""


class NativeFormat:
    """This project's own format."""

    name = SECTION

    def matches(self, source: Source) -> bool:
        return SECTION in source.config

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        config = source.config
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
        matryoshka, changed = with_given(matryoshka, given)
        template_source = changed or "config.json"
        return CheckpointConfig(
            stock_config(backbone, config),
            matryoshka,
            defaults=defaults,
            adapters=adapters,
            template_source=template_source,
        )

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


NATIVE = NativeFormat()


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
