"""Damaged and hostile checkpoints: one error that names the file, from Python and from the command line."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.weights import FORMATS, read_headers
from mrr_model.cli import app as cli
from mrr_model.compression import Plan
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(
    make_checkpoint: Callable[..., Checkpoint],
    toy_calibration: Calibration,
    toy_profile: Profile,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint that has every kind of file: two shards and their index, adapters, a calibration and a profile."""
    folder = tmp_path_factory.mktemp("whole") / "checkpoint"
    made = dataclasses.replace(make_checkpoint("llama"), calibration=toy_calibration, profile=toy_profile)
    checkpoint.save(made, folder, embeddings_apart=True)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def content(data: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(data)


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fields(**changes: Any) -> Damage:
    """Changes to a JSON file; None leaves a field out, and `matryoshka__x` is a field of a section."""

    def change(file: Path) -> None:
        known = json.loads(file.read_text(encoding="utf-8"))
        for name, value in changes.items():
            section, _, field = name.rpartition("__")
            (known[section] if section else known)[field] = value
        file.write_text(json.dumps(known), encoding="utf-8")

    return change


def tensors(change: Callable[[dict[str, Tensor]], object], **metadata: str) -> Damage:
    def damage(file: Path) -> None:
        held = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(held)
        save_file(held, file, metadata=metadata or None)

    return damage


def first(held: Mapping[str, Tensor], ending: str = "weight") -> str:
    return next(name for name in sorted(held) if name.endswith(ending))


def cast(dtype: torch.dtype) -> Damage:
    return tensors(lambda held: held.update({first(held): held[first(held)].to(dtype)}))


def header(text: str) -> Callable[[Path], object]:
    """A safetensors file of this header and nothing after it."""
    return content(len(text).to_bytes(8, "little") + text.encode())


def renamed(name: str) -> Damage:
    return lambda file: file.rename(file.with_name(name))


def gone(file: Path) -> None:
    file.unlink()


def words(vocabulary: Mapping[str, int]) -> Damage:
    """A tokenizer of other words."""

    def damage(file: Path) -> None:
        backend = Tokenizer(WordLevel(dict(vocabulary), unk_token="[UNK]"))
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]", bos_token="[UNK]", eos_token="[UNK]"
        ).save_pretrained(file.parent)

    return damage


DEEP = b'{"a":' * 100_000
CALIBRATED = {"depth": 6, "keep_ratio": 1.0, "map": {"kind": "platt", "slope": 0.5, "intercept": -3.0}}
MEASURED = {"depth": 6, "quality": 0.8, "kept": 1.0, "min_kept": 1.0, "seconds": 0.01, "flops": 4e9}
NOWHERE = {"nowhere.lora_A.weight": torch.ones(2, 32), "nowhere.lora_B.weight": torch.ones(32, 2)}
LORA = "compensation/horizontal_1_2.safetensors"

