"""Build models to train: over stock weights with fresh heads, or over a re-ranker with copies of its own head."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model import checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.config import CheckpointConfig, stock_config
from mrr_model.checkpoint.io import with_dropout
from mrr_model.checkpoint.native import SECTION
from mrr_model.checkpoint.stock import backbone_layout
from mrr_model.checkpoint.templates import pair_template
from mrr_model.checkpoint.tokenizer import check_tokenizer, load_tokenizer
from mrr_model.checkpoint.weights import (
    Layout,
    Stored,
    assign_weights,
    check_layers,
    read_headers,
    read_weights,
)
from mrr_model.files.damage import faults_of, reading
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.families import is_decoder
from mrr_model.modeling.heads import HeadKind, ScoreHead
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import RELEASE_TEMPLATE


def from_pretrained_backbone(
    folder: Path,
    *,
    exits: tuple[int, ...] | None = None,
    merge_layers: tuple[int, ...] | None = None,
    merge_layer: int | None = None,
    head: HeadKind = "linear",
    dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[MatryoshkaModel, PreTrainedTokenizerBase]:
    """Build a re-ranker over the weights of a stock encoder or causal model, and load its tokenizer.

    A causal model's heads start as its language-model head's row for "Yes" (arXiv 2501.16302, cascaded
    self-distillation). Other linear heads start as small noise, similarity heads as a plain cosine.

    Args:
        folder: The stock model's folder.
        exits: Layers that get a head; by default the deeper three quarters (from layer ceil(L / 4)).
        merge_layers: Layers after which tokens may merge; by default all but the last.
        merge_layer: Layer after which a plain keep ratio merges; see `default_merge_layer`.
        head: Kind of the fresh heads.
        dropout: Dropout of the backbone; None keeps its own.
        dtype: Data type of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        FileNotFoundError: If the folder is not a model.
        ValueError: For an architecture, exits or merge layers that cannot be used.
    """
    backbone = _backbone_config(folder)
    decoder, tokenizer = is_decoder(backbone.model_type), load_tokenizer(folder)
    matryoshka = _matryoshka(
        backbone,
        exits=exits,
        merge_layers=merge_layers,
        merge_layer=merge_layer,
        template=RELEASE_TEMPLATE if decoder else pair_template(tokenizer),
        head=head,
    )
    stored = read_weights(folder)
    described = with_dropout(CheckpointConfig(backbone, matryoshka, _without_heads(backbone, stored)), dropout)
    model = _over_stock_weights(folder, described, stored, dtype)
    check_tokenizer(tokenizer, model, folder)
    row = _language_model_row(stored, tokenizer, "Yes") if decoder else None
    for module in model.heads.values():
        cast(ScoreHead, module).initialize(row)
    return model, tokenizer


def with_exits(
    loaded: Checkpoint, *, exits: tuple[int, ...] | None = None, merge_layer: int | None = None
) -> Checkpoint:
    """Give a re-ranker with one exit more of them: each gets a copy of its head, so that full size scores as before.

    Args:
        loaded: The re-ranker; the new one shares its weights.
        exits: Layers that get a head; by default the deeper three quarters (from layer ceil(L / 4)).
        merge_layer: Layer after which a plain keep ratio merges; None keeps its own.

    Returns:
        The re-ranker with all its exits, in evaluation mode.

    Raises:
        ValueError: If the re-ranker has several exits, or for exits or a merge layer that cannot be used.
    """
    own = loaded.model.matryoshka
    if len(own.exits) > 1:
        raise ValueError(
            f"the model has the exits {', '.join(map(str, own.exits))} already; to train it further use `mrr finetune`."
        )
    fields = own.model_dump(exclude={"exits", "merge_layers", "default_merge_layer"})
    matryoshka = _matryoshka(
        loaded.model.config,
        exits=exits,
        merge_layer=own.default_merge_layer if merge_layer is None else merge_layer,
        merge_layers=own.merge_layers,
        **fields,
    )
    model = MatryoshkaModel(loaded.model.model, matryoshka)
    for head in model.heads.values():
        head.load_state_dict(loaded.model.heads[str(own.exits[0])].state_dict())
    return replace(loaded, model=model.eval(), fingerprint=None)


def _backbone_config(folder: Path) -> PreTrainedConfig:
    config = checkpoint.read_config(folder)
    if SECTION in config:
        raise ValueError(f"{folder} is a Matryoshka re-ranker already; to train it further use `mrr finetune`.")
    fields = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    with reading(folder / "config.json"):
        backbone = stock_config(config.get("model_type"), fields)
        check_layers(read_headers(folder), backbone.num_hidden_layers)
    return backbone


def _matryoshka(
    backbone: PreTrainedConfig,
    *,
    exits: tuple[int, ...] | None,
    merge_layer: int | None,
    merge_layers: tuple[int, ...] | None = None,
    **fields: Any,
) -> MatryoshkaConfig:
    layers = backbone.num_hidden_layers
    default_exits, default_merges = tuple(range(max(1, -(-layers // 4)), layers + 1)), tuple(range(1, layers))
    quarter = default_merge_layer(layers, getattr(backbone, "layer_types", None) or ())
    try:
        matryoshka = MatryoshkaConfig(
            exits=default_exits if exits is None else exits,
            merge_layers=default_merges if merge_layers is None else merge_layers,
            default_merge_layer=quarter if merge_layer is None else merge_layer,
            **fields,
        )
        matryoshka.check_layers(layers)
    except ValueError as error:
        faults = faults_of(error) if isinstance(error, ValidationError) else error
        raise ValueError(
            f"exits={exits} and merge_layer={merge_layer} do not fit a model of {layers} layers: {faults}."
        ) from None
    return matryoshka


def _over_stock_weights(
    folder: Path, described: CheckpointConfig, stored: dict[str, Tensor], dtype: torch.dtype
) -> MatryoshkaModel:
    """The model with the stock part of `stored`; its heads are not initialised yet."""
    headers = {name: Stored.of(tensor) for name, tensor in stored.items()}
    checkpoint.outline(described, headers, folder, allow_missing=("heads.",))
    model = checkpoint.build(described, dtype)
    assign_weights(model, stored, described.layout, source=str(folder), dtype=dtype, allow_missing=("heads.",))
    return model


def _without_heads(backbone: PreTrainedConfig, stored: dict[str, Tensor]) -> Layout:
    """The layout of a stock model whose own heads, if it has any, are not used."""
    layout = backbone_layout(backbone, stored)

    def rename(name: str) -> str | None:
        known = layout.rename(name)
        return known if known is not None and known.startswith("model.") else None

    return Layout(rename, layout.parts)


def _language_model_row(stored: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, answer: str) -> Tensor | None:
    """The language-model head's row of an answer's first token, float32 (1, D); None if there is none."""
    rows = stored.get("lm_head.weight", stored.get("model.embed_tokens.weight"))
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return None if rows is None or not ids else rows[ids[0]].float()[None]
