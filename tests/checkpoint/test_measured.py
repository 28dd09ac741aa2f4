"""What lies beside a checkpoint's weights: its calibration and its profile."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mrr_model import MatryoshkaReranker
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.checkpoint import measured
from mrr_model.selection.profile import Profile, ProfilePoint
from mrr_model.selection.target import Target

CALIBRATION = Calibration(
    settings=(
        CalibratedSetting(exit_layer=6, map=PlattMap(slope=0.5, intercept=-3.0)),
        CalibratedSetting(exit_layer=4, merges={1: "1/2"}, map=PlattMap(slope=2.0, intercept=1.0)),
    ),
    data="toy (19 queries)",
    targets="labels",
    pairs=108,
    relevant=0.2,
)
PROFILE = Profile(
    metric="nDCG@10",
    collections=("toy",),
    queries=19,
    query_tokens=8,
    passage_tokens=20,
    device="a processor",
    dtype="float32",
    threads=1,
    points=(
        ProfilePoint(depth=6, quality=0.8, kept=1.0, least=1.0, seconds=0.01, flops=4e9),
        ProfilePoint(
            depth=4, keep_ratio={1: 0.5, 3: 0.25}, quality=0.7, kept=0.875, least=0.875, seconds=0.004, flops=1e9
        ),
    ),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    measured.write(tmp_path, CALIBRATION, None, "weights")
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]
    measured.write_one(tmp_path, PROFILE, "weights")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.json", "profile.json"]
    assert measured.read(tmp_path, Calibration, "weights", []) == CALIBRATION
    assert measured.read(tmp_path, Profile, "weights", []) == PROFILE


@pytest.mark.parametrize("stamp", ["others", None])
@pytest.mark.parametrize(("kind", "command"), [(Calibration, "mrr calibrate"), (Profile, "mrr evaluate")])
def test_what_was_measured_with_other_weights_is_ignored(
    tmp_path: Path, kind: type[Calibration] | type[Profile], command: str, stamp: str | None
) -> None:
    measured.write(tmp_path, CALIBRATION, PROFILE, "weights")
    file = tmp_path / measured.FILES[kind]
    content = {**json.loads(file.read_text("utf-8")), "weights": stamp}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), "utf-8")
    notes: list[str] = []
    assert measured.read(tmp_path, kind, "weights", notes) is None
    [note] = notes
    assert note.startswith(f"{file} was measured with other weights")
    assert f"`{command} MODEL" in note


def test_a_folder_without_them_has_none(tmp_path: Path) -> None:
    assert measured.read(tmp_path, Calibration, "weights", []) is None
    assert measured.read(tmp_path / "absent", Profile, "weights", []) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"points": []}', b"\xff\xfe"])
@pytest.mark.parametrize("kind", [Calibration, Profile])
def test_a_damaged_file_is_named(tmp_path: Path, kind: type[Calibration] | type[Profile], content: bytes) -> None:
    name = measured.FILES[kind]
    (tmp_path / name).write_bytes(content)
    fault = r"(cannot be read|is not valid JSON): (?s:.)*"
    with pytest.raises(ValueError, match=rf"{name} {fault} Make it anew, or remove it\."):
        measured.read(tmp_path, kind, "weights", [])


def test_checkpoints_carry_them_from_folder_to_folder(saved_encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "measured"
    shutil.copytree(saved_encoder, folder)
    assert MatryoshkaReranker(folder, max_length=64).profile is None
    measured.write(folder, CALIBRATION, PROFILE, MatryoshkaReranker(folder, max_length=64).fingerprint)
    reranker = MatryoshkaReranker(folder, max_length=64)
    assert (reranker.calibration, reranker.profile) == (CALIBRATION, PROFILE)
    reranker.save_pretrained(tmp_path / "again")
    again = MatryoshkaReranker(tmp_path / "again", max_length=64)
    assert (again.calibration, again.profile) == (CALIBRATION, PROFILE)
    # Without its adapters the model is another one: saving it over the old removes what was measured.
    reranker.copy(compensated=False).save_pretrained(tmp_path / "again")
    bare = MatryoshkaReranker(tmp_path / "again", max_length=64)
    assert (bare.calibration, bare.profile, bare.adapters) == (None, None, ())


def test_published_folders_carry_them_too(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(reference / "mistral" / "model", folder)
    before = MatryoshkaReranker(folder, max_length=64)
    full = PROFILE.points[0].model_copy(update={"depth": before.num_layers})
    profile = PROFILE.model_copy(update={"points": (full,)})
    measured.write_one(folder, profile, before.fingerprint)
    assert MatryoshkaReranker(folder, max_length=64).profile == profile


def test_weights_that_change_in_memory_are_not_vouched_for(saved_encoder: Path, tmp_path: Path) -> None:
    shutil.copytree(saved_encoder, tmp_path / "model")
    weights = MatryoshkaReranker(saved_encoder, max_length=64).fingerprint
    measured.write(tmp_path / "model", CALIBRATION, PROFILE, weights)
    reranker = MatryoshkaReranker(tmp_path / "model", max_length=64)
    assert "kept 100.0%" in str(reranker.explain())
    with torch.no_grad():
        reranker.model.heads["6"].linear.weight.add_(1.0)  # type: ignore[union-attr, operator, arg-type]
    assert "kept" not in str(reranker.explain())
    assert str(reranker.explain()).count("the weights have changed") == 2
    with pytest.raises(ValueError, match=r"keep_quality=0\.9.* the weights have changed"):
        reranker.copy(target=Target(keep_quality=0.9))
