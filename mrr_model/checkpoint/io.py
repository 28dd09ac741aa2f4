"""Load and save checkpoints.

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
from mrr_model.checkpoint.card import default_card
from mrr_model.checkpoint.config import NOTHING_GIVEN, CheckpointConfig, Given
from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.checkpoint.fingerprint import fingerprint, with_adapters
from mrr_model.checkpoint.formats import read_format
from mrr_model.checkpoint.journal import saving, undisturbed
from mrr_model.checkpoint.lora import COMPENSATION, read_own, read_published, write_own
from mrr_model.checkpoint.measured import check_measurements, read_measurement, write_measurement
from mrr_model.checkpoint.native import NATIVE, cross_encoder_files
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.tokenizer import check_tokenizer
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
from mrr_model.files.damage import reading
from mrr_model.modeling.compensation import Adapter
from mrr_model.modeling.families import without_pooler
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile
from mrr_model.validation.arguments import callers_level


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer, adapters and measurements."""

    model: MatryoshkaModel
    """In evaluation mode, if it was loaded."""
    tokenizer: PreTrainedTokenizerBase
    adapters: Mapping[str, Adapter]
    """The compensation adapters by name."""
    calibration: Calibration | None = None
    """Maps from logits to probabilities; None if they were not fitted."""
    profile: Profile | None = None
    """What the settings keep and cost; None if that was not measured."""
    defaults: Defaults = NO_DEFAULTS
    """What a reranker runs at unless its user says otherwise."""
    fingerprint: str | None = None
    """Of the weights and adapters as the folder stores them; None for a model that was not loaded from one."""
    source: str | None = None
    """What was opened, in words; None for a model that was not loaded."""
    template_source: str | None = None
    """Where its input template comes from, in words."""
    folders: tuple[str, ...] = ("",)
    """The sub-folders that hold its weights."""


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    adapters: Mapping[str, Any] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    given: Given = NOTHING_GIVEN,
    dropout: float | None = None,
) -> Checkpoint:
    """Load a checkpoint from its folder.

    Completes a save that was cut short, and reads again if a save happens meanwhile. Compensation adapters, a
    calibration and a profile that belong to other weights are left out, with a warning.

    Args:
        folder: A re-ranker of any format that `mrr_model.checkpoint.formats.FORMATS` lists.
        dtype: The number format of the layers; score heads are always float32.
        device: Where the model goes.
        adapters: Published LoRA folders to add, `{"vertical": folder, "horizontal": {0.5: folder}}`.
        model_kwargs: Passed to the stock model's own `from_pretrained` (`device_map`, `quantization_config` …), which
            then places it; `device` is where the heads go. That method sets the process's default number format for a
            moment and may start threads; without `model_kwargs` loading does neither.
        given: What to take in place of what the files say, or if they do not say it.
        dropout: Dropout of the backbone in training; None keeps its own.

    Returns:
        The checkpoint, its model in evaluation mode.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the format is not known, a file is damaged, or the weights do not fit the configuration.

    Example:
        >>> from mrr_model.checkpoint.hub import locate
        >>> loaded = load(locate("mini"))
        >>> loaded.model.num_layers, sorted(loaded.adapters)
        (6, ['horizontal_1_2', 'horizontal_1_4', 'vertical'])
    """

    def read() -> tuple[Checkpoint, list[str]]:
        source = Source(folder)
        config = with_dropout(read_format(source, given), dropout)
        outlined = outline(config, read_headers(folder, config.layout.folders), folder)
        stored = read_weights(folder, config.layout.folders)
        loaded, notes = _with_companions(source, config, outlined, stored, adapters or {})
        model = build(config, dtype)
        assign_weights(model, stored, config.layout, source=str(folder), dtype=dtype)
        return replace(loaded, model=model), notes

    loaded = _warned(*undisturbed(folder, read))
    model = loaded.model
    if model_kwargs:
        model = _placed(model, dtype, model_kwargs)
        model.heads.to(device)
    else:
        model = model.to(device)
    return replace(loaded, model=model.eval())


