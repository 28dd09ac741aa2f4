"""What the benchmarks of speed run on: a model, real text of a given length, and runs that take turns.

A workload is written `MODEL:WORDS:PASSAGES`: one query with PASSAGES passages of WORDS words each. `mini` is the
shipped model; `decoder` is Mistral-shaped with 108M random weights.
"""

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import MistralConfig

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.inference.device import computes_bfloat16
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import RELEASE_TEMPLATE

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from stdlib_docs import passages

QUERY = "how do I remove a folder together with everything inside it?"
MODELS = ("mini", "decoder")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_DTYPE = "bfloat16" if computes_bfloat16(torch.device("cpu")) else "float32"
"""What `dtype="auto"` is on this processor."""
PROMPT = RELEASE_TEMPLATE.default_prompt
"""What the decoder reads after the passage."""


@dataclass(frozen=True)
class Workload:
    """One query with passages of one length, for one model."""

    model: str
    words: int
    passages: int

    @classmethod
    def parse(cls, text: str) -> "Workload":
        """Read `MODEL:WORDS:PASSAGES`, such as `mini:60:100`."""
        model, words, count = text.split(":")
        if model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
        return cls(model, int(words), int(count))

    def __str__(self) -> str:
        return f"{self.model}:{self.words}:{self.passages}"

    def documents(self) -> list[str]:
        """Different passages from the documentation of Python's standard library."""
        stream = " ".join(passages().values()).split()
        stream *= -(-self.words * self.passages // len(stream))
        return [" ".join(stream[self.words * index : self.words * (index + 1)]) for index in range(self.passages)]

    def reranker(self, dtype: str = DEFAULT_DTYPE) -> MatryoshkaReranker:
        """The model at full size, in float32 or bfloat16."""
        if self.model == "mini":
            return MatryoshkaReranker("mini", dtype=dtype)
        return MatryoshkaReranker(decoder_checkpoint(DTYPES[dtype]))


def decoder_checkpoint(dtype: torch.dtype) -> Checkpoint:
    """A Mistral of 12 layers, hidden size 768, the same random weights in every dtype; mini's tokenizer stands in."""
    tokenizer = MatryoshkaReranker("mini").tokenizer
    tokenizer.bos_token = "[CLS]"
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048, sliding_window=None,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    layers = tuple(range(1, 13))
    own = MatryoshkaConfig(exits=layers, merge_layers=layers[:-1], default_merge_layer=3, template=RELEASE_TEMPLATE)
    model = MatryoshkaModel.from_config(config, own).to(dtype)
    model.heads.float()
    return Checkpoint(model.eval(), tokenizer, {})


def mean_tokens(reranker: MatryoshkaReranker, documents: Sequence[str]) -> float:
    """Tokens of a pair's query and passage."""
    return statistics.mean(map(sum, reranker.engine.token_counts([(QUERY, text) for text in documents])))


def median_ratio(ratio: Callable[..., float], *turns: Sequence[float]) -> float:
    """The median over turns of a ratio of runs of the same turn, so that a drifting machine does not show."""

    def each() -> Iterator[float]:
        for seconds in zip(*turns, strict=True):
            yield ratio(*seconds)

    return statistics.median(each())
