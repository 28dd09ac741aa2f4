"""What was measured with weights, or trained for them, is used with those weights alone."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mrr_model import MatryoshkaReranker, Target, checkpoint
from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import Checkpoint, load_outline
from mrr_model.checkpoint.fingerprint import fingerprint, sample
from mrr_model.checkpoint.hub import SHIPPED
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.recipe import finetune

Make = Callable[..., Checkpoint]


@pytest.fixture
def folder(make_checkpoint: Make, toy_calibration: Calibration, toy_profile: Profile, tmp_path: Path) -> Path:
    """A checkpoint with adapters, a calibration and a profile."""
    made = dataclasses.replace(make_checkpoint("bert"), calibration=toy_calibration, profile=toy_profile)
    checkpoint.save(made, tmp_path / "measured")
    return tmp_path / "measured"


def change_weights(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: tensors[name] + 0.01}, folder / "model.safetensors")


def tuned(model: Path, rows: Path, output: Path, *stages: Any) -> Path:
    return finetune(
        FinetuneConfig(
            model=str(model),
            train=(str(rows),),
            output=output,
            stages=stages,
            train_group_size=4,
            max_length=32,
            distill={"max_steps": 1},
            vertical={"max_steps": 1},
            horizontal={"max_steps": 1, "ratios": (2,)},
        )
    )


def test_every_tensor_counts(make_model: Callable[..., MatryoshkaModel]) -> None:
    state = {name: parameter.detach() for name, parameter in make_model("bert").named_parameters()}
    seen = {fingerprint(state)}
    seen |= {fingerprint({**state, name: tensor + 1e-3}) for name, tensor in state.items()}
    assert len(seen) == 1 + len(state)
    renamed = {f"other.{name}": tensor for name, tensor in state.items()}
    assert fingerprint(renamed) not in seen


def test_numbers_are_read_all_over_a_large_tensor() -> None:
    large = torch.arange(1_000_003.0)
    read = sample(large)
    assert (read[0], read[-1]) == (0, 1_000_002)
    assert read.diff().max() < 20_000
    assert sample(large.view(1, -1).T).equal(read)
    assert sample(torch.arange(20_000.0)[::2]).equal(sample(torch.arange(20_000.0)[::2].contiguous()))


def test_one_model_has_one_fingerprint_in_every_number_format(make_checkpoint: Make, tmp_path: Path) -> None:
    made = make_checkpoint("llama")
    checkpoint.save(made, tmp_path / "float32")
    names = {
        dtype: MatryoshkaReranker(tmp_path / "float32", dtype=dtype, max_length=64).fingerprint
        for dtype in ("float32", "bfloat16", "float16")
    }
    assert len(set(names.values())) == 1
    assert load_outline(tmp_path / "float32").fingerprint == names["float32"]
    MatryoshkaReranker(tmp_path / "float32", dtype="bfloat16", max_length=64).save_pretrained(tmp_path / "half")
    half, whole = (MatryoshkaReranker(tmp_path / "half", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert half.fingerprint == whole.fingerprint != names["float32"]


def test_measurements_go_with_their_weights_whatever_the_format(
    folder: Path, toy_calibration: Calibration, toy_profile: Profile, tmp_path: Path
) -> None:
    reranker = MatryoshkaReranker(folder, dtype="bfloat16", max_length=64)
    assert (reranker.calibration, reranker.profile) == (toy_calibration, toy_profile)
    reranker.save_pretrained(tmp_path / "half")  # rounded, not trained
    assert MatryoshkaReranker(tmp_path / "half", dtype="float32").profile == toy_profile


@pytest.mark.parametrize("name", ["heads.2.linear.weight", "model.embeddings.LayerNorm.bias"])
def test_measurements_of_changed_weights_are_left_out(folder: Path, name: str) -> None:
    change_weights(folder, name)
    with pytest.warns(UserWarning, match="other weights|were not saved with the weights") as caught:
        reranker = MatryoshkaReranker(folder, dtype="float32", max_length=64)
    messages = sorted(str(warning.message) for warning in caught)
    assert len(messages) == 3
    assert "calibration.json was measured with other weights or adapters" in messages[0]
    assert "profile.json was measured with other weights or adapters" in messages[1]
    assert "the adapters horizontal_1_2, horizontal_1_4, vertical in" in messages[2]
    assert (reranker.calibration, reranker.profile, reranker.adapters) == (None, None, ())
    explained = str(reranker.explain())
    assert "nothing: the checkpoint has no profile" in explained
    assert "the checkpoint has no calibration" in explained


def test_a_wrecked_copy_of_the_shipped_model_has_no_profile(tmp_path: Path) -> None:
    wrecked = Path(shutil.copytree(SHIPPED["mini"], tmp_path / "wrecked"))
    assert MatryoshkaReranker(wrecked, target=Target(keep_quality=0.9)).profile is not None
    change_weights(wrecked, "model.encoder.layer.0.attention.self.query.weight")
    refused = pytest.warns(UserWarning, match="ignored|left out")
    with refused, pytest.raises(ValueError, match=r"keep_quality=0\.9\) needs a profile"):
        MatryoshkaReranker(wrecked, target=Target(keep_quality=0.9))


def test_an_adapter_of_other_weights_is_left_out(
    folder: Path, make_checkpoint: Make, toy_profile: Profile, tmp_path: Path
) -> None:
    checkpoint.save(make_checkpoint("bert", seed=1), tmp_path / "other")
    own = folder / "compensation"
    shutil.copy(own / "vertical.safetensors", own / "horizontal_1_8.safetensors")
    with pytest.warns(UserWarning, match="the adapters horizontal_1_8 in .* were not saved with the weights"):
        reranker = MatryoshkaReranker(folder, max_length=64)
    assert reranker.adapters == ("horizontal_1_2", "horizontal_1_4", "vertical")
    assert reranker.profile == toy_profile
    (own / "horizontal_1_8.safetensors").unlink()
    tensors = load_file(own / "vertical.safetensors")
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, own / "vertical.safetensors")
    with pytest.warns(UserWarning, match=r"the adapters vertical in|(profile|calibration)\.json"):
        reranker = MatryoshkaReranker(folder, max_length=64)
    assert "vertical" not in reranker.adapters
    assert reranker.profile is None


def test_what_a_user_s_own_training_changed_is_not_saved_as_measured(folder: Path, tmp_path: Path) -> None:
    reranker = MatryoshkaReranker(folder, max_length=64)
    before = reranker.fingerprint
    with torch.no_grad():
        next(reranker.model.model.parameters()).mul_(1.5)
    assert reranker.fingerprint != before
    with pytest.warns(UserWarning, match="the weights have changed since they were loaded"):
        reranker.save_pretrained(tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "profile.json").exists()
    assert not (tmp_path / "tuned" / "calibration.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["distill", "vertical", "horizontal"])
def test_training_drops_what_was_measured(folder: Path, toy_file: Path, tmp_path: Path, stage: str) -> None:
    if stage == "vertical":  # which the horizontal ones were trained beside
        with pytest.warns(UserWarning, match="horizontal_1_2, horizontal_1_4"):
            made = tuned(folder, toy_file, tmp_path / "out", stage)
    else:
        made = tuned(folder, toy_file, tmp_path / "out", stage)
    assert not (made / "calibration.json").exists()
    assert not (made / "profile.json").exists()
    kept = {"distill": (), "vertical": ("vertical",), "horizontal": ("horizontal_1_2", "horizontal_1_4", "vertical")}
    assert MatryoshkaReranker(made, max_length=32).adapters == kept[stage]
    config = json.loads((made / "config.json").read_text("utf-8"))
    assert tuple(sorted(config["matryoshka"].get("adapters", ()))) == kept[stage]