DAMAGED: list[tuple[str, str, Damage]] = [
    *(
        (name, label, content(data))
        for name in (
            "config.json",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "calibration.json",
            "profile.json",
        )
        for label, data in (("empty", b""), ("null", b"null"), ("list", b"[]"), ("deep", DEEP), ("binary", b"\xff\xfe"))
    ),
    *(
        (name, label, damage)
        for name in ("model.safetensors", "embeddings.safetensors", LORA)
        for label, damage in (
            ("empty", content(b"")),
            ("half", half),
            ("text", content(b"version https://git-lfs.github.com/spec/v1\n")),
            ("long header", content((1 << 60).to_bytes(8, "little"))),
            ("lying header", header('{"a.weight":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')),
            ("int8", cast(torch.int8)),
            ("bool", cast(torch.bool)),
        )
    ),
    *(("model.safetensors", str(dtype), cast(dtype)) for dtype in (torch.complex64, torch.float8_e4m3fn, torch.int64)),
    *(
        ("config.json", f"{name} {value!r}"[:40], fields(**{name: value}))
        for name, value in (
            ("num_hidden_layers", "6"),
            ("num_hidden_layers", 20_000_000),
            ("num_hidden_layers", 7),
            ("num_hidden_layers", 0),
            ("hidden_size", "x"),
            ("hidden_size", 33),
            ("hidden_size", 2**40),
            ("intermediate_size", 2**30),
            ("vocab_size", 0),
            ("vocab_size", 2**31 - 1),
            ("hidden_act", "nope"),
            ("hidden_act", 5),
            ("num_attention_heads", 0),
            ("num_key_value_heads", 0),
            ("num_key_value_heads", 3),
            ("head_dim", 7),
            ("head_dim", -1),
            ("pad_token_id", 99_999),
            ("pad_token_id", -2),
            ("dtype", "float99"),
            ("rope_parameters", {"rope_type": "nope", "rope_theta": 10_000.0}),
            ("rope_parameters", {"rope_type": "default", "rope_theta": 0}),
            ("rope_parameters", "default"),
            ("rms_norm_eps", "x"),
            ("rms_norm_eps", -1.0),
            ("max_position_embeddings", -5),
            ("sliding_window", 0),
            ("sliding_window", -3),
            ("model_type", ["llama"]),
            ("model_type", "mamba"),
            ("matryoshka", []),
            ("matryoshka__exits", [1, 99]),
            ("matryoshka__exits", ["1"]),
            ("matryoshka__exits", {}),
            ("matryoshka__merge_layers", [2, 1]),
            ("matryoshka__merge_layers", [0, 1]),
            ("matryoshka__merge_layers", [1, 6]),
            ("matryoshka__default_merge_layer", 0),
            ("matryoshka__default_merge_layer", 99),
            ("matryoshka__default_merge_layer", True),
            ("matryoshka__logit_softcap", 0),
            ("matryoshka__logit_softcap", float("inf")),
            ("matryoshka__template", {"query": 5}),
        )
    ),
    *(
        ("model.safetensors.index.json", f"{name!r}"[:40], fields(weight_map={"a": name}))
        for name in ("../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "absent\0.safetensors")
    ),
    ("model.safetensors.index.json", "weight_map 5", fields(weight_map=5)),
    ("model.safetensors.index.json", "names 5", fields(weight_map={"a": 5})),
    ("tokenizer.json", "object", content(b"{}")),
    ("tokenizer.json", "half", half),
    ("tokenizer.json", "ids beyond", words({"[UNK]": 0, "the": 5_000})),
    ("tokenizer.json", "no words", words({"[UNK]": 0})),
    ("tokenizer_config.json", "no specials", content(b"{}")),
    ("tokenizer_config.json", "wrong type", fields(bos_token=7)),
    (LORA, "no lora_B", tensors(lambda held: held.pop(first(held, "lora_B.weight")))),
    (LORA, "ranks differ", tensors(lambda held: held.update({first(held): torch.ones(5, 32)}))),
    (LORA, "one dimension", tensors(lambda held: held.update({first(held): torch.ones(32)}))),
    (LORA, "a strange name", tensors(lambda held: held.update({"model.norm": torch.ones(2, 32)}))),
    (LORA, "another model", tensors(lambda held: held.update(NOWHERE))),
    (LORA, "scaling a text", tensors(lambda held: None, scaling='{"heads.1": "x"}')),
    (LORA, "scaling nan", tensors(lambda held: None, scaling='{"heads.1": NaN}')),
    (LORA, "scaling a list", tensors(lambda held: None, scaling="[]")),
    (LORA, "scaling damaged", tensors(lambda held: None, scaling="{")),
    ("calibration.json", "depth 1,000,000", fields(settings=[{**CALIBRATED, "depth": 1_000_000}])),
    ("calibration.json", "depth 7", fields(settings=[{**CALIBRATED, "depth": 7}])),
    ("calibration.json", "merge layer 6", fields(settings=[{**CALIBRATED, "keep_ratio": {"6": 0.5}}])),
    ("calibration.json", "no merge layer", fields(settings=[{**CALIBRATED, "keep_ratio": 0.5}])),
    ("calibration.json", "100,000 settings", fields(settings=[CALIBRATED] * 100_000)),
    ("calibration.json", "an endless ratio", fields(settings=[{**CALIBRATED, "keep_ratio": {"1": "1e-999999999"}}])),
    ("profile.json", "depth 1,000,000", fields(points=[{**MEASURED, "depth": 1_000_000}])),
]


@pytest.mark.parametrize(
    ("name", "damage"),
    [pytest.param(name, damage, id=f"{name}-{label}") for name, label, damage in DAMAGED],
)
def test_a_damaged_file_is_one_error_that_names_it(folder: Path, name: str, damage: Damage) -> None:
    damage(folder / name)
    with pytest.raises(ValueError, match="/copy") as raised:
        MatryoshkaReranker(folder, device="cpu")
    assert names(str(raised.value), folder, name)
    for command in (("info", folder), ("rerank", "-q", "what", "--model", folder)):
        result = CliRunner().invoke(cli.app, [str(word) for word in command], input="the panda\n")
        assert (result.exit_code, result.stdout) == (2, "")
        [line] = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert names(line, folder, name)


def names(message: str, folder: Path, name: str) -> bool:
    """Whether a message names the file, or the folder and that its weights and its config.json disagree."""
    disagree = f"the weights in {folder} do not fit its config.json"
    weights = name == "config.json" or (name.endswith(".safetensors") and "compensation" not in name)
    return str(folder / name) in message or (weights and disagree in message)


@pytest.mark.parametrize(
    "name", ["horizontal_1_0", "horizontal_0_1", "horizontal_2_1", "horizontal_2_4", "horizontal_1", "diagonal"]
)
def test_an_adapter_of_a_ratio_that_is_none_is_named(folder: Path, name: str) -> None:
    renamed(f"{name}.safetensors")(folder / LORA)
    with pytest.raises(ValueError, match=rf"{name}\.safetensors is not a compensation adapter"):
        MatryoshkaReranker(folder, device="cpu")


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json",)])
def test_a_folder_without_a_tokenizer_is_refused(
    make_checkpoint: Callable[..., Checkpoint], tmp_path: Path, family: str, kept: tuple[str, ...]
) -> None:
    """For some families transformers makes up a tokenizer that knows no word."""
    checkpoint.save(make_checkpoint(family, adapters=False), tmp_path)
    for file in tmp_path.glob("*token*"):
        if file.name not in kept:
            file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no tokenizer: neither tokenizer\.json nor a vocabulary"):
        checkpoint.load(tmp_path)


def test_fewer_ids_than_embeddings_are_fine(folder: Path) -> None:
    words({"[UNK]": 0, "the": 5, "panda": 9})(folder / "tokenizer.json")
    assert len(MatryoshkaReranker(folder, device="cpu").score("the", ["panda", "the"])) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("pad_token_id", -1), ("rope_scaling", {"rope_type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 0})],
)
def test_odd_values_that_published_models_have_load(folder: Path, field: str, value: Any) -> None:
    fields(**{field: value})(folder / "config.json")
    reranker = MatryoshkaReranker(folder, device="cpu")
    assert reranker.model.config.pad_token_id in (0, None)
    one, two = reranker.score("the", ["the panda", "what is the panda is"])
    assert reranker.score("the", ["the panda"]) == pytest.approx([one], abs=1e-5) != [two]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("head_dim", 10**9, "size of a head"), ("max_position_embeddings", 10**9, "max_position_embeddings")],
)
def test_sizes_that_fill_the_memory_are_refused_before_a_model_is_made(
    folder: Path, field: str, value: int, message: str
) -> None:
    fields(**{field: value})(folder / "config.json")
    with (
        patch.object(MatryoshkaModel, "from_config", side_effect=AssertionError("made")),
        pytest.raises(ValueError, match=message),
    ):
        MatryoshkaReranker(folder, device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_formats_load(folder: Path, dtype: torch.dtype) -> None:
    cast(dtype)(folder / "model.safetensors")
    assert {stored.format for stored in read_headers(folder).values()} < set(FORMATS)
    # Rounded weights are other weights than those that the adapters were saved with.
    with nullcontext() if dtype == torch.float64 else pytest.warns(UserWarning, match="weights"):
        loaded = checkpoint.load(folder)
    assert loaded.model.model.dtype == torch.float32
    assert bool(loaded.adapters) == (dtype == torch.float64)


def test_absurd_layers_of_a_published_checkpoint_are_refused(reference: Path, tmp_path: Path) -> None:
    """Its exits and merge layers would be counted up before a weight is missed."""
    for name in ("mistral", "gemma2", "minicpm"):
        folder = shutil.copytree(reference / name / "model", tmp_path / name)
        for layers in (20_000_000, 9_999):
            fields(num_hidden_layers=layers)(folder / "config.json")
            with pytest.raises(ValueError, match=r"config\.json.*num_hidden_layers"):
                checkpoint.load_outline(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_sep": 0},
        {"layer_sep": -1},
        {"start_layer": 0},
        {"start_layer": 99},
        {"start_layer": "8"},
        {"num_hidden_layers": None},
    ],
)
def test_exits_of_a_published_checkpoint_that_make_no_sense(
    reference: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = shutil.copytree(reference / "mistral" / "model", tmp_path / "copy")
    fields(**change)(folder / "config.json")
    with pytest.raises(ValueError, match=r"copy/config\.json"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("adapter_config.json", content(b"{}")),
        ("adapter_config.json", content(b"{")),
        ("adapter_config.json", content(b"[]")),
        ("adapter_config.json", fields(r=0)),
        ("adapter_config.json", fields(r="4")),
        ("adapter_config.json", fields(lora_alpha=None)),
        ("adapter_model.safetensors", half),
        ("adapter_model.safetensors", content(b"")),
        ("adapter_model.safetensors", tensors(lambda held: held.pop(first(held, "lora_B.weight")))),
        ("adapter_model.safetensors", tensors(lambda held: held.update({first(held): torch.ones(7, 64)}))),
        ("adapter_model.safetensors", cast(torch.int8)),
    ],
)
def test_a_damaged_published_adapter_is_named(reference: Path, tmp_path: Path, name: str, damage: Damage) -> None:
    adapter = Path(shutil.copytree(reference / "mistral" / "vertical", tmp_path / "lora"))
    damage(adapter / name)
    with pytest.raises(ValueError, match=rf"lora/{name}"):
        MatryoshkaReranker(reference / "mistral" / "model", device="cpu", adapters={"vertical": adapter})


