"""Random re-rankers in the shapes that people run on GPUs, made on the device in a few seconds, and their texts.

Layers, heads and sizes are the published models'. The vocabulary and the tokenizer are mini's, which makes the table of
embeddings small and changes nothing else that takes time.
"""

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from speed import mixed_passages
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedTokenizerBase
from workloads import PROMPT, QUERY, passages

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.modeling.config import MatryoshkaConfig, default_merge_layer
from mrr_model.modeling.construction import NamedTensors
from mrr_model.modeling.families import is_decoder
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import BERT_TEMPLATE, RELEASE_TEMPLATE

VOCABULARY = "mini's, 30522 tokens, instead of the published model's; it changes the table of embeddings alone"
MAX_LENGTH = 512
MIXED = 0
"""Stands for mixed lengths, of 10 to 300 words, among numbers of words."""
TINY = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
"""Fields of a configuration that make any shape tiny."""


@dataclass(frozen=True)
class Shape:
    """A re-ranker's architecture, and how much work it is given.

    Attributes:
        like: What has this shape.
        model_type: The architecture.
        pairs: Words of a passage, `MIXED` for many lengths -> how many pairs are scored to measure speed.
        swept_tokens: Tokens scored with each batch budget; 0: the budget is not swept.
        budgets: The batch budgets to compare, in tokens: those next to the best one that is known.
        fields: Fields of the stock configuration.
    """

    like: str
    model_type: str
    pairs: Mapping[int, int]
    swept_tokens: int = 0
    budgets: tuple[int, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return int(self.fields["num_hidden_layers"])

    @property
    def settings(self) -> tuple[tuple[int, float], ...]:
        """Full size, two thirds of the depth at half the width, one third at a quarter."""
        return (self.layers, 1.0), (round(self.layers * 2 / 3), 0.5), (round(self.layers / 3), 0.25)

    def tiny(self) -> "Shape":
        """The same shape with almost no work."""
        swept = {"swept_tokens": min(1500, self.swept_tokens), "budgets": self.budgets[:2]}
        return replace(self, pairs={10: 6, MIXED: 6}, fields={**self.fields, **TINY}, **swept)

    def reranker(self, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> MatryoshkaReranker:
        """The model with random weights, made on the device in its dtype."""
        decoder = is_decoder(self.model_type)
        token_types = BERT_TEMPLATE.token_types if self.model_type == "bert" else None
        tokenizer = tokenizer_of(decoder, token_types is not None)
        special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": None}
        config = CONFIG_MAPPING[self.model_type](vocab_size=len(tokenizer), **special, **self.fields)
        config.dtype = dtype
        layers = tuple(range(1, self.layers + 1))
        own = MatryoshkaConfig(
            exits=layers,
            merge_layers=layers[:-1],
            default_merge_layer=default_merge_layer(self.layers),
            template=RELEASE_TEMPLATE if decoder else BERT_TEMPLATE.model_copy(update={"token_types": token_types}),
        )
        torch.manual_seed(0)
        model = MatryoshkaModel.from_config(config, own, weights=device).to(device).eval()
        return MatryoshkaReranker(Checkpoint(model, tokenizer, {}), max_length=MAX_LENGTH, normalize=False)

    def cross_encoder(self, reranker: MatryoshkaReranker, attention: str, folder: Path) -> CrossEncoder:
        """sentence-transformers' cross-encoder over the very weights of a reranker of this shape.

        It is opened from a tiny folder, and its model replaced: saving and reading gigabytes would take minutes.

        Args:
            reranker: The reranker.
            attention: The attention function of transformers, such as `"sdpa"`.
            folder: Where the tiny folder may lie for a moment.
        """
        device, dtype = reranker.model.device, reranker.model.model.dtype
        fields = {**reranker.model.config.to_dict(), "num_labels": 1}
        fields.pop("layer_types", None)  # one for each layer: another number of layers needs others
        config_class = type(reranker.model.config)
        with tempfile.TemporaryDirectory(dir=folder) as made:
            stand_in = AutoModelForSequenceClassification.from_config(config_class.from_dict({**fields, **TINY}))
            stand_in.save_pretrained(made)
            reranker.tokenizer.save_pretrained(made)
            peer = CrossEncoder(made, max_length=MAX_LENGTH, device=str(device), model_kwargs={"dtype": dtype})
        config = config_class.from_dict(fields)
        with NamedTensors(dtype, "meta"):
            stock = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)
        stock.base_model.load_state_dict(reranker.model.model.state_dict(), strict=False, assign=True)
        draw_missing(stock, device, dtype)
        peer[0].model = stock.to(device).eval()
        return peer

    def peers_pairs(self, documents: list[str]) -> list[tuple[str, str]]:
        """Pairs whose tokens a cross-encoder reads as the reranker does."""
        if is_decoder(self.model_type):
            return [(f"A: {QUERY}\nB: {text}", f"\n{PROMPT}") for text in documents]
        return [(QUERY, text) for text in documents]


@lru_cache
def tokenizer_of(decoder: bool, token_types: bool) -> PreTrainedTokenizerBase:
    """mini's tokenizer as a decoder's or an encoder's, with token types or without."""
    tokenizer = MatryoshkaReranker("mini", device="cpu").tokenizer
    if decoder:
        tokenizer.bos_token = "[CLS]"
    typed = ["token_type_ids"] if token_types else []
    tokenizer.model_input_names = ["input_ids", *typed, "attention_mask"]
    return tokenizer


def draw_missing(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give random values to weights that have none: those of the stock head."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                drawn = 0.02 * torch.randn(parameter.shape, device=device)
                setattr(module, name, nn.Parameter(drawn.to(dtype), requires_grad=False))


def documents_of(words: int, count: int, first: int = 0) -> list[str]:
    """Different passages of a number of words from the documentation of Python's standard library.

    Args:
        words: Words of each; `MIXED` for mixed lengths.
        count: How many.
        first: The number of the first one. Passages of different numbers differ.
    """
    numbers = range(first, first + count)
    if words == MIXED:
        return [f"{number} {text}" for number, text in zip(numbers, mixed_passages(count), strict=True)]
    stream = words_of_passages()
    starts = [number * words % (len(stream) - words) for number in numbers]
    return [
        " ".join([str(number), *stream[start : start + words - 1]])
        for number, start in zip(numbers, starts, strict=True)
    ]


@lru_cache
def words_of_passages() -> list[str]:
    return " ".join(passages().values()).split()


class Texts:
    """Texts for the calls of several contenders: no contender gets the same ones twice, and all get the same ones.

    A batch of new texts has a new shape, which libraries may have to prepare for; repeating a call would hide it.

    Args:
        words: Words of each passage, or `MIXED`.
        count: Passages of a call.
        calls: Calls of each contender.
    """

    def __init__(self, words: int, count: int, calls: int) -> None:
        self.calls = [documents_of(words, count, call * count) for call in range(calls)]

    def contender(self, score: Callable[[list[str]], Any]) -> Callable[[], Any]:
        """A function that scores the next texts at each call."""
        calls = cycle(self.calls)
        return lambda: score(next(calls))


def mixed_documents(reranker: MatryoshkaReranker, tokens: int) -> list[str]:
    """Different passages of mixed lengths, with about so many tokens in all, their queries included."""
    sample = mixed_passages(40)
    mean = statistics.mean(map(sum, reranker.engine.token_counts([(QUERY, text) for text in sample])))
    return [f"{index} {text}" for index, text in enumerate(mixed_passages(max(4, round(tokens / mean))))]


DECODER = {"max_position_embeddings": 4096, "tie_word_embeddings": False}
SHAPES = {
    "minilm-l6": Shape(
        "ms-marco-MiniLM-L6-v2", "bert", {60: 4096, 400: 2048, MIXED: 4096}, 1 << 20, (32768, 65536, 131072),
        {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12},
    ),
    "bge-v2-m3": Shape(
        "bge-reranker-v2-m3", "xlm-roberta", {60: 2048, 400: 512, MIXED: 2048}, 1 << 19, (16384, 32768, 65536),
        {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "max_position_embeddings": 8194, "type_vocab_size": 1, "layer_norm_eps": 1e-5,
        },
    ),
    "qwen3-0.6b": Shape(
        "Qwen3-Reranker-0.6B", "qwen3", {60: 1024, 400: 256}, 1 << 17, (8192, 16384, 32768),
        {
            "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, **DECODER,
        },
    ),
    "mistral-7b": Shape(
        "a Mistral of 7 billion weights", "mistral", {60: 192, 400: 48}, 1 << 15, (2048, 4096, 8192),
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None, **DECODER,
        },
    ),
}  # fmt: skip
"""The shapes by name, the smallest first: a short run then measures the most."""
