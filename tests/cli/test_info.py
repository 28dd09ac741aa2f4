"""`mrr info`: what a checkpoint holds and what its sizes cost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from mrr_model import MatryoshkaReranker

Mrr = Callable[..., Any]


def test_info_shows_the_checkpoint_without_its_weights(
    mrr: Mrr, saved_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Their files are mapped, and a sample is read to tell whether a profile is theirs.
    monkeypatch.setattr(
        "mrr_model.checkpoint.io.assign_weights", lambda *_, **__: pytest.fail("the weights were loaded")
    )
    result = mrr("info", saved_checkpoint)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    for fact in (
        "opened as this project's format",
        "family llama, 6 layers × 32",
        "parameters 0.1 M",
        "max length 512 tokens",
        "exits 1, 2, 3, 4, 5, 6",
        "merge layers 1, 2, 3, 4, 5",
        "default merge layer 1",
        "pooling the last token",
        "head linear, one per exit",
        "scores probabilities, the sigmoid of the logits; normalize=False gives the logits",
        "template {bos} A: {query} '\\n' B: {passage} '\\n' {prompt}",
        "template from config.json",
        "prompt Predict whether passage B contains an answer to query A.",
        "vertical",
        "in F32",
        "100%",
    ):
        assert fact in text


def test_info_of_a_model_that_cannot_merge(mrr: Mrr, reference: Path) -> None:
    result = mrr("info", reference / "minicpm" / "model")
    assert result.exit_code == 0
    assert "keep ratio 1" in result.stdout
    assert "0.5" not in result.stdout


def stock_bert(folder: Path, tokenizer: Any, **fields: Any) -> Path:
    """A BERT cross-encoder of three layers, as transformers saves it."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=96, num_labels=1, **sizes, **fields)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer() -> Any:
    """Mini's, which is BERT's own."""
    return MatryoshkaReranker("mini").tokenizer


def test_info_says_how_another_librarys_model_opens_and_what_to_do_next(
    mrr: Mrr, tokenizer: Any, tmp_path: Path
) -> None:
    activation = {"activation_fn": "torch.nn.modules.linear.Identity"}
    folder = stock_bert(tmp_path / "a model", tokenizer, sentence_transformers=activation)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: none\n", encoding="utf-8")
    result = mrr("info", folder, columns=300)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for fact in (
        "opened as BertForSequenceClassification",
        "licence apache-2.0",
        "family bert, 3 layers × 32",
        "max length 96 tokens",
        f"exits 3; for more: mrr self-distill '{folder}' --texts TEXTS --output FOLDER",
        "merge layers 1, 2 ",
        "pooling the first token",
        "head dense tanh, linear, one per exit",
        "scores logits, without bounds; normalize=True gives probabilities",
        "template {cls} {query} {sep} {passage} {sep}",
        "template from the tokenizer's pair template",
        "prompt none: the template takes none",
        f"profile none; to measure one: mrr evaluate '{folder}' COLLECTION --save-profile",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: other\nlicense_name: gemma\n---\n", "gemma"),
        ("---\nlicense: other\n---\n", "other"),
        ('---\nlicense: "cc-by-nc-4.0"\n---\n', "cc-by-nc-4.0"),
        ("---\ntags: [a]\n---\nlicense: mit\n", "not named in README.md"),
        ("license: mit\n", "not named in README.md"),
        ("---\nlicense: mit\n", "not named in README.md"),
    ],
)
def test_the_licence_is_the_one_in_the_cards_front_matter(mrr: Mrr, encoder: Path, card: str, licence: str) -> None:
    before = (encoder / "README.md").read_text(encoding="utf-8")
    try:
        (encoder / "README.md").write_text(card, encoding="utf-8")
        assert f"licence {licence} " in " ".join(mrr("info", encoder).stdout.split())
    finally:
        (encoder / "README.md").write_text(before, encoding="utf-8")


def test_a_model_that_does_not_open_is_one_line(mrr: Mrr, tokenizer: Any, tmp_path: Path) -> None:
    folder = stock_bert(tmp_path, tokenizer)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for change, named in (({"model_type": "t5"}, "t5"), ({"architectures": ["BertModel"]}, "plain model")):
        (folder / "config.json").write_text(json.dumps({**config, **change}), encoding="utf-8")
        for words in (("info", folder), ("rerank", "-q", "what?", "--model", folder)):
            assert named in mrr(*words, stdin="a text").error


def test_info_of_what_is_no_checkpoint(mrr: Mrr, tmp_path: Path) -> None:
    assert "holds no config.json" in mrr("info", tmp_path).error


def test_the_weights_of_sub_folders_are_counted(mrr: Mrr, tokenizer: Any, tmp_path: Path) -> None:
    """As older versions of sentence-transformers saved a classifier: all of it in the folder of one module."""
    stock_bert(tmp_path / "0_Transformer", tokenizer)
    settings = {"transformer_task": "sequence-classification"}
    module = {"idx": 0, "name": "0", "path": "0_Transformer", "type": "sentence_transformers.base.modules.Transformer"}
    for name, content in (
        ("modules.json", [module]),
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}),
        ("0_Transformer/sentence_bert_config.json", settings),
    ):
        (tmp_path / name).write_text(json.dumps(content), encoding="utf-8")
    result = mrr("info", tmp_path, columns=300)
    assert result.exit_code == 0, result.output
    count = sum(weight.numel() for weight in load_file(tmp_path / "0_Transformer" / "model.safetensors").values())
    assert f"weights {count:,} in F32" in " ".join(result.stdout.split())
