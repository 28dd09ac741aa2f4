"""Checkpoints: what is saved is loaded, what does not fit is named, and where files are looked for."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.hub import SHIPPED, locate
from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.compensation import Compensation
from mrr_model.modeling.families import FAMILIES
from mrr_model.modeling.heads import HeadLayer
from mrr_model.modeling.model import MatryoshkaModel

CheckpointFactory = Callable[..., Checkpoint]
PairFactory = Callable[..., list[EncodedPair]]

PLAN = Plan((5,), {2: Fraction(1, 2)})
NAMES = ("vertical", "horizontal_1_2")


def logits_of(model: MatryoshkaModel, pairs: list[EncodedPair]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(collate(pairs, model.config.pad_token_id or 0), PLAN)
    return logits


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal logits, up to what a processor's kernels make of weights that lie elsewhere in memory."""
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


def score(given: Checkpoint, pairs: list[EncodedPair], names: tuple[str, ...] = ()) -> Tensor:
    with Compensation(given.model, given.adapters).applied(names) as model:
        return logits_of(model, pairs)


@pytest.fixture
def pairs(make_pairs: PairFactory) -> list[EncodedPair]:
    return make_pairs([(5, 21, 4), (3, 12, 4)])


@pytest.fixture
def folder(saved_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the saved checkpoint, to be broken."""
    return Path(shutil.copytree(saved_checkpoint, tmp_path / "copy"))


@pytest.fixture
def published(reference: Path, tmp_path: Path) -> Path:
    """A copy of the reference mistral checkpoint, to be broken."""
    return Path(shutil.copytree(reference / "mistral" / "model", tmp_path / "published"))


def change_json(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


# Save, then load


@pytest.mark.parametrize("family", FAMILIES)
def test_save_then_load(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path, family: str
) -> None:
    saved = make_checkpoint(family)
    checkpoint.save(saved, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert loaded.model.matryoshka == saved.model.matryoshka
    assert loaded.model.config.model_type == family
    assert not loaded.model.training
    for names in ((), ("vertical",), NAMES):
        assert_same(score(loaded, pairs, names), score(saved, pairs, names))
    text = "What is a panda?"
    assert loaded.tokenizer(text)["input_ids"] == saved.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.special_tokens_map == saved.tokenizer.special_tokens_map


def test_sliding_windows_and_layer_kinds_survive(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path
) -> None:
    for family, window in (
        ("mistral", {"sliding_window": 7}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3}),
        ("gemma2", {"sliding_window": 7}),
    ):
        saved = make_checkpoint(family, adapters=False, **window)
        checkpoint.save(saved, tmp_path / family)
        assert_same(score(checkpoint.load(tmp_path / family), pairs), score(saved, pairs))


@pytest.mark.parametrize("head", ["linear", "yes_no"])
def test_head_kinds_survive(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path, head: str
) -> None:
    layers = (
        HeadLayer(kind="dense", size=24, activation="gelu", bias=False),
        HeadLayer(kind="norm", size=24, eps=1e-5),
    )
    own = {"head": head, "head_bias": True, "logit_softcap": 4.0, "exits": (2, 5), "head_layers": layers}
    saved = make_checkpoint("bert", own={**own, "pooling": "mean", "merge_weights": "mean"})
    checkpoint.save(saved, tmp_path)
    assert_same(score(checkpoint.load(tmp_path), pairs), score(saved, pairs))


def test_adapters_come_back_as_they_were(make_checkpoint: CheckpointFactory, tmp_path: Path) -> None:
    saved = make_checkpoint("llama")
    checkpoint.save(saved, tmp_path)
    adapters = checkpoint.load(tmp_path).adapters
    assert set(adapters) == set(saved.adapters) == {"vertical", "horizontal_1_2", "horizontal_1_4"}
    for name, adapter in saved.adapters.items():
        assert set(adapters[name]) == set(adapter)
        for module, low in adapter.items():
            again = adapters[name][module]
            assert torch.equal(again.a, low.a)
            assert torch.equal(again.b, low.b)
            assert again.scaling == low.scaling


def test_what_a_folder_holds(saved_checkpoint: Path) -> None:
    files = {str(file.relative_to(saved_checkpoint)) for file in saved_checkpoint.rglob("*") if file.is_file()}
    assert files >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    assert {file for file in files if file.startswith("compensation/")} == {
        "compensation/vertical.safetensors", "compensation/horizontal_1_2.safetensors",
        "compensation/horizontal_1_4.safetensors",
    }  # fmt: skip
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors", ".md", ".txt", ".model", ".jinja"}
    config = json.loads((saved_checkpoint / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["matryoshka"]["backbone"]) == ("matryoshka", "llama")
    assert config["matryoshka"]["format"] == 1
    assert (saved_checkpoint / "README.md").read_text(encoding="utf-8").startswith("---\nlibrary_name:")


def test_model_card_travels(make_checkpoint: CheckpointFactory, tmp_path: Path) -> None:
    checkpoint.save(make_checkpoint("bert", adapters=False), tmp_path / "one", model_card="# Licence: mine\n")
    MatryoshkaReranker(tmp_path / "one", max_length=64, device="cpu").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "README.md").read_text(encoding="utf-8") == "# Licence: mine\n"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_embeddings_apart(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path, family: str
) -> None:
    saved = make_checkpoint(family)
    checkpoint.save(saved, tmp_path, embeddings_apart=True)
    apart = load_file(tmp_path / "embeddings.safetensors")
    assert [tuple(tensor.shape) for tensor in apart.values()] == [(saved.model.config.vocab_size, 32)]
    assert not set(apart) & set(load_file(tmp_path / "model.safetensors"))
    assert_same(score(checkpoint.load(tmp_path), pairs, NAMES), score(saved, pairs, NAMES))


def test_saving_over_an_older_checkpoint_leaves_nothing_of_it(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path
) -> None:
    checkpoint.save(make_checkpoint("llama", seed=1), tmp_path, embeddings_apart=True)
    saved = make_checkpoint("llama", adapters=False)
    checkpoint.save(saved, tmp_path)
    loaded = checkpoint.load(tmp_path)
    assert_same(score(loaded, pairs), score(saved, pairs))
    assert not loaded.adapters, "the older checkpoint's adapters belong to other weights"


def test_loaded_checkpoint_is_saved_into_its_own_folder(folder: Path, pairs: list[EncodedPair]) -> None:
    """Its tensors may be maps of the very file that is written."""
    loaded = checkpoint.load(folder)
    expected = score(loaded, pairs, NAMES)
    checkpoint.save(loaded, folder)
    assert_same(score(loaded, pairs, NAMES), expected)
    assert_same(score(checkpoint.load(folder), pairs, NAMES), expected)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_bfloat16_is_for_the_stock_part(make_checkpoint: CheckpointFactory, tmp_path: Path, family: str) -> None:
    saved = make_checkpoint(family, adapters=False)
    checkpoint.save(saved, tmp_path)
    model = checkpoint.load(tmp_path, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.heads.parameters()} == {torch.float32}
    for name, buffer in model.named_buffers():  # rotary frequencies lose whole positions in bfloat16
        assert torch.equal(buffer, saved.model.get_buffer(name))

    checkpoint.save(dataclasses.replace(saved, model=model), tmp_path / "again")
    again = checkpoint.load(tmp_path / "again", dtype=torch.bfloat16).model
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


def test_published_checkpoint_saves_into_own_format(reference: Path, pairs: list[EncodedPair], tmp_path: Path) -> None:
    """One folder then, adapters inside, and no published LoRA folders to name."""
    published = checkpoint.load(
        reference / "mistral" / "model",
        adapters={"vertical": "../vertical", "horizontal": {0.5: "../horizontal_2"}},
    )
    checkpoint.save(published, tmp_path)
    own = checkpoint.load(tmp_path)
    assert set(own.adapters) == set(NAMES)
    assert_same(score(own, pairs, NAMES), score(published, pairs, NAMES))


def test_model_kwargs_give_the_same_scores(
    make_checkpoint: CheckpointFactory, pairs: list[EncodedPair], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """They go through transformers' own from_pretrained, which must not add weights or say a word."""
    for family in ("llama", "bert"):
        saved = make_checkpoint(family)
        checkpoint.save(saved, tmp_path / family)
        placed = checkpoint.load(tmp_path / family, model_kwargs={"device_map": "cpu"})
        assert_same(score(placed, pairs, NAMES), score(saved, pairs, NAMES))
        assert set(placed.model.state_dict()) == set(saved.model.state_dict())
    assert capfd.readouterr() == ("", "")


# What does not fit


def test_weights_that_are_missing(folder: Path) -> None:
    change_weights(folder, lambda tensors: [tensors.pop("model.norm.weight"), tensors.pop("heads.3.linear.weight")])
    with pytest.raises(ValueError, match=r"missing: heads\.3\.linear\.weight, model\.norm\.weight\."):
        checkpoint.load(folder)


def test_weights_that_are_unexpected(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.layers.6.surprise": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.6\.surprise\."):
        checkpoint.load(folder)


def test_weights_that_are_misshapen(folder: Path) -> None:
    change_weights(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(ValueError, match=r"misshapen: model\.norm\.weight \(31,\) instead of \(32,\)\."):
        checkpoint.load(folder)


def test_all_problems_are_named_at_once(folder: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        for layer in range(6):
            del tensors[f"model.layers.{layer}.mlp.up_proj.weight"]
        tensors["surprise"] = torch.zeros(1)

    change_weights(folder, change)
    with pytest.raises(
        ValueError, match=r"missing: .* and 1 more; unexpected: surprise.*Copy the weights and the config"
    ):
        checkpoint.load(folder)


def test_weights_that_are_not_used_may_be_there(folder: Path, pairs: list[EncodedPair]) -> None:
    """Language-model heads, poolers, buffers that newer transformers no longer stores."""
    expected = score(checkpoint.load(folder), pairs)
    extra = {"lm_head.weight": torch.ones(1024, 32), "model.rotary_emb.inv_freq": torch.zeros(4)}
    change_weights(folder, lambda tensors: tensors.update(extra))
    assert_same(score(checkpoint.load(folder), pairs), expected)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json: it is not a checkpoint folder"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(("text", "message"), [("{", "is not valid JSON"), ("[]", "must hold a JSON object, got list")])
def test_config_that_cannot_be_read(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        checkpoint.load(folder)


def test_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the weights model\.safetensors\.$"):
        checkpoint.load(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        FileNotFoundError,
        match=r"It holds pytorch_model\.bin\. Pickles.*save_pretrained",
    ):
        checkpoint.load(folder)


def test_shard_that_is_missing(make_checkpoint: CheckpointFactory, tmp_path: Path) -> None:
    checkpoint.save(make_checkpoint("llama"), tmp_path, embeddings_apart=True)
    (tmp_path / "embeddings.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks the weights embeddings\.safetensors"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "t5", None])
def test_plain_model_is_no_reranker(folder: Path, model_type: str | None) -> None:
    change_json(folder / "config.json", lambda config: [config.pop("matryoshka"), config.update(model_type=model_type)])
    (folder / "modules.json").unlink()
    with pytest.raises(ValueError, match=rf"model_type {model_type!r} and no 'matryoshka' section.*mrr finetune"):
        checkpoint.load(folder)


@pytest.mark.parametrize("model_type", ["mamba", "no_such_model", None])
def test_own_checkpoint_of_an_unknown_backbone(folder: Path, model_type: str | None) -> None:
    def change(config: dict[str, Any]) -> None:
        config["matryoshka"].pop("backbone")
        if model_type is not None:
            config["matryoshka"]["backbone"] = model_type

    change_json(folder / "config.json", change)
    with pytest.raises(ValueError, match="model_type"):
        checkpoint.load(folder)


@pytest.mark.parametrize("model_type", ["llama", None])
def test_own_checkpoint_under_a_stock_model_type(folder: Path, model_type: str | None) -> None:
    """Stock loaders would open it with heads of their own."""
    change_json(folder / "config.json", lambda config: config.update(model_type=model_type))
    with pytest.raises(ValueError, match="its model_type must be 'matryoshka'"):
        checkpoint.load(folder)


@pytest.mark.parametrize("version", [2, "1", None])
def test_newer_format(folder: Path, version: Any) -> None:
    change_json(folder / "config.json", lambda config: config["matryoshka"].update(format=version))
    with pytest.raises(ValueError, match=rf"has format {version!r}, .* reads 1: upgrade matryoshka-reranker"):
        checkpoint.load(folder)


@pytest.mark.parametrize("change", [{"exits": []}, {"surprise": 1}, {"head": "round"}])
def test_section_that_cannot_be_read(folder: Path, change: dict[str, Any]) -> None:
    change_json(folder / "config.json", lambda config: config["matryoshka"].update(change))
    with pytest.raises(ValueError, match=r"the 'matryoshka' section of config\.json cannot be read"):
        checkpoint.load(folder)


def test_published_config_that_lacks_a_field(published: Path) -> None:
    change_json(published / "config.json", lambda config: config.pop("start_layer"))
    with pytest.raises(ValueError, match=r"lacks 'start_layer', which the cost_wise_mistral format needs"):
        checkpoint.load(published)


def test_published_head_that_is_one_too_many(published: Path) -> None:
    change_weights(published, lambda tensors: tensors.update({"lm_head.7.linear_head.weight": torch.zeros(1, 64)}))
    with pytest.raises(ValueError, match=r"unexpected: lm_head\.7\.linear_head\.weight"):
        checkpoint.load(published)


def test_minicpm_of_another_head_type(reference: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reference / "minicpm" / "model", tmp_path / "copy")
    change_json(folder / "config.json", lambda config: config.update(head_type="raw"))
    with pytest.raises(ValueError, match="head_type 'simple', got head_multi True and head_type 'raw'"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("layers", "merge_layer"),
    [(8, 2), (9, 8), (32, 8)],
)
def test_published_default_merge_layer(reference: Path, tmp_path: Path, layers: int, merge_layer: int) -> None:
    """8 in the published formats of more than 8 layers, else a quarter; the exits follow start_layer and layer_sep."""
    for name in ("mistral", "gemma2", "minicpm"):
        target = tmp_path / name
        target.mkdir()
        shutil.copy(reference / name / "model" / "config.json", target)
        change_json(target / "config.json", lambda config: config.update(num_hidden_layers=layers, start_layer=4))
        if name == "mistral":
            change_json(target / "config.json", lambda config: config.update(layer_sep=2))
        matryoshka = checkpoint.read_checkpoint_config(target).matryoshka
        assert matryoshka.default_merge_layer == merge_layer
        assert matryoshka.exits == tuple(range(4, layers + 1, 2 if name == "mistral" else 1))
        assert matryoshka.merge_layers == (() if name == "minicpm" else tuple(range(1, layers)))


# Published LoRA folders


def test_adapter_folders_are_found_beside_the_checkpoint(reference: Path) -> None:
    loaded = checkpoint.load(reference / "mistral" / "model", adapters={"vertical": "../vertical"})
    assert list(loaded.adapters) == ["vertical"]
    modules = loaded.adapters["vertical"]
    assert len(modules) == 8 * 7 + 7  # seven projections in each layer, seven heads
    assert {low.scaling for low in modules.values()} == {2.0}  # lora_alpha 8 / r 4


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({"diagonal": "vertical"}, "adapters must look like"),
        ({"horizontal": "../horizontal_2"}, "adapters must look like"),
        ({"horizontal": {1.0: "../horizontal_2"}}, r"keyed by step ratios in \(0, 1\)"),
        ({"horizontal": {2: "../horizontal_2"}}, r"keyed by step ratios in \(0, 1\)"),
    ],
)
def test_adapters_argument_that_makes_no_sense(reference: Path, adapters: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checkpoint.load(reference / "mistral" / "model", adapters=adapters)


def test_adapter_folder_that_is_not_there(reference: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no adapter_config\.json: give the folder of a LoRA"):
        checkpoint.load(reference / "mistral" / "model", adapters={"vertical": "nowhere"})


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"peft_type": "IA3"},
        {"bias": "all"},
    ],
)
def test_adapter_of_another_kind(reference: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = shutil.copytree(reference / "mistral" / "vertical", tmp_path / "copy")
    change_json(folder / "adapter_config.json", lambda config: config.update(change))
    with pytest.raises(ValueError, match="only plain LoRA is supported"):
        checkpoint.load(reference / "mistral" / "model", adapters={"vertical": folder})


@pytest.mark.parametrize("rest", ["lora_B.bias", "lora_magnitude_vector", "lora_B.weight"])
def test_adapter_with_more_than_pairs_of_matrices(reference: Path, tmp_path: Path, rest: str) -> None:
    """What cannot be added as scaling · B A is refused: left out in silence, scores would be wrong."""
    folder = shutil.copytree(reference / "mistral" / "vertical", tmp_path / "copy")
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[f"base_model.model.model.norm.{rest}"] = torch.zeros(64, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=rf"adapter_model\.safetensors: .*norm\.{rest}"):
        checkpoint.load(reference / "mistral" / "model", adapters={"vertical": folder})


def test_rank_stabilised_scaling(reference: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(reference / "mistral" / "vertical", tmp_path / "copy")
    change_json(folder / "adapter_config.json", lambda config: config.update(use_rslora=True))
    loaded = checkpoint.load(reference / "mistral" / "model", adapters={"vertical": folder})
    assert {low.scaling for low in loaded.adapters["vertical"].values()} == {4.0}  # lora_alpha 8 / sqrt(r 4)


def test_own_adapter_file_of_another_name(folder: Path) -> None:
    (folder / "compensation" / "vertical.safetensors").rename(folder / "compensation" / "upright.safetensors")
    with pytest.raises(ValueError, match=r"upright\.safetensors is not a compensation adapter"):
        checkpoint.load(folder)


def test_own_adapter_that_does_not_fit(make_checkpoint: CheckpointFactory, saved_checkpoint: Path) -> None:
    other = dataclasses.replace(make_checkpoint("bert"), adapters=checkpoint.load(saved_checkpoint).adapters)
    with pytest.raises(ValueError, match="which is not a linear module"):
        MatryoshkaReranker(other, max_length=64)


# Where files are looked for


def test_shipped_name_and_local_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(folder) == folder
    assert locate(str(folder)) == folder
    assert locate("mini") == SHIPPED["mini"]
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    assert locate("mini") == SHIPPED["mini"], "the shipped name wins"
    assert locate("./mini") == locate(Path("mini")) == Path("mini")
    Path("owner/name").mkdir(parents=True)
    assert locate("owner/name", local_files_only=True) == Path("owner/name"), "an existing folder wins over a hub id"


@pytest.fixture
def cache(saved_checkpoint: Path, tmp_path: Path) -> Path:
    """A hub cache that holds the saved checkpoint as somebody/tiny, laid out as huggingface_hub does."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--somebody--tiny"
    shutil.copytree(saved_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    return tmp_path / "cache"


@pytest.mark.parametrize("local_files_only", [True, False])
def test_cached_hub_repository_is_found_offline(
    cache: Path,
    pairs: list[EncodedPair],
    saved_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_files_only: bool,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = locate("somebody/tiny", cache_dir=cache, local_files_only=local_files_only)
    assert_same(score(checkpoint.load(found), pairs), score(checkpoint.load(saved_checkpoint), pairs))
    assert locate("somebody/tiny", cache_dir=cache, local_files_only=True, revision=found.name) == found
    reranker = MatryoshkaReranker("somebody/tiny", cache_dir=cache, local_files_only=local_files_only, device="cpu")
    assert len(reranker.score("a", ["b", "c"], depth=3, keep_ratio=0.5)) == 2


@pytest.mark.parametrize("name", ["somebody/absent", "somebody/tiny"])
@pytest.mark.parametrize("local_files_only", [True, False])
def test_hub_repository_that_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, local_files_only: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    reason = "was not asked" if local_files_only else "could not be reached"
    with pytest.raises(FileNotFoundError, match=rf"'{name}' is not a local folder.*{reason}.*'mini'"):
        MatryoshkaReranker(name, cache_dir=tmp_path, local_files_only=local_files_only)


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "a b"])
def test_name_that_is_no_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="is neither a folder nor a hub id"):
        MatryoshkaReranker(name, local_files_only=True)
