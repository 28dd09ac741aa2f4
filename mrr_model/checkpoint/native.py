"""This project's own format: a stock config.json with a ``matryoshka`` section, safetensors, tokenizer, model card,
adapters.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mrr_model.checkpoint.blueprint import Blueprint, stock_config
from mrr_model.faults import faults_of
from mrr_model.model import MatryoshkaConfig

SECTION = "matryoshka"
FORMAT = 1
COMPENSATION = Path("compensation")
"""The folder of the compensation adapters, one safetensors file each."""


def read(config: dict[str, Any]) -> Blueprint:
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
    try:
        matryoshka = MatryoshkaConfig(**section)
    except ValidationError as error:
        raise ValueError(f"the {SECTION!r} section of config.json cannot be read: {faults_of(error)}") from None
    return Blueprint(stock_config(config.get("model_type"), config), matryoshka, lambda name: name)


def write(blueprint: Blueprint) -> dict[str, Any]:
    """The config.json of a model in this format."""
    config = blueprint.backbone.to_dict()
    config.pop("_name_or_path", None)
    return {**config, SECTION: {"format": FORMAT, **blueprint.matryoshka.model_dump(mode="json")}}


def default_card(blueprint: Blueprint) -> str:
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
