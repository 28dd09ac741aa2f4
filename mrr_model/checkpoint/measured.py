"""What was measured with a checkpoint and lies beside its weights: calibration.json and profile.json."""

import json
import re
from pathlib import Path
from typing import TypeVar

from mrr_model.calibration.maps import Calibration
from mrr_model.files.atomic import write_file
from mrr_model.files.damage import reading
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile

Measured = TypeVar("Measured", Calibration, Profile)

FILES = {Calibration: "calibration.json", Profile: "profile.json"}
REMEASURE = "Make it anew, or remove it."
COMMANDS = {
    Calibration: "`mrr calibrate MODEL COLLECTION`",
    Profile: "`mrr evaluate MODEL COLLECTION --save-profile`",
}
STAMP = "weights"
"""The key of the fingerprint in both files."""
SECTIONS = {Calibration: "calibration", Profile: "profile"}
"""The model card's section of each, between ``<!-- name -->`` and ``<!-- /name -->``."""


def read(folder: Path, kind: type[Measured], weights: str, notes: list[str]) -> Measured | None:
    """A folder's calibration or profile; None if it has none, or one of other weights than ``weights``, of which
    ``notes`` gets a line.

    Raises ``ValueError`` that names the file.
    """
    file = folder / FILES[kind]
    if not file.is_file():
        return None
    with reading(file, REMEASURE):
        content = json.loads(file.read_bytes())
        measured_with = content.pop(STAMP, None) if isinstance(content, dict) else None
        measured = kind.model_validate(content)
    if measured_with != weights:
        notes.append(
            f"{file} was measured with other weights or adapters than those in use, so it is ignored. Measure them "
            f"with {COMMANDS[kind]}, or remove the file."
        )
        return None
    return measured


def check(folder: Path, model: MatryoshkaModel, calibration: Calibration | None, profile: Profile | None) -> None:
    """Raise ``ValueError``, naming the file, for a measured setting that the model does not have."""
    exits, merge_layers = set(model.matryoshka.exits), set(model.matryoshka.merge_layers)
    for setting in calibration.settings if calibration else ():
        if setting.exit_layer not in exits or not merge_layers.issuperset(dict(setting.merges)):
            raise ValueError(
                f"{folder / FILES[Calibration]} has a map for {setting}, which this model lacks. {REMEASURE}"
            )
    for point in profile.points if profile else ():
        merges = dict(point.setting.keep_ratio) if isinstance(point.setting.keep_ratio, tuple) else {}
        if point.depth not in exits or not merge_layers.issuperset(merges):
            raise ValueError(f"{folder / FILES[Profile]} has {point.setting}, which this model lacks. {REMEASURE}")


def write(folder: Path, calibration: Calibration | None, profile: Profile | None, weights: str) -> None:
    """Write what there is, stamped with the fingerprint of the weights and adapters that it was measured with."""
    for measured in (calibration, profile):
        if measured is not None:
            write_one(folder, measured, weights)


def write_one(folder: Path, measured: Calibration | Profile, weights: str) -> None:
    """Write one, and leave the other as it is."""
    content = {STAMP: weights, **measured.model_dump(mode="json")}
    write_file(folder / FILES[type(measured)], json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def section(name: str) -> re.Pattern[str]:
    """What finds a section of a model card."""
    return re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)


def card_of(card: str, calibration: Calibration | None, profile: Profile | None) -> str:
    """A model card without the sections of what there is not: they tell of other weights."""
    for kind, measured in ((Calibration, calibration), (Profile, profile)):
        if measured is None:
            card = section(SECTIONS[kind]).sub("", card)
    return card
