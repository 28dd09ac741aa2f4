"""What a checkpoint runs at unless its user says otherwise."""

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.compression import Compression


class Defaults(BaseModel):
    """The options of the re-ranker that was saved; config.json holds those that differ from these.

    >>> Defaults(depth=4, keep_ratio=0.5).setting
    Compression(depth=4, keep_ratio=0.5)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    depth: int | None = None
    """As in `Compression`; None: all layers."""
    keep_ratio: float | dict[str, float] = 1.0
    """As in `Compression`; by merge layer, its keys are strings, as in JSON."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of an input; None: 512."""
    query_max_length: int | None = Field(default=None, ge=1)
    """Tokens of a query; None: the template's rule."""
    prompt: str | None = None
    """The instruction after the passage; None: the template's own."""
    normalize: bool = True
    """Whether scores are probabilities."""
    dtype: str | None = None
    """The number format that the user named, in which sentence-transformers opens the weights; None: float32, since
    they may be trained.
    """

    @model_validator(mode="after")
    def _check_setting(self) -> Self:
        try:
            _ = self.setting
        except TypeError as error:
            raise ValueError(str(error)) from None
        return self

    @property
    def setting(self) -> Compression:
        """Depth and keep ratio."""
        ratio = self.keep_ratio
        return Compression(self.depth, ratio if isinstance(ratio, float) else _by_layer(ratio))

    @classmethod
    def of(cls, setting: Compression, **fields: object) -> Self:
        """Defaults with a setting, and the other fields that are given."""
        ratio = setting.keep_ratio
        stored = ratio if isinstance(ratio, float) else {str(layer): part for layer, part in ratio}
        return cls.model_validate({"depth": setting.depth, "keep_ratio": stored, **fields})


def _by_layer(ratios: dict[str, float]) -> dict[int, float]:
    if not all(layer.isdecimal() for layer in ratios):
        raise ValueError(f"keep_ratio must be keyed by merge layers, got {ratios}")
    return {int(layer): ratio for layer, ratio in ratios.items()}


NO_DEFAULTS = Defaults()
"""Full size, with the template's own lengths and prompt."""
