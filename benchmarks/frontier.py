"""The frontier picture: quality of every setting against its share of full size's time and FLOPs, as SVG text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor

COLORS = ("#1b6ca8", "#d1495b", "#2e933c", "#b8860b", "#6a4c93", "#00798c")
"""One for each depth, deepest first; again from the start if there are more."""
WIDTH, HEIGHT = 860, 400
LEFT, TOP, PANEL_WIDTH, PANEL_HEIGHT, GAP = 64, 44, 360, 270, 48
STEP = 0.02
"""Between two lines of the grid, in units of the metric."""


@dataclass(frozen=True)
class Point:
    """One setting: its quality, and its cost in each panel as a share of full size's."""

    depth: int
    keep_ratio: float
    quality: float
    costs: tuple[float, ...]
    cascade: str = ""
    """What runs to it, as the legend names it; empty if all documents do."""


@dataclass(frozen=True)
class Axes:
    """Maps quality and a share of cost to pixels of one panel."""

    left: float
    bottom: float
    low: float
    high: float

    def x(self, share: float) -> float:
        """Pixels for a share from 0 to 1.05."""
        return self.left + PANEL_WIDTH * share / 1.05

    def y(self, quality: float) -> float:
        """Pixels for a quality between `low` and `high`."""
        return self.bottom - PANEL_HEIGHT * (quality - self.low) / (self.high - self.low)


def draw(points: Sequence[Point], costs: Sequence[str], metric: str, baselines: Mapping[str, float]) -> str:
    """Draw one panel for each cost: a line for each depth, a mark for each keep ratio, a dashed line for a baseline.

    A cascade is a diamond beside its name.

    The same figures give the same text.

    Args:
        points: The settings, full size first.
        costs: The label of each panel's horizontal axis.
        metric: The label of the vertical axis.
        baselines: Name -> quality of what orders the same candidates without this package.

    Returns:
        The SVG document.
    """
    qualities = [*(point.quality for point in points), *baselines.values()]
    low, high = STEP * floor(min(qualities) / STEP - 0.25), STEP * ceil(max(qualities) / STEP + 0.25)
    ratios = sorted({point.keep_ratio for point in points}, reverse=True)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">',
        f"<title>{escape(metric)} of every setting against {escape(' and '.join(costs))}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 24, metric),
    ]
    for index, label in enumerate(costs):
        axes = Axes(LEFT + index * (PANEL_WIDTH + GAP), TOP + PANEL_HEIGHT, low, high)
        parts += _grid(axes, label, numbered=index == 0)
        parts += _baselines(axes, baselines)
        for depth, color in zip(_depths(points), _colors(points), strict=True):
            own = [point for point in points if point.depth == depth]
            parts += _depth(axes, [point for point in own if not point.cascade], index, ratios, color)
            parts += [part for point in own if point.cascade for part in _cascade(axes, point, index, color)]
    parts += _legend(ratios, dict(zip(_depths(points), _colors(points), strict=True)))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _depths(points: Sequence[Point]) -> list[int]:
    return sorted({point.depth for point in points}, reverse=True)


def _colors(points: Sequence[Point]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(_depths(points)))]


def _grid(axes: Axes, label: str, numbered: bool) -> list[str]:
    right, parts = axes.left + PANEL_WIDTH, []
    for number in range(round(axes.low / STEP), round(axes.high / STEP) + 1):
        y = axes.y(number * STEP)
        parts.append(_line(axes.left, y, right, y, "#e3e3e3"))
        if numbered:
            parts.append(_text(axes.left - 8, y + 4, f"{number * STEP:.2f}", "end"))
    for percent in range(0, 101, 20):
        x = axes.x(percent / 100)
        parts.append(_line(x, TOP, x, axes.bottom, "#f0f0f0"))
        parts.append(_text(x, axes.bottom + 18, f"{percent}%", "middle"))
    parts.append(_line(axes.left, axes.bottom, right, axes.bottom, "#888"))
    parts.append(_text(axes.left + PANEL_WIDTH / 2, axes.bottom + 38, label, "middle"))
    return parts


def _baselines(axes: Axes, baselines: Mapping[str, float]) -> list[str]:
    right, parts = axes.left + PANEL_WIDTH, []
    for name, quality in baselines.items():
        y = axes.y(quality)
        parts.append(_line(axes.left, y, right, y, "#888", ' stroke-dasharray="5 4"'))
        parts.append(_text(right - 4, y - 5, name, "end", ' fill="#666"'))
    return parts


def _depth(axes: Axes, points: Sequence[Point], panel: int, ratios: Sequence[float], color: str) -> list[str]:
    """One depth's settings, from the widest to the narrowest."""
    placed = [(point, axes.x(point.costs[panel]), axes.y(point.quality)) for point in points]
    placed.sort(key=lambda each: -each[0].keep_ratio)
    line = " ".join(f"{x:.1f},{y:.1f}" for _, x, y in placed)
    parts = [f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>']
    for point, x, y in placed:
        label = f"depth {point.depth}, keep_ratio {point.keep_ratio:g}: {point.quality:.3f}"
        parts.append(_mark(ratios.index(point.keep_ratio), x, y, color, label))
    return parts


def _cascade(axes: Axes, point: Point, panel: int, color: str) -> list[str]:
    """A diamond, and its name to the left."""
    x, y = axes.x(point.costs[panel]), axes.y(point.quality)
    corners = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y:.1f} {x:.1f},{y + 7:.1f} {x - 7:.1f},{y:.1f}"
    label = f"depth {point.depth}, keep_ratio {point.keep_ratio:g}, {point.cascade}: {point.quality:.3f}"
    return [
        f'<polygon points="{corners}" fill="{color}" stroke="#222"><title>{escape(label)}</title></polygon>',
        _text(x - 11, y + 4, point.cascade, "end"),
    ]


def _mark(kind: int, x: float, y: float, color: str, label: str) -> str:
    """A full circle, a square, a triangle, then hollow circles: the widest ratio first."""
    title = f"<title>{escape(label)}</title>"
    if kind == 1:
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{color}">{title}</rect>'
    if kind == 2:
        corners = f"{x:.1f},{y - 5:.1f} {x + 5:.1f},{y + 4:.1f} {x - 5:.1f},{y + 4:.1f}"
        return f'<polygon points="{corners}" fill="{color}">{title}</polygon>'
    fill = color if kind == 0 else "#fff"
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{color}">{title}</circle>'


def _legend(ratios: Sequence[float], colors: Mapping[int, str]) -> list[str]:
    y = HEIGHT - 16
    parts, x = [_text(LEFT, y + 4, "depth")], LEFT + 50
    for depth, color in colors.items():
        parts += [_line(x - 9, y, x + 9, y, color, ' stroke-width="4"'), _text(x + 14, y + 4, f"{depth}")]
        x += 56
    x += 24
    parts.append(_text(x, y + 4, "keep_ratio"))
    x += 84
    for index, ratio in enumerate(ratios):
        parts += [_mark(index, x, y, "#555", f"keep_ratio {ratio:g}"), _text(x + 10, y + 4, f"{ratio:g}")]
        x += 60
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, color: str, more: str = "") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
