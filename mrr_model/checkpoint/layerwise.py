"""The published layer-wise formats: a stock decoder with a head for every nth layer."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mrr_model.checkpoint.config import CheckpointConfig, Given, stock_config, with_given
from mrr_model.checkpoint.fields import check_fields
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.weights import UNUSED, Layout, Rename
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.template import RELEASE_TEMPLATE

MINICPM_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)


@dataclass(frozen=True)
class LayerwiseFormat:
    """A published format: a stock decoder with a head for every `layer_sep`-th layer from `start_layer`.

    Args:
        model_type: The format's, in config.json.
        backbone: The stock model's `model_type`.
        merges: Whether tokens may merge, after any layer but the last.
        merge_weights: How merged states are weighted.
        softcap: The field of config.json that caps logits.
        prompt: The default prompt; None: the release's.
        stock_fields: The stock configuration's fields, from those of config.json.
    """

    model_type: str
    backbone: str
    merges: bool = True
    merge_weights: Literal["attention", "mean"] = "attention"
    softcap: str | None = None
    prompt: str | None = None
    stock_fields: Callable[[dict[str, Any]], dict[str, Any]] = dict

    @property
    def name(self) -> str:
        return self.model_type

    def matches(self, source: Source) -> bool:
        return source.config.get("model_type") == self.model_type

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        config = source.config
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
        matryoshka, changed = with_given(matryoshka, given)
        return CheckpointConfig(
            stock_config(self.backbone, self.stock_fields(config)),
            matryoshka,
            Layout(rename_heads(exits)),
            source=f"the published {self.model_type} format",
            template_source=changed or "the published release",
        )


def rename_heads(exits: tuple[int, ...]) -> Rename:
    """The renaming that the published formats share: `lm_head.{i}.linear_head` is the head of exit i.

    >>> rename_heads((4, 5))("lm_head.1.linear_head.weight")
    'heads.5.linear.weight'
    """

    def rename(name: str) -> str | None:
        number, _, rest = name.removeprefix("lm_head.").partition(".")
        if name.startswith("lm_head.") and number.isdigit() and int(number) < len(exits):
            return f"heads.{exits[int(number)]}.{rest.replace('linear_head', 'linear')}"
        if name.startswith("lm_head.") and number.isdigit():
            return name
        return None if name.startswith(UNUSED) else name

    return rename


def granite_fields(config: dict[str, Any]) -> dict[str, Any]:
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
