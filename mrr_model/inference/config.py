"""How the commands open and run a model. Help is made from it: nothing here imports torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from mrr_model.validation.config import Config, Flag

Template = Annotated[str | None, Flag(metavar="FILE|NAME", default="the model's")]
Answers = Annotated[
    tuple[str, ...] | None, Flag(metavar="YES[,NO]", default="the model's", split=lambda text: text.split(","))
]
MANY = 10_000_000
"""More tokens than any model reads."""


class InferenceConfig(Config):
    """The fields of every command that runs a model."""

    help_last: ClassVar[tuple[str, ...]] = (
        "prompt", "max_length", "query_max_length", "dtype", "device", "batch_tokens", "local_files_only", "template",
        "answers",
    )  # fmt: skip

    prompt: Annotated[str | None, Flag(default="the model's, if it takes one")] = None
    """Instruction, for models that take one; empty for none."""
    max_length: Annotated[int | None, Flag(default="the model's")] = Field(default=None, ge=1, le=MANY)
    """Tokens per pair."""
    query_max_length: Annotated[int | None, Flag(default="the template's rule")] = Field(default=None, ge=1, le=MANY)
    """Tokens per query."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the model."""
    device: Annotated[str, Flag(metavar="NAME")] = "auto"
    """Where the model runs: auto, cpu, cuda, cuda:1, mps …"""
    batch_tokens: Annotated[int | None, Flag(default="by device")] = Field(default=None, ge=1, lt=2**63)
    """Tokens per batch, padding included."""
    local_files_only: bool = False
    """Never ask the hub for the model."""
    template: Template = None
    """Input template of a model whose files hold none: a JSON file, or a published template's name."""
    answers: Answers = None
    """Tokens by which a causal model answers, if its files do not say it."""
