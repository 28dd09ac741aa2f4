"""What was measured with a checkpoint and lies beside its weights: calibration.json and profile.json."""

import re
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from mrr_model.calibration import Calibration
from mrr_model.profile import Profile

Measured = TypeVar("Measured", Calibration, Profile)

FILES = {Calibration: "calibration.json", Profile: "profile.json"}
SECTIONS = {Calibration: "calibration", Profile: "profile"}
"""The model card's section of each, between ``<!-- name -->`` and ``<!-- /name -->``."""


def read(folder: Path, kind: type[Measured]) -> Measured | None:
    """A folder's calibration or profile; None where it has none. Raises ``ValueError`` that names the file."""
    file = folder / FILES[kind]
    if not file.is_file():
        return None
    try:
        return kind.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file} cannot be read: {error}. Make it anew, or remove it.") from None


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
