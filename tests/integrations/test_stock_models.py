"""A model of another library, by its folder: every integration gives the scores that its own library gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode
from models.folders import DECODER, qwen_tokenizer, save_causal, save_logit_score, stock_config
from sentence_transformers import CrossEncoder
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from mrr_integrations.langchain import MatryoshkaReranker as Compressor
from mrr_integrations.llama_index import MatryoshkaReranker as Postprocessor
from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder
from mrr_model import MatryoshkaReranker

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.* applies torch.nn.modules.activation.Tanh"),
]

QUERY = "how do plants make food?"
TEXTS = [
    "Bees make honey.",
    "Photosynthesis turns light into sugar that plants use as food. " * 6,
    "The committee met.",
]
PAIRS = [(QUERY, text) for text in TEXTS]
TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": 1,
    "initializer_range": 0.2,
}  # fmt: skip


def stock(folder: Path, **fields: Any) -> Path:
    """A BERT cross-encoder of four layers with mini's tokenizer, as transformers saves it."""
    tokenizer = MatryoshkaReranker("mini").tokenizer
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = BertConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 128, **TINY, **fields})
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_crossencoder(folder: Path, **arguments: Any) -> Path:
    """The same as a trained CrossEncoder is saved: with its activation and prompts."""
    model = CrossEncoder(str(stock(folder / "stock")), device="cpu", **arguments)
    model.save_pretrained(str(folder / "saved"))
    return folder / "saved"


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "stock": stock,
    "logits": lambda folder: stock(folder, sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}),
    "old key": lambda folder: stock(folder, sbert_ce_default_activation_function="torch.nn.modules.linear.Identity"),
    "tanh": lambda folder: stock(folder, sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"}),
    "saved": by_crossencoder,
    "saved, logits": lambda folder: by_crossencoder(folder, activation_fn=nn.Identity()),
    "saved, prompts": lambda folder: by_crossencoder(
        folder, prompts={"web": "answer the question: ", "none": ""}, default_prompt_name="web", max_length=48
    ),
}


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stock model with each activation, saved by transformers or by CrossEncoder."""
    return FOLDERS[request.param](tmp_path_factory.mktemp("stock"))


def test_predict_is_crossencoders(folder: Path) -> None:
    theirs = CrossEncoder(str(folder), device="cpu")
    ours = MatryoshkaCrossEncoder(str(folder), device="cpu")
    assert ours.max_seq_length == theirs.max_seq_length
    assert type(ours.activation_fn) is type(theirs.activation_fn)
    assert (ours.prompts, ours.default_prompt_name) == (theirs.prompts, theirs.default_prompt_name)
    assert ours.predict(PAIRS) == pytest.approx(theirs.predict(PAIRS), abs=1e-4)
    ranked, wanted = ours.rank(QUERY, TEXTS), theirs.rank(QUERY, TEXTS)
    assert [row["corpus_id"] for row in ranked] == [row["corpus_id"] for row in wanted]
    assert [row["score"] for row in ranked] == pytest.approx([row["score"] for row in wanted], abs=1e-4)
    assert ours.predict(PAIRS, keep_ratio=0.5).shape == (3,)


@pytest.mark.parametrize("given", [{"prompt": "look up: "}, {"prompt": ""}, {"prompt_name": "none"}])
def test_a_prompt_goes_where_crossencoder_puts_it(tmp_path: Path, given: dict[str, str]) -> None:
    folder = FOLDERS["saved, prompts"](tmp_path)
    theirs = CrossEncoder(str(folder), device="cpu").predict(PAIRS, **given)
    model = MatryoshkaCrossEncoder(str(folder), device="cpu")
    assert model.predict(PAIRS, **given) == pytest.approx(theirs, abs=1e-4)
    assert model.predict(PAIRS) != pytest.approx(theirs, abs=1e-4)


CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


@pytest.mark.parametrize("prompt", [None, "", "bees make"])
def test_a_stored_prompt_of_a_chat_template_can_be_replaced_and_left_out(prompt: str | None, tmp_path: Path) -> None:
    tokenizer = qwen_tokenizer(model_max_length=400)
    save_causal(tmp_path, stock_config("qwen2", tokenizer, DECODER), tokenizer)
    save_logit_score(tmp_path, (300, 301), CHAT, prompts={"web": "Find what helps."}, default_prompt_name="web")
    library = CrossEncoder(str(tmp_path), device="cpu")
    expected = library.predict(PAIRS, prompt=prompt)
    assert prompt is None or expected != pytest.approx(library.predict(PAIRS), abs=1e-3)
    assert MatryoshkaCrossEncoder(tmp_path, device="cpu").predict(PAIRS, prompt=prompt) == pytest.approx(
        expected, abs=1e-4
    )
    core = MatryoshkaReranker(tmp_path, dtype="float32", device="cpu")
    assert core.score_pairs(PAIRS, prompt=prompt) == pytest.approx(expected, abs=1e-4)


def test_what_is_saved_opens_in_plain_crossencoder_with_the_same_scores(folder: Path, tmp_path: Path) -> None:
    wanted = CrossEncoder(str(folder), device="cpu")
    MatryoshkaCrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path / "again"))
    again = CrossEncoder(str(tmp_path / "again"), device="cpu", trust_remote_code=True)
    assert type(again.activation_fn) is type(wanted.activation_fn)
    assert again.max_seq_length == wanted.max_seq_length
    assert again.predict(PAIRS) == pytest.approx(wanted.predict(PAIRS), abs=1e-4)
    opened = MatryoshkaCrossEncoder(str(tmp_path / "again"), device="cpu")
    assert opened.predict(PAIRS) == pytest.approx(wanted.predict(PAIRS), abs=1e-4)


@pytest.mark.parametrize("name", ["stock", "logits"])
def test_langchain_and_llamaindex_give_crossencoders_scores(name: str, tmp_path: Path) -> None:
    folder = FOLDERS[name](tmp_path)
    theirs = CrossEncoder(str(folder), device="cpu").rank(QUERY, TEXTS)
    order, scores = [row["corpus_id"] for row in theirs], [float(row["score"]) for row in theirs]
    options: dict[str, Any] = {"model": str(folder), "top_n": None, "device": "cpu", "dtype": "float32"}

    documents = Compressor(**options).compress_documents([Document(text) for text in TEXTS], QUERY)
    assert [TEXTS.index(document.page_content) for document in documents] == order
    assert [document.metadata["relevance_score"] for document in documents] == pytest.approx(scores, abs=1e-4)

    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = Postprocessor(**options).postprocess_nodes(nodes, query_str=QUERY)
    assert [TEXTS.index(node.text) for node in ranked] == order
    assert [node.score for node in ranked] == pytest.approx(scores, abs=1e-4)
    assert Postprocessor(**options).normalize is (name == "stock")
