"""Opening stock models: what is read from their files, what the user says instead, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models.folders import (
    CORPUS,
    DECODER,
    bert_tokenizer,
    change_json,
    deberta_tokenizer,
    qwen_tokenizer,
    save_causal,
    save_classifier,
    stock_config,
)
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import AutoModelForCausalLM

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Given
from mrr_model.checkpoint.weights import Layout, Part, Stored
from mrr_model.template import InputTemplate

PAIRS = [("what do pandas eat?", "pandas eat bamboo."), ("who", "bees make honey from the nectar of flowers " * 3)]
ASKED = InputTemplate(query=("{query}\n",), passage=("{passage}",), prompt=("\nanswer:",), truncation="end")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PAIR_CHAT = (
    "{% for m in messages %}{% if m.role == 'query' %}<Query>: {{ m.content }}\n{% elif m.role == 'document' %}"
    "<Document>: {{ m.content }}<|im_end|>\n{% endif %}{% endfor %}Answer:"
)


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A tiny BERT cross-encoder as transformers saves it."""
    folder = tmp_path / "classifier"
    tokenizer = bert_tokenizer(model_max_length=60)
    torch.manual_seed(0)
    save_classifier(folder, stock_config("bert", tokenizer), tokenizer)
    return folder


@pytest.fixture
def causal(tmp_path: Path) -> Path:
    """A tiny Qwen3 with ChatML, which copies any role."""
    folder = tmp_path / "causal"
    tokenizer = qwen_tokenizer(model_max_length=500)
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    save_causal(folder, stock_config("qwen3", tokenizer, DECODER, head_dim=12), tokenizer)
    return folder


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def logits(folder: Path, **options: Any) -> list[float]:
    return MatryoshkaReranker(folder, dtype="float32", device="cpu", normalize=False, **options).score_pairs(PAIRS)


def test_what_was_found_is_said(classifier: Path) -> None:
    loaded = checkpoint.load(classifier)
    assert (loaded.source, loaded.template_source) == ("BertForSequenceClassification", "the tokenizer's pair template")
    matryoshka = loaded.model.matryoshka
    assert (matryoshka.exits, matryoshka.merge_layers, matryoshka.default_merge_layer) == ((4,), (1, 2, 3), 1)
    assert (loaded.defaults.max_length, loaded.defaults.normalize) == (60, True)
    outlined = checkpoint.load_outline(classifier)
    assert (outlined.source, outlined.fingerprint) == (loaded.source, loaded.fingerprint)


@pytest.mark.parametrize(
    ("named", "normalize"),
    [
        ({}, True),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, False),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, False),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, True),
        ({"sentence_transformers": {"activation_fn": "somewhere.Else"}}, True),
    ],
)
def test_scores_are_what_the_librarys_activation_gives(
    classifier: Path, named: dict[str, Any], normalize: bool
) -> None:
    change_json(classifier / "config.json", **named)
    assert checkpoint.load(classifier).defaults.normalize == normalize
    expected = CrossEncoder(str(classifier), device="cpu").predict(PAIRS)
    assert MatryoshkaReranker(classifier, dtype="float32").score_pairs(PAIRS) == pytest.approx(expected, abs=1e-5)


def test_another_activation_is_a_warning(classifier: Path) -> None:
    change_json(classifier / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.warns(UserWarning, match=r"activation\.Tanh.*scores are the logits"):
        assert not checkpoint.load(classifier).defaults.normalize


def test_names_of_old_checkpoints_are_read(classifier: Path) -> None:
    expected = logits(classifier)

    def rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): weight for name, weight in weights.items()}
        old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): weight for name, weight in old.items()}
        return {**old, "bert.embeddings.position_ids": torch.arange(128)[None], "cls.predictions.bias": torch.zeros(3)}

    change_weights(classifier, rename)
    assert logits(classifier) == expected


