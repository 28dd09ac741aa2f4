"""What an evaluation leaves with a checkpoint: its profile, its calibration, and a section of the model card each."""

from __future__ import annotations

import os
from pathlib import Path

from mrr_model.calibration import Calibration
from mrr_model.checkpoint import measured
from mrr_model.checkpoint.source import SHIPPED
from mrr_model.profile import Profile


def checkpoint_folder(model: str) -> Path:
    """The folder to write to. Raises ``ValueError`` where the model is no local folder (a hub's cache is none), and
    ``PermissionError`` for one that cannot be written to.
    """
    folder = Path(SHIPPED[model]) if model in SHIPPED else Path(model).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"{model!r} is no local folder, so nothing can be stored with it. Save it to one first: "
            f"MatryoshkaReranker({model!r}).save_pretrained(FOLDER), then name that folder."
        )
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} cannot be written to. Save the model elsewhere and name that folder.")
    return folder


def save_profile(folder: Path, profile: Profile, table: str) -> None:
    """Store a profile and show its table in the card."""
    measured.write_one(folder, profile)
    on = f"{', '.join(profile.collections)} ({profile.queries} queries)"
    write_section(
        folder / "README.md",
        "profile",
        f"## What each size keeps and costs\n\n{profile.measure} on {on}; times on {profile.device}, "
        f"{profile.threads} threads, {profile.dtype}. `mrr evaluate` measured it.\n\n{table}",
    )


def save_calibration(folder: Path, calibration: Calibration, table: str) -> None:
    """Store the maps, and say in the card what they mean; ``table``: how reliable they are, where that was measured."""
    measured.write_one(folder, calibration)
    text = (
        "## What the probabilities mean\n\nEach setting has a map of its own from logits to probabilities. "
        f"`mrr calibrate` fitted them on {calibration.data}: {calibration.pairs} pairs"
    )
    if calibration.targets == "labels":
        text += (
            f", {calibration.relevant:.1%} of them relevant. A probability is the share of such candidates that are "
            "relevant."
        )
    else:
        text += ". A probability is what full size would give, and means what full size's means."
    if table:
        text += (
            "\n\nThe expected calibration error on queries that the maps had not seen (the plain logistic function / "
            f"full size's map for all / own map):\n\n{table}"
        )
    write_section(folder / "README.md", "calibration", text)


def write_section(card: Path, name: str, text: str) -> None:
    """Put a section into a model card, in the place of an earlier one of that name, else at the end."""
    before = card.read_text(encoding="utf-8") if card.is_file() else ""
    section = f"<!-- {name} -->\n{text.rstrip()}\n<!-- /{name} -->"
    known = measured.section(name)
    if known.search(before):
        after = known.sub(lambda _: section, before, count=1)
    else:
        after = f"{before.rstrip()}\n\n{section}\n".lstrip()
    card.write_text(after, encoding="utf-8")
