"""What an evaluation or a calibration runs on: the model, the collections, the protocol and the grid of settings.

Help is made from it: nothing here imports torch or numpy.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from mrr_model.cascade import DEFAULT_RANK, By, Cascade
from mrr_model.compression import DEFAULT_KEEP_RATIOS, Compression, evenly_spread
from mrr_model.data.collection_source import FirstStage
from mrr_model.evaluation.presets import PresetName, preset
from mrr_model.files.damage import reading
from mrr_model.inference.config import MANY, InferenceConfig
from mrr_model.validation.config import Flag

DEPTHS = 5
"""Exits of a grid, at most, if no depths are given."""
LOST = 0.01
"""The share of queries that may lose a document by a fitted cascade."""
TIMING_PAIRS = 200
"""Pairs to time a setting on. Its time depends on their lengths alone, so a few queries suffice."""
CASCADE_TIMING_PAIRS = 2000
"""The same with cascades. Their time depends on how many documents of a query lie far below its best and differs from
query to query, so more of them are needed."""


def _split_ratios(text: str) -> list[str]:
    """Plain ratios, or one ratio with several merges."""
    return [text] if ":" in text else text.split(",")


def _split_metrics(text: str) -> list[str]:
    """Split at commas outside brackets: metrics may have arguments."""
    return [part.strip() for part in re.split(r",(?![^()]*\))", text)]


class GridConfig(InferenceConfig):
    """A grid of settings, scored on collections."""

    help_first: ClassVar[tuple[str, ...]] = ("output", "depths", "keep_ratios", "settings", "preset", "metrics")

    model: Annotated[str, Flag(argument=True, required=True, metavar="MODEL")] = "mini"
    """mini (shipped), a local folder or a hub id."""
    collections: Annotated[tuple[str, ...], Flag(argument=True, metavar="COLLECTION…")] = ()
    """BEIR folders (FOLDER or FOLDER#SPLIT), names (beir/scifact/test, BeIR/scifact) or TREC files
    (qrels=FILE,queries=FILE,corpus=FILE,run=FILE)."""
    output: Annotated[Path, Flag(metavar="FOLDER")] = Path("evaluation")
    """Folder for the results. The same command resumes from it."""
    depths: Annotated[tuple[int, ...] | None, Flag("--depth", default="up to five of the exits")] = None
    """Depths of the grid."""
    keep_ratios: Annotated[
        tuple[Any, ...] | None,
        Flag("--keep-ratio", metavar="R,R,…|LAYER:R,…", default="1,0.5,0.25", split=_split_ratios),
    ] = None
    """Keep ratios of the grid: 1,0.5,0.25; or one with several merges, 8:0.5,16:0.25. Repeatable."""
    settings: Annotated[Path | None, Flag(metavar="FILE")] = None
    """YAML or JSON list of {depth, keep_ratio}, instead of the grid."""
    preset: PresetName | None = None
    """Metrics, first stage and lengths of a published protocol."""
    first_stage: Annotated[FirstStage | None, Flag(default="the preset's, else auto")] = None
    """Where candidates come from. auto: given, else bm25."""
    run: Annotated[Path | None, Flag(metavar="FILE")] = None
    """TREC run with the candidates, for a single collection."""
    candidates: Annotated[int | None, Flag(default="the preset's, else 100")] = Field(default=None, ge=1)
    """Candidates to re-rank per query."""
    limit_queries: Annotated[int | None, Flag(default="all")] = Field(default=None, ge=1)
    """Queries to sample from each collection."""
    keep_identical_ids: Annotated[bool | None, Flag(default="the preset's, else off")] = None
    """Keep a candidate whose id is its query's own. BEIR leaves it out."""
    seed: int = 0
    """Seed of the random draws."""
    prompt: Annotated[str | None, Flag(default="the preset's or the model's")] = None
    """Instruction for every collection, for models that take one; empty for none."""
    max_length: Annotated[int | None, Flag(default="the preset's, else 512")] = Field(default=None, ge=1, le=MANY)
    """Tokens per pair."""

    @model_validator(mode="after")
    def _check_grid(self) -> Self:
        if self.settings is not None and (self.depths is not None or self.keep_ratios is not None):
            raise ValueError("settings replaces depths and keep_ratios: leave them out")
        if self.run is not None and len(self.collections) != 1:
            raise ValueError("run belongs to one collection: give exactly one collection with it")
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
        """The named collections, else the preset's."""
        return self.collections or (preset(self.preset).collections if self.preset else ())

    @property
    def leaves_out_identical_ids(self) -> bool:
        """Whether a candidate that has its query's own id is left out."""
        if self.keep_identical_ids is not None:
            return not self.keep_identical_ids
        return preset(self.preset).ignore_identical_ids if self.preset else True

    def grid(self, exits: Sequence[int], merges: bool) -> list[Compression]:
        """The settings to score, without repetition. Full size comes first, even if it is not among them.

        Args:
            exits: The model's exits, ascending.
            merges: Whether the model can merge tokens.

        Raises:
            ValueError: For a settings file that cannot be read.
            FileNotFoundError: For a settings file that does not exist.

        Example:
            >>> config = EvaluateConfig(collections=("toy",), depths=(4,), keep_ratios=(0.5,))
            >>> [str(setting) for setting in config.grid((2, 4, 6), merges=True)]
            ['depth 6, keep ratio 1', 'depth 4, keep ratio 0.5']
        """
        if self.settings is not None:
            chosen = _read_settings(self.settings)
        else:
            depths = self.depths or evenly_spread(exits, DEPTHS)
            ratios = self.keep_ratios or (DEFAULT_KEEP_RATIOS if merges else DEFAULT_KEEP_RATIOS[:1])
            chosen = [Compression(depth, ratio) for depth in depths for ratio in ratios]
        resolved = [Compression(_exit(setting, exits), setting.keep_ratio) for setting in chosen]
        full = Compression(exits[-1], 1.0)
        return [full, *(setting for setting in dict.fromkeys(resolved) if setting != full)]


class EvaluateConfig(GridConfig):
    """The config of `mrr evaluate`. A field that is left out takes the preset's value, if a preset is given.

    Example:
        >>> EvaluateConfig(collections=("path/to/beir",), metrics=("nDCG@10", "R@100")).model
        'mini'
    """

    help_last: ClassVar[tuple[str, ...]] = (
        "cascade_loss", "cascade_top_n", "cascade_stages", "cascade_by", "timing_pairs", "timing_repeats", "retime",
        "without_compensation", *InferenceConfig.help_last
    )  # fmt: skip

    metrics: Annotated[
        tuple[str, ...],
        Flag("--metric", metavar="NAME,NAME,…", default="the preset's, else nDCG@10", split=_split_metrics),
    ] = ()
    """Names in ir_measures. The first one is drawn in the frontier."""
    cascade: bool = False
    """Fit the margins of a cascade for each final setting, and measure it: documents far below the best stop early."""
    cascade_loss: float = Field(default=LOST, ge=0, lt=1)
    """Share of queries that may lose a document by it."""
    cascade_top_n: int = Field(default=DEFAULT_RANK, ge=1, le=MANY)
    """Best documents of a query that are not to be lost."""
    cascade_stages: Annotated[tuple[str, ...], Flag(metavar="EXIT:N,EXIT:N,…")] = ()
    """Measure this cascade at full size: 2:3,3:2,4:1. Repeatable."""
    cascade_by: By = "margin"
    """What its numbers are: margins in logits, or counts of documents."""
    timing_pairs: Annotated[int | None, Flag(default=f"{TIMING_PAIRS}, with cascades {CASCADE_TIMING_PAIRS}")] = Field(
        default=None, ge=1, le=MANY
    )
    """Pairs to time each setting on, at least: whole queries."""
    timing_repeats: int = Field(default=5, ge=1, le=10_000)
    """Repetitions; the median is reported."""
    retime: bool = False
    """Time again, even if the output folder has the settings' times."""
    without_compensation: bool = False
    """Leave the compensation adapters off."""

    @model_validator(mode="after")
    def _check_collections(self) -> Self:
        if not self.collections and self.preset is None:
            raise ValueError("give a collection to evaluate on, or a preset")
        return self

    @model_validator(mode="after")
    def _check_cascades(self) -> Self:
        _ = self.given_cascades
        fields = self.model_fields_set
        if "cascade_by" in fields and not self.cascade_stages:
            raise ValueError("cascade_by says what numbers in cascade_stages are: give both")
        if "cascade_loss" in fields and not self.cascade:
            raise ValueError("cascade_loss goes with cascade, which fits margins: give both")
        if "cascade_top_n" in fields and not self.with_cascades:
            raise ValueError("cascade_top_n goes with cascade or cascade_stages: give one of them")
        return self

    @property
    def with_cascades(self) -> bool:
        """Whether any cascade is measured."""
        return self.cascade or bool(self.cascade_stages)

    def final_settings(self, grid: Sequence[Compression]) -> list[Compression]:
        """The settings of a grid that cascades run to: the deepest at each keep ratio; none without cascades.

        If no margins are fitted, full size alone: cascades that are given run to it.

        Example:
            >>> config = EvaluateConfig(collections=("toy",), depths=(6, 4), keep_ratios=(1.0, 0.5), cascade=True)
            >>> [str(setting) for setting in config.final_settings(config.grid((2, 4, 6), merges=True))]
            ['depth 6, keep ratio 1', 'depth 6, keep ratio 0.5']
        """
        if not self.cascade:
            return list(grid[:1]) if self.cascade_stages else []
        return [setting for setting in grid if setting.depth == grid[0].depth]

    @property
    def given_cascades(self) -> tuple[Cascade, ...]:
        """The cascades of `cascade_stages`, without repetition."""
        top_n = self.cascade_top_n if self.cascade_by == "margin" else None
        return tuple(dict.fromkeys(Cascade(stages, self.cascade_by, top_n) for stages in self.cascade_stages))

    @property
    def pairs_to_time(self) -> int:
        """`timing_pairs`, or more with cascades, whose time depends on the query."""
        return self.timing_pairs or (CASCADE_TIMING_PAIRS if self.with_cascades else TIMING_PAIRS)

    @property
    def all_metrics(self) -> tuple[str, ...]:
        """The named metrics, else the preset's, else nDCG@10."""
        return self.metrics or (preset(self.preset).metrics if self.preset else ("nDCG@10",))


class CalibrateConfig(GridConfig):
    """The config of `mrr calibrate`: judged collections, or unlabelled texts.

    Example:
        >>> CalibrateConfig(model="path/to/reranker", texts="pairs.jsonl").collections
        ()
    """

    help_first: ClassVar[tuple[str, ...]] = ("texts", "held_out", *GridConfig.help_first)

    texts: Annotated[Path | None, Flag(metavar="FILE")] = None
    """Unlabelled pairs instead of collections, in the form that mrr self-distill takes: every setting learns full
    size's probabilities."""
    held_out: Annotated[tuple[str, ...], Flag(metavar="COLLECTION")] = ()
    """Measure on this collection too, without fitting on it. Repeatable."""

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if (self.texts is None) == (not self.collections and self.preset is None):
            raise ValueError("give either collections with judgements or texts (--texts)")
        return self


def _exit(setting: Compression, exits: Sequence[int]) -> int | None:
    """The exit that a depth resolves to; a depth below the first exit stays, for the model to refuse."""
    reached = [layer for layer in exits if setting.depth is None or layer <= setting.depth]
    return reached[-1] if reached else setting.depth


def _read_settings(file: Path) -> list[Compression]:
    import yaml

    with reading(file, advice=""):
        rows = yaml.safe_load(file.read_bytes())
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file} must hold a list of settings such as {{depth: 4, keep_ratio: 0.5}}, got {rows!r}.")
    settings = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.keys() <= {"depth", "keep_ratio"}:
            raise ValueError(f"{file}: setting {number} must be {{depth: …, keep_ratio: …}}, got {row!r}.")
        try:
            settings.append(Compression(**row))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: setting {number}: {error}") from None
    return settings
