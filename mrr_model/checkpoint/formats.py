"""Checkpoint formats: which one a folder is of, and what it says of the model. One table, `FORMATS`.

A published layer-wise format is an entry of `LAYERWISE`: which stock model it is, and what it adds.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from mrr_model.checkpoint.causal import CausalFormat, names_pair_roles
from mrr_model.checkpoint.classifier import ClassifierFormat
from mrr_model.checkpoint.config import NOTHING_GIVEN, CheckpointConfig, Given
from mrr_model.checkpoint.layerwise import MINICPM_PROMPT, LayerwiseFormat, granite_fields
from mrr_model.checkpoint.modular import ModularFormat
from mrr_model.checkpoint.native import NATIVE, SECTION
from mrr_model.checkpoint.published import PublishedInput, published_input
from mrr_model.checkpoint.source import CONFIG, Source
from mrr_model.checkpoint.stock import FINETUNE, check_family
from mrr_model.files.damage import reading
from mrr_model.template import QWEN3_TEMPLATE, RELEASE_TEMPLATE, InputTemplate


class Format(Protocol):
    """An entry of `FORMATS`."""

    @property
    def name(self) -> str:
        """What error messages call it."""
        ...

    def matches(self, source: Source) -> bool:
        """Whether a folder is of this format."""
        ...

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        """Read a folder's files.

        Raises:
            KeyError: If config.json lacks a field that the format needs.
            ValueError: If no model can be built of it.
        """
        ...


LAYERWISE = (
    # the three models BAAI/Matroyshka-ReRanker-*
    LayerwiseFormat("cost_wise_mistral", "mistral"),
    # BAAI/bge-reranker-v2.5-gemma2-lightweight
    LayerwiseFormat("cost_wise_gemma", "gemma2", merge_weights="mean", softcap="final_logit_softcapping"),
    # BAAI/bge-reranker-v2-minicpm-layerwise, of depth alone
    LayerwiseFormat("minicpm", "granite", merges=False, prompt=MINICPM_PROMPT, stock_fields=granite_fields),
)
"""The published layer-wise formats."""

MXBAI_TASK = (
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:"
)

CAUSAL = (
    # Qwen/Qwen3-Reranker-*: downloads from before they held a chat template of their own
    PublishedInput("qwen3-reranker", r"qwen3-reranker-[\d.]+b", QWEN3_TEMPLATE, ("yes", "no"), max_length=8192),
    # mixedbread-ai/mxbai-rerank-base-v2 and -large-v2
    PublishedInput(
        "mxbai-rerank-v2",
        r"mxbai-rerank-(base|large)-v2",
        InputTemplate(
            query=(
                "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
                "<|im_start|>user\n",
                "instruction: {prompt}\n",
                "query: {query}",
                "\n",
            ),
            passage=("document: {passage}",),
            prompt=("\n", MXBAI_TASK, "<|im_end|>\n<|im_start|>assistant\n"),
            truncation="spans",
        ),
        ("1", "0"),
        max_length=8192,
        normalize=False,
    ),
    # BAAI/bge-reranker-v2-gemma
    PublishedInput(
        "bge-reranker-v2-gemma",
        r"bge-reranker-v2-gemma",
        RELEASE_TEMPLATE.model_copy(update={"default_prompt": MINICPM_PROMPT}),
        ("Yes",),
        max_length=1024,
        normalize=False,
    ),
    # zeroentropy/zerank-1, zerank-1-small and zerank-2
    PublishedInput(
        "zerank",
        r"zerank-(1|1-small|2)(-reranker)?",
        InputTemplate(
            query=("<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n",),
            passage=("{passage}",),
            prompt=("<|im_end|>\n<|im_start|>assistant\n",),
            truncation="end",
        ),
        ("Yes",),
        scale=1 / 5,
    ),
    # ContextualAI/ctxl-rerank-v2-instruct-multilingual-*
    PublishedInput(
        "ctxl-rerank-v2",
        r"ctxl-rerank-v2-instruct-multilingual-\d+b.*",
        InputTemplate(
            query=("Check whether a given document contains information helpful to answer the query.\n", "<Document>"),
            passage=(" {passage}",),
            prompt=("\n<Query> {query} {prompt} ??",),
            truncation="end",
        ),
        (0,),
        normalize=False,
        whole_text=True,
    ),
)
"""How causal re-rankers read a pair whose files do not say it, from their authors' model cards and code."""

CLASSIFIERS = (
    # tomaarsen/Qwen3-Reranker-*-seq-cls: the row of yes minus that of no
    PublishedInput("qwen3-reranker-seq-cls", r"qwen3-reranker-[\d.]+b-seq-cls", QWEN3_TEMPLATE),
    # nvidia/llama-nemotron-rerank-1b-v2
    PublishedInput(
        "llama-nemotron-rerank",
        r"llama-nemotron-rerank-1b-v2|llama-3\.2-nv-rerankqa-1b-v2",
        InputTemplate(query=("question:{query} \n \n",), passage=(" passage:{passage}",), prompt=(), truncation="end"),
        normalize=False,
        whole_text=True,
    ),
)
"""The same of sequence classifiers: their authors' code writes a template before the tokenizer sees a text."""

FORMATS: tuple[Format, ...] = (
    NATIVE,
    *LAYERWISE,
    ModularFormat(),
    ClassifierFormat(CLASSIFIERS),
    CausalFormat(CAUSAL),
)
"""Every format that opens. The first that matches a folder reads it."""


def is_multi_exit(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a format with a head for each exit: this project's own, or a layer-wise one."""
    return SECTION in config or config.get("model_type") in (SECTION, *(known.model_type for known in LAYERWISE))


def is_reranker(source: Source) -> bool:
    """Whether a folder is of a format that opens, so that its heads are its own: not a plain model to train."""
    known = next((known for known in FORMATS if known.matches(source)), None)
    if isinstance(known, CausalFormat):
        return published_input(source, CAUSAL, None) is not None or names_pair_roles(source.stock_tokenizer)
    return known is not None


def read_format(source: Source, given: Given = NOTHING_GIVEN) -> CheckpointConfig:
    """Read a folder in its format.

    Args:
        source: The folder.
        given: What the user says of the model in place of its files.

    Returns:
        Enough to build the model and to name its weights.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the format is not known, or no model can be built of the configuration; names the file.
    """
    known = next((known for known in FORMATS if known.matches(source)), None)
    if isinstance(known, ModularFormat):
        return known.read(source, given)  # of several files, each named in its errors
    with reading(source.folder / CONFIG):
        if known is None:
            raise ValueError(_advice(source))
        try:
            return known.read(source, given)
        except KeyError as error:
            raise ValueError(f"it lacks {error}, which the {known.name} format needs.") from None


def _advice(source: Source) -> str:
    """What to do with a model of no format in the table."""
    check_family(source.config)
    return (
        f"it has model_type {source.config['model_type']!r} and no {SECTION!r} section, and names "
        f"{source.architecture or 'no architecture'}: it is a plain model. Train a re-ranker from it: {FINETUNE}."
    )
