"""This project's own format: a stock config.json with a ``matryoshka`` section, safetensors, tokenizer, model card,
adapters.

No other library opens it with heads of its own making: transformers does not know the ``model_type`` and refuses;
sentence-transformers' CrossEncoder is led to this project's module, or refuses where that is not trusted.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mrr_model.checkpoint.blueprint import CheckpointConfig, stock_config
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.files.damage import faults_of
from mrr_model.modeling.config import MatryoshkaConfig

SECTION = "matryoshka"
"""The section of config.json, and its ``model_type``; the section's ``backbone`` is the stock model's."""
FORMAT = 1
COMPENSATION = Path("compensation")
"""The folder of the compensation adapters, one safetensors file each."""
MODULE = "mrr_integrations.sentence_transformers.MatryoshkaModule"
ACTIVATIONS = {True: "torch.nn.modules.activation.Sigmoid", False: "torch.nn.modules.linear.Identity"}
"""What CrossEncoder makes of logits, by whether scores are normalized."""


def read(config: dict[str, Any]) -> CheckpointConfig:
    """The blueprint of an own checkpoint. Raises ``ValueError`` for a section that cannot be read or a newer format."""
    if not isinstance(config[SECTION], dict):
        raise ValueError(f"the {SECTION!r} section must be a JSON object, got {type(config[SECTION]).__name__}.")
    section = dict(config[SECTION])
    version = section.pop("format", None)
    if version != FORMAT:
        raise ValueError(
            f"this checkpoint has format {version!r}, this version of mrr_model reads {FORMAT}: "
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


def write(blueprint: CheckpointConfig) -> dict[str, Any]:
    """The config.json of a model in this format."""
    config = blueprint.backbone.to_dict()
    for foreign in ("_name_or_path", "architectures"):
        config.pop(foreign, None)
    section: dict[str, Any] = {"format": FORMAT, "backbone": blueprint.backbone.model_type}
    if defaults := blueprint.defaults.model_dump(mode="json", exclude_defaults=True):
        section["defaults"] = defaults
    if blueprint.adapters:
        section["adapters"] = dict(blueprint.adapters)
    return {**config, "model_type": SECTION, SECTION: {**section, **blueprint.matryoshka.model_dump(mode="json")}}


def cross_encoder_files(defaults: Defaults) -> dict[str, Any]:
    """By file name, what leads CrossEncoder to :class:`~mrr_integrations.sentence_transformers.MatryoshkaModule`."""
    return {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": MODULE}],
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "activation_fn": ACTIVATIONS[defaults.normalize],
            "prompts": {},
            "default_prompt_name": None,
        },
    }


def default_card(blueprint: CheckpointConfig) -> str:
    """A model card for a checkpoint that has none of its own."""
    config, matryoshka = blueprint.backbone, blueprint.matryoshka
    return f"""---
library_name: matryoshka-reranker
pipeline_tag: text-ranking
tags: [matryoshka-reranker, reranker]
---

# Matryoshka re-ranker

A {config.model_type} of {config.num_hidden_layers} layers that re-ranks at a depth and width chosen per call.
Exits: {", ".join(map(str, matryoshka.exits))}. Merges: {", ".join(map(str, matryoshka.merge_layers)) or "none"}.

```python
from mrr_model import MatryoshkaReranker

reranker = MatryoshkaReranker("this folder or repository", depth={matryoshka.exits[0]}, keep_ratio=0.5)
reranker.rank("a question", ["a passage", "another"])
```
"""
