"""What an evaluation is told: the model, the collections, the grid of settings and the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from mrr_model.compression import Compression
from mrr_model.data.collection_source import FirstStage
from mrr_model.evaluation.presets import PresetName, preset
from mrr_model.files.damage import reading

RATIOS = (1.0, 0.5, 0.25)
"""Keep ratios of the grid where none are given."""
MANY = 10_000_000
"""More than anything that is counted here."""
DEPTHS = 5
"""So many exits at most where no depths are given, evenly spread."""


class EvaluateConfig(BaseModel):
    """The settings of `mrr evaluate`; what a preset says holds where a field is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    model: str = "mini"
    """mini (shipped), a local folder or a hub id."""
    collections: tuple[str, ...] = ()
    """BEIR folders, names or TREC files (:mod:`mrr_model.evaluation.collection`)."""
    output: Path = Path("evaluation")
    """Folder for runs, tables and pictures; an evaluation that was stopped goes on from what is there."""
    preset: PresetName | None = None
    """A protocol by name."""
    depths: tuple[int, ...] | None = None
    """Depths of the grid."""
    keep_ratios: tuple[Any, ...] | None = None
    """Keep ratios of the grid, each as in :class:`~mrr_model.compression.Compression`."""
    settings: Path | None = None
    """A YAML or JSON list of {depth, keep_ratio} in the grid's place."""
    metrics: tuple[str, ...] = ()
    """By ir_measures' names; the first decides the frontier."""
    first_stage: FirstStage | None = None
    """Where candidates come from."""
    run: Path | None = None
    """A TREC run that takes the place of the collection's own candidates."""
    candidates: int | None = Field(default=None, ge=1)
    """The best so many of each query are re-ranked."""
    ignore_identical_ids: bool | None = None
    """Leave out a candidate that has its query's own id, as BEIR does; None: as the preset says, else yes."""
    limit_queries: int | None = Field(default=None, ge=1)
    """So many queries of each collection, drawn with the seed."""
    seed: int = 0
    max_length: int | None = Field(default=None, ge=1, le=MANY)
    query_max_length: int | None = Field(default=None, ge=1, le=MANY)
    prompt: str | None = None
    """Instruction after the passage, for every collection."""
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = Field(default=None, ge=1, lt=2**63)
    local_files_only: bool = False
    without_compensation: bool = False
    """Leave the compensation adapters off."""
    timing_pairs: int = Field(default=200, ge=1, le=MANY)
    """Times are measured on whole queries of at least so many pairs together."""
    timing_repeats: int = Field(default=5, ge=1, le=10_000)
    """Medians of so many runs."""
    retime: bool = False
    """Time the settings again, even if the output folder has their times."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.settings is not None and (self.depths is not None or self.keep_ratios is not None):
            raise ValueError("settings is a grid by itself: leave out depths and keep_ratios")
        if not self.collections and self.preset is None:
            raise ValueError("name a collection to evaluate on, or a preset")
        if self.run is not None and len(self.collections) != 1:
            raise ValueError("run is one collection's: give exactly one collection with it")
        if self.query_max_length is not None and self.max_length and self.query_max_length >= self.max_length:
            raise ValueError(
                f"query_max_length must lie below max_length, else no passage is read; got {self.query_max_length} and "
                f"{self.max_length}"
            )
        for depth in self.depths or ():
            Compression(depth)
        for ratio in self.keep_ratios or ():
            Compression(keep_ratio=ratio)
        return self

    @property
    def all_collections(self) -> tuple[str, ...]:
        """The collections named, else the preset's."""
        return self.collections or (preset(self.preset).collections if self.preset else ())

    @property
    def leaves_out_identical_ids(self) -> bool:
        """Whether a candidate that has its query's own id is left out."""
        if self.ignore_identical_ids is not None:
            return self.ignore_identical_ids
        return preset(self.preset).ignore_identical_ids if self.preset else True

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The metrics named, else the preset's, else nDCG@10."""
        return self.metrics or (preset(self.preset).metrics if self.preset else ("nDCG@10",))

    def grid(self, exits: Sequence[int], merges: bool) -> list[Compression]:
        """The settings to evaluate for a model with these exits; full size comes first, whatever was asked for.

        Raises ``ValueError`` for a settings file that cannot be read.
        """
        if self.settings is not None:
            asked = _read_settings(self.settings)
        else:
            depths = self.depths or spread(exits, DEPTHS)
            ratios = self.keep_ratios or (RATIOS if merges else RATIOS[:1])
            asked = [Compression(depth, ratio) for depth in depths for ratio in ratios]
        resolved = [Compression(_exit(setting, exits), setting.keep_ratio) for setting in asked]
        full = Compression(exits[-1], 1.0)
        return [full, *(setting for setting in dict.fromkeys(resolved) if setting != full)]


def _exit(setting: Compression, exits: Sequence[int]) -> int | None:
    """The exit that a depth comes to; what lies below the first is left to the model's own error."""
    reached = [layer for layer in exits if setting.depth is None or layer <= setting.depth]
    return reached[-1] if reached else setting.depth


def spread(exits: Sequence[int], count: int) -> list[int]:
    """At most `count` of the exits, evenly spread, deepest first; the first and the last are among them."""
    last = len(exits) - 1
    return sorted({exits[round(last * step / (count - 1))] for step in range(count)}, reverse=True)


def _read_settings(file: Path) -> list[Compression]:
    import yaml

    with reading(file, advice=""):
        rows = yaml.safe_load(file.read_bytes())
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a list of settings such as {{depth: 4, keep_ratio: 0.5}}, got {rows!r}.")
    settings = []
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() <= {"depth", "keep_ratio"}:
            raise ValueError(f"{file}: setting {place} must be {{depth: …, keep_ratio: …}}, got {row!r}.")
        try:
            settings.append(Compression(**row))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: setting {place}: {error}") from None
    return settings