def test_a_vocabulary_alone_is_a_tokenizer(classifier: Path) -> None:
    expected = logits(classifier)
    vocabulary = bert_tokenizer().get_vocab()
    (classifier / "vocab.txt").write_text(
        "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)), "utf-8"
    )
    (classifier / "tokenizer.json").unlink()
    assert logits(classifier) == expected


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    """As microsoft/deberta-v3-base has it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path / "deberta"
    tokenizer = deberta_tokenizer(model_max_length=60)
    torch.manual_seed(0)
    config = stock_config("deberta-v2", tokenizer, relative_attention=True, position_buckets=16, vocab_size=300)
    save_classifier(folder, config, tokenizer)
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), "utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"), model_prefix=str(folder / "spm"), vocab_size=150, pad_id=0, bos_id=1,
        eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]", minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.json").unlink()
    expected = CrossEncoder(str(folder), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    assert logits(folder) == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_sentencepiece_model_without_its_package(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mrr_model.checkpoint.tokenizer.is_sentencepiece_available", lambda: False)
    (classifier / "spm.model").write_bytes(b"")
    checkpoint.load(classifier)
    (classifier / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"spm\.model is read by the package sentencepiece.*pip install sentencepiece"):
        checkpoint.load(classifier)


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: {key: weight for key, weight in weights.items() if not key.startswith(name)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("classifier"), r"lack its classifier \(classifier\.weight\).*mrr finetune"),
        (lambda weights: {**weights, "classifier.weight": torch.zeros(2, 32)}, "2 labels.*--head linear"),
        (lambda weights: {**weights, "classifier.weight": torch.zeros(1, 16)}, "classifier of 32 numbers.*is for 16"),
        (lambda weights: {**weights, "bert.pooler.dense.weight": torch.zeros(16, 32)}, "misshapen: heads"),
        (lambda weights: {**weights, "projector.weight": torch.zeros(2)}, "unexpected: projector.weight"),
    ],
)
def test_heads_that_do_not_fit(
    classifier: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], reason: str
) -> None:
    change_weights(classifier, change)
    with pytest.raises(ValueError, match=reason) as raised:
        checkpoint.load(classifier)
    assert str(classifier) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_other_positions_under_a_stock_name_are_refused(classifier: Path) -> None:
    change_json(classifier / "config.json", position_embedding_type="alibi")
    with pytest.raises(ValueError, match=r"config\.json: position_embedding_type 'alibi'"):
        checkpoint.load(classifier)


def test_a_causal_model_gets_nobody_elses_prompt(causal: Path) -> None:
    """ChatML copies the roles query and document too, but it is no re-ranker's template."""
    with pytest.raises(ValueError, match=r"hold no input template.*template=.*'qwen3-reranker'.*answers=") as raised:
        checkpoint.load(causal)
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="nothing says by which tokens it answers"):
        checkpoint.load(causal, given=Given(ASKED))


@pytest.mark.parametrize("answers", [("yes", "no"), ("Yes",)])
def test_the_user_says_how_a_causal_model_reads_and_answers(
    causal: Path, tmp_path: Path, answers: tuple[str, ...]
) -> None:
    (tmp_path / "template.json").write_text(ASKED.model_dump_json(), "utf-8")
    found = logits(causal, template=tmp_path / "template.json", answers=answers)
    assert found == logits(causal, template=ASKED, answers=list(answers))
    assert checkpoint.load(causal, given=Given(ASKED, answers)).template_source == "as given"
    stock, tokenizer = AutoModelForCausalLM.from_pretrained(causal).eval(), qwen_tokenizer()
    for (query, document), score in zip(PAIRS, found, strict=True):
        pieces = [tokenizer(text)["input_ids"] for text in (f"{query}\n", document, "\nanswer:")]
        with torch.no_grad():
            last = stock(input_ids=torch.tensor([[*pieces[0], *pieces[1], *pieces[2]]])).logits[0, -1]
        rows = [last[tokenizer.convert_tokens_to_ids(answer)] for answer in answers]
        assert score == pytest.approx((rows[0] - (rows[1] if rows[1:] else 0)).item(), abs=1e-4)


