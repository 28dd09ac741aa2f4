r"""How texts become the spans of an input: templates as data, and those that formats share.

An input has three spans: what precedes the passage (the query span), the passage, and what follows it (the prompt
span). Only passage tokens merge. A template lists the pieces of each span; it is stored in a checkpoint's config.json,
and `mrr self-distill --template` reads one from a JSON file:

    {
      "query": ["{cls}", "{query}", "{sep}"],
      "passage": ["{passage}"],
      "prompt": ["{sep}"],
      "truncation": "longest_first"
    }

| field | meaning |
| --- | --- |
| `query` | the pieces before the passage |
| `passage` | one piece, which contains `{passage}` |
| `prompt` | the pieces after the passage |
| `truncation` | what `max_length` bounds and what is cut: `spans`, `longest_first` or `end` (see `InputTemplate`) |
| `default_prompt` | the prompt of calls that give none; left out: such calls have no prompt |
| `token_types` | the token type ids of the three spans, such as `[0, 1, 1]`; left out: 0 for all |

`{query}` stands once, in a piece before or after the passage. `{prompt}`, the instruction of a call, may stand in any
piece but the passage's:

    {"query": ["<|im_start|>user\n", "instruction: {prompt}\n", "query: {query}\n"], ...}
    {"query": ["<|im_start|>user\n<Instruct>: {prompt}\n<Query>: {query}\n<Document>:"], ...}
    {"query": ["Document: "], "passage": ["{passage}"], "prompt": ["\n", "Query: {query} {prompt}"], ...}

Without a prompt, a piece is left out if it contains `{prompt}` and no text. So the first template has no line
`instruction:` then. In a piece with `{query}`, only `{prompt}` is left out, and a space before it, as in the third.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator
from typing_extensions import Self

SPECIAL_TOKENS = ("{bos}", "{cls}", "{sep}", "{eos}")
"""Pieces that stand for one of the tokenizer's special tokens."""


class InputTemplate(BaseModel):
    """How a query, a passage and a prompt become one sequence of tokens.

    A span is a tuple of pieces. A piece is a special token (`{bos}`, `{cls}`, `{sep}`, `{eos}`) or a text, which may
    contain `{query}`, `{passage}` or `{prompt}`. Each piece is tokenized by itself, and the ids are concatenated.
    Special tokens count as such in the template's own text; in a query, a passage or a call's prompt they are text.

    Without a prompt, a piece that contains `{prompt}` is left out; if it contains `{query}` too, only `{prompt}` and a
    space before it are. A call has no prompt if it gives `""`, or if it gives None and there is no `default_prompt`.

    Args:
        query: The span before the passage.
        passage: The passage span: one piece, which contains `{passage}`.
        prompt: The span after the passage.
        truncation: `spans`: `max_length` bounds query and passage, and what follows the passage is never cut, as in the
            published release. `longest_first`: `max_length` bounds the whole sequence, and the longer of query and
            passage is cut first, as encoders do. `end`: `max_length` bounds the whole sequence; its end is cut, but not
            what the template writes after the last text, as sentence-transformers cuts chat templates.
        default_prompt: The prompt of calls that give none.
        token_types: The token type ids of the three spans.

    Raises:
        ValueError: If a text is missing or stands twice (pydantic's `ValidationError`).

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
    """The span before the passage."""
    passage: tuple[str, ...]
    """The passage span: one piece, which contains `{passage}`."""
    prompt: tuple[str, ...]
    """The span after the passage."""
    truncation: Literal["spans", "longest_first", "end"]
    """What `max_length` bounds and what is cut: see the class."""
    default_prompt: str | None = None
    """The prompt of calls that give none; None: such calls have no prompt."""
    token_types: tuple[int, int, int] | None = None
    """The token type ids of the query, passage and prompt span; None: 0 for all, as for models without token types."""

    @model_validator(mode="after")
    def _check_slots(self) -> Self:
        around = (*self.query, *self.prompt)
        if _count("{query}", around) != 1 or _count("{query}", self.passage):
            raise ValueError(
                f"query or prompt must have exactly one piece with {{query}}, once, got {self.query} and {self.prompt}."
            )
        if len(self.passage) != 1 or _count("{passage}", self.passage) != 1 or _count("{passage}", around):
            raise ValueError(f"passage alone must have {{passage}}, in one piece, once, got {self.passage}.")
        if _count("{prompt}", self.passage):
            raise ValueError(f"{{prompt}} must stand in query or prompt, got passage={self.passage}.")
        if self.default_prompt is not None and not self.takes_prompt:
            raise ValueError(f"default_prompt={self.default_prompt!r} is not used: no piece contains {{prompt}}.")
        return self

    @property
    def takes_prompt(self) -> bool:
        """Whether a call may give a prompt of its own."""
        return _count("{prompt}", (*self.query, *self.prompt)) > 0

    @property
    def query_first(self) -> bool:
        """Whether the query precedes the passage."""
        return _count("{query}", self.query) > 0


def _count(slot: str, pieces: tuple[str, ...]) -> int:
    return sum(piece.count(slot) for piece in pieces)


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

QWEN3_TEMPLATE = InputTemplate(
    query=(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n',
        "<Instruct>: {prompt}\n<Query>: {query}\n<Document>:",
    ),
    passage=(" {passage}",),
    prompt=("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",),
    truncation="end",
    default_prompt="Given a web search query, retrieve relevant passages that answer the query",
)
"""The input of the Qwen3 re-rankers; the prompt is their instruction."""
