"""Build re-rankers over stock weights.

A plain pretrained model gets fresh heads; a cross-encoder or a yes/no re-ranker keeps its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model import checkpoint
from mrr_model.checkpoint.formats import SECTION, CheckpointConfig, stock_config
from mrr_model.checkpoint.tokenizer import check_tokenizer, load_tokenizer
from mrr_model.checkpoint.weights import (
    FORMATS,
    QUANTIZED,
    Stored,
    assign_weights,
    check_layers,
    read_headers,
    read_weights,
)
from mrr_model.files.damage import faults_of, reading
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.families import family_of, is_decoder
from mrr_model.modeling.heads import HeadKind, HeadLayer, ScoreHead
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import BERT_TEMPLATE, QWEN3_TEMPLATE, RELEASE_TEMPLATE, XLM_ROBERTA_TEMPLATE, InputTemplate

TEMPLATES = {"bert": BERT_TEMPLATE, "xlm-roberta": XLM_ROBERTA_TEMPLATE}
RERANKER_TEMPLATES = {**TEMPLATES, "qwen3": QWEN3_TEMPLATE}
"""Templates of families whose known re-rankers all have the same one."""


@dataclass(frozen=True)
class Head:
    """A score head taken from a stock checkpoint."""

    kind: HeadKind
    weights: dict[str, Tensor]
    """Weights by their names in `mrr_model.modeling.heads.ScoreHead`."""
    layers: tuple[HeadLayer, ...] = ()
    """The layers before its last."""

    @property
    def bias(self) -> bool:
        """Whether its last layer has a bias."""
        return "linear.bias" in self.weights


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
        merge_layer: Layer after which a plain keep ratio merges; by default at a quarter of the model.
        head: Kind of the fresh heads.
        dropout: Dropout of the backbone; None keeps its own.
        dtype: Data type of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        FileNotFoundError: If the folder is not a model.
        ValueError: For an architecture, exits or merge layers that cannot be used.
    """
    backbone = _backbone_config(folder, dropout)
    decoder = is_decoder(backbone.model_type)
    matryoshka = _matryoshka(
        backbone,
        exits=exits,
        merge_layers=merge_layers,
        merge_layer=merge_layer,
        template=RELEASE_TEMPLATE if decoder else TEMPLATES[backbone.model_type],
        head=head,
    )
    stored, tokenizer = read_weights(folder), load_tokenizer(folder)
    model = _over_stock_weights(folder, backbone, matryoshka, stored, dtype)
    check_tokenizer(tokenizer, model, folder)
    rows = _language_model_rows(stored, tokenizer, ["Yes"]) if decoder else None
    for module in model.heads.values():
        cast(ScoreHead, module).initialize(rows)
    return model, tokenizer