def test_its_own_chat_template_of_a_pair_is_read_but_not_its_answers_guessed(causal: Path) -> None:
    (causal / "chat_template.jinja").write_text(PAIR_CHAT, "utf-8")
    with pytest.raises(ValueError, match="nothing says by which tokens it answers"):
        checkpoint.load(causal)
    (causal / "chat_template.jinja").write_text(PAIR_CHAT.replace("Answer", "Answer yes or no"), "utf-8")
    loaded = checkpoint.load(causal)
    assert (loaded.template_source, loaded.source) == (
        "the tokenizer's chat template",
        "Qwen3ForCausalLM, 'yes' − 'no'",
    )
    expected = CrossEncoder(str(causal), device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    assert logits(causal) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("place", ["folder", "hub", "config", "card"])
def test_published_models_are_known_by_name(causal: Path, tmp_path: Path, place: str) -> None:
    name, folder = "Qwen3-Reranker-0.6B", tmp_path / "mine"
    if place == "folder":
        folder = tmp_path / name
    if place == "hub":
        folder = tmp_path / f"models--Qwen--{name}" / "snapshots" / "0123"
    shutil.copytree(causal, folder)
    if place == "config":
        change_json(folder / "config.json", _name_or_path=f"Qwen/{name}")
    if place == "card":
        (folder / "README.md").write_text(f"---\nlicense: mit\n---\n\n# {name}\n\n# Usage\n", "utf-8")
    loaded = checkpoint.load(folder)
    assert loaded.template_source == "the table of published re-rankers: qwen3-reranker"
    assert (loaded.model.matryoshka.head, loaded.defaults.normalize) == ("yes_no", True)


def test_a_name_in_the_middle_of_a_card_is_not_the_models(causal: Path) -> None:
    (causal / "README.md").write_text("# Mine\n\nA fine-tuned model.\n\n# Qwen3-Reranker-0.6B\n", "utf-8")
    with pytest.raises(ValueError, match="hold no input template"):
        checkpoint.load(causal)


def test_a_causal_model_without_its_head(causal: Path) -> None:
    change_json(causal / "config.json", tie_word_embeddings=False)
    change_weights(causal, without("lm_head"))
    with pytest.raises(ValueError, match=r"lack a language-model head \(lm_head\.weight\)"):
        checkpoint.load(causal, given=Given(ASKED, ("yes", "no")))


def test_what_is_given_must_fit_the_model(classifier: Path, causal: Path) -> None:
    with pytest.raises(ValueError, match=r"answers.*are for causal models"):
        checkpoint.load(classifier, given=Given(answers=("yes", "no")))
    with pytest.raises(ValueError, match="template='zerank' is neither a file nor a published template"):
        checkpoint.load(classifier, given=Given("zerank"))
    with pytest.raises(ValueError, match="template='nobody' is neither a file nor a published template"):
        checkpoint.load(causal, given=Given("nobody"))


def test_a_classifier_keeps_its_form_when_it_is_saved(classifier: Path, tmp_path: Path) -> None:
    own = MatryoshkaReranker(classifier, dtype="float32")
    own.save_pretrained(tmp_path / "saved")
    section = json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))["matryoshka"]
    assert (section["pooling"], section["head_bias"], section["head_layers"][0]["activation"]) == (
        "first",
        True,
        "tanh",
    )
    assert section["template"]["token_types"] == [0, 1, 1]
    again = MatryoshkaReranker(tmp_path / "saved", dtype="float32")
    assert again.score_pairs(PAIRS, keep_ratio=0.5) == pytest.approx(own.score_pairs(PAIRS, keep_ratio=0.5), abs=1e-6)


def test_parts_are_rows_times_a_factor() -> None:
    matrix = torch.arange(12.0).view(6, 2)
    layout = Layout(lambda name: None, {"m": (Part("a", slice(2, 4)), Part("b", (5, 0), 0.5))})
    made = layout.weights({"m": matrix})
    assert made["a"].tolist() == matrix[2:4].tolist()
    assert made["b"].tolist() == [[5.0, 5.5], [0.0, 0.5]]
    headers = layout.weights({"m": Stored.of(matrix)})
    assert {name: each.shape for name, each in headers.items()} == {"a": (2, 2), "b": (2, 2)}
    with pytest.raises(ValueError, match="row 9 of a matrix of 6 rows"):
        Part("c", (9,)).of(matrix)
