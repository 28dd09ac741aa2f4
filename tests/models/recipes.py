"""What the published models' own libraries compute: CrossEncoder, or the model card's code, written out.

A recipe takes texts as its library does and gives raw scores, before any sigmoid of that library. Max lengths mean what
they mean there.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GteConfig,
    GteForSequenceClassification,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

Pair = tuple[str, str]

QWEN3_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
QWEN3_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
QWEN3_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
MXBAI_PREFIX = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n"
)
MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)
MXBAI_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
GEMMA_PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
CTXL_TASK = "Check whether a given document contains information helpful to answer the query.\n"


class Reference(Protocol):
    """A model in its own library."""

    def logits(self, pairs: Sequence[Pair], max_length: int | None = None, prompt: str | None = None) -> list[float]:
        """The raw scores, cut at `max_length` as the library cuts."""
        ...

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        """What the library returns by default."""
        ...

    def length(self, pair: Pair) -> int:
        """Tokens of a pair's input."""
        ...


class InCrossEncoder:
    """sentence_transformers.CrossEncoder."""

    def __init__(self, folder: Path, render: Callable[[Pair], Pair] = lambda pair: pair) -> None:
        self.model = CrossEncoder(str(folder), device="cpu")
        self.render = render

    def logits(self, pairs: Sequence[Pair], max_length: int | None = None, prompt: str | None = None) -> list[float]:
        own = self.model.max_seq_length
        if max_length is not None:
            self.model.max_seq_length = max_length
        try:
            given = [self.render(pair) for pair in pairs]
            scores = self.model.predict(given, activation_fn=torch.nn.Identity(), prompt=prompt)
        finally:
            self.model.max_seq_length = own
        return [float(score) for score in scores]

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return [float(score) for score in self.model.predict([self.render(pair) for pair in pairs])]

    def length(self, pair: Pair) -> int:
        return int(self.model.preprocess([self.render(pair)])["input_ids"].shape[1])


def as_qwen3_card(pair: Pair) -> Pair:
    """The texts that the card of the converted Qwen3 re-rankers gives CrossEncoder."""
    query, document = pair
    return (
        f"{QWEN3_PREFIX}<Instruct>: {QWEN3_INSTRUCTION}\n<Query>: {query}\n",
        f"<Document>: {document}{QWEN3_SUFFIX}",
    )


def _probability(logits: Sequence[float]) -> list[float]:
    return torch.tensor(logits, dtype=torch.float64).sigmoid().tolist()


@dataclass
class Card:
    """A model card's code on transformers, one pair at a time, so that no padding is needed.

    Args:
        folder: The model.
        max_length: The card's own.
    """

    folder: Path
    max_length: int = 8192
    tokenizer: PreTrainedTokenizerBase = field(init=False)
    model: PreTrainedModel = field(init=False)

    def __post_init__(self) -> None:
        self.tokenizer = self.load_tokenizer()
        self.model = self.load().eval()

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder)
        return tokenizer

    def load(self) -> PreTrainedModel:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        return model

    def text_ids(self, text: str, **options: object) -> list[int]:
        """Ids of a text without special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        """The input of a pair."""
        raise NotImplementedError

    def read(self, hidden: Tensor) -> float:
        """The raw score, from the language model's logits at the last token."""
        raise NotImplementedError

    def logits(self, pairs: Sequence[Pair], max_length: int | None = None, prompt: str | None = None) -> list[float]:
        limit = self.max_length if max_length is None else max_length
        scores = []
        for query, document in pairs:
            ids = torch.tensor([self.ids(query, document, limit, prompt)])
            with torch.inference_mode():
                scores.append(self.read(self.model(input_ids=ids).logits[0, -1]))
        return scores

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return _probability(self.logits(pairs))

    def length(self, pair: Pair) -> int:
        return len(self.ids(*pair, self.max_length, None))


class Qwen3Card(Card):
    """Qwen/Qwen3-Reranker-*: the pair is one text, cut at its end; yes against no."""

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        prefix, suffix = self.text_ids(QWEN3_PREFIX), self.text_ids(QWEN3_SUFFIX)
        text = f"<Instruct>: {prompt or QWEN3_INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
        limit = max_length - len(prefix) - len(suffix)
        return [*prefix, *self.text_ids(text, truncation="longest_first", max_length=limit), *suffix]

    def read(self, hidden: Tensor) -> float:
        yes, no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        return float(hidden[yes] - hidden[no])


