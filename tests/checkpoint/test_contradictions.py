"""Stock models whose files contradict each other or hold what cannot be used: one line that names the file."""

import re
from pathlib import Path
from typing import Any

import pytest
from models.folders import bert_tokenizer, change_json, save_classifier, stock_config
from models.published import build_ettin

from mrr_model import MatryoshkaReranker


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT classifier with one label."""
    tokenizer = bert_tokenizer(model_max_length=64)
    save_classifier(tmp_path / "bert", stock_config("bert", tokenizer), tokenizer)
    return tmp_path / "bert"


def refused(folder: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as raised:
        MatryoshkaReranker(folder, device="cpu")
    assert "\n" not in str(raised.value)


def test_token_types_beyond_the_embeddings_are_refused_before_a_text_is_scored(tmp_path: Path) -> None:
    tokenizer = bert_tokenizer(model_max_length=64)
    save_classifier(tmp_path, stock_config("bert", tokenizer, type_vocab_size=1), tokenizer)
    refused(tmp_path, r"config\.json: type_vocab_size is 1.*token type 1")


def test_a_tokenizers_limit_that_is_no_number_is_named(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", model_max_length="64")
    refused(folder, r"tokenizer_config\.json: model_max_length must be a number, got '64'")


def test_damaged_weights_are_named_and_not_config_json(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    refused(folder, f"^{re.escape(str(file))} is not a complete safetensors file")


def test_more_layers_than_config_json_says_name_the_next_step(folder: Path) -> None:
    change_json(folder / "config.json", num_hidden_layers=3)
    refused(folder, r"do not fit its config\.json\. unexpected: .*Copy the weights and the config\.json of one model")


@pytest.mark.parametrize(("name", "error"), [(None, TypeError), ("", FileNotFoundError), (3, TypeError)])
def test_a_name_that_is_none_is_an_error(name: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^model "):
        MatryoshkaReranker(name)


@pytest.mark.parametrize(
    ("name", "changes", "named"),
    [
        ("sentence_bert_config.json", {"max_seq_length": "64"}, "max_seq_length must be a whole number"),
        ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length must be a whole number"),
        ("sentence_bert_config.json", {"modality_config": []}, "cannot be used"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "cannot be used"),
    ],
)
def test_a_modular_folders_setting_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, changes: dict[str, Any], named: str
) -> None:
    build_ettin(tmp_path)
    change_json(tmp_path / name, **changes)
    with pytest.raises(ValueError, match=f"{re.escape(name)}.*{named}") as raised:
        MatryoshkaReranker(tmp_path, device="cpu")
    assert "\n" not in str(raised.value)
