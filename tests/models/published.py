"""The published re-rankers: how a tiny one of each structure is built and which library it is compared with.

Adding a model is one row of `ROWS`: its hub names, a builder that writes a folder as its authors' library does (with
the published configuration's flags; sizes are shrunk), and its own library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from models.folders import (
    DECODER,
    ENCODER,
    bert_tokenizer,
    bos_tokenizer,
    camembert_tokenizer,
    change_json,
    deberta_tokenizer,
    gemma_tokenizer,
    modernbert_tokenizer,
    mpnet_tokenizer,
    qwen_tokenizer,
    randomized,
    roberta_tokenizer,
    save_causal,
    save_classifier,
    save_logit_score,
    stock_config,
    xlm_roberta_tokenizer,
)
from models.recipes import (
    CTXL_TASK,
    QWEN3_INSTRUCTION,
    QWEN3_PREFIX,
    QWEN3_SUFFIX,
    CtxlCard,
    FlagReranker,
    GteCode,
    InCrossEncoder,
    MxbaiLibrary,
    NemotronCode,
    Qwen3Card,
    Reference,
    ZerankCode,
    as_qwen3_card,
)
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaModel, PreTrainedTokenizerBase

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
ENCODER_LENGTH = 126
"""Of the tiny encoders; what 512 is for the real ones."""


@dataclass(frozen=True)
class Row:
    """Models of one structure.

    Args:
        names: On the hub; the first names the tiny model's folder. Families that no known model has: a made-up name.
        build: Writes a tiny random model to a folder.
        library: Opens it as its users do.
        prompt: An instruction of a call, where the model takes one.
        cuts: Whether its own library cuts texts as here: it must keep its template.
        bounds_texts: Whether `max_length` bounds the texts alone, without the template.
        known: Whether the names are models of the hub.
    """

    names: tuple[str, ...]
    build: Callable[[Path], None]
    library: Callable[[Path], Reference] = InCrossEncoder
    prompt: str | None = None
    cuts: bool = True
    bounds_texts: bool = False
    known: bool = True

    @property
    def id(self) -> str:
        return self.names[0]


def classifier(
    family: str, tokenizer: Callable[..., PreTrainedTokenizerBase], activation: str | None = None, **fields: Any
) -> Callable[[Path], None]:
    """Builds an encoder's `*ForSequenceClassification` with one label, saved by transformers."""
    extra = {"sentence_transformers": {"activation_fn": activation, "version": "4.0.1"}} if activation else {}

    def build(folder: Path) -> None:
        tokens = tokenizer(model_max_length=ENCODER_LENGTH)
        save_classifier(folder, stock_config(family, tokens, ENCODER, **fields), tokens, **extra)

    return build


def saved_by_cross_encoder(build: Callable[[Path], None]) -> Callable[[Path], None]:
    """The same model, opened and saved by today's CrossEncoder."""

    def resaved(folder: Path) -> None:
        build(folder)
        model = CrossEncoder(str(folder), device="cpu")
        for file in folder.iterdir():
            file.unlink()
        model.save_pretrained(str(folder), create_model_card=False)

    return resaved


def with_legacy_activation(build: Callable[[Path], None]) -> Callable[[Path], None]:
    """With the activation under the name that sentence-transformers before 4.0 wrote."""

    def changed(folder: Path) -> None:
        build(folder)
        change_json(folder / "config.json", sbert_ce_default_activation_function=IDENTITY)

    return changed


