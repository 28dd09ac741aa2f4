"""Which architectures are known, and how each is run layer by layer."""

from transformers import PreTrainedModel

from mrr_model.modeling import decoder, encoder
from mrr_model.modeling.backbone import Backbone

FAMILIES = (*decoder.FAMILIES, *encoder.FAMILIES)
"""Every known `model_type`."""


def is_decoder(model_type: str | None) -> bool:
    """Whether a family is causal.

    Raises:
        ValueError: If the family is unknown.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not a known backbone. Known ones: {', '.join(FAMILIES)}.")
    return model_type in decoder.FAMILIES


def backbone_of(model: PreTrainedModel, pools_separator: bool = False) -> Backbone:
    """The layers of a stock base model (`MistralModel`, `BertModel` …).

    Args:
        model: The stock model.
        pools_separator: Whether an encoder's pooled token is the separator after the query, not its first token.

    Raises:
        ValueError: If the family is unknown.
    """
    if is_decoder(model.config.model_type):
        return decoder.Decoder(model)
    return encoder.Encoder(model, pools_separator)
