"""A checkpoint's profile: what each setting kept of full size's quality and took of its time, measured on collections.

`mrr evaluate … --save-profile` makes it, and stores it with the checkpoint as JSON. A :class:`~mrr_model.target.Target`
chooses from it.
"""

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.compression import Compression


class ProfilePoint(BaseModel):
    """One setting, as measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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
    operations: float = Field(gt=0)
    """A pair's floating-point operations, 2 per multiply-add."""

    @property
    def setting(self) -> Compression:
        """The same as a user says it."""
        return Compression(self.depth, self.keep_ratio)


class Profile(BaseModel):
    """The settings of a checkpoint side by side; the first point is full size.

    >>> full = ProfilePoint(depth=6, quality=0.8, kept=1.0, least=1.0, seconds=0.01, operations=4e9)
    >>> half = ProfilePoint(
    ...     depth=4, keep_ratio=0.5, quality=0.78, kept=0.975, least=0.96, seconds=0.004, operations=1.6e9
    ... )
    >>> made = Profile(
    ...     measure="nDCG@10",
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
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

    def speedup(self, point: ProfilePoint) -> float:
        """How many times as quick as full size a setting was."""
        return self.full.seconds / point.seconds
