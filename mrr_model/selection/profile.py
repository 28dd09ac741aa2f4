"""A checkpoint's profile: what each setting kept of full size's quality and took of its time, measured on collections.

`mrr evaluate … --save-profile` makes it, and stores it with the checkpoint as JSON. A
:class:`~mrr_model.selection.target.Target` chooses from it.
"""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.compression import Compression
from mrr_model.selection.stopwatch import Noise

FEW_QUERIES = 100
"""With fewer, the mean of a measure such as nDCG@10, whose values differ by about 0.3 from query to query, has a
standard error above 0.03: more than neighbouring settings differ by.
"""
FEW_RELEVANT = 100
"""Of fewer relevant documents each one decides more than a hundredth of the mean."""


class ProfilePoint(BaseModel):
    """One setting, as measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: int = Field(ge=1)
    """The exit that was read."""
    keep_ratio: float | dict[int, float] = 1.0
    """As in :class:`~mrr_model.compression.Compression`."""
    quality: float = Field(ge=0)
    """The measure's mean over the collections."""
    kept: float = Field(ge=0)
    """That over full size's."""
    least: float = Field(ge=0)
    """The share of full size's that it kept on the collection where it kept least."""
    seconds: float = Field(gt=0)
    """A pair's time, tokenizing included; the median of several runs."""
    flops: float = Field(gt=0)
    """A pair's FLOPs, 2 per multiply-add."""

    @property
    def setting(self) -> Compression:
        """The same as a user says it."""
        return Compression(self.depth, self.keep_ratio)


class Profile(BaseModel):
    """The settings of a checkpoint side by side; the first point is full size.

    >>> full = ProfilePoint(depth=6, quality=0.8, kept=1.0, least=1.0, seconds=0.01, flops=4e9)
    >>> half = ProfilePoint(depth=4, keep_ratio=0.5, quality=0.78, kept=0.975, least=0.96, seconds=0.004, flops=1.6e9)
    >>> made = Profile(
    ...     metric="nDCG@10",
    ...     collections=("wikiqa",),
    ...     queries=126,
    ...     query_tokens=8,
    ...     passage_tokens=40,
    ...     device="a processor",
    ...     dtype="float32",
    ...     threads=2,
    ...     points=(full, half),
    ... )
    >>> made.speedup(half)
    2.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    """By ir_measures' name."""
    collections: tuple[str, ...] = Field(min_length=1)
    queries: int = Field(ge=1)
    """Of all collections together."""
    query_tokens: int = Field(ge=1)
    """Of a query, on average."""
    passage_tokens: int = Field(ge=0)
    """Of a passage, on average."""
    device: str
    """What the times were measured on."""
    dtype: str
    threads: int = Field(ge=1)
    relevant: int | None = Field(default=None, ge=0)
    """How many of the candidates are relevant; None where it was not counted."""
    measured_at: AwareDatetime | None = None
    """When the times were measured."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of this package, torch and transformers, when they were."""
    noise: Noise | None = None
    """How much other work disturbed them."""
    points: tuple[ProfilePoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        deepest = max(point.depth for point in self.points)
        if (self.full.depth, self.full.setting.keep_ratio) != (deepest, 1.0):
            raise ValueError(f"the first point must be full size, got {self.full.setting}")
        settings = [point.setting for point in self.points]
        if len(set(settings)) < len(settings):
            raise ValueError(f"points must differ from each other, got {', '.join(map(str, settings))}")
        return self

    @property
    def full(self) -> ProfilePoint:
        """Full size."""
        return self.points[0]

    @property
    def data(self) -> str:
        """What it was measured on, with its size, in words."""
        relevant = "" if self.relevant is None else f", {self.relevant} relevant documents"
        return f"{', '.join(self.collections)} ({self.queries} queries{relevant})"

    @property
    def cautions(self) -> tuple[str, ...]:
        """What speaks against relying on it, a sentence each."""
        found = []
        if self.queries < FEW_QUERIES:
            found.append(
                f"The profile is of {self.queries} queries only: with fewer than {FEW_QUERIES}, settings differ by "
                "chance. Measure it on more."
            )
        if self.relevant is not None and self.relevant < FEW_RELEVANT:
            found.append(
                f"The profile is of {self.relevant} relevant documents only: with fewer than {FEW_RELEVANT}, settings "
                "differ by chance. Measure it on more."
            )
        if self.noise is not None and self.noise.noisy:
            found.append(f"The profile's times are {self.noise}. Time them again on a quiet machine with --retime.")
        return tuple(found)

    def speedup(self, point: ProfilePoint) -> float:
        """How many times as quick as full size a setting was."""
        return self.full.seconds / point.seconds
