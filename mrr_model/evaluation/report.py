"""The results of an evaluation as data, tables and pictures.

`results.json` holds all numbers, `table.md` shows them, and `frontier.png` and `frontier.svg` draw quality against time
and FLOPs, with the settings and cascades that nothing else beats in both as a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any, Literal

import torch
import transformers

from mrr_model import __version__
from mrr_model.evaluation.cascades import Measured, measured_of
from mrr_model.evaluation.metrics import Comparison, RunMetrics
from mrr_model.files.atomic import write_file
from mrr_model.selection.profile import Profile, ProfilePoint

FIRST_STAGE = "first stage"
FULL_SIZE = "full size"
SIGNIFICANT = 0.05
STAR = (
    f"`*`: differs significantly from full size (paired t-test, p < {SIGNIFICANT}, not corrected for the number of "
    "settings)"
)

Cost = Literal["seconds", "flops"]


@dataclass(frozen=True)
class CollectionResult:
    """One collection: the metrics of the first stage and of every setting."""

    name: str
    source: str
    """As the user named it."""
    queries: int
    pairs: int
    identical_ids: int
    """Number of candidates that were left out because their id is their query's own."""
    first_stage: RunMetrics
    settings: dict[Measured, RunMetrics]
    """Full size first, cascades last."""
    against_full: dict[Measured, dict[str, Comparison]]
    """Setting or cascade -> metric -> its difference to full size, on the same queries."""


