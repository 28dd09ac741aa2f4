"""What lies beside a checkpoint's weights: its calibration and its profile."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mrr_model import MatryoshkaReranker
from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint.measured import FILES, read_measurement, write_measurement
from mrr_model.selection.profile import Profile
from mrr_model.selection.target import Target


def test_what_is_written_is_read(toy_calibration: Calibration, toy_profile: Profile, tmp_path: Path) -> None:
    write_measurement(tmp_path, toy_calibration, "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
    write_measurement(tmp_path, toy_profile, "weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json", "profile.json"]
    assert read_measurement(tmp_path, Calibration, "weights", []) == toy_calibration
    assert read_measurement(tmp_path, Profile, "weights", []) == toy_profile


@pytest.mark.parametrize("fingerprint", ["others", None])
@pytest.mark.parametrize(("kind", "command"), [(Calibration, "mrr calibrate"), (Profile, "mrr evaluate")])
def test_what_was_measured_with_other_weights_is_ignored(
    toy_calibration: Calibration,
    toy_profile: Profile,
    tmp_path: Path,
    kind: type[Calibration] | type[Profile],
    command: str,
    fingerprint: str | None,
) -> None:
    write_measurement(tmp_path, toy_calibration if kind is Calibration else toy_profile, "weights")
    file = tmp_path / FILES[kind]
    content = {**json.loads(file.read_text("utf-8")), "fingerprint": fingerprint}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8")
    notes: list[str] = []
    assert read_measurement(tmp_path, kind, "weights", notes) is None
    [note] = notes
    assert note.startswith(f"{file} was measured with other weights")
    assert f"`{command} MODEL" in note


def test_a_folder_without_them_has_none(tmp_path: Path) -> None:
    assert read_measurement(tmp_path, Calibration, "weights", []) is None
    assert read_measurement(tmp_path / "absent", Profile, "weights", []) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"points": []}', b"\xff\xfe"])
@pytest.mark.parametrize("kind", [Calibration, Profile])
def test_a_damaged_file_is_named(tmp_path: Path, kind: type[Calibration] | type[Profile], content: bytes) -> None:
    name = FILES[kind]
    (tmp_path / name).write_bytes(content)
    fault = r"(cannot be read|is not valid JSON): (?s:.)*"
    with pytest.raises(ValueError, match=rf"{name} {fault} Measure it again, or remove it\."):
        read_measurement(tmp_path, kind, "weights", [])


def measured_copy(folder: Path, copy: Path, *measurements: Calibration | Profile) -> Path:
    """A copy of a checkpoint, with measurements."""
    shutil.copytree(folder, copy)
    for measurement in measurements:
        write_measurement(copy, measurement, MatryoshkaReranker(folder, max_length=64).fingerprint)
    return copy


def test_checkpoints_carry_them_from_folder_to_folder(
    saved_encoder: Path, toy_calibration: Calibration, toy_profile: Profile, tmp_path: Path
) -> None:
    assert MatryoshkaReranker(saved_encoder, max_length=64).profile is None
    folder = measured_copy(saved_encoder, tmp_path / "measured", toy_calibration, toy_profile)
    reranker = MatryoshkaReranker(folder, max_length=64)
    assert (reranker.calibration, reranker.profile) == (toy_calibration, toy_profile)
    reranker.save_pretrained(tmp_path / "again")
    again = MatryoshkaReranker(tmp_path / "again", max_length=64)
    assert (again.calibration, again.profile) == (toy_calibration, toy_profile)
    # Without its adapters the model is another one: saving it over the old removes what was measured.
    reranker.copy(compensated=False).save_pretrained(tmp_path / "again")
    bare = MatryoshkaReranker(tmp_path / "again", max_length=64)
    assert (bare.calibration, bare.profile, bare.adapters) == (None, None, ())


def test_published_folders_carry_them_too(reference: Path, toy_profile: Profile, tmp_path: Path) -> None:
    published = reference / "mistral" / "model"
    layers = MatryoshkaReranker(published, max_length=64).num_layers
    full = toy_profile.points[0].model_copy(update={"depth": layers})
    profile = toy_profile.model_copy(update={"points": (full,)})
    folder = measured_copy(published, tmp_path / "published", profile)
    assert MatryoshkaReranker(folder, max_length=64).profile == profile


def test_measurements_do_not_describe_weights_that_change_in_memory(
    saved_encoder: Path, toy_calibration: Calibration, toy_profile: Profile, tmp_path: Path
) -> None:
    folder = measured_copy(saved_encoder, tmp_path / "model", toy_calibration, toy_profile)
    reranker = MatryoshkaReranker(folder, max_length=64)
    assert "kept 100.0%" in str(reranker.explain())
    with torch.no_grad():
        reranker.model.heads["6"].linear.weight.add_(1.0)  # type: ignore[union-attr, operator, arg-type]
    assert "kept" not in str(reranker.explain())
    assert str(reranker.explain()).count("the weights have changed") == 2
    with pytest.raises(ValueError, match=r"keep_quality=0\.9.* the weights have changed"):
        reranker.copy(target=Target(keep_quality=0.9))
