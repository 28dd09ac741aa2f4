"""Fine-tuning a trained cross-encoder starts from its classifier, and every error about one names the next command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedConfig
from typer.testing import CliRunner

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.cli.app import app
from mrr_model.template import RELEASE_TEMPLATE
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.recipe import Finetuning, finetune

QUERY, TEXTS = "a runs", ["the red cat runs", "a dog", "bird sings the"]


def run_config(model: Path, train: Path, output: Path, **changes: Any) -> FinetuneConfig:
    fields: dict[str, Any] = {
        "model": str(model), "train": (train,), "output": output, "stages": ("distill",), "train_group_size": 4,
        "max_length": 32,
    }  # fmt: skip
    return FinetuneConfig(**{**fields, **changes})


def logits(start: checkpoint.Checkpoint, **setting: Any) -> list[float]:
    return MatryoshkaReranker(start, max_length=32, normalize=False).score(QUERY, TEXTS, **setting)


def test_exits_start_from_the_models_own_classifier(
    cross_encoder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Finetuning(run_config(cross_encoder, toy_file, tmp_path / "out")).base()
    assert capsys.readouterr().err == "exits start from the model's own classifier\n"
    stock = AutoModelForSequenceClassification.from_pretrained(cross_encoder).eval()
    for text, score in zip(TEXTS, logits(start), strict=True):
        encoded = start.tokenizer(QUERY, text, return_tensors="pt")
        assert "token_type_ids" in encoded
        with torch.no_grad():
            expected = stock(**encoded).logits[0, 0]
        assert score == pytest.approx(expected.item(), abs=1e-5)
    for head in start.model.heads.values():
        assert torch.equal(head.linear.weight, stock.classifier.weight)  # type: ignore[union-attr,arg-type]


@pytest.mark.slow
def test_after_one_small_step_it_scores_nearly_as_before(cross_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    before = logits(Finetuning(run_config(cross_encoder, toy_file, tmp_path / "out")).base())
    few = {"max_steps": 1, "learning_rate": 1e-6}
    after = logits(checkpoint.load(finetune(run_config(cross_encoder, toy_file, tmp_path / "out", distill=few))))
    assert after == pytest.approx(before, abs=1e-3)


def test_a_head_in_the_config_is_fresh(
    cross_encoder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = Finetuning(run_config(cross_encoder, toy_file, tmp_path / "out", head="linear")).base()
    assert start.model.matryoshka.head == "linear"
    assert capsys.readouterr().err == "exits start from fresh linear heads, not from the model's own classifier\n"


def test_the_origin_of_other_models_heads_is_printed(
    stock_encoder: Path, stock_decoder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model in (stock_encoder, stock_decoder):
        Finetuning(run_config(model, toy_file, tmp_path / "out")).base()
    assert capsys.readouterr().err.splitlines() == [
        "exits start from fresh linear heads",
        'exits start from its language model\'s row for "Yes"',
    ]


@pytest.mark.slow
def test_its_last_layers_can_be_left_out_and_its_compensation_trained_alone(
    cross_encoder: Path, toy_file: Path, tmp_path: Path
) -> None:
    few = {"max_steps": 1}
    shallow = finetune(run_config(cross_encoder, toy_file, tmp_path / "shallow", exits=(1, 2), distill=few))
    assert checkpoint.load(shallow).model.matryoshka.exits == (1, 2)
    alone = finetune(run_config(cross_encoder, toy_file, tmp_path / "alone", stages=("vertical",), vertical=few))
    assert logits(checkpoint.load(alone)) == pytest.approx(
        logits(Finetuning(run_config(cross_encoder, toy_file, tmp_path / "out")).base()), abs=1e-6
    )


def test_a_yes_no_reranker_keeps_its_template_and_answers(
    stock_decoder: Path, toy_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plain causal model gets this project's template; one that re-ranks already keeps its own."""
    folder = tmp_path / "bge-reranker-v2-gemma"  # by this name its authors' template is known
    shutil.copytree(stock_decoder, folder)
    start = Finetuning(run_config(folder, toy_file, tmp_path / "out")).base()
    assert capsys.readouterr().err == "exits start from the model's own head\n"
    assert str(start.model.matryoshka.template.default_prompt).startswith("Given a query A and a passage B")
    plain = Finetuning(run_config(stock_decoder, toy_file, tmp_path / "out")).base()
    assert plain.model.matryoshka.template == RELEASE_TEMPLATE


@pytest.fixture
def three_labels(make_config: Callable[..., PreTrainedConfig], cross_encoder: Path, tmp_path: Path) -> Path:
    """A classifier of three labels."""
    names = {0: "contradiction", 1: "entailment", 2: "neutral"}
    config = make_config("bert", vocab_size=20, num_hidden_layers=2, pad_token_id=0, id2label=names)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "nli")
    for file in cross_encoder.glob("tokenizer*"):
        (tmp_path / "nli" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "nli"


def test_several_labels_are_named(three_labels: Path, toy_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 labels.*contradiction, entailment, neutral.*--head linear"):
        finetune(run_config(three_labels, toy_file, tmp_path / "out"))
    Finetuning(run_config(three_labels, toy_file, tmp_path / "out", head="linear")).base()


def test_a_cross_encoder_opens_everywhere(cross_encoder: Path, tmp_path: Path) -> None:
    crossing = pytest.importorskip("mrr_integrations.sentence_transformers")
    expected = MatryoshkaReranker(cross_encoder, dtype="float32").score(QUERY, TEXTS)
    found = crossing.MatryoshkaCrossEncoder(str(cross_encoder), device="cpu").predict([(QUERY, text) for text in TEXTS])
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    words = tmp_path / "words.txt"
    words.write_text("a\n", "utf-8")
    for command in (["rerank", "--query", QUERY, "--model", cross_encoder, words], ["info", cross_encoder]):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in command])
        assert result.exit_code == 0, result.output


def test_errors_about_plain_and_foreign_models_name_the_next_step(
    stock_encoder: Path, three_labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"it is a plain model\. Train a re-ranker from it: `mrr finetune --model"):
        MatryoshkaReranker(stock_encoder)
    with pytest.raises(ValueError, match=r"3 labels \(contradiction, entailment, neutral\).*--head linear: `mrr"):
        MatryoshkaReranker(three_labels)
    config = {"model_type": "funnel", "architectures": ["FunnelForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match=r"'funnel'.*no known family.*makes one from these: .*bert, .*xlm-roberta"):
        MatryoshkaReranker(tmp_path)