def build_ettin(folder: Path) -> None:
    """A modular CrossEncoder: ModernBERT without a head, then Pooling, Dense, LayerNorm, Dense."""
    tokens = modernbert_tokenizer(model_max_length=ENCODER_LENGTH)
    base = randomized(AutoModel.from_config(stock_config("modernbert", tokens, **MODERNBERT)))
    base.save_pretrained(folder / "base")
    tokens.save_pretrained(folder / "base")
    size = ENCODER["hidden_size"]
    norm = LayerNorm(size)
    with torch.no_grad():
        norm.norm.weight.add_(0.3 * torch.randn(size))
        norm.norm.bias.add_(0.3 * torch.randn(size))
    modules = [
        Transformer(str(folder / "base"), transformer_task="feature-extraction"),
        Pooling(size, pooling_mode="cls"),
        Dense(size, size, bias=False, activation_function=nn.GELU()),
        norm,
        Dense(size, 1, activation_function=nn.Identity(), module_output_name="scores"),
    ]
    model = CrossEncoder(modules=modules, device="cpu", activation_fn=nn.Identity())
    for file in (folder / "base").iterdir():
        file.unlink()
    (folder / "base").rmdir()
    model.save_pretrained(str(folder), create_model_card=False)


MODERNBERT: dict[str, Any] = {
    "num_hidden_layers": 6,
    "local_attention": 16,
    "layer_types": ["full_attention" if layer % 3 == 0 else "sliding_attention" for layer in range(6)],
    **{f"{name}_token_id": 1 for name in ("bos", "cls")},
    **{f"{name}_token_id": 2 for name in ("eos", "sep")},
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 16,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
    "pooler_hidden_act": "gelu",
    "pooler_dropout": 0,
    "layer_norm_eps": 1e-7,
}


