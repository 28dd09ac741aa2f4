"""What was measured with a checkpoint and lies beside its weights: calibration.json and profile.json."""

import json
from pathlib import Path
from typing import TypeVar

from mrr_model.calibration.maps import Calibration
from mrr_model.files.atomic import write_file
from mrr_model.files.damage import reading
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile

Measurement = TypeVar("Measurement", Calibration, Profile)

FILES = {Calibration: "calibration.json", Profile: "profile.json"}
COMMANDS = {
    Calibration: "`mrr calibrate MODEL COLLECTION`",
    Profile: "`mrr evaluate MODEL COLLECTION --save-profile`",
}
REMEASURE = "Measure it again, or remove it."
FINGERPRINT = "fingerprint"
"""In both files, the key of the fingerprint of the weights and adapters that were measured."""


def read_measurement(folder: Path, kind: type[Measurement], fingerprint: str, notes: list[str]) -> Measurement | None:
    """Read a folder's calibration or profile.

    Args:
        folder: The checkpoint's folder.
        kind: Which of the two.
        fingerprint: Of the weights and adapters in use.
        notes: Gets a line if the measurement is of other weights.

    Returns:
        The measurement; None if the folder has none, or one of other weights.

    Raises:
        ValueError: If the file is damaged; names the file.
    """
    file = folder / FILES[kind]
    if not file.is_file():
        return None
    with reading(file, REMEASURE):
        content = json.loads(file.read_bytes())
        measured_with = content.pop(FINGERPRINT, None) if isinstance(content, dict) else None
        measurement = kind.model_validate(content)
    if measured_with != fingerprint:
        notes.append(
            f"{file} was measured with other weights or adapters than those in use, so it is ignored. Measure them "
            f"with {COMMANDS[kind]}, or remove the file."
        )
        return None
    return measurement


def check_measurements(
    folder: Path, model: MatryoshkaModel, calibration: Calibration | None, profile: Profile | None
) -> None:
    """Check that the model has every measured setting.

    Raises:
        ValueError: For a setting that it lacks; names the file.
    """
    exits, merge_layers = set(model.matryoshka.exits), set(model.matryoshka.merge_layers)
    measured = [(FILES[Calibration], each.setting) for each in (calibration.settings if calibration else ())]
    measured += [(FILES[Profile], point.setting) for point in (profile.points if profile else ())]
    for name, setting in measured:
        merges = dict(setting.keep_ratio) if isinstance(setting.keep_ratio, tuple) else {}
        if setting.depth not in exits or not merge_layers.issuperset(merges):
            raise ValueError(f"{folder / name} has {setting}, which this model lacks. {REMEASURE}")
    for point in profile.points if profile else ():
        if point.cascade is not None and not exits.issuperset(point.cascade.stages):
            raise ValueError(f"{folder / FILES[Profile]} has {point}, which this model lacks. {REMEASURE}")


def write_measurement(folder: Path, measurement: Calibration | Profile, fingerprint: str) -> None:
    """Write one, with the fingerprint of the weights and adapters that were measured; the other stays as it is."""
    content = {FINGERPRINT: fingerprint, **measurement.model_dump(mode="json")}
    write_file(folder / FILES[type(measurement)], json.dumps(content, indent=1, ensure_ascii=False) + "\n")