def from_reranker(
    folder: Path,
    *,
    exits: tuple[int, ...] | None = None,
    merge_layer: int | None = None,
    template: InputTemplate | None = None,
    yes: str = "yes",
    no: str | None = "no",
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[MatryoshkaModel, PreTrainedTokenizerBase]:
    """Open a sequence-classification cross-encoder or a yes/no causal re-ranker with its tokenizer.

    At full size it scores exactly as before: it keeps its template and its head, of which each exit gets a copy.

    Args:
        folder: The re-ranker's folder.
        exits: Layers that get a head; by default the deeper three quarters (from layer ceil(L / 4)).
        merge_layer: Layer after which a plain keep ratio merges; by default at a quarter of the model.
        template: Its input template; by default its family's.
        yes: Token by which a causal model says yes.
        no: Token by which it says no: the logit is that of `yes` minus that of `no`. None: the logit of `yes` alone.
        dropout: Dropout of the backbone.
        dtype: Data type of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        FileNotFoundError: If the folder is not a model.
        ValueError: For an architecture, a number of labels, a family, exits or merge layers that cannot be used.
    """
    backbone = _backbone_config(folder, dropout)
    if template is None and backbone.model_type not in RERANKER_TEMPLATES:
        raise ValueError(
            f"{backbone.model_type} re-rankers differ in how they read a query and a passage: give the template."
        )
    stored, tokenizer = read_weights(folder), load_tokenizer(folder)
    head = _stock_head(folder, backbone, stored, tokenizer, [yes] if no is None else [yes, no])
    matryoshka = _matryoshka(
        backbone,
        exits=exits,
        merge_layer=merge_layer,
        template=template or RERANKER_TEMPLATES[backbone.model_type],
        head=head.kind,
        head_bias=head.bias,
        head_layers=head.layers,
        logit_softcap=getattr(backbone, "final_logit_softcapping", None),
    )
    model = _over_stock_weights(folder, backbone, matryoshka, stored, dtype)
    check_tokenizer(tokenizer, model, folder)
    for module in model.heads.values():
        module.load_state_dict({name: weight.float() for name, weight in head.weights.items()})
    return model.eval(), tokenizer


def _stock_head(
    folder: Path,
    backbone: PreTrainedConfig,
    stored: dict[str, Tensor],
    tokenizer: PreTrainedTokenizerBase,
    answers: list[str],
) -> Head:
    config = checkpoint.read_config(folder)
    architecture = (config.get("architectures") or ["model that names no architecture"])[0]
    if architecture.endswith("ForCausalLM"):
        rows = _language_model_rows(stored, tokenizer, answers)
        if rows is None:
            raise ValueError(f"{folder} has no language-model head and no embeddings tied to one.")
        if len(answers) == 2 and getattr(backbone, "final_logit_softcapping", None):
            raise ValueError("a model that caps its logits can only be used by its yes token: leave out no.")
        rows = rows / getattr(backbone, "logits_scaling", 1.0)
        return Head("yes_no" if len(answers) == 2 else "linear", {"linear.weight": rows})
    if not architecture.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{folder} holds a {architecture}. A model to self-distill is a sequence-classification cross-encoder with "
            "one label or a causal model that answers yes or no; to train a plain model use `mrr finetune`."
        )
    classifier = family_of(backbone.model_type).classifier(backbone)
    names = {"linear": classifier.linear}
    for index, (module, layer) in enumerate(classifier.layers):
        names[f"layers.{index}.linear" if layer.kind == "dense" else f"layers.{index}"] = module
    weights = {
        f"{part}.{kind}": stored[f"{name}.{kind}"]
        for part, name in names.items()
        for kind in ("weight", "bias")
        if f"{name}.{kind}" in stored
    }
    if strange := [name for name, weight in weights.items() if Stored.of(weight).format not in FORMATS]:
        raise ValueError(
            f"{folder} holds its head's {strange[0]} in {Stored.of(weights[strange[0]]).format}. {QUANTIZED}"
        )
    labels = len(weights.get("linear.weight", ()))
    if labels != 1:
        raise ValueError(
            f"{folder} has {labels} labels ({names['linear']}.weight{_label_names(config)}); a re-ranker has one, the "
            "relevance. `mrr finetune --head linear` trains fresh heads instead of the classifier."
        )
    return Head("linear", weights, tuple(layer for _, layer in classifier.layers))


def _label_names(config: Mapping[str, Any]) -> str:
    names = config.get("id2label")
    return f": {', '.join(map(str, names.values()))}" if isinstance(names, dict) and names else ""


def _backbone_config(folder: Path, dropout: float | None) -> PreTrainedConfig:
    config = checkpoint.read_config(folder)
    if SECTION in config:
        raise ValueError(f"{folder} is a Matryoshka re-ranker already; to train it further use `mrr finetune`.")
    fields = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    if dropout is not None:
        fields |= {key: dropout for key in fields if key.endswith("dropout") or key.endswith("dropout_prob")}
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
    try:
        matryoshka = MatryoshkaConfig(
            exits=default_exits if exits is None else exits,
            merge_layers=default_merges if merge_layers is None else merge_layers,
            default_merge_layer=default_merge_layer(layers) if merge_layer is None else merge_layer,
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
    folder: Path,
    backbone: PreTrainedConfig,
    matryoshka: MatryoshkaConfig,
    stored: dict[str, Tensor],
    dtype: torch.dtype,
) -> MatryoshkaModel:
    """The model with the stock part of `stored`; its heads are not initialised yet."""
    prefixes = ("model.", "bert.", "roberta.")
    prefix = next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in stored)), "")
    weights = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    described = CheckpointConfig(backbone, matryoshka, lambda name: f"model.{name}")
    headers = {name: Stored.of(tensor) for name, tensor in weights.items()}
    checkpoint.outline(described, headers, folder, allow_missing=("heads.",))
    model = checkpoint.build(described, dtype)
    assign_weights(model, weights, described.rename, source=str(folder), dtype=dtype, allow_missing=("heads.",))
    return model


def _language_model_rows(
    stored: dict[str, Tensor], tokenizer: PreTrainedTokenizerBase, answers: Sequence[str]
) -> Tensor | None:
    """The language-model head's rows of the answers' first tokens, float32 (answers, D)."""
    rows = stored.get("lm_head.weight", stored.get("model.embed_tokens.weight"))
    ids = [tokenizer(answer, add_special_tokens=False)["input_ids"] for answer in answers]
    return None if rows is None or not all(ids) else torch.stack([rows[found[0]].float() for found in ids])