def build_gte(folder: Path) -> None:
    """The hub's `new` architecture: transformers saves `gte` weights under the hub's names."""
    build_native_gte(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = {name.replace("gte.", "new."): weight for name, weight in weights.items()}
    safetensors.torch.save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    hub = "Alibaba-NLP/new-impl"
    change_json(
        folder / "config.json",
        architectures=["NewForSequenceClassification"],
        model_type="new",
        auto_map={
            "AutoConfig": f"{hub}--configuration.NewConfig",
            "AutoModel": f"{hub}--modeling.NewModel",
            "AutoModelForSequenceClassification": f"{hub}--modeling.NewForSequenceClassification",
        },
        rope_parameters=None,
        rope_theta=20000,
        rope_scaling={"factor": 8.0, "type": "ntk"},
        layer_norm_type="layer_norm",
        logn_attention_clip1=False,
        logn_attention_scale=False,
        pack_qkv=True,
        position_embedding_type="rope",
        unpad_inputs=False,
        use_memory_efficient_attention=False,
    )


def build_native_gte(folder: Path) -> None:
    tokens = xlm_roberta_tokenizer(model_max_length=ENCODER_LENGTH)
    rope = {"rope_type": "default", "rope_theta": 160_000.0}
    save_classifier(folder, stock_config("gte", tokens, type_vocab_size=1, rope_parameters=rope), tokens)


def qwen(family: str, **fields: Any) -> Callable[[Path], None]:
    """Builds a causal model with Qwen's chat template, as the hub's folders hold it."""

    def build(folder: Path) -> None:
        tokens = qwen_tokenizer(model_max_length=2000)
        tokens.chat_template = CHAT
        save_causal(folder, stock_config(family, tokens, DECODER, **fields), tokens)

    return build


CHAT = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""What Qwen's chat template writes for messages without tools."""


def _content(role: str, default: str | None = None) -> str:
    tail = f' | default("{default}")' if default else ""
    return f'{{{{ messages | selectattr("role", "eq", "{role}") | map(attribute="content") | first{tail} }}}}'


QWEN3_CHAT = (
    f"{QWEN3_PREFIX}<Instruct>: {_content('system', QWEN3_INSTRUCTION)}\n<Query>: {_content('query')}\n"
    f"<Document>: {_content('document')}{QWEN3_SUFFIX}\n"
)
"""jinja drops one newline at the end of a template."""
ZERANK_CHAT = (
    f"<|im_start|>system\n{_content('query')}<|im_end|>\n<|im_start|>user\n{_content('document')}<|im_end|>\n"
    "{%- if add_generation_prompt %}{{- '\\n<|im_start|>assistant\\n' }}{%- endif %}"
)
CTXL_CHAT = (
    "{%- set system = messages | selectattr('role', 'eq', 'system') | list -%}"
    f"{CTXL_TASK}<Document> {_content('document')}\n<Query> {_content('query')}"
    "{%- if system %} {{ system[0].content }}{%- endif %} ??"
)

QWEN3 = {"head_dim": 12, "tie_word_embeddings": True}


def logit_score(
    build: Callable[[Path], None], answers: tuple[str, str | None], template: str, **fields: Any
) -> Callable[[Path], None]:
    """A causal model saved with a LogitScore module and a chat template."""

    def modular(folder: Path) -> None:
        build(folder)
        tokens = qwen_tokenizer()
        true, false = (None if answer is None else tokens.convert_tokens_to_ids(answer) for answer in answers)
        save_logit_score(folder, (true, false), template, **fields)

    return modular


def build_converted_qwen3(folder: Path) -> None:
    """A Qwen3 re-ranker as a sequence classifier; its card's code writes the template around the texts."""
    tokens = qwen_tokenizer(model_max_length=2000)
    save_classifier(folder, stock_config("qwen3", tokens, DECODER, **QWEN3), tokens)


def build_gemma(folder: Path) -> None:
    tokens = gemma_tokenizer(model_max_length=2000)
    fields = {"head_dim": 12, "num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh"}
    save_causal(folder, stock_config("gemma", tokens, DECODER, **fields), tokens)


def build_ctxl_mistral(folder: Path) -> None:
    tokens = bos_tokenizer("<s>", ("<unk>", "<s>", "</s>"), eos_token="</s>", unk_token="<unk>", model_max_length=2000)
    save_causal(folder, stock_config("mistral", tokens, DECODER, head_dim=12, sliding_window=None), tokens)


def build_nemotron(folder: Path) -> None:
    """Remote code over Llama's own weights, written by hand."""
    tokens = bos_tokenizer(pair=False, padding_side="left", model_max_length=2000)
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(**stock_config("llama", tokens, DECODER, rope_parameters=rope).to_dict())
    model = randomized(LlamaModel(config))
    weights = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    weights["score.weight"] = torch.randn(1, config.hidden_size)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    tokens.save_pretrained(folder)
    module = "llama_bidirectional_model"
    change_json(
        folder / "config.json",
        architectures=["LlamaBidirectionalForSequenceClassification"],
        model_type="llama_bidirec",
        auto_map={
            "AutoConfig": f"{module}.LlamaBidirectionalConfig",
            "AutoModelForSequenceClassification": f"{module}.LlamaBidirectionalForSequenceClassification",
        },
        pooling="avg",
        temperature=1.5,
        id2label={"0": "LABEL_0"},
        label2id={"LABEL_0": 0},
    )
    (folder / f"{module}.py").write_text("raise SystemExit('remote code was run')\n", "utf-8")


def decoder_classifier(
    family: str, tokenizer: Callable[..., PreTrainedTokenizerBase] = bos_tokenizer, **fields: Any
) -> Callable[[Path], None]:
    """Builds a decoder's `*ForSequenceClassification` with one label, saved by today's CrossEncoder."""

    def build(folder: Path) -> None:
        tokens = tokenizer(model_max_length=300)
        save_classifier(folder, stock_config(family, tokens, DECODER, **fields), tokens)

    return saved_by_cross_encoder(build)


_MINILM = classifier("bert", bert_tokenizer, IDENTITY)

ROWS: tuple[Row, ...] = (
    # Encoders' sequence classifiers
    Row(
        (
            "cross-encoder/ms-marco-MiniLM-L6-v2",
            "cross-encoder/ms-marco-MiniLM-L2-v2",
            "cross-encoder/ms-marco-MiniLM-L4-v2",
            "cross-encoder/ms-marco-MiniLM-L12-v2",
            "cross-encoder/ms-marco-TinyBERT-L2-v2",
        ),
        _MINILM,
    ),
    Row(
        ("tomaarsen/reranker-MiniLM-L12-H384-uncased-gooaq-bce", "cross-encoder/stsb-TinyBERT-L4"),
        saved_by_cross_encoder(classifier("bert", bert_tokenizer, SIGMOID)),
    ),
    Row(
        ("cross-encoder/ms-marco-electra-base",),
        with_legacy_activation(classifier("electra", bert_tokenizer, embedding_size=32)),
    ),
    Row(
        ("naver/trecdl22-crossencoder-electra", "cross-encoder/qnli-electra-base"),
        classifier("electra", bert_tokenizer, embedding_size=16),
    ),
    Row(
        (
            "cross-encoder/stsb-roberta-base",
            "cross-encoder/stsb-roberta-large",
            "cross-encoder/stsb-distilroberta-base",
            "cross-encoder/quora-roberta-base",
            "cross-encoder/quora-roberta-large",
            "cross-encoder/quora-distilroberta-base",
            "cross-encoder/qnli-distilroberta-base",
        ),
        classifier("roberta", roberta_tokenizer, type_vocab_size=1, max_position_embeddings=ENCODER_LENGTH + 2),
    ),
    Row(
        (
            "BAAI/bge-reranker-base",
            "BAAI/bge-reranker-large",
            "BAAI/bge-reranker-v2-m3",
            "maidalun1020/bce-reranker-base_v1",
        ),
        classifier("xlm-roberta", xlm_roberta_tokenizer, type_vocab_size=1),
    ),
    Row(
        (
            "antoinelouis/crossencoder-camembert-base-mmarcoFR",
            "antoinelouis/crossencoder-camembert-large-mmarcoFR",
            "antoinelouis/crossencoder-camembert-L2-mmarcoFR",
        ),
        classifier("camembert", camembert_tokenizer, SIGMOID, type_vocab_size=1),
    ),
    Row(
        (
            "mixedbread-ai/mxbai-rerank-xsmall-v1",
            "mixedbread-ai/mxbai-rerank-base-v1",
            "mixedbread-ai/mxbai-rerank-large-v1",
            "naver/trecdl22-crossencoder-debertav3",
        ),
        classifier("deberta-v2", deberta_tokenizer, **DEBERTA),
    ),
    Row(
        ("Alibaba-NLP/gte-reranker-modernbert-base",),
        classifier("modernbert", modernbert_tokenizer, classifier_pooling="mean", **MODERNBERT),
    ),
    Row(
        (
            "ibm-granite/granite-embedding-reranker-english-r2",
            "tomaarsen/reranker-ModernBERT-base-gooaq-bce",
            "tomaarsen/reranker-ModernBERT-large-gooaq-bce",
        ),
        classifier("modernbert", modernbert_tokenizer, classifier_pooling="cls", **MODERNBERT),
    ),
    Row(("Alibaba-NLP/gte-multilingual-reranker-base",), build_gte, GteCode),
    Row(("gte",), build_native_gte, known=False),
    Row(
        ("distilbert",),
        saved_by_cross_encoder(
            classifier("distilbert", bert_tokenizer, IDENTITY, dim=32, hidden_dim=48, n_layers=4, n_heads=4)
        ),
        known=False,
    ),
    Row(("mpnet",), saved_by_cross_encoder(classifier("mpnet", mpnet_tokenizer)), known=False),
    # Modular folders
    Row(
        (
            "cross-encoder/ettin-reranker-17m-v1",
            "cross-encoder/ettin-reranker-32m-v1",
            "cross-encoder/ettin-reranker-68m-v1",
            "cross-encoder/ettin-reranker-150m-v1",
            "cross-encoder/ettin-reranker-400m-v1",
            "cross-encoder/ettin-reranker-1b-v1",
        ),
        build_ettin,
    ),
    # Causal models
    Row(
        ("Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-Reranker-4B", "Qwen/Qwen3-Reranker-8B"),
        logit_score(
            qwen("qwen3", **QWEN3),
            ("yes", "no"),
            QWEN3_CHAT,
            prompts={"web": QWEN3_INSTRUCTION},
            default_prompt_name="web",
        ),
        prompt="Given a claim, find documents that refute it",
    ),
    Row(("elsewhere/Qwen3-Reranker-0.6B",), qwen("qwen3", **QWEN3), Qwen3Card, "Find a refutation", known=False),
    Row(
        ("tomaarsen/Qwen3-Reranker-0.6B-seq-cls", "tomaarsen/Qwen3-Reranker-4B-seq-cls"),
        build_converted_qwen3,
        lambda folder: InCrossEncoder(folder, as_qwen3_card),
        cuts=False,
    ),
    Row(
        ("mixedbread-ai/mxbai-rerank-base-v2", "mixedbread-ai/mxbai-rerank-large-v2"),
        qwen("qwen2", tie_word_embeddings=True),
        MxbaiLibrary,
        "Prefer recent documents",
        cuts=False,
    ),
    Row(
        ("BAAI/bge-reranker-v2-gemma",),
        build_gemma,
        FlagReranker,
        "Predict whether A and B ask the same.",
        bounds_texts=True,
    ),
    Row(("zeroentropy/zerank-1", "zeroentropy/zerank-1-small"), qwen("qwen3", **QWEN3), ZerankCode, cuts=False),
    Row(
        ("zeroentropy/zerank-2",),
        logit_score(
            qwen("qwen3", **QWEN3),
            ("Yes", None),
            ZERANK_CHAT,
            processing_kwargs={"chat_template": {"add_generation_prompt": True}},
            activation_fn=nn.Identity(),
        ),
    ),
    Row(
        (
            "ContextualAI/ctxl-rerank-v2-instruct-multilingual-1b",
            "ContextualAI/ctxl-rerank-v2-instruct-multilingual-2b",
        ),
        logit_score(qwen("qwen3", **QWEN3), ("!", None), CTXL_CHAT, activation_fn=nn.Identity()),
        prompt="Prefer recent documents",
    ),
    Row(
        ("elsewhere/ctxl-rerank-v2-instruct-multilingual-1b",),
        qwen("qwen3", **QWEN3),
        CtxlCard,
        "Prefer recent documents",
        cuts=False,
        known=False,
    ),
    Row(
        ("ContextualAI/ctxl-rerank-v2-instruct-multilingual-6b",),
        build_ctxl_mistral,
        CtxlCard,
        "Prefer recent documents",
        cuts=False,
    ),
    Row(("nvidia/llama-nemotron-rerank-1b-v2",), build_nemotron, NemotronCode, cuts=False),
    # Decoders' sequence classifiers
    Row(("llama",), decoder_classifier("llama"), known=False),
    Row(("mistral",), decoder_classifier("mistral", head_dim=12, sliding_window=16), known=False),
    Row(("qwen2",), decoder_classifier("qwen2", qwen_tokenizer), known=False),
    Row(("qwen3",), decoder_classifier("qwen3", qwen_tokenizer, head_dim=12), known=False),
    Row(("gemma",), decoder_classifier("gemma", head_dim=12), known=False),
    Row(
        ("gemma2",),
        decoder_classifier(
            "gemma2", head_dim=12, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, sliding_window=16
        ),
        known=False,
    ),
    Row(
        ("gemma3_text",),
        decoder_classifier(
            "gemma3_text",
            head_dim=12,
            query_pre_attn_scalar=16,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * 2,
        ),
        known=False,
    ),
    Row(("phi3",), decoder_classifier("phi3", sliding_window=16), known=False),
)