def test_an_index_follows_no_link_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "embeddings.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "embeddings.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match=r"index\.json names 'embeddings\.safetensors', a link that leaves its folder"):
        checkpoint.load(folder)


def test_a_hub_snapshots_links_to_its_blobs_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(folder, snapshot)
    for file in list(snapshot.glob("*.safetensors")):
        file.rename(blobs / f"hash-of-{file.name}")
        file.symlink_to(Path("../../blobs") / f"hash-of-{file.name}")
    assert checkpoint.load(snapshot).model.num_layers == 6


def test_weights_in_two_shards_are_named(folder: Path) -> None:
    name = "model.embed_tokens.weight"
    tensors(lambda held: held.update({name: torch.ones(1024, 32)}))(folder / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors.* holds {name}, which another file"):
        checkpoint.load(folder)


def test_a_plans_mean_width_does_not_count_layers() -> None:
    """A deep plan is as fast as a shallow one: computed layer by layer, this one would take days."""
    deep = Plan((10**12,), {1: Fraction(1, 2), 10**12 - 1: Fraction(1, 2)})
    assert deep.mean_width == pytest.approx(0.5)
    assert Plan((4,), {1: Fraction(1, 2), 3: Fraction(1, 2)}).mean_width == (1 + 0.5 + 0.5 + 0.25) / 4
