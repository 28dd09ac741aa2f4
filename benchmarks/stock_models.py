"""Random cross-encoders in the shapes that people run, saved as their libraries save them.

Layers, heads and sizes are the published models'; the weights are random, and a small vocabulary is trained on the text
of the benchmarks. Neither changes how long a forward pass takes: a vocabulary only makes the table of embeddings small.
`bert` and `minilm` take mini's tokenizer, which is BERT's own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peers import name_stock_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from workloads import passages

from mrr_model import MatryoshkaReranker

VOCABULARY = 8192
"""Tokens of a trained vocabulary, at most."""
Vocabulary = Literal["mini", "unigram", "bytes", "bytes, no special tokens"]


@dataclass(frozen=True)
class Shape:
    """A cross-encoder's architecture, and how its tokenizer joins a pair."""

    like: str
    """What has this shape."""
    model_type: str
    vocabulary: Vocabulary
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the stock configuration that differ from its defaults."""
    max_length: int = 512

    def save(self, folder: Path) -> int:
        """Save the model, with one label, and its tokenizer; returns its parameters apart from the embeddings."""
        tokenizer = TOKENIZERS[self.vocabulary]()
        tokenizer.model_max_length = self.max_length
        names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
        special = {name: getattr(tokenizer, name) for name in names}
        config = CONFIG_MAPPING[self.model_type](
            **{"vocab_size": len(tokenizer), "num_labels": 1, **special, **self.fields}
        )
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        name_stock_tokenizer(folder)
        embeddings = model.get_input_embeddings().weight.numel()
        return sum(parameter.numel() for parameter in model.parameters()) - embeddings


def mini_tokenizer() -> PreTrainedTokenizerBase:
    """`[CLS] query [SEP] passage [SEP]`, with token types."""
    tokenizer = MatryoshkaReranker("mini").tokenizer
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def unigram_tokenizer() -> PreTrainedTokenizerBase:
    """`<s> query </s></s> passage </s>`, as XLM-RoBERTa's."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(passages().values(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], bos_token="<s>", eos_token="</s>",
        cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
    )  # fmt: skip


def bytes_tokenizer() -> PreTrainedTokenizerBase:
    """`[CLS] query [SEP] passage [SEP]` without token types, as ModernBERT's."""
    backend = byte_level_bpe(["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:0 [SEP]:0", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"],
        cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]",
    )  # fmt: skip


def bare_bytes_tokenizer() -> PreTrainedTokenizerBase:
    """A query and a passage without special tokens, as Qwen3's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(["<|endoftext|>", "<|im_end|>"]),
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
    )


def byte_level_bpe(special: list[str]) -> Tokenizer:
    """A byte-level BPE trained on the benchmarks' text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(passages().values(), trainer)
    return backend


TOKENIZERS = {
    "mini": mini_tokenizer,
    "unigram": unigram_tokenizer,
    "bytes": bytes_tokenizer,
    "bytes, no special tokens": bare_bytes_tokenizer,
}

SHAPES = {
    "minilm": Shape(
        "ms-marco-MiniLM-L12-v2", "bert", "mini",
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "bert": Shape("BERT base", "bert", "mini"),
    "xlm-roberta": Shape(
        "bge-reranker-base", "xlm-roberta", "unigram", {"max_position_embeddings": 514, "type_vocab_size": 1}
    ),
    "modernbert": Shape(
        "gte-reranker-modernbert-base", "modernbert", "bytes", {"classifier_pooling": "mean"}, max_length=8192
    ),
    # Qwen3-Reranker-0.6B's proportions: an MLP of three times the hidden size, heads of 128, two to a key-value head.
    "qwen3": Shape(
        "a Qwen3 sequence classifier", "qwen3", "bytes, no special tokens",
        {
            "hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 11, "num_attention_heads": 12,
            "num_key_value_heads": 6, "head_dim": 128, "max_position_embeddings": 40960,
        },
        max_length=8192,
    ),
}  # fmt: skip
"""The shapes by name, as `speed.py --model` takes them."""
