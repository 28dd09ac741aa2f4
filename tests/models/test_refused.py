"""Published re-rankers that do not open: each is refused with one line that says why, and no remote code is run."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from models.folders import (
    DECODER,
    bert_tokenizer,
    change_json,
    deberta_tokenizer,
    qwen_tokenizer,
    save_causal,
    save_classifier,
    stock_config,
    xlm_roberta_tokenizer,
)
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5Config, T5ForConditionalGeneration

from mrr_model import MatryoshkaReranker

Build = Callable[[Path], None]


@dataclass(frozen=True)
class Refused:
    """A model that does not open.

    Args:
        name: On the hub.
        build: Writes a tiny one as its authors did.
        reason: What the error must name.
    """

    name: str
    build: Build
    reason: str


def two_labels(family: str, tokenizer: Callable[..., PreTrainedTokenizerBase], labels: int, **fields: Any) -> Build:
    def build(folder: Path) -> None:
        tokens = tokenizer(model_max_length=126)
        save_classifier(folder, stock_config(family, tokens, **fields), tokens, num_labels=labels)

    return build


def remote(
    family: str,
    architecture: str,
    tokenizer: Callable[..., PreTrainedTokenizerBase],
    rename: Mapping[str, str],
    extra: Mapping[str, tuple[int, ...]],
    **config: Any,
) -> Build:
    """A model of remote code under a stock `model_type`: its weights have other names, or there are more of them."""

    def build(folder: Path) -> None:
        tokens = tokenizer(model_max_length=126)
        fields = DECODER if family == "qwen3" else {}
        config_of = stock_config(family, tokens, **({"sizes": fields} if fields else {}))
        (save_causal if family == "qwen3" else save_classifier)(folder, config_of, tokens)
        file = folder / "model.safetensors"
        weights: dict[str, Tensor] = safetensors.torch.load_file(file)
        for old, new in rename.items():
            weights = {re.sub(old, new, name): weight for name, weight in weights.items()}
        weights |= {name: torch.randn(shape) for name, shape in extra.items()}
        safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
        (folder / "modeling.py").write_text("raise SystemExit('remote code was run')\n", "utf-8")
        mapped = {"AutoModelForSequenceClassification": f"modeling.{architecture}"}
        change_json(folder / "config.json", architectures=[architecture], auto_map=mapped, **config)

    return build


def build_t5(folder: Path) -> None:
    config = T5Config(vocab_size=260, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)


def build_qwen2_vl(folder: Path) -> None:
    """Its configuration, and any weights: it must be refused by the configuration."""
    fields = {"model_type": "qwen2_vl", "architectures": ["JinaVLForRanking"], "hidden_size": 32, "vocab_size": 64}
    (folder / "config.json").write_text(json.dumps(fields), "utf-8")
    safetensors.torch.save_file({"model.embed_tokens.weight": torch.randn(64, 32)}, folder / "model.safetensors")
    qwen_tokenizer().save_pretrained(folder)


def build_seven_answers(folder: Path) -> None:
    tokens = qwen_tokenizer(model_max_length=2000)
    save_causal(folder, stock_config("qwen2", tokens, DECODER), tokens)


ROWS = (
    Refused("amberoad/bert-multilingual-passage-reranking-msmarco", two_labels("bert", bert_tokenizer, 2), "2 labels"),
    Refused("cross-encoder/nli-deberta-v3-base", two_labels("deberta-v2", deberta_tokenizer, 3), "3 labels"),
    Refused("michaelfeil/mxbai-rerank-base-v2-seq", two_labels("qwen2", qwen_tokenizer, 2, sizes=DECODER), "2 labels"),
    Refused("castorini/monot5-base-msmarco", build_t5, "t5"),
    Refused(
        "jinaai/jina-reranker-v1-tiny-en",
        remote(
            "bert",
            "JinaBertForSequenceClassification",
            bert_tokenizer,
            {r"intermediate\.dense": "mlp.gated_layers", r"output\.dense": "mlp.wo"},
            {},
            position_embedding_type="alibi",
            feed_forward_type="geglu",
        ),
        "alibi",
    ),
    Refused(
        "jinaai/jina-reranker-v2-base-multilingual",
        remote(
            "xlm-roberta",
            "XLMRobertaForSequenceClassification",
            xlm_roberta_tokenizer,
            {r"attention\.self\.query": "mixer.Wqkv", r"embeddings\.LayerNorm": "emb_ln"},
            {},
            use_flash_attn=True,
        ),
        "weight",
    ),
    Refused(
        "jinaai/jina-reranker-v3",
        remote("qwen3", "JinaForRanking", qwen_tokenizer, {}, {"projector.0.weight": (16, 32)}),
        "JinaForRanking",
    ),
    Refused("jinaai/jina-reranker-m0", build_qwen2_vl, "qwen2_vl"),
    Refused("lightblue/lb-reranker-0.5B-v1.0", build_seven_answers, "template"),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_refused_in_one_line(row: Refused, tmp_path: Path) -> None:
    folder = tmp_path / row.name
    folder.mkdir(parents=True)
    row.build(folder)
    with pytest.raises(ValueError, match=row.reason) as raised:
        MatryoshkaReranker(folder, device="cpu")
    message = str(raised.value)
    assert str(folder) in message
    assert "\n" not in message


def test_the_docs_list_every_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8")
    listed = set(re.findall(r"`([\w.-]+/[\w.-]+)`", text))
    assert {row.name for row in ROWS} <= listed
