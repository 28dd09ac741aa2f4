"""Tiny tokenizers that process pairs as the published ones do, and tiny random stock models in the hub's layouts.

A tokenizer is trained on `CORPUS` and has the class, special tokens, normalizer and pair template of the real one.
"""

import json
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CONFIG_MAPPING,
    AddedToken,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertTokenizer,
    CamembertTokenizer,
    DebertaV2Tokenizer,
    GemmaTokenizer,
    MPNetTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RobertaTokenizer,
    XLMRobertaTokenizer,
)

CORPUS = (
    "the giant panda is a bear that lives in the mountains of central china",
    "pandas eat bamboo: leaves, stems and shoots, for twelve hours a day.",
    "what do bees make? bees make honey from the nectar of flowers.",
    "penguins live in antarctica, and they cannot fly!",
    "the eiffel tower in paris is 330 metres tall (including antennas).",
    "how do plants make food? by photosynthesis, from light, water and air.",
    "a cross-encoder reads a query and a document together, then scores the pair.",
    "You are a search relevance expert. Judge whether the Document meets the requirements of the Query.",
    "Given a query A and a passage B, answer 'Yes' or 'No'.",
    *("yes", "no", "Yes", "No", "1", "0") * 8,
)
"""What tokenizers are trained on."""

WORDS = tuple(" ".join(CORPUS[:7]).split())


def text_of(words: int, seed: int) -> str:
    """A text of that many words of the corpus."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def _trained(tokenizer: Tokenizer, trainer: Any) -> dict[str, Any]:
    """The model part of a trained tokenizer's JSON."""
    tokenizer.train_from_iterator(CORPUS, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


@lru_cache
def _wordpiece(specials: tuple[str, ...]) -> dict[str, int]:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=list(specials), show_progress=False)
    vocabulary: dict[str, int] = _trained(tokenizer, trainer)["vocab"]
    return vocabulary


@lru_cache
def _unigram(specials: tuple[str, ...], unknown: str) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(specials), unk_token=unknown, show_progress=False
    )
    return [(piece, score) for piece, score in _trained(tokenizer, trainer)["vocab"]]


@lru_cache
def _byte_level(specials: tuple[str, ...] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model = _trained(tokenizer, trainer)
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def bert_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """WordPiece, `[CLS] query [SEP] document [SEP]` with token types."""
    return BertTokenizer(vocab=_wordpiece(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), **fields)


def mpnet_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """WordPiece, `<s> query </s></s> document </s>`."""
    return MPNetTokenizer(vocab=_wordpiece(("<s>", "<pad>", "</s>", "[UNK]", "<mask>")), **fields)


def roberta_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """Byte-level BPE, `<s> query </s></s> document </s>`."""
    vocabulary, merges = _byte_level(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
    return RobertaTokenizer(vocab=vocabulary, merges=merges, **fields)


def xlm_roberta_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """Unigram pieces, `<s> query </s></s> document </s>`."""
    vocabulary = _unigram(("<s>", "<pad>", "</s>", "<unk>"), "<unk>")
    return XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], **fields)


def camembert_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """As XLM-RoBERTa's, with other ids."""
    specials = ("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>")
    return CamembertTokenizer(vocab=[*_unigram(specials, "<unk>"), ("<mask>", 0.0)], **fields)


def deberta_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """Unigram pieces, `[CLS] query [SEP] document [SEP]` with token types that the model does not use."""
    return DebertaV2Tokenizer(vocab=_unigram(("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[UNK]"), **fields)


def modernbert_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """Byte-level BPE, `[CLS] query [SEP] document [SEP]` without token types."""
    specials = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")
    vocabulary, merges = _byte_level(specials)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.normalizer, backend.decoder = normalizers.NFC(), decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:0 [SEP]",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    fields = {"model_input_names": ["input_ids", "attention_mask"], **names, **fields}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **fields)


def qwen_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """Byte-level BPE without special tokens around texts; `!` is id 0."""
    vocabulary, merges = _byte_level()
    fields = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", **fields}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, **fields)
    tokenizer.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(name, special=False) for name in ("<think>", "</think>")])
    return tokenizer


LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def bos_tokenizer(
    bos: str = "<|begin_of_text|>", specials: Sequence[str] = (), pair: bool = True, **fields: Any
) -> PreTrainedTokenizerBase:
    """Byte-level BPE that writes a first token before each text, as Llama 3's and Mistral's later tokenizers do."""
    eos = fields.get("eos_token", "<|end_of_text|>")
    vocabulary, merges = _byte_level((*specials, *(name for name in (bos, eos) if name not in specials)))
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1" if pair else None, special_tokens=[(bos, vocabulary[bos])]
    )
    fields = {"model_input_names": ["input_ids", "attention_mask"], "eos_token": eos, "pad_token": eos, **fields}
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, **fields)


def gemma_tokenizer(**fields: Any) -> PreTrainedTokenizerBase:
    """SentencePiece BPE with bytes for unknown characters."""
    vocabulary, merges = _gemma()
    return GemmaTokenizer(vocab=vocabulary, merges=merges, **fields)


@lru_cache
def _gemma() -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_previous")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([*CORPUS, "\n"], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}
DECODER: dict[str, Any] = {
    **ENCODER,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def stock_config(
    family: str, tokenizer: PreTrainedTokenizerBase, sizes: Mapping[str, Any] = ENCODER, **fields: Any
) -> PreTrainedConfig:
    """A tiny configuration over a tokenizer's vocabulary."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.15, **ids}
    config: PreTrainedConfig = CONFIG_MAPPING[family](**{**common, **sizes, **fields})
    return config


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """The model with noise on norms and biases too: at ones and zeros, leaving one out would not show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith(("classifier.weight", "out_proj.weight", "score.weight")):
                parameter.mul_(3)
    return model.eval()


def save_classifier(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> None:
    """A sequence-classification model as transformers saves it; `changes` go to its config.json."""
    config.num_labels = changes.pop("num_labels", 1)
    randomized(AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", **changes)


def save_causal(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> None:
    """A causal model as transformers saves it."""
    randomized(AutoModelForCausalLM.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    change_json(folder / "config.json", **changes)


def save_logit_score(folder: Path, answers: tuple[int, int | None], template: str, **fields: Any) -> None:
    """Make a causal model's folder the modular one that sentence-transformers 5.4 and later save.

    Args:
        folder: The causal model.
        answers: Ids of the relevant and the irrelevant answer.
        template: The chat template.
        fields: `processing_kwargs` of the Transformer module; `prompts`, `default_prompt_name`, `activation_fn`.
    """
    transformer = Transformer(
        str(folder),
        transformer_task="text-generation",
        processor_kwargs={"chat_template": template},
        processing_kwargs=fields.pop("processing_kwargs", None),
    )
    model = CrossEncoder(modules=[transformer, LogitScore(*answers)], device="cpu", **fields)
    for file in folder.iterdir():
        file.unlink()
    model.save_pretrained(str(folder), create_model_card=False)


def change_json(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    fields = {**json.loads(file.read_text("utf-8")), **changes}
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}), "utf-8")