class MxbaiLibrary(Card):
    """mixedbread-ai/mxbai-rerank-*-v2 in mxbai-rerank: `max_length` bounds query and document; returns raw scores."""

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        instruction = f"instruction: {prompt}\n" if prompt else ""
        first = self.text_ids(f"{instruction}query: {query}", truncation=True, max_length=max_length * 3 // 4)
        second = [*self.text_ids("\n"), *self.text_ids(f"document: {document}")][: max_length - len(first)]
        frame = [self.text_ids(text) for text in (MXBAI_PREFIX, "\n", MXBAI_TASK, MXBAI_SUFFIX)]
        return [*frame[0], *first, *second, *frame[1], *frame[2], *frame[3]]

    def read(self, hidden: Tensor) -> float:
        return float(hidden[self.text_ids("1")[0]] - hidden[self.text_ids("0")[0]])

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return self.logits(pairs)


class FlagReranker(Card):
    """BAAI/bge-reranker-v2-gemma in FlagEmbedding: `max_length` bounds the passage; the logit of Yes, raw."""

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        first = [self.tokenizer.bos_token_id]
        first += self.text_ids(f"A: {query}", truncation=True, max_length=max_length * 3 // 4)
        newline, task = self.text_ids("\n"), self.text_ids(prompt or GEMMA_PROMPT)
        second = [*newline, *self.text_ids(f"B: {document}", truncation=True, max_length=max_length)]
        limit = max_length + len(newline) + len(task)
        return [*first, *second[: limit - len(first)], *newline, *task]

    def read(self, hidden: Tensor) -> float:
        return float(hidden[self.text_ids("Yes")[0]])

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return self.logits(pairs)


class ZerankCode(Card):
    """zeroentropy/zerank-1 and -small: query as system, document as user; the logit of Yes over five."""

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        messages = [{"role": "system", "content": query.strip()}, {"role": "user", "content": document.strip()}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self.text_ids(str(text))

    def read(self, hidden: Tensor) -> float:
        return float(hidden[self.text_ids("Yes")[0]]) / 5


class CtxlCard(Card):
    """ContextualAI/ctxl-rerank-v2-*: document first; the logit of the vocabulary's first token, raw.

    The card also rounds scores to bfloat16.
    """

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        instruction = f" {prompt}" if prompt else ""
        return list(self.tokenizer(f"{CTXL_TASK}<Document> {document}\n<Query> {query}{instruction} ??")["input_ids"])

    def read(self, hidden: Tensor) -> float:
        return float(hidden[0])

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return self.logits(pairs)


class RemoteCode(Card):
    """A model whose repository has its own modelling code: what that code does, on transformers."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(self.folder)
        return tokenizer

    def config_fields(self) -> dict[str, Any]:
        """config.json without what leads to remote code."""
        fields = json.loads((self.folder / "config.json").read_text("utf-8"))
        return {key: value for key, value in fields.items() if key not in ("model_type", "auto_map", "architectures")}


class NemotronCode(RemoteCode):
    """nvidia/llama-nemotron-rerank-1b-v2: Llama without a causal mask, the mean over tokens, a linear layer."""

    def load(self) -> PreTrainedModel:
        fields = self.config_fields()
        self.temperature = fields["temperature"]
        model = LlamaModel(LlamaConfig(**fields))
        weights = load_file(self.folder / "model.safetensors")
        self.score = weights.pop("score.weight")
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
        return model

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        text = f"question:{query} \n \n passage:{document}"
        return list(self.tokenizer(text, truncation=True, max_length=max_length)["input_ids"])

    def logits(self, pairs: Sequence[Pair], max_length: int | None = None, prompt: str | None = None) -> list[float]:
        scores = []
        for query, document in pairs:
            ids = torch.tensor([self.ids(query, document, max_length or self.max_length, prompt)])
            everything = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
            with torch.inference_mode():
                hidden = self.model(input_ids=ids, attention_mask=everything).last_hidden_state[0]
                scores.append(float(self.score @ hidden.mean(0)) / self.temperature)
        return scores

    def scores(self, pairs: Sequence[Pair]) -> list[float]:
        return self.logits(pairs)


class GteCode(RemoteCode):
    """Alibaba-NLP/gte-multilingual-reranker-base: the hub's `NewForSequenceClassification`.

    transformers has the architecture as `gte`. Its rotary frequencies are those of the hub's `ntk` scaling, which
    multiplies the base by the factor and divides all frequencies by factor^(2 / head size).
    """

    def load(self) -> PreTrainedModel:
        fields = self.config_fields()
        self.max_length = self.tokenizer.model_max_length
        factor, size = fields.pop("rope_scaling")["factor"], fields["hidden_size"] // fields["num_attention_heads"]
        rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta") * factor}
        model = GteForSequenceClassification(GteConfig(**fields, rope_parameters=rope, num_labels=1))
        model.load_state_dict(dict(self.renamed(load_file(self.folder / "model.safetensors"))))
        model.base_model.rotary_emb.inv_freq /= factor ** (2 / size)
        return model

    @staticmethod
    def renamed(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """transformers' names of the hub's weights; its packed projections are taken apart."""
        parts = {"attention.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")}
        parts |= {"mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"), "attention.o_proj": ("self_attn.o_proj",)}
        parts |= {"attn_ln": ("post_attention_layernorm",), "mlp_ln": ("post_mlp_layernorm",)}
        for name, weight in weights.items():
            stock = name.replace("new.", "gte.").replace("encoder.layer.", "layers.")
            old, new = next(((old, new) for old, new in parts.items() if old in stock), ("", ("",)))
            for part, chunk in zip(new, weight.chunk(len(new)), strict=True):
                yield (stock.replace(old, part) if old else stock), chunk.contiguous()

    def ids(self, query: str, document: str, max_length: int, prompt: str | None) -> list[int]:
        encoded = self.tokenizer(query, document, truncation="longest_first", max_length=max_length)
        return list(encoded["input_ids"])

    def logits(self, pairs: Sequence[Pair], max_length: int | None = None, prompt: str | None = None) -> list[float]:
        scores = []
        for query, document in pairs:
            ids = torch.tensor([self.ids(query, document, max_length or self.max_length, prompt)])
            with torch.inference_mode():
                scores.append(float(self.model(input_ids=ids).logits[0, 0]))
        return scores