@dataclass(frozen=True)
class Evaluation:
    """The results on all collections, and the profile over them."""

    collections: tuple[CollectionResult, ...]
    profile: Profile
    weights: str
    """The fingerprint of the weights and adapters that were evaluated."""

    def markdown(self) -> str:
        """A Markdown table with one row per setting and cascade, and notes below it.

        Returns:
            The profile's metric on each collection and on average, the share of full size's quality, milliseconds per
            pair, and the shares of full size's time and FLOPs. Notes explain the star, count the candidates that were
            left out because they have the query's own id, and say if the times are noisy.
        """
        profile, full = self.profile, self.profile.full
        names = [result.name for result in self.collections]
        lines = [
            f"| {profile.metric} | {' | '.join(names)} | mean | quality kept | ms per pair | time vs full size "
            "| FLOPs vs full size |",
            "| --- |" + " ---: |" * (len(names) + 5),
        ]
        first = [result.first_stage.mean[profile.metric] for result in self.collections]
        lines.append(f"| {FIRST_STAGE} | {' | '.join(f'{value:.3f}' for value in [*first, mean(first)])} |  |  |  |  |")
        for point in profile.points:
            name = FULL_SIZE if point == full else str(point)
            cells = [_cell(result, measured_of(point), profile.metric) for result in self.collections]
            cells += [f"{point.quality:.3f}", f"{point.kept:.1%}", f"{point.seconds * 1000:.2f}"]
            cells += [f"{point.seconds / full.seconds:.0%}", f"{point.flops / full.flops:.0%}"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join([*lines, *(line for note in self._notes() for line in ("", note))])

    def _notes(self) -> list[str]:
        notes = [STAR, *(note for point in self.profile.points if (note := _cascade_note(point)))]
        if any(result.identical_ids for result in self.collections):
            counts = ", ".join(f"{result.name} {result.identical_ids}" for result in self.collections)
            notes.append(f"Candidates left out because they have their query's own id, as in BEIR: {counts}")
        if self.profile.noise is not None and self.profile.noise.noisy:
            notes.append(f"Times are {self.profile.noise}; `--retime` measures them again")
        return notes


def write_queries(file: Path, metrics: Mapping[Measured, RunMetrics]) -> None:
    """Write each query's metrics at each setting and cascade as JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "setting": setting.file_name,
            "query": query,
            **{name: by_query[query] for name, by_query in each.by_query.items()},
        }
        for setting, each in metrics.items()
        for query in next(iter(each.by_query.values()))
    ]
    write_file(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_results(evaluation: Evaluation, output: Path, model: str, protocol: Mapping[str, Any]) -> None:
    """Write `results.json`, `table.md` and the pictures.

    Args:
        evaluation: The results.
        output: The folder.
        model: The model's name.
        protocol: What else `results.json` states of how the results were made, such as the seed.
    """
    profile = evaluation.profile
    results = {
        "model": model,
        **protocol,
        "versions": {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "profile": profile.model_dump(mode="json"),
        "collections": [_as_json(result) for result in evaluation.collections],
    }
    write_file(output / "results.json", json.dumps(results, indent=1) + "\n")
    write_file(output / "table.md", evaluation.markdown() + "\n")
    title = f"{model}: {', '.join(profile.collections)} ({profile.queries} queries)"
    draw(profile, title, [output / "frontier.png", output / "frontier.svg"])


def _as_json(result: CollectionResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "source": result.source,
        "queries": result.queries,
        "pairs": result.pairs,
        "identical_ids_left_out": result.identical_ids,
        "first_stage": result.first_stage.mean,
        "settings": {setting.file_name: each.mean for setting, each in result.settings.items()},
        "against_full": {
            setting.file_name: {name: _without_nan(asdict(compared)) for name, compared in each.items()}
            for setting, each in result.against_full.items()
        },
    }


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN; null replaces it."""
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


def _cell(result: CollectionResult, measured: Measured, metric: str) -> str:
    compared = result.against_full.get(measured, {}).get(metric)
    star = "*" if compared is not None and compared.p_value < SIGNIFICANT else ""
    return f"{result.settings[measured].mean[metric]:.3f}{star}"


def _cascade_note(point: ProfilePoint) -> str:
    """What a cascade loses; empty for a point without one."""
    cascade = point.cascade
    if cascade is None or cascade.held_out is None:
        return ""
    best = "the setting's best documents" if cascade.top_n is None else f"the setting's best {cascade.top_n}"
    which = "the queries" if cascade.lost is None else "the queries that it was not fitted on"
    return f"`{point}`: {cascade.held_out:.1%} of {which} lose one of {best}"


@dataclass(frozen=True)
class _Axis:
    """One panel of the picture."""

    cost: Cost
    label: str


AXES = (
    _Axis("seconds", "time per pair, relative to full size"),
    _Axis("flops", "FLOPs per pair, relative to full size"),
)
COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#00798c")


def frontier(points: Sequence[ProfilePoint], cost: Cost) -> list[ProfilePoint]:
    """The points that no other point beats in quality at the same cost or less, cheapest first.

    >>> full = ProfilePoint(depth=6, quality=0.8, kept=1.0, min_kept=1.0, seconds=1.0, flops=4.0)
    >>> worse = ProfilePoint(depth=5, quality=0.7, kept=0.9, min_kept=0.9, seconds=0.9, flops=3.5)
    >>> better = ProfilePoint(depth=4, quality=0.75, kept=0.94, min_kept=0.94, seconds=0.7, flops=2.5)
    >>> [point.depth for point in frontier([full, worse, better], "seconds")]
    [4, 6]
    """
    best: list[ProfilePoint] = []
    for point in sorted(points, key=lambda point: (getattr(point, cost), -point.quality)):
        if not best or point.quality > best[-1].quality:
            best.append(point)
    return best


def draw(profile: Profile, title: str, files: Sequence[Path]) -> None:
    """Draw quality against time and against FLOPs, with every setting and cascade labelled, and the frontier as a line.

    Args:
        profile: The settings with their quality and cost.
        title: The picture's title.
        files: Where to write; the ending chooses the format, such as `.png` or `.svg`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    matplotlib, figure = _figure()
    axes = figure.subplots(1, len(AXES), sharey=True)
    ratios = sorted({point.setting.keep_ratio_text for point in profile.points}, key=_width, reverse=True)
    for axis, panel in zip(AXES, axes, strict=True):
        _draw_panel(panel, profile, axis, ratios)
    axes[0].set_ylabel(f"{profile.metric}, relative to full size ({profile.full.quality:.3f})")
    axes[0].legend(title="keep ratio", loc="lower right", frameon=False)
    figure.suptitle(title, parse_math=False)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        # No date and no random ids: the same numbers give the same file.
        metadata = {"Date": None} if file.suffix == ".svg" else None
        with matplotlib.rc_context({"svg.hashsalt": "matryoshka-reranker"}):
            figure.savefig(file, dpi=150, metadata=metadata)


def _draw_panel(panel: Any, profile: Profile, axis: _Axis, ratios: Sequence[str]) -> None:
    whole = getattr(profile.full, axis.cost)
    line = frontier(profile.points, axis.cost)
    panel.plot(
        [getattr(point, axis.cost) / whole for point in line], [point.kept for point in line], color="0.75", zorder=1
    )
    for index, ratio in enumerate(ratios):
        group = [point for point in profile.fixed if point.setting.keep_ratio_text == ratio]
        panel.scatter(
            [getattr(point, axis.cost) / whole for point in group],
            [point.kept for point in group],
            color=COLORS[index % len(COLORS)],
            label=ratio,
            zorder=2,
        )
        cascaded = [point for point in profile.points if point.cascade and point.setting.keep_ratio_text == ratio]
        panel.scatter(
            [getattr(point, axis.cost) / whole for point in cascaded],
            [point.kept for point in cascaded],
            color=COLORS[index % len(COLORS)],
            marker="D",
            label=f"{ratio}, with a cascade" if cascaded else None,
            zorder=3,
        )
        for point in [*group, *cascaded]:
            above = point in line
            panel.annotate(
                str(point.depth) if point.cascade is None else str(point.cascade.cascade),
                (getattr(point, axis.cost) / whole, point.kept),
                textcoords="offset points",
                xytext=(-5, 5) if above else (5, -11),
                ha="right" if above else "left",
                fontsize=9,
                color=COLORS[index % len(COLORS)],
            )
    cascades = "" if len(profile.fixed) == len(profile.points) else ", or the cascade's stages"
    panel.set_xlabel(f"{axis.label}\n(labels: depth{cascades})")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set_xlim(left=0)
    panel.grid(color="0.93")
    panel.spines[["top", "right"]].set_visible(False)


def _width(ratio: str) -> float:
    """The last width of a keep ratio in its text form."""
    return float(ratio.rpartition(":")[2])


def _figure() -> tuple[Any, Any]:
    """The library and an empty figure."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the pictures need matplotlib: pip install "matryoshka-reranker[eval]"') from error
    return matplotlib, Figure(figsize=(11, 4.8), layout="constrained")
