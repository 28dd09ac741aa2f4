"""What an HTTP request asks of the model, and what it gets: free of any dialect."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mrr_model.cascade import Cascade, CascadeOption
from mrr_model.compression import Compression, KeepRatio, Plan
from mrr_model.ranking import Ranking, Scored, ranked
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import DEFAULT, Default

ChosenBy = Literal["request", "server", "shedding"]
"""Who chose the setting of an answer: the request, the server's default, or the server to get its queue shorter."""

UNQUOTED = re.compile(r'[^ -~]|["\\]')
"""Characters that a quoted string of a header must not have as they are."""


@dataclass(frozen=True)
class Knobs:
    """How much work a request asks for. What it leaves out, the server chooses.

    Args:
        depth: Run at most this many layers; None for all.
        keep_ratio: The share of the passage tokens to keep.
        target: A need instead of both.
        cascade: Exits at which unpromising documents stop.
    """

    depth: int | Default | None = DEFAULT
    keep_ratio: KeepRatio | Default = DEFAULT
    target: Target | None = None
    cascade: CascadeOption | Default = DEFAULT

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that the request gives."""
        values = {"depth": self.depth, "keep_ratio": self.keep_ratio, "cascade": self.cascade}
        named = [name for name, value in values.items() if not isinstance(value, Default)]
        return (*named, *(() if self.target is None else ("target",)))


@dataclass(frozen=True)
class Work:
    """What one HTTP request asks.

    Args:
        requests: (query, documents) pairs; one for a re-ranking request, several for pairwise scores.
        knobs: How much work it asks for.
        top_n: Documents to return per query, at most; None for all.
        min_score: The lowest score to return; None for all.
        normalize: Whether scores are probabilities.
        prompt: The instruction; DEFAULT for the server's own, None for the template's.
        max_length: Tokens of an input, at most the server's own; None for that.
        timeout: Seconds within which the answer must be there; None for the server's own.
    """

    requests: Sequence[tuple[str, Sequence[str]]]
    knobs: Knobs = Knobs()
    top_n: int | None = None
    min_score: float | None = None
    normalize: bool = True
    prompt: str | Default | None = DEFAULT
    max_length: int | None = None
    timeout: float | None = None

    @property
    def pairs(self) -> int:
        """How many pairs it has."""
        return sum(len(documents) for _, documents in self.requests)


@dataclass(frozen=True)
class ServedSetting:
    """The setting that ran, and why.

    Args:
        setting: Depth and keep ratio, with the depth as the exit that was read.
        plan: The setting resolved for the model.
        cascade: Exits at which documents stopped; None if all ran to the setting's exit.
        chosen_by: Who chose it.
        reason: Why, in one line.
        flops_share: Its share of full size's FLOPs, without what a cascade saves.
        quality_kept: The share of full size's quality that the checkpoint's profile says it keeps; None if it has no
            such figure.
    """

    setting: Compression
    plan: Plan
    cascade: Cascade | None
    chosen_by: ChosenBy
    reason: str
    flops_share: float
    quality_kept: float | None

    @property
    def label(self) -> str:
        """A short name for metrics and logs, such as `4@0.5` or `6@1+cascade`."""
        name = f"{self.plan.last_layer}@{self.setting.keep_ratio_text}"
        return name if self.cascade is None else f"{name}+cascade"

    @property
    def header(self) -> str:
        """The value of the header `X-MRR-Setting`, in ASCII and one line.

        Example:
            `depth=4; keep_ratio=0.5; chosen_by=request; reason="as asked"`
        """
        parts = [f"depth={self.plan.last_layer}", f"keep_ratio={self.setting.keep_ratio_text}"]
        if self.cascade is not None:
            parts.append(f'cascade="{self.cascade}"')
        reason = UNQUOTED.sub("'", self.reason)
        return "; ".join([*parts, f"chosen_by={self.chosen_by}", f'reason="{reason}"'])

    def to_json(self) -> dict[str, Any]:
        """The setting as JSON data, for the body of an answer."""
        return {
            **self.setting.to_json(),
            "cascade": None if self.cascade is None else self.cascade.to_json(),
            "chosen_by": self.chosen_by,
            "reason": self.reason,
            "flops_share": round(self.flops_share, 4),
            "quality_kept": self.quality_kept,
        }


@dataclass(frozen=True)
class Answer:
    """What one HTTP request gets.

    Args:
        work: The request.
        scored: For each query, in input order, what is known of each document, in input order.
        setting: The setting that ran.
        queue_seconds: Time until its first batch started.
        model_seconds: Time of the batches that it had part in, each counted whole.
    """

    work: Work
    scored: Sequence[Sequence[Scored]]
    setting: ServedSetting
    queue_seconds: float
    model_seconds: float

    @property
    def tokens(self) -> int:
        """Of all inputs, with what the input template adds."""
        return sum(document.tokens for documents in self.scored for document in documents)

    def rankings(self) -> list[Ranking]:
        """The documents of each query, best first, as the request's `top_n` and `min_score` say."""
        return [
            ranked(documents, scored, self.work.top_n, self.work.min_score)
            for (_, documents), scored in zip(self.work.requests, self.scored, strict=True)
        ]
