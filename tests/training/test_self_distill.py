"""Self-distillation: full size scores as the re-ranker did; smaller sizes learn to agree with it without labels."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models.folders import qwen_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Given
from mrr_model.data.groups import Group
from mrr_model.inference.encode import PairEncoder
from mrr_model.template import QWEN3_TEMPLATE, RELEASE_TEMPLATE, InputTemplate
from mrr_model.training.config import SelfDistillConfig
from mrr_model.training.initialize import with_exits
from mrr_model.training.losses import distillation_loss
from mrr_model.training.original import compare_with_original
from mrr_model.training.self_distill import filled, self_distill

QUERIES = ["the panda is eating what?", "is it 42", "a small bird", "what is the panda?"]
DOCUMENTS = ["the panda is what", "42 is it", "a bird, small", "panda panda!", "is the bird 7?", "what (a) day"]
STAGE = {"learning_rate": 1e-2, "epochs": 30.0, "lora": {"rank": 8, "alpha": 16, "dropout": 0.0}}

StockConfig = Callable[..., PreTrainedConfig]


@pytest.fixture
def save_classifier(make_config: StockConfig, tokenizers: Mapping[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """`save_classifier(family, **changes)`: the folder of a random sequence-classification model."""

    def save(family: str, **changes: Any) -> Path:
        config = make_config(family, **{"num_labels": 1, "num_hidden_layers": 4, **changes})
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / family)
        tokenizers["encoder" if family in ("bert", "xlm-roberta") else "decoder"].save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


@pytest.fixture
def causal(make_config: StockConfig, tmp_path: Path) -> Path:
    """The folder of a random Qwen3 that answers "yes" or "no"."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(make_config("qwen3", num_hidden_layers=4)).save_pretrained(tmp_path / "causal")
    qwen_tokenizer().save_pretrained(tmp_path / "causal")
    return tmp_path / "causal"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Unlabelled rows: each query with all documents."""
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"query": q, "documents": DOCUMENTS}) + "\n" for q in QUERIES), "utf-8")
    return file


def run_config(model: Path, texts: Path, output: Path, **changes: Any) -> SelfDistillConfig:
    fields: dict[str, Any] = {
        "model": str(model), "texts": (str(texts),), "output": output, "train_group_size": 6, "groups_per_step": 2,
        "max_length": 100, "vertical": STAGE, "horizontal": {**STAGE, "ratios": (2,)},
    }  # fmt: skip
    return SelfDistillConfig(**{**fields, **changes})


def logits(reranker: MatryoshkaReranker, **setting: Any) -> torch.Tensor:
    """Of every query with every document, (queries, documents, 1)."""
    rows = [reranker.score(query, DOCUMENTS, normalize=False, **setting) for query in QUERIES]
    return torch.tensor(rows)[..., None]


def test_a_bert_cross_encoder_gets_smaller_sizes(
    save_classifier: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = save_classifier("bert")
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    distilled = self_distill(run_config(folder, texts, tmp_path / "out"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    reranker = MatryoshkaReranker(distilled, dtype="float32", max_length=100)
    assert reranker.exits == (1, 2, 3, 4)
    full = logits(reranker)
    for row, query in enumerate(QUERIES):
        for column, document in enumerate(DOCUMENTS):
            with torch.no_grad():
                expected = stock(**tokenizer(query, document, return_tensors="pt")).logits[0, 0]
            assert full[row, column, 0].item() == pytest.approx(expected.item(), abs=1e-5)

    # What compensation gains: each smaller size against the same size without it.
    plain = MatryoshkaReranker(with_exits(checkpoint.load(folder)), max_length=100)
    for setting in ({"depth": 2}, {"depth": 3}, {"keep_ratio": 0.5}, {"depth": 3, "keep_ratio": 0.5}):
        taught, before = (distillation_loss(logits(one, **setting), full) for one in (reranker, plain))
        best = distillation_loss(full, full)  # the teacher's own entropy
        assert taught - best < 0.5 * (before - best), setting


def test_an_xlm_roberta_cross_encoder_keeps_its_scores(save_classifier: Callable[..., Path]) -> None:
    folder = save_classifier("xlm-roberta")
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    reranker = MatryoshkaReranker(with_exits(checkpoint.load(folder)), max_length=100, normalize=False)
    assert reranker.exits == (1, 2, 3, 4)
    [pair] = reranker.engine.encoder.encode([(QUERIES[0], DOCUMENTS[0])])
    with torch.no_grad():
        expected = stock(input_ids=torch.tensor([pair.input_ids])).logits[0, 0]
    assert reranker.score(QUERIES[0], DOCUMENTS[:1])[0] == pytest.approx(expected.item(), abs=1e-5)


def test_a_causal_classifier_keeps_its_scores(save_classifier: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_classifier("llama")
    start = with_exits(checkpoint.load(folder, given=Given(RELEASE_TEMPLATE)), exits=(2, 4), merge_layer=2)
    stock = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    [pair] = PairEncoder(start.tokenizer, RELEASE_TEMPLATE, 100).encode([(QUERIES[0], DOCUMENTS[0])])
    with torch.no_grad():
        expected = stock(input_ids=torch.tensor([pair.input_ids])).logits[0, 0]
    reranker = MatryoshkaReranker(start, max_length=100, normalize=False)
    assert (reranker.exits, reranker.model.matryoshka.default_merge_layer) == ((2, 4), 2)
    assert reranker.score(QUERIES[0], DOCUMENTS[:1])[0] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("no", ["no", None])
def test_a_yes_no_reranker_keeps_its_scores(
    no: str | None, causal: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {**STAGE, "epochs": 1.0}
    asked = {"template": "qwen3-reranker", "answers": ["yes", no] if no else ["yes"]}
    changes: dict[str, Any] = {**asked, "vertical": few, "horizontal": {**few, "ratios": (2,)}, "max_length": 400}
    folder = self_distill(run_config(causal, texts, tmp_path / "out", **changes))
    said = capsys.readouterr().err
    assert "opened as Qwen3ForCausalLM" in said
    assert "input template from the table of published re-rankers: qwen3-reranker" in said
    assert "4 pairs score as in transformers, on the same tokens" in said
    reranker = MatryoshkaReranker(folder, dtype="float32", max_length=400, normalize=False)
    stock = AutoModelForCausalLM.from_pretrained(causal).eval()
    ids = [reranker.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no")]
    for document in DOCUMENTS:
        [pair] = reranker.engine.encoder.encode([(QUERIES[0], document)])
        with torch.no_grad():
            last = stock(input_ids=torch.tensor([pair.input_ids])).logits[0, -1]
        expected = last[ids[0]] - (last[ids[1]] if no else 0)
        assert reranker.score(QUERIES[0], [document])[0] == pytest.approx(expected.item(), abs=1e-4)


def test_the_qwen3_template_gives_the_ids_of_the_whole_text() -> None:
    """Its pieces are tokenized one by one; with Qwen's rule of splitting text, no token would cross their borders."""
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    pattern += r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prefix, asked = QWEN3_TEMPLATE.query
    whole = prefix + asked + QWEN3_TEMPLATE.passage[0] + QWEN3_TEMPLATE.prompt[0]
    backend.train_from_iterator(
        [whole.format(prompt="Is it?", query=q, passage=d) for q in QUERIES for d in DOCUMENTS] * 3, trainer
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|endoftext|>")
    encoder = PairEncoder(tokenizer, QWEN3_TEMPLATE, 1000)
    for query, document in [("what?", "This."), ("who\nwrote it", '"Quoted" text.'), ("2 + 2 =", "(four)")]:
        [pair] = encoder.encode([(query, document)])
        whole_text = whole.format(prompt=QWEN3_TEMPLATE.default_prompt, query=query, passage=document)
        assert pair.input_ids == tokenizer.encode(whole_text)


def test_models_that_cannot_be_distilled_are_refused(
    save_classifier: Callable[..., Path], causal: Path, stock_encoder: Path, texts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="3 labels"):
        checkpoint.load(save_classifier("bert", num_labels=3))
    with pytest.raises(ValueError, match="it is a plain model"):
        self_distill(run_config(stock_encoder, texts, tmp_path / "out"))
    with pytest.raises(ValueError, match="hold no input template"):
        self_distill(run_config(causal, texts, tmp_path / "out"))
    with pytest.raises(ValueError, match="exits must end with the model's last layer, 4"):
        self_distill(run_config(causal, texts, tmp_path / "out", exits=(2, 3), template="qwen3-reranker"))
    with pytest.raises(ValueError, match="has the exits 1, 2, 3, 4 already"):
        with_exits(with_exits(checkpoint.load(causal, given=Given("qwen3-reranker"))))


def test_what_differs_from_the_original_is_an_error_before_training(
    save_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_classifier("bert")
    loaded = checkpoint.load(folder)
    pairs = [(QUERIES[0], document) for document in DOCUMENTS[:4]]
    assert compare_with_original(folder, loaded, pairs) == "4 pairs score as in sentence-transformers' CrossEncoder"
    template = InputTemplate(
        query=("{cls}", "{query}"), passage=("{passage}",), prompt=("{sep}",), truncation="longest_first"
    )
    wrong = checkpoint.load(folder, given=Given(template))
    with pytest.raises(ValueError, match=r"for the pair .*Check its input template, which is from the tokenizer's"):
        compare_with_original(folder, replace(wrong, template_source="the tokenizer's pair template"), pairs)


def test_full_size_keeps_the_librarys_length_and_kind_of_score(
    save_classifier: Callable[..., Path], texts: Path, tmp_path: Path
) -> None:
    folder = save_classifier("xlm-roberta")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    few = {**STAGE, "epochs": 1.0}
    distilled = self_distill(
        run_config(folder, texts, tmp_path / "out", vertical=few, horizontal={**few, "ratios": (2,)})
    )
    own, made = (MatryoshkaReranker(path, dtype="float32") for path in (folder, distilled))
    assert (made.max_length, made.normalize) == (own.max_length, own.normalize) == (own.max_length, False)
    assert made.score(QUERIES[0], DOCUMENTS) == pytest.approx(own.score(QUERIES[0], DOCUMENTS), abs=1e-5)


def test_labels_and_teacher_scores_have_no_weight() -> None:
    with pytest.raises(ValueError, match="label_weight"):
        SelfDistillConfig(model="m", texts=("t",), output=Path("o"), vertical={"label_weight": 1.0})  # type: ignore[arg-type]


def test_rows_with_few_documents_are_filled_up_from_others() -> None:
    rows = [Group(f"q{row}", (), (f"d{row}",)) for row in range(12)]
    full = list(filled(rows, 4, seed=0))
    assert [group.query for group in full] == [row.query for row in rows]
    assert all(len(set(group.negatives)) == 4 and group.negatives[0] == f"d{row}" for row, group in enumerate(full))
    assert full == list(filled(rows, 4, seed=0))
    assert full != list(filled(rows, 4, seed=1))
