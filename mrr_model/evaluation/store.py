"""Store a profile or a calibration in a checkpoint folder, and show it in a section of the model card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import journal, load_outline
from mrr_model.checkpoint.card import SECTIONS, with_section
from mrr_model.checkpoint.hub import PACKAGE, SHIPPED, locate, wanted
from mrr_model.checkpoint.measured import write_measurement
from mrr_model.files.atomic import write_file
from mrr_model.files.locks import SAVE, locked
from mrr_model.selection.profile import Profile


def checkpoint_folder(model: str, save_to: Path | None = None, *, local_files_only: bool = False) -> Path:
    """The checkpoint folder to store results in: the model's own, or a copy of it.

    Args:
        model: A shipped name, a local folder or a hub id.
        save_to: A folder that gets a copy of the checkpoint, or holds one already.
        local_files_only: Never ask the hub for the model.

    Raises:
        ValueError: If `save_to` is left out and the model is not a local folder (the hub's cache is none) or is part of
            this package; if `save_to` is part of this package or holds another checkpoint.
        PermissionError: If the folder cannot be written to.
    """
    if save_to is not None:
        return _copied(locate(model, local_files_only=local_files_only), save_to)
    folder = Path(SHIPPED[model]) if model in SHIPPED else Path(model).expanduser()
    hint = (
        f"Name a folder for a copy with --save-to FOLDER (in Python: MatryoshkaReranker({model!r})"
        ".save_pretrained(FOLDER), then name that folder)."
    )
    if not folder.is_dir():
        raise ValueError(f"{model!r} is not a local folder, so nothing can be stored in it. {hint}")
    if _installed(folder):
        raise ValueError(f"{model!r} is a part of the installed package, so nothing is stored with it. {hint}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to. {hint}")
    return folder


def save_profile(folder: Path, profile: Profile, table: str, weights: str) -> None:
    """Store a profile and show its table in the model card.

    Args:
        folder: The checkpoint.
        profile: The profile.
        table: Its table, in Markdown.
        weights: The fingerprint of the weights and adapters that were evaluated.
    """
    data = f"{', '.join(profile.collections)} ({profile.queries} queries)"
    text = (
        f"## What each size keeps and costs\n\n{profile.metric} on {data}; times on {profile.device}, "
        f"{profile.threads} threads, {profile.dtype}. Measured with `mrr evaluate`.\n\n{table}"
    )
    _store(folder, profile, text, weights)


def save_calibration(folder: Path, calibration: Calibration, table: str, weights: str) -> None:
    """Store a calibration and explain its probabilities in the model card.

    Args:
        folder: The checkpoint.
        calibration: The maps.
        table: How reliable they are, in Markdown; empty if that was not measured.
        weights: The fingerprint of the weights and adapters that they were fitted with.
    """
    text = (
        "## What the probabilities mean\n\nEach setting has its own map from logits to probabilities. `mrr calibrate` "
        f"fitted the maps on {calibration.data}: {calibration.pairs} pairs"
    )
    if calibration.targets == "labels":
        text += (
            f", {calibration.relevant_share:.1%} of them relevant. A probability estimates the share of such "
            "candidates that are relevant."
        )
    else:
        text += ". A probability estimates what full size would give, and has the meaning of full size's."
    if table:
        text += (
            "\n\nExpected calibration error on queries that the maps were not fitted on (plain logistic function / "
            f"full size's map for all settings / own map):\n\n{table}"
        )
    _store(folder, calibration, text, weights)


def _store(folder: Path, result: Calibration | Profile, text: str, weights: str) -> None:
    """Write the file, then its section of the card."""
    with locked(folder, SAVE):
        journal.settle(folder)
        journal.sweep(folder)
        write_measurement(folder, result, weights)
        write_section(folder / "README.md", SECTIONS[type(result)], text)


def _copied(source: Path, folder: Path) -> Path:
    """Copy a checkpoint to `folder`, unless it is there already."""
    folder = folder.expanduser()
    if _installed(folder):
        raise ValueError(f"save_to={str(folder)!r} is a part of the installed package. Choose another folder.")
    if journal.holds_checkpoint(folder):
        if load_outline(folder).fingerprint != load_outline(source).fingerprint:
            raise ValueError(f"save_to={str(folder)!r} holds another checkpoint. Choose another folder.")
        return folder
    with journal.saving(folder) as unfinished:
        journal.undisturbed(source, lambda: _copy_files(source, unfinished))
    return folder


def _copy_files(source: Path, folder: Path) -> None:
    for inside in wanted(file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()):
        (folder / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / inside, folder / inside)


def _installed(folder: Path) -> bool:
    return folder.resolve().is_relative_to(PACKAGE)


def write_section(card: Path, name: str, text: str) -> None:
    """Write a section of a model card: replace the one of this name, or append it."""
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    write_file(card, with_section(before, name, text))
