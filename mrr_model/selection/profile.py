"""A checkpoint's profile: the quality and the time of each setting, measured on collections.

`mrr evaluate … --save-profile` makes it and stores it with the checkpoint as JSON. A `Target` chooses from it.
"""

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.cascade import By, Cascade
from mrr_model.compression import Compression
from mrr_model.selection.stopwatch import Noise

FEW_QUERIES = 100
"""With fewer, the mean of a metric such as nDCG@10, whose standard deviation over queries is about 0.3, has a standard
error above 0.03: more than the difference between neighbouring settings.
"""
FEW_RELEVANT = 100
"""With fewer relevant documents, each one decides more than a hundredth of the mean."""


class ProfileCascade(BaseModel):
    """A cascade, and how many queries lose a document of the setting's best by it.

    >>> ProfileCascade(stages={2: 3.0, 4: 1.0}, top_n=10, lost=0.01).cascade
    Cascade(stages=((2, 3.0), (4, 1.0)), by='margin', top_n=10)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    stages: dict[int, float] = Field(min_length=1)
    """As in `Cascade`."""
    by: By = "margin"
    """As in `Cascade`."""
    top_n: int | None = Field(default=None, ge=1)
    """As in `Cascade`."""
    lost: float | None = Field(default=None, ge=0, le=1)
    """The share of queries that may lose a document of the setting's best, for which it was fitted; None if it was
    given and not fitted.
    """
    held_out: float | None = Field(default=None, ge=0, le=1)
    """The share that did, on queries that it was not fitted on; None if that was not measured."""
    queries: int | None = Field(default=None, ge=0)
    """How many queries could lose one: those with enough candidates."""

    @model_validator(mode="after")
    def _check_cascade(self) -> Self:
        _ = self.cascade
        return self

    @property
    def cascade(self) -> Cascade:
        """For a call."""
        return Cascade(self.stages, self.by, self.top_n)

    @property
    def cautions(self) -> tuple[str, ...]:
        """Reasons not to rely on its margins, a sentence each."""
        if self.lost is None or self.held_out is None or self.queries is None:
            return ()
        found = []
        if self.queries < FEW_QUERIES:
            found.append(
                f"The cascade's {self.cascade} were fitted on {self.queries} queries with enough candidates: with "
                f"fewer than {FEW_QUERIES}, the documents that others need are not known. Fit them on more."
            )
        if self.held_out > self.lost:
            found.append(
                f"The cascade's {self.cascade} were to lose documents of {self.lost:.1%} of the queries and lost some "
                f"of {self.held_out:.1%} that they were not fitted on. Fit them on more queries."
            )
        return tuple(found)


class ProfilePoint(BaseModel):
    """One setting, alone or with a cascade, as measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    depth: int = Field(ge=1)
    """The exit whose scores were measured."""
    keep_ratio: float | dict[int, float] = 1.0
    """As in `Compression`."""
    cascade: ProfileCascade | None = None
    """The cascade that ran to this setting; None if all documents ran to it."""
    quality: float = Field(ge=0)
    """The metric's mean over the collections."""
    kept: float = Field(ge=0)
    """The share of full size's quality that it keeps."""
    min_kept: float = Field(ge=0)
    """The same on the collection where the share is smallest."""
    seconds: float = Field(gt=0)
    """Per pair, tokenizing included; the median of several runs."""
    flops: float = Field(gt=0)
    """Per pair, 2 per multiply-add."""

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if self.cascade is not None:
            self.cascade.cascade.check(self.cascade.stages, self.depth)
        return self

    @property
    def setting(self) -> Compression:
        """Depth and keep ratio."""
        return Compression(self.depth, self.keep_ratio)

    def __str__(self) -> str:
        return str(self.setting) if self.cascade is None else f"{self.setting}, {self.cascade.cascade}"


class Profile(BaseModel):
    """The measured settings of a checkpoint, alone and with cascades; the first point is full size.

    Example:
        >>> full = ProfilePoint(depth=6, quality=0.8, kept=1, min_kept=1, seconds=0.01, flops=4e9)
        >>> half = ProfilePoint(
        ...     depth=4, keep_ratio=0.5, quality=0.78, kept=0.975, min_kept=0.96, seconds=0.004, flops=1.6e9
        ... )
        >>> profile = Profile(
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
        >>> profile.speedup(half)
        2.5
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    metric: str
    """By ir_measures' name."""
    collections: tuple[str, ...] = Field(min_length=1)
    """Their names."""
    queries: int = Field(ge=1)
    """In all collections together."""
    query_tokens: int = Field(ge=1)
    """Mean tokens of a query."""
    passage_tokens: int = Field(ge=0)
    """Mean tokens of a passage."""
    device: str
    """The device that the times were measured on."""
    dtype: str
    """The number format of the layers."""
    threads: int = Field(ge=1)
    """torch's threads."""
    relevant: int | None = Field(default=None, ge=0)
    """Relevant documents among the candidates; None if they were not counted."""
    measured_at: AwareDatetime | None = None
    """When the times were measured."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of this package, torch and transformers, when the times were measured."""
    noise: Noise | None = None
    """How much other work disturbed the times."""
    points: tuple[ProfilePoint, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_points(self) -> Self:
        deepest = max(point.depth for point in self.points)
        if (self.full.depth, self.full.setting.keep_ratio, self.full.cascade) != (deepest, 1.0, None):
            raise ValueError(f"the first point must be full size, got {self.full}")
        different = {(point.setting, point.cascade and point.cascade.cascade) for point in self.points}
        if len(different) < len(self.points):
            raise ValueError(f"points must differ from each other, got {', '.join(map(str, self.points))}")
        return self

    @property
    def full(self) -> ProfilePoint:
        """Full size."""
        return self.points[0]

    @property
    def fixed(self) -> tuple[ProfilePoint, ...]:
        """The points without a cascade, where all documents run to the same exit."""
        return tuple(point for point in self.points if point.cascade is None)

    @property
    def data(self) -> str:
        """The collections and their size, in words."""
        relevant = "" if self.relevant is None else f", {self.relevant} relevant documents"
        return f"{', '.join(self.collections)} ({self.queries} queries{relevant})"

    @property
    def cautions(self) -> tuple[str, ...]:
        """Reasons not to rely on the profile, a sentence each."""
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
        found += [caution for point in self.points if point.cascade for caution in point.cascade.cautions]
        return tuple(found)

    def speedup(self, point: ProfilePoint) -> float:
        """How many times as fast as full size a setting was."""
        return self.full.seconds / point.seconds
