"""What the user says of a model whose files do not say how it reads a pair."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Given, read_checkpoint_config
from mrr_model.template import QWEN3_TEMPLATE, RELEASE_TEMPLATE, InputTemplate

PAIR = ("what is a panda?", "the panda is eating")


@pytest.fixture
def causal(tmp_path: Path, tokenizers: dict[str, Any]) -> Path:
    """The folder of a random Qwen3 of three layers whose files hold no template."""
    torch.manual_seed(0)
    tokenizer = copy.deepcopy(tokenizers["decoder"])
    tokenizer.add_tokens(["yes", "no", "Yes"])
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=8, initializer_range=0.3, **sizes)
    folder = tmp_path / "causal"
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder: Path, pieces: tuple[str, ...], answers: tuple[str, ...]) -> float:
    """The answers' logits after pieces of text, by transformers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [token for piece in pieces for token in tokenizer(piece, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logits = Qwen3ForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, -1]
    yes, *no = (float(logits[tokenizer.convert_tokens_to_ids(answer)]) for answer in answers)
    return yes - sum(no)


@pytest.mark.parametrize("answers", [("yes", "no"), ("Yes",)])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_causal_model_is_read_as_the_user_says(
    causal: Path, tmp_path: Path, answers: tuple[str, ...], as_file: bool
) -> None:
    template = InputTemplate(query=("Q:{query}\n",), passage=("D:{passage}",), prompt=("\nA:",), truncation="end")
    file = tmp_path / "template.json"
    file.write_text(template.model_dump_json(), encoding="utf-8")
    reranker = MatryoshkaReranker(causal, template=str(file) if as_file else template, answers=answers, dtype="float32")
    wanted = by_hand(causal, (f"Q:{PAIR[0]}\n", f"D:{PAIR[1]}", "\nA:"), answers)
    assert abs(wanted) > 0.01
    assert reranker.score_pairs([PAIR], normalize=False) == pytest.approx([wanted], abs=1e-4)
    reranker.save_pretrained(tmp_path / "saved")
    again = MatryoshkaReranker(tmp_path / "saved", dtype="float32")
    assert again.score_pairs([PAIR]) == pytest.approx(reranker.score_pairs([PAIR]), abs=1e-6)


def test_without_either_a_causal_model_is_an_error_that_names_both(causal: Path) -> None:
    with pytest.raises(ValueError, match=r"template=.*answers="):
        MatryoshkaReranker(causal)
    with pytest.raises(ValueError, match="answers="):
        MatryoshkaReranker(causal, template=RELEASE_TEMPLATE)
    with pytest.raises(ValueError, match="answers"):
        MatryoshkaReranker(causal, template=RELEASE_TEMPLATE, answers=("maybe", "never"))  # both begin with a space


@pytest.mark.parametrize(
    ("template", "answers", "error", "named"),
    [
        (3, None, TypeError, "template"),
        (None, ["yes", "no", "maybe"], ValueError, "answers"),
        (None, [1.5], ValueError, "answers"),
        ({"query": ["{query}"]}, None, ValueError, "template"),
        ("missing.json", None, FileNotFoundError, r"template=.*missing\.json"),
    ],
)
def test_a_wrong_argument_is_named(template: Any, answers: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        Given.of(template, answers)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"query": ["{query}"]}'])
def test_a_file_that_holds_no_template_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "template.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"template\.json"):
        Given.of(file, None)


def test_a_renamed_classifier_is_read_by_the_published_template_that_the_user_names(
    tmp_path: Path, tokenizers: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vocabulary = {"vocab_size": len(tokenizers["decoder"]), "pad_token_id": 0}
    config = Qwen3Config(num_key_value_heads=2, head_dim=8, num_labels=1, **vocabulary, **sizes)
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "mine")
    tokenizers["decoder"].save_pretrained(tmp_path / "mine")
    given = Given.of("qwen3-reranker-seq-cls")
    assert read_checkpoint_config(tmp_path / "mine", given).matryoshka.template == QWEN3_TEMPLATE
    with pytest.raises(ValueError, match=r"template='zerank'.*'qwen3-reranker-seq-cls'"):
        read_checkpoint_config(tmp_path / "mine", Given.of("zerank"))