def load_outline(folder: Path, *, given: Given = NOTHING_GIVEN) -> Checkpoint:
    """Check a folder as `load` does, without loading the weights: they are checked by their files' headers and sampled.

    Args:
        folder: As for `load`.
        given: As for `load`.

    Returns:
        The checkpoint, its model on the meta device.

    Raises:
        FileNotFoundError: As `load`.
        ValueError: As `load`.
    """

    def read() -> tuple[Checkpoint, list[str]]:
        source = Source(folder)
        config = read_format(source, given)
        outlined = outline(config, read_headers(folder, config.layout.folders), folder)
        return _with_companions(source, config, outlined, read_weights(folder, config.layout.folders), {})

    return _warned(*undisturbed(folder, read))


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    model_card: str | None = None,
    embeddings_apart: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint in this project's own format.

    An error or a kill leaves what the folder held before (see `journal`). Files of an earlier checkpoint that this one
    lacks are removed; the user's own files stay.

    Args:
        checkpoint: What to write.
        folder: Where; made if it is missing.
        model_card: The content of README.md; None: a short default card.
        embeddings_apart: Put the word embeddings in a file of their own.
        state: Instead of the model's own state dict, which a sharded model does not hold whole.

    Raises:
        OSError: If the folder cannot be written to.
        FolderInUseError: If a run writes to the folder.

    Example:
        >>> import tempfile
        >>> from mrr_model.checkpoint.hub import locate
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(load(locate("mini")), Path(folder))
        ...     (Path(folder) / "model.safetensors").is_file()
        True
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
    config = CheckpointConfig(model.config, model.matryoshka, defaults=checkpoint.defaults, adapters=bound)
    contents = {"config.json": NATIVE.write(config), **cross_encoder_files(checkpoint.defaults)}
    with saving(folder) as unfinished:
        for name, content in contents.items():
            (unfinished / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_weights(state, unfinished, apart)
        write_own(adapters, unfinished / COMPENSATION)
        for measurement in (checkpoint.calibration, checkpoint.profile):
            if measurement is not None:
                write_measurement(unfinished, measurement, with_adapters(base, adapters))
        checkpoint.tokenizer.save_pretrained(unfinished)
        (unfinished / "README.md").write_text(model_card or default_card(config), encoding="utf-8")


def read_checkpoint_config(folder: Path, given: Given = NOTHING_GIVEN) -> CheckpointConfig:
    """What a folder's files say, in the terms of every format.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the format is not known, or no model can be built of the configuration; names the file.
    """
    return read_format(Source(folder), given)


def outline(
    config: CheckpointConfig, stored: Mapping[str, Stored], folder: Path, allow_missing: tuple[str, ...] = ()
) -> MatryoshkaModel:
    """Build the model on the meta device, and check that the stored weights fit it.

    So nothing large is made from a configuration that no weights belong to.

    Args:
        config: What config.json says.
        stored: The weights' headers.
        folder: What error messages name.
        allow_missing: Prefixes of weights that may be absent.

    Raises:
        ValueError: If the weights do not fit; names them.
    """
    with reading(folder / "config.json"):
        check_layers(stored, config.backbone.num_hidden_layers)
        model = MatryoshkaModel.from_config(config.backbone, config.matryoshka, weights="meta")
    check_weights(model, stored, config.layout, source=str(folder), allow_missing=allow_missing)
    return model


def build(config: CheckpointConfig, dtype: torch.dtype) -> MatryoshkaModel:
    """Build the model for weights in `dtype`, before they are assigned.

    The stock part is on the meta device; the score heads are allocated in float32, with arbitrary values.
    """
    config.backbone.dtype = dtype
    model = MatryoshkaModel.from_config(config.backbone, config.matryoshka, weights="meta")
    model.heads.to_empty(device="cpu")
    return model


def with_dropout(config: CheckpointConfig, dropout: float | None) -> CheckpointConfig:
    """The same, its backbone with a dropout; None keeps its own."""
    if dropout is not None:
        for key in config.backbone.to_dict():
            if key.endswith(("dropout", "dropout_prob")):
                setattr(config.backbone, key, dropout)
    return config


def _warned(loaded: Checkpoint, notes: list[str]) -> Checkpoint:
    """A loaded checkpoint, after a warning for each note."""
    for note in notes:
        warnings.warn(note, UserWarning, stacklevel=callers_level())
    return loaded


def _with_companions(
    source: Source,
    config: CheckpointConfig,
    model: MatryoshkaModel,
    stored: Mapping[str, Tensor],
    published: Mapping[str, Any],
) -> tuple[Checkpoint, list[str]]:
    """A model with what lies beside its `stored` weights, each part checked, and a note for each that is left out."""
    folder, notes = source.folder, list(config.notes)
    home = Source(folder / config.folder) if config.folder else source
    tokenizer = home.stock_tokenizer if config.stock else home.tokenizer
    check_tokenizer(tokenizer, model, home.folder)
    base = fingerprint(_parameters(model, config.layout.weights(stored)))
    adapters = _bound(read_own(folder / COMPENSATION, model), config, base, folder, notes)
    if published:
        adapters |= read_published(published, folder, config.layout.rename, model)
    whole = with_adapters(base, adapters)
    calibration = read_measurement(folder, Calibration, whole, notes)
    profile = read_measurement(folder, Profile, whole, notes)
    check_measurements(folder, model, calibration, profile)
    defaults, most = config.defaults, model.backbone.max_tokens
    if config.stock and most is not None:
        defaults = defaults.model_copy(update={"max_length": min(defaults.max_length or most, most)})
    words = config.source, config.template_source
    return Checkpoint(
        model, tokenizer, adapters, calibration, profile, defaults, whole, *words, config.layout.folders
    ), notes


def _parameters(model: MatryoshkaModel, state: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """The model's parameters among the tensors of a state dict."""
    return {name: state[name] for name, _ in model.named_parameters() if name in state}


def _bound(
    adapters: Mapping[str, Adapter], config: CheckpointConfig, base: str, folder: Path, notes: list[str]
) -> dict[str, Adapter]:
    """The adapters that were saved with these weights, whose fingerprint is `base`."""
    bound = {
        name: adapter
        for name, adapter in adapters.items()
        if config.adapters.get(name) == with_adapters(base, {name: adapter})
    }
    if foreign := sorted(adapters.keys() - bound.keys()):
        notes.append(
            f"the adapters {', '.join(foreign)} in {folder / COMPENSATION} were not saved with the weights of "
            "this checkpoint, so they are left out. Train new ones with `mrr finetune --stages vertical,horizontal`, "
            "or remove the files."
        )
    return bound


def _placed(model: MatryoshkaModel, dtype: torch.dtype, model_kwargs: Mapping[str, Any]) -> MatryoshkaModel:
    """The same model, its stock part passed through transformers' own `from_pretrained`."""
    showed_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        stock = type(model.model).from_pretrained(
            None,
            config=model.config,
            state_dict=model.model.state_dict(),
            **{"dtype": dtype, **without_pooler(type(model.model)), **model_kwargs},
        )
    finally:
        if showed_progress:
            logging.enable_progress_bar()
    placed = MatryoshkaModel(stock, model.matryoshka)
    placed.heads = model.heads
    return placed
