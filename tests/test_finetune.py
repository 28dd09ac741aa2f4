"""Training runs at toy size: what they learn, that they resume, what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mrr_model import MatryoshkaReranker
from mrr_model.training.backbones import from_pretrained_backbone
from mrr_model.training.finetune import FinetuneSettings, finetune
from mrr_model.training.groups import Group, write_groups
from mrr_model.training.trainer import GroupDataset, RankingTrainer

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "sings", "the", "a"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Yes"]


def tiny_tokenizer(**tokens: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **tokens)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer(cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer(bos_token="[CLS]", eos_token="[SEP]").save_pretrained(folder)
    return folder


def groups() -> Iterator[Group]:
    """The passage with the cat is the answer; every other row has a teacher that says so too."""
    for row in range(48):
        colour, verb = WORDS[row % 5 % 3], WORDS[6 + row % 4 % 3]
        texts = [f"the {colour} {animal} {verb}" if row % 3 else f"{animal} the {verb} a" for animal in WORDS[3:6]]
        scored = bool(row % 2)
        yield Group(
            f"a {verb}",
            (texts[0],),
            (*texts[1:], f"a {verb} {colour}"),
            (0.9,) if scored else None,
            (0.1, 0.1, 0.0) if scored else None,
        )


@pytest.fixture(scope="module")
def train_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "train.jsonl.gz"
    write_groups(file, groups())
    return file


def settings(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneSettings:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "passages": 4, "groups_per_step": 8, "max_length": 32,
        "teacher_temperature": 0.2, "ratios": (1, 2), "save_steps": 4, "learning_rate": 3e-3,
        "freeze_embeddings": False,
    }  # fmt: skip
    return FinetuneSettings(**{**fields, **changes})


@pytest.mark.parametrize("family", ["encoder", "decoder"])
def test_training_teaches_every_exit_and_width(
    family: str, request: pytest.FixtureRequest, train_file: Path, tmp_path: Path
) -> None:
    folder = finetune(settings(request.getfixturevalue(family), train_file, tmp_path / "out", epochs=12.0))
    reranker = MatryoshkaReranker(folder, max_length=32, dtype="float32")
    assert reranker.exits == (1, 2, 3, 4)
    for depth in (2, 3, 4):
        for keep_ratio in (1.0, 0.5):
            first = [
                reranker.rank(g.query, [*g.negatives, *g.positives], depth=depth, keep_ratio=keep_ratio)[0].text
                in g.positives
                for g in groups()
            ]
            assert sum(first) / len(first) > 0.8, f"depth {depth}, keep ratio {keep_ratio}: by chance it is 0.25"


def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(
    encoder: Path, train_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = finetune(settings(encoder, train_file, tmp_path / "unbroken", epochs=2.0))

    whole = RankingTrainer.compute_loss

    def dies_at_step_six(self: RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 6:
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(RankingTrainer, "compute_loss", dies_at_step_six)
    with pytest.raises(KeyboardInterrupt):
        finetune(settings(encoder, train_file, tmp_path / "broken", epochs=2.0))
    assert not (tmp_path / "broken" / "config.json").exists()
    seen = []

    def notes_steps(self: RankingTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.state.global_step)
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(RankingTrainer, "compute_loss", notes_steps)
    broken = finetune(settings(encoder, train_file, tmp_path / "broken", epochs=2.0))
    assert seen == list(range(4, 12))
    assert (broken / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


def test_a_finished_or_foreign_folder_is_not_overwritten(encoder: Path, train_file: Path, tmp_path: Path) -> None:
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "settings.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="holds an unfinished run with other settings"):
        finetune(settings(encoder, train_file, tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileExistsError, match="already holds a checkpoint"):
        finetune(settings(encoder, train_file, tmp_path))


def test_training_goes_on_from_an_own_checkpoint(encoder: Path, train_file: Path, tmp_path: Path) -> None:
    first = finetune(settings(encoder, train_file, tmp_path / "first", exits=(2, 4), merge_layer=2))
    second = finetune(settings(first, train_file, tmp_path / "second"))
    reranker = MatryoshkaReranker(second, max_length=32)
    assert reranker.exits == (2, 4)
    assert reranker.model.matryoshka.default_merge_layer == 2
    with pytest.raises(ValueError, match="exits and merge_layer are fixed in the checkpoint"):
        finetune(settings(first, train_file, tmp_path / "third", exits=(1, 4)))


def test_frozen_embeddings_stay_as_they_were(encoder: Path, train_file: Path, tmp_path: Path) -> None:
    before = from_pretrained_backbone(encoder)[0].model.get_input_embeddings().weight
    frozen = finetune(settings(encoder, train_file, tmp_path / "out", freeze_embeddings=True))
    after = MatryoshkaReranker(frozen, max_length=32, dtype="float32").model.model.get_input_embeddings().weight
    assert torch.equal(before, after)


def test_heads_of_a_causal_model_start_as_its_row_for_yes(decoder: Path) -> None:
    model, tokenizer = from_pretrained_backbone(decoder)
    yes = LlamaForCausalLM.from_pretrained(decoder).lm_head.weight[tokenizer.convert_tokens_to_ids("Yes")]
    assert all(torch.equal(head.linear.weight[0], yes) for head in model.heads.values())  # type: ignore[union-attr,index]


def test_dropout_is_what_the_settings_say(encoder: Path) -> None:
    model, _ = from_pretrained_backbone(encoder, dropout=0.25)
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_rows_with_too_few_negatives_are_left_out_and_counted() -> None:
    rows = [Group("q", ("p",), ("n",)), Group("q", ("p",), ("n", "m"))]
    dataset = GroupDataset(rows, passages=3)
    assert (len(dataset), dataset.skipped) == (1, 1)
    with pytest.raises(ValueError, match="no training group has 4 negatives"):
        GroupDataset(rows, passages=5)


def test_which_negatives_a_row_keeps_depends_on_seed_and_row() -> None:
    rows = [Group("q", ("p",), tuple("abcdefgh"), (1.0,), tuple(map(float, range(8))))] * 4
    first = [group.negatives for group in GroupDataset(rows, passages=4).groups]
    assert first == [group.negatives for group in GroupDataset(rows, passages=4).groups]
    assert len(set(first)) > 1
    for group in GroupDataset(rows, passages=4, seed=1).groups:
        assert group.negative_scores == tuple(float("abcdefgh".index(text)) for text in group.negatives)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="learning_rate"):
        FinetuneSettings(model="m", train=(Path("t"),), output=Path("o"), learning_rate=-1)
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        FinetuneSettings(model="m", train=(Path("t"),), output=Path("o"), lr=1)  # type: ignore[call-arg]
    restored = FinetuneSettings.model_validate(
        json.loads(FinetuneSettings(model="m", train=(), output=Path("o")).model_dump_json())
    )
    assert restored == FinetuneSettings(model="m", train=(), output=Path("o"))
