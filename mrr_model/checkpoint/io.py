"""Checkpoints: this project's own format, and one file for each published one.

A checkpoint loads by reading its config.json as data and building a stock configuration: no remote code is ever run.
"""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import gemma2, journal, lora, measured, minicpm, mistral, native
from mrr_model.checkpoint.blueprint import CheckpointConfig
from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.checkpoint.fingerprint import fingerprint, with_adapters
from mrr_model.checkpoint.tokenizer import check_tokenizer, load_tokenizer
from mrr_model.checkpoint.weights import (
    Stored,
    assign_weights,
    cast,
    check_layers,
    check_weights,
    read_headers,
    read_weights,
    write_weights,
)
from mrr_model.files.damage import read_json, reading
from mrr_model.modeling.compensation import Adapter
from mrr_model.modeling.families import FAMILIES
from mrr_model.modeling.model import MatryoshkaModel, pooler_off
from mrr_model.selection.profile import Profile
from mrr_model.validation.arguments import callers_level

PUBLISHED = {module.MODEL_TYPE: module.read for module in (mistral, gemma2, minicpm)}
"""The published formats by their ``model_type``."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in evaluation mode, its tokenizer, and its compensation adapters by name; and what
    was measured with it, the calibration of its logits and the profile of its settings, where there are any.
    """

    model: MatryoshkaModel
    tokenizer: PreTrainedTokenizerBase
    adapters: Mapping[str, Adapter]
    calibration: Calibration | None = None
    profile: Profile | None = None
    defaults: Defaults = NO_DEFAULTS
    """What a reranker runs at if its user names nothing else."""
    fingerprint: str | None = None
    """Of the weights and adapters as the folder stores them; None for a model that was not loaded from one."""


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    adapters: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Load a checkpoint from its folder. ``adapters`` adds published LoRA folders: ``{"vertical": dir, "horizontal":
    {0.5: dir}}``.

    With ``model_kwargs`` the stock part is placed by its own ``from_pretrained`` (``device_map``,
    ``quantization_config`` …), and ``device`` is where the heads go. That method sets the process's default number
    format for a moment and may start threads; without ``model_kwargs`` loading does neither.

    Completes a save that was cut short, and reads again if one comes in between. Compensation adapters, a calibration
    and a profile that belong to other weights are left out, with a warning.

    Raises ``FileNotFoundError`` for files that are not there and ``ValueError`` for a format that is not known or
    weights that do not fit.
    """

    def read() -> tuple[Checkpoint, list[str]]:
        blueprint = read_checkpoint_config(folder)
        outlined = outline(blueprint, read_headers(folder), folder)
        stored = read_weights(folder)
        made, notes = _with_the_rest(folder, blueprint, outlined, stored, adapters or {})
        model = build(blueprint, dtype)
        assign_weights(model, stored, blueprint.rename, source=str(folder), dtype=dtype)
        return replace(made, model=model), notes

    loaded = _noted(*journal.undisturbed(folder, read))
    model = loaded.model
    if model_kwargs:
        model = _replaced(model, dtype, model_kwargs)
        model.heads.to(device)
    else:
        model = model.to(device)
    return replace(loaded, model=model.eval())


def load_outline(folder: Path) -> Checkpoint:
    """What a folder holds, checked as :func:`load` does, with a model on the meta device in place of its weights: those
    are checked by their files' headers, and sampled. Raises as :func:`load` does.
    """

    def read() -> tuple[Checkpoint, list[str]]:
        blueprint = read_checkpoint_config(folder)
        outlined = outline(blueprint, read_headers(folder), folder)
        return _with_the_rest(folder, blueprint, outlined, read_weights(folder), {})

    return _noted(*journal.undisturbed(folder, read))


def _noted(loaded: Checkpoint, notes: list[str]) -> Checkpoint:
    """A loaded checkpoint, after the user was told what was left out of it."""
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=callers_level())
    return loaded


def _with_the_rest(
    folder: Path,
    blueprint: CheckpointConfig,
    model: MatryoshkaModel,
    stored: Mapping[str, Tensor],
    published: Mapping[str, Any],
) -> tuple[Checkpoint, list[str]]:
    """A model with what lies beside its ``stored`` weights, each part checked against the model, and a line for what is
    left out.
    """
    notes: list[str] = []
    tokenizer = load_tokenizer(folder)
    check_tokenizer(tokenizer, model, folder)
    base = fingerprint(_parameters(model, {blueprint.rename(name): tensor for name, tensor in stored.items()}))
    adapters = _bound(lora.read_own(folder / native.COMPENSATION, model), blueprint, base, folder, notes)
    if published:
        adapters |= lora.read_published(published, folder, blueprint.rename, model)
    whole = with_adapters(base, adapters)
    calibration = measured.read(folder, Calibration, whole, notes)
    profile = measured.read(folder, Profile, whole, notes)
    measured.check(folder, model, calibration, profile)
    return Checkpoint(model, tokenizer, adapters, calibration, profile, blueprint.defaults, whole), notes


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model_card: str | None = None,
    embeddings_apart: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write this project's own format; ``embeddings_apart`` puts the word embeddings in a file of their own.

    The model card goes to README.md; without one a short card is written. ``state`` replaces the model's own state
    dict, which a sharded model does not hold whole. An error or a kill leaves what the folder held before; files of an
    earlier checkpoint that this one lacks are removed, and files of the user's stay (:mod:`.journal`).
    """
    model = checkpoint.model
    state = {name: tensor.detach().cpu() for name, tensor in (state or model.state_dict()).items()}
    embeddings = model.model.get_input_embeddings().weight
    apart = [name for name, tensor in model.named_parameters() if tensor is embeddings] if embeddings_apart else []
    dtype = model.model.dtype
    adapters = {
        name: {
            module: replace(low, a=cast(low.a.detach(), dtype), b=cast(low.b.detach(), dtype))
            for module, low in adapter.items()
        }
        for name, adapter in checkpoint.adapters.items()
    }
    base = fingerprint(_parameters(model, state))
    bound = {name: with_adapters(base, {name: adapter}) for name, adapter in adapters.items()}
    blueprint = CheckpointConfig(model.config, model.matryoshka, lambda name: name, checkpoint.defaults, bound)
    texts = {"config.json": native.write(blueprint), **native.cross_encoder_files(checkpoint.defaults)}
    with journal.saving(folder) as place:
        for name, content in texts.items():
            (place / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_weights(state, place, apart)
        lora.write_own(adapters, place / native.COMPENSATION)
        measured.write(place, checkpoint.calibration, checkpoint.profile, with_adapters(base, adapters))
        checkpoint.tokenizer.save_pretrained(place)
        (place / "README.md").write_text(model_card or native.default_card(blueprint), encoding="utf-8")


def _parameters(model: MatryoshkaModel, state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Those of a state dict that are the model's parameters."""
    return {name: state[name] for name, _ in model.named_parameters() if name in state}


def _bound(
    adapters: Mapping[str, Adapter], blueprint: CheckpointConfig, base: str, folder: Path, notes: list[str]
) -> dict[str, Adapter]:
    """The adapters that were saved with these weights."""
    bound = {
        name: adapter
        for name, adapter in adapters.items()
        if blueprint.adapters.get(name) == with_adapters(base, {name: adapter})
    }
    if foreign := sorted(adapters.keys() - bound.keys()):
        notes.append(
            f"the adapters {', '.join(foreign)} in {folder / native.COMPENSATION} were not saved with the weights of "
            "this checkpoint, so they are left out. Train new ones with `mrr finetune --stages vertical,horizontal`, "
            "or remove the files."
        )
    return bound


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as data. Raises ``FileNotFoundError`` or ``ValueError`` that names the file."""
    journal.settle(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is no checkpoint folder.")
    return read_json(file)


def read_checkpoint_config(folder: Path) -> CheckpointConfig:
    """What a checkpoint folder holds. Raises ``ValueError`` for a format that is not known, or a configuration of which
    no model can be built.
    """
    config = read_config(folder)
    with reading(folder / "config.json"):
        return _checkpoint_config_of(config, folder)


def _checkpoint_config_of(config: dict[str, Any], folder: Path) -> CheckpointConfig:
    if native.SECTION in config:
        return native.read(config)
    model_type = config.get("model_type")
    if model_type not in PUBLISHED:
        raise ValueError(_foreign(folder, config))
    try:
        published: CheckpointConfig = PUBLISHED[model_type](config)
        return published
    except KeyError as error:
        raise ValueError(f"{folder / 'config.json'} lacks {error}, which the {model_type} format needs.") from None


def is_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a sequence-classification model, such as a trained cross-encoder."""
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return str(first).endswith("ForSequenceClassification")


def _foreign(folder: Path, config: Mapping[str, Any]) -> str:
    """What to do with a stock model, which does not open as it is."""
    model_type, labels = config.get("model_type"), config.get("id2label")
    what = f"{folder} holds model_type {model_type!r} and no {native.SECTION!r} section"
    train = "`mrr finetune --model FOLDER --train ROWS --output OUTPUT`"
    if model_type not in FAMILIES:
        return (
            f"{what}, and is of no known family. A re-ranker is a checkpoint that this project saved or of a published "
            f"format ({', '.join(PUBLISHED)}); `mrr finetune` makes one from these families: {', '.join(FAMILIES)}."
        )
    if not is_classifier(config):
        return (
            f"{what}: it is a plain model. Train a re-ranker from it: {train}. If it is a causal re-ranker that "
            "answers yes or no, `mrr self-distill --model FOLDER --texts TEXTS --output OUTPUT` takes it as it is."
        )
    if isinstance(labels, dict) and len(labels) > 1:
        return (
            f"{what}: it is a classifier of {len(labels)} labels ({', '.join(map(str, labels.values()))}), and a "
            f"re-ranker has one, the relevance. Train fresh heads in its place: {train} --head linear."
        )
    return (
        f"{what}: it is a trained cross-encoder. `mrr self-distill --model FOLDER --texts TEXTS --output OUTPUT` gives "
        f"it every smaller size and leaves its full-size scores as they are; {train} trains it further. Open OUTPUT."
    )


def outline(
    blueprint: CheckpointConfig, stored: Mapping[str, Stored], folder: Path, allow_missing: tuple[str, ...] = ()
) -> MatryoshkaModel:
    """The model of a blueprint on the meta device, for which the stored weights are known to fit: nothing large is made
    of a configuration that no weights belong to.
    """
    with reading(folder / "config.json"):
        check_layers(stored, blueprint.backbone.num_hidden_layers)
        model = MatryoshkaModel.from_config(blueprint.backbone, blueprint.matryoshka, weights="meta")
    check_weights(model, stored, blueprint.rename, source=str(folder), allow_missing=allow_missing)
    return model


def build(blueprint: CheckpointConfig, dtype: torch.dtype) -> MatryoshkaModel:
    """The model of a blueprint for weights in ``dtype``. The stock part has none yet (they are on the device
    ``"meta"``), the score heads, float32, have room for them.
    """
    blueprint.backbone.dtype = dtype
    model = MatryoshkaModel.from_config(blueprint.backbone, blueprint.matryoshka, weights="meta")
    model.heads.to_empty(device="cpu")
    return model


def _replaced(model: MatryoshkaModel, dtype: torch.dtype, model_kwargs: Mapping[str, Any]) -> MatryoshkaModel:
    """The same model with its stock part passed through transformers' own ``from_pretrained``."""
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        stock = type(model.model).from_pretrained(
            None,
            config=model.config,
            state_dict=model.model.state_dict(),
            **{"dtype": dtype, **pooler_off(model.config.model_type), **model_kwargs},
        )
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    placed = MatryoshkaModel(stock, model.matryoshka)
    placed.heads = model.heads
    return placed
