"""The frontier: which settings no other one beats in both quality and cost; as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrr_model.selection.profile import Profile, ProfilePoint

Cost = Literal["seconds", "flops"]


@dataclass(frozen=True)
class _Axis:
    """One panel of the picture."""

    cost: Cost
    label: str


AXES = (
    _Axis("seconds", "time of a pair, share of full size's"),
    _Axis("flops", "FLOPs of a pair, share of full size's"),
)
COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#6a4c93", "#00798c")


def frontier(points: Sequence[ProfilePoint], cost: Cost) -> list[ProfilePoint]:
    """The points that no other one beats in quality at the same cost or less, cheapest first.

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
    """Quality against time and against FLOPs, every setting labelled, the frontier as a line; PNG, SVG or whatever
    matplotlib writes, by the files' names.
    """
    matplotlib, figure = _figure()
    axes = figure.subplots(1, len(AXES), sharey=True)
    ratios = sorted({point.setting.keep_ratio_text for point in profile.points}, key=_width, reverse=True)
    for axis, panel in zip(AXES, axes, strict=True):
        _draw_panel(panel, profile, axis, ratios)
    axes[0].set_ylabel(f"{profile.metric}, share of full size's ({profile.full.quality:.3f})")
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
    for place, ratio in enumerate(ratios):
        group = [point for point in profile.points if point.setting.keep_ratio_text == ratio]
        panel.scatter(
            [getattr(point, axis.cost) / whole for point in group],
            [point.kept for point in group],
            color=COLORS[place % len(COLORS)],
            label=ratio,
            zorder=2,
        )
        for point in group:
            above = point in line
            panel.annotate(
                str(point.depth),
                (getattr(point, axis.cost) / whole, point.kept),
                textcoords="offset points",
                xytext=(-5, 5) if above else (5, -11),
                ha="right" if above else "left",
                fontsize=9,
                color=COLORS[place % len(COLORS)],
            )
    panel.set_xlabel(f"{axis.label}\n(numbers at points: depth)")
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    panel.set_xlim(left=0)
    panel.grid(color="0.93")
    panel.spines[["top", "right"]].set_visible(False)


def _width(ratio: str) -> float:
    """The last width of a keep ratio in words."""
    return float(ratio.rpartition(":")[2])


def _figure() -> tuple[Any, Any]:
    """The library and an empty figure."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('the picture needs matplotlib: pip install "matryoshka-reranker[eval]"') from error
    return matplotlib, Figure(figsize=(11, 4.8), layout="constrained")
