"""Checkpoint formats: which one a folder is of, and what it says of the model. One table, `FORMATS`.

A published layer-wise format is an entry of `LAYERWISE`: which stock model it is, and what it adds.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from mrr_model.checkpoint.classifier import FINETUNE, ClassifierFormat
from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.layerwise import MINICPM_PROMPT, LayerwiseFormat, granite_fields
from mrr_model.checkpoint.native import NATIVE, SECTION
from mrr_model.checkpoint.source import CONFIG, Source
from mrr_model.checkpoint.stock import check_family
from mrr_model.files.damage import reading


class Format(Protocol):
    """An entry of `FORMATS`."""

    @property
    def name(self) -> str:
        """What error messages call it."""
        ...

    def matches(self, source: Source) -> bool:
        """Whether a folder is of this format."""
        ...

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        """Read a folder's files.

        Raises:
            KeyError: If config.json lacks a field that the format needs.
            ValueError: If no model can be built of it.
        """
        ...


LAYERWISE = (
    # the three models BAAI/Matroyshka-ReRanker-*
    LayerwiseFormat("cost_wise_mistral", "mistral"),
    # BAAI/bge-reranker-v2.5-gemma2-lightweight
    LayerwiseFormat("cost_wise_gemma", "gemma2", merge_weights="mean", softcap="final_logit_softcapping"),
    # BAAI/bge-reranker-v2-minicpm-layerwise, of depth alone
    LayerwiseFormat("minicpm", "granite", merges=False, prompt=MINICPM_PROMPT, stock_fields=granite_fields),
)
"""The published layer-wise formats."""

FORMATS: tuple[Format, ...] = (NATIVE, *LAYERWISE, ClassifierFormat())
"""Every format that opens. The first that matches a folder reads it."""


def is_multi_exit(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a format with a head for each exit: this project's own, or a layer-wise one."""
    return SECTION in config or config.get("model_type") in (SECTION, *(known.model_type for known in LAYERWISE))


def read_format(source: Source, given: Given = Given()) -> CheckpointConfig:
    """Read a folder in its format.

    Args:
        source: The folder.
        given: What the user says of the model in place of its files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the format is not known, or no model can be built of the configuration; names the file.
    """
    with reading(source.folder / CONFIG):
        for known in FORMATS:
            if known.matches(source):
                try:
                    return known.read(source, given)
                except KeyError as error:
                    raise ValueError(f"it lacks {error}, which the {known.name} format needs.") from None
        raise ValueError(_advice(source.config))


def _advice(config: Mapping[str, Any]) -> str:
    """What to do with a model of no format in the table."""
    check_family(config)
    return (
        f"it has model_type {config['model_type']!r} and no {SECTION!r} section: it is a plain model. Train a re-ranker "
        f"from it: {FINETUNE}."
    )
