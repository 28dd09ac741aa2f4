"""How texts become the spans of an input: templates as data, and those of the known families."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

SPECIAL_TOKENS = ("{bos}", "{cls}", "{sep}", "{eos}")
"""Pieces of a template that stand for one of the tokenizer's special tokens."""


class InputTemplate(BaseModel):
    """How a query, a passage and a prompt become one sequence of tokens.

    Each span is a tuple of pieces. A piece is a special token (``{bos}``, ``{cls}``, ``{sep}``, ``{eos}``) or a text,
    which may hold ``{query}``, ``{passage}`` or ``{prompt}``; each text is tokenized by itself. A special token that
    the template's own text spells counts as one; what a query, a passage or a prompt spells is text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: tuple[str, ...]
    """The query span; one piece holds ``{query}``."""
    passage: tuple[str, ...]
    """The passage span, one piece that holds ``{passage}``; only its tokens are ever merged."""
    prompt: tuple[str, ...]
    """What follows the passage; a piece may hold ``{prompt}``."""
    truncation: Literal["spans", "whole"]
    """``spans``: ``max_length`` bounds query and passage, the prompt is never cut (the published release). ``whole``:
    ``max_length`` bounds the whole sequence; the longer of query and passage is cut first (encoders).
    """
    default_prompt: str | None = None
    """The prompt where a call gives none; None for templates that have no prompt."""

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        if sum(piece.count("{query}") for piece in self.query) != 1:
            raise ValueError(f"exactly one piece of the query span must hold {{query}}, once, got {self.query}")
        if len(self.passage) != 1 or self.passage[0].count("{passage}") != 1:
            raise ValueError(f"the passage span must be one piece that holds {{passage}} once, got {self.passage}")
        return self

    @property
    def takes_prompt(self) -> bool:
        """Whether a call may give a prompt."""
        return any("{prompt}" in piece for piece in self.prompt)


RELEASE_TEMPLATE = InputTemplate(
    query=("{bos}", "A: {query}", "\n"),
    passage=("B: {passage}",),
    prompt=("\n", "{prompt}"),
    truncation="spans",
    default_prompt="Predict whether passage B contains an answer to query A.",
)
"""The input of the published release and this project's decoders (arXiv 2501.16302, input format)."""

BERT_TEMPLATE = InputTemplate(
    query=("{cls}", "{query}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="whole"
)
"""``[CLS] query [SEP] passage [SEP]``."""

XLM_ROBERTA_TEMPLATE = InputTemplate(
    query=("{cls}", "{query}", "{sep}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="whole"
)
"""``<s> query </s></s> passage </s>``."""

QWEN3_TEMPLATE = InputTemplate(
    query=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: {query}\n<Document>:",
    ),
    passage=(" {passage}",),
    prompt=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    truncation="spans",
)
"""The input of the Qwen3 re-rankers, with their own instruction for web search."""
