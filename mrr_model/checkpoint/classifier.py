"""Sequence classifiers of transformers with one label, as trained cross-encoders are stored."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.stock import (
    StockHead,
    activation_facts,
    backbone_config,
    described,
    library_activation,
    library_max_length,
)
from mrr_model.checkpoint.templates import pair_template
from mrr_model.modeling.families import family_of
from mrr_model.template import InputTemplate

FINETUNE = "`mrr finetune --model FOLDER --train ROWS --output OUTPUT`"


class ClassifierFormat:
    """A `*ForSequenceClassification` with one label."""

    name = "sequence classifier"

    def matches(self, source: Source) -> bool:
        return is_classifier(source.config)

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        backbone, tokenizer = backbone_config(source), source.stock_tokenizer
        head = classifier_head(source, backbone)
        template, template_source = text_template(tokenizer, given)
        normalize, notes = activation_facts(library_activation(source.config))
        return described(
            backbone,
            head,
            stored=source.headers,
            template=template,
            defaults=Defaults(max_length=library_max_length(tokenizer, backbone), normalize=normalize),
            source=source.architecture,
            template_source=template_source,
            notes=notes,
        )


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a sequence-classification model, such as a trained cross-encoder."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return str(first).endswith("ForSequenceClassification")


def classifier_head(source: Source, backbone: PreTrainedConfig) -> StockHead:
    """The classifier of a stock model.

    Raises:
        ValueError: If its weights are missing, have several labels or are made for another width.
    """
    stored = source.headers
    classifier = family_of(backbone.model_type).classifier(backbone)
    modules = {classifier.linear: "linear"}
    for index, (module, layer) in enumerate(classifier.layers):
        modules[module] = f"layers.{index}.linear" if layer.kind == "dense" else f"layers.{index}"
    if missing := [f"{module}.weight" for module in modules if f"{module}.weight" not in stored]:
        raise ValueError(
            f"it names a {source.architecture}, but the weights beside it lack its classifier ({', '.join(missing)}). Copy the trained model's own weights there, or train a head: {FINETUNE}."
        )
    labels, width = stored[f"{classifier.linear}.weight"].shape
    if labels != 1:
        raise ValueError(
            f"it is a classifier of {labels} labels{_label_names(source.config)}, and a re-ranker has one, the relevance. "
            f"Train fresh heads instead: {FINETUNE} --head linear."
        )
    expected = next((layer.size for _, layer in reversed(classifier.layers)), int(backbone.hidden_size))
    if width != expected:
        raise ValueError(
            f"it describes a classifier of {expected} numbers, but {classifier.linear}.weight beside it is for {width}. "
            "Copy the weights and the config.json of one model there."
        )
    return StockHead(
        classifier.pooling,
        tuple(layer for _, layer in classifier.layers),
        bias=f"{classifier.linear}.bias" in stored,
        weights={
            f"{module}.{kind}": f"{name}.{kind}"
            for module, name in modules.items()
            for kind in ("weight", "bias")
            if f"{module}.{kind}" in stored
        },
    )


def text_template(tokenizer: PreTrainedTokenizerBase, given: Given) -> tuple[InputTemplate, str]:
    """How a pair of texts is tokenized, and where that comes from."""
    if isinstance(given.template, InputTemplate):
        return given.template, "as given"
    return pair_template(tokenizer), "the tokenizer's pair template"


def _label_names(config: Mapping[str, Any]) -> str:
    names = config.get("id2label")
    return f" ({', '.join(map(str, names.values()))})" if isinstance(names, dict) and names else ""
