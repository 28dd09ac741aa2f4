"""What an evaluation leaves with a checkpoint: its profile, its calibration, and a section of the model card each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import journal, load_outline
from mrr_model.checkpoint.card import SECTIONS, with_section
from mrr_model.checkpoint.hub import FILES, PACKAGE, SHIPPED, locate
from mrr_model.checkpoint.measured import write_measurement
from mrr_model.files.atomic import write_file
from mrr_model.files.locks import SAVE, locked
from mrr_model.selection.profile import Profile


def checkpoint_folder(model: str, save_to: Path | None = None, *, local_files_only: bool = False) -> Path:
    """The folder to store measurements in: the model's own, or ``save_to``, which gets a copy of the checkpoint.

    Raises ``ValueError`` if the model is no local folder (a hub's cache is none), is a part of this package, or if
    ``save_to`` holds another checkpoint; ``PermissionError`` for a folder that cannot be written to.
    """
    if save_to is not None:
        return _copied(locate(model, local_files_only=local_files_only), save_to)
    folder = Path(SHIPPED[model]) if model in SHIPPED else Path(model).expanduser()
    hint = (
        f"Name a folder for a copy of it with --save-to FOLDER (in Python: "
        f"MatryoshkaReranker({model!r}).save_pretrained(FOLDER), then name that folder)."
    )
    if not folder.is_dir():
        raise ValueError(f"{model!r} is no local folder, so nothing can be stored with it. {hint}")
    if _installed(folder):
        raise ValueError(f"{model!r} is a part of the installed package, so nothing is stored with it. {hint}")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to. {hint}")
    return folder


def save_profile(folder: Path, profile: Profile, table: str, weights: str) -> None:
    """Store a profile and show its table in the card; ``weights``: the fingerprint of what was measured."""
    on = f"{', '.join(profile.collections)} ({profile.queries} queries)"
    text = (
        f"## What each size keeps and costs\n\n{profile.metric} on {on}; times on {profile.device}, "
        f"{profile.threads} threads, {profile.dtype}. `mrr evaluate` measured it.\n\n{table}"
    )
    _store(folder, profile, text, weights)


def save_calibration(folder: Path, calibration: Calibration, table: str, weights: str) -> None:
    """Store the maps, and say in the card what they mean; ``table``: how reliable they are, where that was measured;
    ``weights``: the fingerprint of what was measured.
    """
    text = (
        "## What the probabilities mean\n\nEach setting has a map of its own from logits to probabilities. "
        f"`mrr calibrate` fitted them on {calibration.data}: {calibration.pairs} pairs"
    )
    if calibration.targets == "labels":
        text += (
            f", {calibration.relevant_share:.1%} of them relevant. A probability is the share of such candidates that "
            "are relevant."
        )
    else:
        text += ". A probability is what full size would give, and means what full size's means."
    if table:
        text += (
            "\n\nThe expected calibration error on queries that the maps had not seen (the plain logistic function / "
            f"full size's map for all / own map):\n\n{table}"
        )
    _store(folder, calibration, text, weights)


def _store(folder: Path, made: Calibration | Profile, text: str, weights: str) -> None:
    """The file, then its section of the card."""
    with locked(folder, SAVE):
        journal.settle(folder)
        journal.sweep(folder)
        write_measurement(folder, made, weights)
        write_section(folder / "README.md", SECTIONS[type(made)], text)


def _copied(source: Path, folder: Path) -> Path:
    """``folder`` with the files of a checkpoint, which it may hold already."""
    folder = folder.expanduser()
    if _installed(folder):
        raise ValueError(f"save_to={str(folder)!r} is a part of the installed package. Choose another folder.")
    if journal.holds_checkpoint(folder):
        if load_outline(folder).fingerprint != load_outline(source).fingerprint:
            raise ValueError(f"save_to={str(folder)!r} holds another checkpoint. Choose another folder.")
        return folder
    with journal.saving(folder) as place:
        journal.undisturbed(source, lambda: _copy_files(source, place))
    return folder


def _copy_files(source: Path, folder: Path) -> None:
    for file in {file for pattern in FILES for file in source.rglob(pattern)}:
        inside = file.relative_to(source)
        if file.is_file() and not any(part.startswith(".") for part in inside.parts):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / inside)


def _installed(folder: Path) -> bool:
    return folder.resolve().is_relative_to(PACKAGE)


def write_section(card: Path, name: str, text: str) -> None:
    """Put a section into a model card, in the place of an earlier one of that name, else at the end."""
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    write_file(card, with_section(before, name, text))
