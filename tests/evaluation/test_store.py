"""Profiles and calibrations in a checkpoint folder: files beside the weights, and sections of the model card."""

import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr_model import MatryoshkaReranker
from mrr_model.calibration.maps import CalibratedSetting, Calibration, PlattMap
from mrr_model.calibration.probability import probabilities
from mrr_model.checkpoint import load_outline
from mrr_model.checkpoint.hub import SHIPPED
from mrr_model.evaluation.store import checkpoint_folder, save_calibration, save_profile, write_section
from mrr_model.selection.profile import Profile


def weights_of(folder: Path) -> str:
    fingerprint = load_outline(folder).fingerprint
    assert fingerprint is not None
    return fingerprint


@pytest.fixture
def folder(saved_encoder: Path, tmp_path: Path) -> Path:
    """A checkpoint of its own."""
    return Path(shutil.copytree(saved_encoder, tmp_path / "model"))


texts = st.text(st.characters(exclude_characters="<>\r", exclude_categories=("C", "Z")) | st.just("\n")).map(str.strip)


@given(texts, texts, texts, texts)
def test_a_section_replaces_its_earlier_version(
    tmp_path_factory: pytest.TempPathFactory, card: str, first: str, other: str, second: str
) -> None:
    file = tmp_path_factory.mktemp("cards") / "README.md"
    file.write_text(card, encoding="utf-8", newline="\n")
    write_section(file, "profile", first)
    write_section(file, "calibration", other)
    write_section(file, "profile", second)
    sections = [
        f"<!-- profile -->\n{second}\n<!-- /profile -->",
        f"<!-- calibration -->\n{other}\n<!-- /calibration -->",
    ]
    assert file.read_text(encoding="utf-8") == "\n\n".join([card, *sections] if card else sections) + "\n"
    write_section(file, "profile", second)
    assert file.read_text(encoding="utf-8").count("<!-- profile -->") == 1


def test_a_card_that_is_missing_is_made(tmp_path: Path) -> None:
    write_section(tmp_path / "README.md", "profile", "a \\1 table")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "<!-- profile -->\na \\1 table\n<!-- /profile -->\n"


def test_a_profile_is_stored_and_shown(folder: Path, toy_profile: Profile) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    for _ in range(2):
        save_profile(folder, toy_profile, "| a | table |", weights_of(folder))
    assert MatryoshkaReranker(folder, max_length=64).profile == toy_profile
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert written.startswith(card.rstrip())
    assert written.count("## What each size keeps and costs") == written.count("| a | table |") == 1
    assert "nDCG@10 on toy, other (19 queries); times on a processor, 2 threads, float32" in written


def test_a_calibration_is_stored_beside_a_profile(
    folder: Path, toy_calibration: Calibration, toy_profile: Profile
) -> None:
    save_profile(folder, toy_profile, "", weights_of(folder))
    save_calibration(folder, toy_calibration, "| a | table |", weights_of(folder))
    reranker = MatryoshkaReranker(folder, max_length=64)
    assert (reranker.profile, reranker.calibration) == (toy_profile, toy_calibration)
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert "fitted the maps on toy (19 queries): 108 pairs, 25.0% of them relevant" in written
    assert "on queries that the maps were not fitted on" in written
    assert "| a | table |" in written


def test_a_card_says_what_probabilities_mean_without_labels(folder: Path, toy_calibration: Calibration) -> None:
    save_calibration(folder, toy_calibration.model_copy(update={"targets": "full size"}), "", weights_of(folder))
    written = (folder / "README.md").read_text(encoding="utf-8")
    assert "what full size would give" in written
    assert "relevant" not in written.partition("<!-- calibration -->")[2]
    assert "Expected calibration error" not in written


def test_published_folders_can_be_written_to(reference: Path, toy_calibration: Calibration, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(reference / "mistral" / "model", tmp_path / "published"))
    before = MatryoshkaReranker(folder, max_length=64).score("a", ["b"], normalize=False)
    layers = MatryoshkaReranker(folder, max_length=64).num_layers
    maps = CalibratedSetting(depth=layers, map=PlattMap(slope=0.5, intercept=-3.0))
    calibration = toy_calibration.model_copy(update={"settings": (maps,)})
    save_calibration(checkpoint_folder(str(folder)), calibration, "", weights_of(folder))
    reranker = MatryoshkaReranker(folder, max_length=64)
    assert reranker.calibration is not None
    assert reranker.score("a", ["b"], normalize=False) == before
    assert reranker.score("a", ["b"]) == probabilities(before, reranker.plan(), reranker.calibration)


def test_the_folder_of_a_model(folder: Path) -> None:
    assert checkpoint_folder(str(folder)) == folder


@pytest.mark.parametrize("model", ["mini", str(SHIPPED["mini"]), str(SHIPPED["mini"] / "compensation" / "..")])
def test_the_installed_package_is_left_as_it_is(model: str) -> None:
    with pytest.raises(ValueError, match=r"a part of the installed package.* --save-to .*save_pretrained"):
        checkpoint_folder(model)
    with pytest.raises(ValueError, match=r"save_to=.*a part of"):
        checkpoint_folder("mini", SHIPPED["mini"].parent / "own")
    assert not (SHIPPED["mini"].parent / "own").exists()


def test_a_copy_is_made_to_store_with(
    folder: Path, saved_checkpoint: Path, toy_profile: Profile, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for _ in range(2):  # the second time, the copy is there
        assert checkpoint_folder(str(folder), copy) == copy
    assert {path.relative_to(copy): path.read_bytes() for path in copy.rglob("*") if path.is_file()} == {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    save_profile(copy, toy_profile, "", weights_of(copy))
    assert MatryoshkaReranker(copy, max_length=64).profile == toy_profile
    assert MatryoshkaReranker(folder, max_length=64).profile is None
    with pytest.raises(ValueError, match=r"save_to="):
        checkpoint_folder(str(saved_checkpoint), copy)


@pytest.mark.parametrize("model", ["owner/name", "no-such-folder"])
def test_a_hub_model_is_to_be_saved_first(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{model}.*--save-to .*save_pretrained"):
        checkpoint_folder(model)


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(folder: Path) -> None:
    with (
        patch("mrr_model.evaluation.store.os.access", return_value=False),
        pytest.raises(PermissionError, match=r"model cannot be written to.*--save-to"),
    ):
        checkpoint_folder(str(folder))


def test_a_copy_of_a_checkpoint_with_deep_sub_folders(saved_encoder: Path, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    shutil.copytree(saved_encoder, source)
    deep = Path("loras", "vertical", "adapter_config.json")
    (source / deep).parent.mkdir(parents=True)
    (source / deep).write_text("{}", encoding="utf-8")
    assert checkpoint_folder(str(source), copy) == copy
    assert (copy / deep).read_text("utf-8") == "{}"
    assert MatryoshkaReranker(copy, max_length=64).adapters == MatryoshkaReranker(source, max_length=64).adapters
