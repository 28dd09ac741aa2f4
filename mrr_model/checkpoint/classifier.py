"""Sequence classifiers of transformers with one label, as trained cross-encoders are stored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.library import Library
from mrr_model.checkpoint.published import PublishedInput, published_input
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.stock import FINETUNE, StockHead, backbone_config, described, stored_prefix
from mrr_model.checkpoint.weights import TOGETHER, Part
from mrr_model.modeling.families import family_of, is_decoder


@dataclass(frozen=True)
class ClassifierFormat:
    """A `*ForSequenceClassification` with one label.

    Args:
        published: The models whose files do not say how they read a pair.
    """

    published: tuple[PublishedInput, ...]
    name: str = "sequence classifier"

    def matches(self, source: Source) -> bool:
        return is_classifier(source.config)

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        backbone, tokenizer, library = backbone_config(source), source.stock_tokenizer, Library.plain(source)
        if given.answers is not None:
            raise ValueError(
                f"answers={given.answers!r} are for causal models, and this is a {source.architecture}. Leave them out."
            )
        head = classifier_head(source, backbone)
        known = published_input(source, self.published, given.template)
        defaults = library.defaults(tokenizer, backbone)
        if known is not None:
            template, template_source = known.of(tokenizer), f"the table of published re-rankers: {known.name}"
            defaults = defaults.model_copy(update={"normalize": known.normalize})
        else:
            pad_token_id = backbone.pad_token_id if is_decoder(backbone.model_type) else None
            template, template_source = library.template(tokenizer, given, pad_token_id=pad_token_id)
        return described(
            backbone,
            head,
            stored=source.headers,
            template=template,
            defaults=defaults,
            source=source.architecture,
            template_source=template_source,
            notes=() if known else library.notes,
        )


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a sequence-classification model, such as a trained cross-encoder."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return str(first).endswith("ForSequenceClassification")


def classifier_head(source: Source, backbone: PreTrainedConfig, folder: str = "") -> StockHead:
    """The classifier of a stock model.

    Args:
        source: The folder of the model.
        backbone: Its configuration.
        folder: The sub-folder of its weights.

    Returns:
        The head, with the stored names of its weights.

    Raises:
        ValueError: If its weights are missing, have several labels or are made for another width.
    """
    stored, family = source.headers, family_of(backbone.model_type)
    classifier, prefix = family.classifier(backbone), stored_prefix(backbone, source.headers)
    modules = {classifier.linear: "linear"}
    for index, (module, layer) in enumerate(classifier.layers):
        module = prefix + module.removeprefix(family.prefix) if module.startswith(family.prefix) else module
        modules[module] = f"layers.{index}.linear" if layer.kind == "dense" else f"layers.{index}"
    if missing := [f"{module}.weight" for module in modules if f"{module}.weight" not in stored]:
        raise ValueError(
            f"it names a {source.architecture}, but the weights beside it lack its classifier ({', '.join(missing)}). "
            f"Copy the trained model's own weights there, or train a head: {FINETUNE}."
        )
    inside = f"{folder}/" if folder else ""
    labels, width = stored[f"{classifier.linear}.weight"].shape
    if labels != 1:
        raise ValueError(
            f"it is a classifier of {labels} labels{_label_names(source.config)}, and a re-ranker has one, the "
            f"relevance. Train fresh heads instead, with --head linear: {FINETUNE}."
        )
    expected = next((layer.size for _, layer in reversed(classifier.layers)), int(backbone.hidden_size))
    if width != expected:
        raise ValueError(
            f"it describes a classifier of {expected} numbers, but {classifier.linear}.weight beside it is for "
            f"{width}. {TOGETHER}"
        )
    weights = {
        f"{inside}{module}.{kind}": f"{name}.{kind}"
        for module, name in modules.items()
        for kind in ("weight", "bias")
        if f"{module}.{kind}" in stored
    }
    last = [name for name, own in weights.items() if own.startswith("linear.")]
    parts = {}
    if classifier.temperature != 1.0:
        parts = {name: Part(weights.pop(name), slice(None), 1 / classifier.temperature) for name in last}
    return StockHead(
        classifier.pooling,
        tuple(layer for _, layer in classifier.layers),
        bias=f"{classifier.linear}.bias" in stored,
        weights=weights,
        parts=parts,
    )


def _label_names(config: Mapping[str, Any]) -> str:
    names = config.get("id2label")
    return f" ({', '.join(map(str, names.values()))})" if isinstance(names, dict) and names else ""
