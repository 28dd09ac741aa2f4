"""From a plain pretrained model to an untrained re-ranker: stock weights, one fresh head per exit."""

from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

from mrr_model import checkpoint
from mrr_model.backbones import is_decoder
from mrr_model.checkpoint.blueprint import Blueprint
from mrr_model.checkpoint.weights import assign_weights, read_weights
from mrr_model.inputs import BERT_LAYOUT, RELEASE_LAYOUT, XLM_ROBERTA_LAYOUT
from mrr_model.model import MatryoshkaConfig, MatryoshkaModel, default_merge_layer

LAYOUTS = {"bert": BERT_LAYOUT, "xlm-roberta": XLM_ROBERTA_LAYOUT}


def from_pretrained_backbone(
    folder: Path,
    *,
    exits: tuple[int, ...] | None = None,
    merge_layers: tuple[int, ...] | None = None,
    merge_layer: int | None = None,
    dropout: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[MatryoshkaModel, PreTrainedTokenizerBase]:
    """Build a re-ranker over the weights of a stock encoder or causal model in ``folder``, and load its tokenizer.

    ``exits`` default to the deeper three quarters of the layers (from layer ceil(L / 4)), ``merge_layers`` to all but
    the last,
    ``merge_layer``, where a plain keep ratio merges, to the model's quarter. ``dropout`` replaces the backbone's own
    where given. Heads start as the language-model head's row for "Yes" (arXiv 2501.16302, cascaded self-distillation)
    where there is one, else as small noise.
    """
    config = checkpoint.read_config(folder)
    decoder = is_decoder(config.get("model_type", ""))
    fields = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "auto_map")}
    if dropout is not None:
        fields |= {key: dropout for key in fields if key.endswith("dropout") or key.endswith("dropout_prob")}
    backbone = CONFIG_MAPPING[config["model_type"]].from_dict(fields)
    layers = backbone.num_hidden_layers
    matryoshka = MatryoshkaConfig(
        exits=exits or tuple(range(max(1, -(-layers // 4)), layers + 1)),
        merge_layers=tuple(range(1, layers)) if merge_layers is None else merge_layers,
        default_merge_layer=merge_layer or default_merge_layer(layers),
        layout=RELEASE_LAYOUT if decoder else LAYOUTS[config["model_type"]],
    )
    stored = read_weights(folder)
    prefix = next(
        (prefix for prefix in ("model.", "bert.", "roberta.") if any(name.startswith(prefix) for name in stored)), ""
    )
    backbone_weights = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    backbone_weights = {name: tensor for name, tensor in backbone_weights.items() if not name.startswith("pooler.")}

    model = checkpoint.build(Blueprint(backbone, matryoshka, lambda name: name), dtype)
    assign_weights(
        model,
        backbone_weights,
        lambda name: f"model.{name}",
        source=str(folder),
        dtype=dtype,
        allow_missing=("heads.",),
    )
    tokenizer = checkpoint.load_tokenizer(folder)
    yes = _yes_row(stored, tokenizer) if decoder else None
    for name, weight in model.heads.named_parameters():
        if yes is not None and name.endswith("linear.weight"):
            weight.data.copy_(yes[None])
        else:
            torch.nn.init.normal_(weight, std=0.02)
    return model, tokenizer


def _yes_row(stored: dict[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor | None:
    rows = stored.get("lm_head.weight", stored.get("model.embed_tokens.weight"))
    ids = tokenizer("Yes", add_special_tokens=False)["input_ids"]
    return None if rows is None or not ids else rows[ids[0]].float()
