"""How texts become the spans of an input: templates as data, and those of the known families.

An input has three spans: query, passage and prompt. Only passage tokens merge. A template lists the pieces of each
span; it is stored in a checkpoint's config.json, and `mrr self-distill --template` reads one from a JSON file:

    {
      "query": ["{cls}", "{query}", "{sep}"],
      "passage": ["{passage}"],
      "prompt": ["{sep}"],
      "truncation": "longest_first"
    }
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

SPECIAL_TOKENS = ("{bos}", "{cls}", "{sep}", "{eos}")
"""Pieces that stand for one of the tokenizer's special tokens."""


class InputTemplate(BaseModel):
    """How a query, a passage and a prompt become one sequence of tokens.

    A span is a tuple of pieces. A piece is a special token (`{bos}`, `{cls}`, `{sep}`, `{eos}`) or a text, which may
    contain `{query}`, `{passage}` or `{prompt}`. Each text is tokenized by itself, and the ids are concatenated.
    Special tokens count as such in the template's own text; in a query, a passage or a call's prompt they are text.

    Args:
        query: The query span; one piece contains `{query}`.
        passage: The passage span: one piece, which contains `{passage}`.
        prompt: The span after the passage; a piece may contain `{prompt}`.
        truncation: `spans`: `max_length` bounds query and passage, and the prompt is never cut, as in the published
            release. `longest_first`: `max_length` bounds the whole sequence, and the longer of query and passage is cut
            first, as encoders do. `end`: `max_length` bounds the whole sequence; its end is cut, but not what the
            template writes after the last text, as sentence-transformers cuts chat templates.
        default_prompt: The prompt of calls that give none; None for templates without a prompt.

    Raises:
        ValueError: If a span lacks its text or has it twice (pydantic's `ValidationError`).

    Example:
        >>> template = InputTemplate.model_validate_json(
        ...     '{"query": ["{bos}", "Query: {query} "], "passage": ["Document: {passage}"],'
        ...     ' "prompt": [" Relevant?"], "truncation": "spans"}'
        ... )
        >>> template.query, template.takes_prompt
        (('{bos}', 'Query: {query} '), False)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: tuple[str, ...]
    """The query span; one piece contains `{query}`."""
    passage: tuple[str, ...]
    """The passage span: one piece, which contains `{passage}`."""
    prompt: tuple[str, ...]
    """The span after the passage; a piece may contain `{prompt}`."""
    truncation: Literal["spans", "longest_first", "end"]
    """What `max_length` bounds and what is cut: see the class."""
    default_prompt: str | None = None
    """The prompt of calls that give none; None for templates without a prompt."""
    token_types: tuple[int, int, int] | None = None
    """The token type ids of the query, passage and prompt span; None: 0 for all, as for models without token types."""

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        if sum(piece.count("{query}") for piece in self.query) != 1:
            raise ValueError(f"query must have exactly one piece with {{query}}, once, got {self.query}.")
        if len(self.passage) != 1 or self.passage[0].count("{passage}") != 1:
            raise ValueError(f"passage must be one piece with {{passage}}, once, got {self.passage}.")
        return self

    @property
    def takes_prompt(self) -> bool:
        """Whether a call may give a prompt of its own."""
        return any("{prompt}" in piece for piece in self.prompt)


RELEASE_TEMPLATE = InputTemplate(
    query=("{bos}", "A: {query}", "\n"),
    passage=("B: {passage}",),
    prompt=("\n", "{prompt}"),
    truncation="spans",
    default_prompt="Predict whether passage B contains an answer to query A.",
)
"""The input of the published release and of this project's decoders (arXiv 2501.16302, input format)."""

BERT_TEMPLATE = InputTemplate(
    query=("{cls}", "{query}", "{sep}"),
    passage=("{passage}",),
    prompt=("{sep}",),
    truncation="longest_first",
    token_types=(0, 1, 1),
)
"""`[CLS] query [SEP] passage [SEP]`."""

XLM_ROBERTA_TEMPLATE = InputTemplate(
    query=("{cls}", "{query}", "{sep}", "{sep}"), passage=("{passage}",), prompt=("{sep}",), truncation="longest_first"
)
"""`<s> query </s></s> passage </s>`."""

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
