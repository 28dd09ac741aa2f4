"""What was measured with a checkpoint and lies beside its weights: calibration.json and profile.json."""

import re
from pathlib import Path
from typing import TypeVar

from mrr_model.calibration import Calibration
from mrr_model.faults import reading
from mrr_model.model import MatryoshkaModel
from mrr_model.profile import Profile

Measured = TypeVar("Measured", Calibration, Profile)

FILES = {Calibration: "calibration.json", Profile: "profile.json"}
REMEASURE = "Make it anew, or remove it."
SECTIONS = {Calibration: "calibration", Profile: "profile"}
"""The model card's section of each, between ``<!-- name -->`` and ``<!-- /name -->``."""


def read(folder: Path, kind: type[Measured]) -> Measured | None:
    """A folder's calibration or profile; None where it has none. Raises ``ValueError`` that names the file."""
    file = folder / FILES[kind]
    if not file.is_file():
        return None
    with reading(file, REMEASURE):
        return kind.model_validate_json(file.read_bytes())


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


def write(folder: Path, calibration: Calibration | None, profile: Profile | None) -> None:
    """Write what there is; a file of what there is not is removed, for it was measured with other weights."""
    for kind, measured in ((Calibration, calibration), (Profile, profile)):
        if measured is None:
            (folder / FILES[kind]).unlink(missing_ok=True)
        else:
            write_one(folder, measured)


def section(name: str) -> re.Pattern[str]:
    """What finds a section of a model card."""
    return re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)


def card_of(card: str, calibration: Calibration | None, profile: Profile | None) -> str:
    """A model card without the sections of what there is not: they tell of other weights."""
    for kind, measured in ((Calibration, calibration), (Profile, profile)):
        if measured is None:
            card = section(SECTIONS[kind]).sub("", card)
    return card


def write_one(folder: Path, measured: Calibration | Profile) -> None:
    """Write one, and leave the other as it is."""
    (folder / FILES[type(measured)]).write_text(measured.model_dump_json(indent=1) + "\n", encoding="utf-8")
