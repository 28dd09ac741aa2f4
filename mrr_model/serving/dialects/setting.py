"""How answers show the setting that ran: the form of `ServedSetting.to_json()`."""

from pydantic import BaseModel, Field


class ServedCascadeForm(BaseModel):
    """Exits at which documents stopped."""

    stages: dict[str, float]
    by: str
    top_n: int | None = None


class ServedSettingForm(BaseModel):
    """The setting that ran, and why."""

    depth: int
    keep_ratio: float | dict[str, float]
    cascade: ServedCascadeForm | None
    chosen_by: str = Field(description="request, server or shedding.")
    reason: str
    flops_share: float = Field(description="Its share of full size's FLOPs.")
    quality_kept: float | None = Field(description="The share of full size's quality that the profile says it keeps.")
