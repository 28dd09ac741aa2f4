"""How to walk a stock transformers model layer by layer; the only place that knows an architecture."""

from transformers import PreTrainedModel

from mrr_model.modeling import decoder, encoder
from mrr_model.modeling.backbone import Backbone, Stage

__all__ = ["FAMILIES", "Backbone", "Stage", "is_decoder", "walk"]

FAMILIES = (*decoder.FAMILIES, *encoder.FAMILIES)
"""Every known ``model_type``."""


def is_decoder(model_type: str | None) -> bool:
    """Whether a family is causal. Raises ``ValueError`` for a family that is not known."""
    if model_type not in FAMILIES:
        raise ValueError(f"model_type {model_type!r} is not a known backbone. Known ones: {', '.join(FAMILIES)}.")
    return model_type in decoder.FAMILIES


def walk(model: PreTrainedModel, reads_separator: bool = False) -> Backbone:
    """The walker for a stock base model (``MistralModel``, ``BertModel`` …). An encoder reads at its first token, or at
    the separator behind the query. Raises ``ValueError`` for an unknown family.
    """
    if is_decoder(model.config.model_type):
        return decoder.Decoder(model)
    return encoder.Encoder(model, reads_separator)
