"""The known architectures, one entry each: how it runs layer by layer, and how its own classifier reads a score."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, cast

from transformers import CONFIG_MAPPING, MODEL_MAPPING, LlamaModel, PreTrainedConfig, PreTrainedModel

from mrr_model.modeling import deberta, decoder, distilbert, encoder, gte, modernbert, mpnet
from mrr_model.modeling.backbone import Backbone
from mrr_model.modeling.bidirectional import BidirectionalDecoder, BidirectionalLlamaConfig
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.heads import HeadLayer


@dataclass(frozen=True)
class Classifier:
    """How a stock `*ForSequenceClassification` reads its score, and where its checkpoints keep the weights.

    Attributes:
        linear: The module of the last layer.
        layers: The layers before it, each with the module that holds its weights.
        pooling: What they read.
        temperature: What the library divides its output by; a linear head's weights take it in.
    """

    linear: str
    layers: tuple[tuple[str, HeadLayer], ...] = ()
    pooling: Pooling = "first"
    temperature: float = 1.0


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        backbone: Runs the stock base model layer by layer.
        prefix: What stock checkpoints with a head write before the base model's weight names.
        classifier: The classifier of a stock configuration.
        config: The configuration's class, if transformers does not know the architecture by its `model_type`.
        model: The stock model's class, likewise.
    """

    backbone: type[Backbone]
    prefix: str
    classifier: Callable[[Any], Classifier]
    config: type[PreTrainedConfig] | None = None
    model: type[PreTrainedModel] | None = None


def _pooler(prefix: str) -> Callable[[Any], Classifier]:
    """BERT's pooler, a dense layer with tanh over the first token, and its classifier."""

    def classifier(config: Any) -> Classifier:
        dense = HeadLayer(kind="dense", size=config.hidden_size, activation="tanh")
        return Classifier("classifier", ((f"{prefix}pooler.dense", dense),))

    return classifier


def _classification_head(activation: str) -> Callable[[Any], Classifier]:
    """RoBERTa's classification head: a dense layer with an activation, then the output layer."""

    def classifier(config: Any) -> Classifier:
        dense = HeadLayer(kind="dense", size=config.hidden_size, activation=activation)
        return Classifier("classifier.out_proj", (("classifier.dense", dense),))

    return classifier


def _pre_classifier(config: Any) -> Classifier:
    """DistilBERT's: a dense layer with ReLU, then the output layer, beside each other."""
    dense = HeadLayer(kind="dense", size=config.hidden_size, activation="relu")
    return Classifier("classifier", (("pre_classifier", dense),))


def _context_pooler(config: Any) -> Classifier:
    """DeBERTa's: a dense layer with an activation over the first token, then the output layer."""
    dense = HeadLayer(kind="dense", size=config.hidden_size, activation=config.pooler_hidden_act)
    return Classifier("classifier", (("pooler.dense", dense),))


def _prediction_head(config: Any) -> Classifier:
    """ModernBERT's: a dense layer with an activation and a norm over the first token or the mean, then the output."""
    size = config.hidden_size
    dense = HeadLayer(kind="dense", size=size, bias=config.classifier_bias, activation=config.classifier_activation)
    norm = HeadLayer(kind="norm", size=size, bias=config.norm_bias, eps=config.norm_eps)
    pooling: Pooling = "mean" if config.classifier_pooling == "mean" else "first"
    return Classifier("classifier", (("head.dense", dense), ("head.norm", norm)), pooling)


def _last_token(config: Any) -> Classifier:
    """A causal model's: one linear layer over the last token."""
    return Classifier("score", pooling="last")


def _bidirectional(config: BidirectionalLlamaConfig) -> Classifier:
    """One linear layer over what the configuration says, divided by its temperature."""
    return Classifier("score", pooling=config.own_pooling, temperature=config.temperature)


FAMILIES: dict[str, Family] = {
    "bert": Family(encoder.Encoder, "bert.", _pooler("bert.")),
    "roberta": Family(encoder.Encoder, "roberta.", _classification_head("tanh")),
    "xlm-roberta": Family(encoder.Encoder, "roberta.", _classification_head("tanh")),
    "camembert": Family(encoder.Encoder, "roberta.", _classification_head("tanh")),
    "electra": Family(encoder.Encoder, "electra.", _classification_head("gelu")),
    "distilbert": Family(distilbert.DistilBert, "distilbert.", _pre_classifier),
    "mpnet": Family(mpnet.MPNet, "mpnet.", _classification_head("tanh")),
    "deberta-v2": Family(deberta.Deberta, "deberta.", _context_pooler),
    "modernbert": Family(modernbert.ModernBert, "model.", _prediction_head),
    "gte": Family(gte.Gte, "gte.", _pooler("gte.")),
    **{name: Family(decoder.Decoder, "model.", _last_token) for name in decoder.FAMILIES},
    "llama_bidirec": Family(BidirectionalDecoder, "model.", _bidirectional, BidirectionalLlamaConfig, LlamaModel),
}
"""Every known architecture by its `model_type`."""


def family_of(model_type: str | None) -> Family:
    """An architecture by its `model_type`.

    Raises:
        ValueError: If it is unknown.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not a known backbone. Known ones: {', '.join(FAMILIES)}.")
    return FAMILIES[str(model_type)]


def is_decoder(model_type: str | None) -> bool:
    """Whether an architecture is causal.

    Raises:
        ValueError: If it is unknown.
    """
    return family_of(model_type).backbone.causal


def config_class(model_type: str | None) -> type[PreTrainedConfig]:
    """The class of an architecture's configuration.

    Raises:
        ValueError: If the architecture is unknown.
    """
    return family_of(model_type).config or CONFIG_MAPPING[str(model_type)]


def model_class(model_type: str | None) -> type[PreTrainedModel]:
    """The class of an architecture's stock base model.

    Raises:
        ValueError: If the architecture is unknown.
    """
    return family_of(model_type).model or cast(type[PreTrainedModel], MODEL_MAPPING[config_class(model_type)])


def backbone_of(model: PreTrainedModel, pooling: Pooling, token_types: tuple[int, int, int] | None = None) -> Backbone:
    """The layers of a stock base model (`MistralModel`, `BertModel` …).

    Args:
        model: The stock model.
        pooling: What an exit reads.
        token_types: The token type ids of the query, passage and prompt span; None: 0 for all.

    Raises:
        ValueError: If the family is unknown.
    """
    return family_of(model.config.model_type).backbone(model, pooling, token_types)


def default_pooling(model_type: str | None, head: str) -> Pooling:
    """What an exit reads if a model's configuration does not say.

    Args:
        model_type: The architecture.
        head: The kind of score head; see `mrr_model.modeling.heads.HeadKind`.

    Raises:
        ValueError: If the family is unknown.
    """
    if head == "similarity":
        return "separator"
    return "last" if is_decoder(model_type) else "first"


def without_pooler(model: type[PreTrainedModel]) -> dict[str, Any]:
    """The arguments that make a stock base model without a pooler, which the heads replace, if it has the switch."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in signature(model).parameters else {}
