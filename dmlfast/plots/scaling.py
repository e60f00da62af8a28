"""A picture of cost against size: time and memory, and where each contestant had to stop."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dmlfast._optional import require
from dmlfast.plots._figure import check_png_path, new_figure, plain, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = ["ScalingLine", "plot_scaling"]

_COLORS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#333333")
_KERNEL, _YARDSTICK = "#0072b2", "#8a8a8a"
_MARKS = {"out of memory": "X", "too slow": "D"}

# Names: size, gap to their line, and distance from one to the next in points; inches a letter.
_LABEL_SIZE, _GAP, _LINE, _LETTER = 8.5, 12.0, 11.0, 0.066
_PANEL_WIDTH, _PANEL_HEIGHT = 3.6, 3.8

# Less than this many MiB is below what resident memory, counted in pages and caches, can tell.
_LEAST_MIB = 0.1


@dataclass(frozen=True)
class ScalingLine:
    """One contestant in one picture.

    Attributes:
        name: written at the beginning of the line.
        rows: ascending sizes that were measured.
        seconds: a step's time at each of them.
        mebibytes: a step's memory at each of them, None where it is not known.
        role: "kernel" and "yardstick" have colours of their own; "" for the others.
        stopped: the size at which it had to stop, and why: "out of memory" or "too slow"; None when
            it did not.
    """

    name: str
    rows: Sequence[int]
    seconds: Sequence[float]
    mebibytes: Sequence[float | None]
    role: str = ""
    stopped: tuple[int, str] | None = None


def plot_scaling(
    workloads: Mapping[str, Sequence[ScalingLine]],
    path: str | os.PathLike[str],
    *,
    budget_mebibytes: float,
) -> None:
    """Write time and memory against size as a PNG, a row of two panels for each workload.

    Both axes are logarithmic. A cross stands where a contestant ran out of memory, a diamond where
    it was too slow, at the end of a dotted line that goes on as steeply as before; in the panel of
    the memory the cross stands on the budget, the least that it would have needed. There, what is
    less than 0.1 MiB is drawn as that, and a contestant that needs no more anywhere is left out.
    The file is replaced whole.

    Args:
        workloads: the lines by the title of their row.
        path: where to write; ends in .png, in a directory that exists.
        budget_mebibytes: the memory that a contestant may take, drawn as a line.

    Raises:
        ValueError: nothing to draw, or a path that cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    drawn = {title: lines for title, lines in workloads.items() if any(line.rows for line in lines)}
    if not drawn:
        raise ValueError("workloads: expected a line with a measured size, got none")
    longest = max(len(line.name) for lines in drawn.values() for line in lines)
    room = _LETTER * longest + _GAP / 72 + 0.1
    figure = new_figure(2 * (_PANEL_WIDTH + room) + 1.2, _PANEL_HEIGHT * len(drawn) + 0.3)
    panels = figure.subplots(len(drawn), 2, squeeze=False)
    labels = []
    for row, (title, lines) in zip(panels, drawn.items(), strict=True):
        _frame(row[0], lines, room, f"{title}\ntime of a step")
        _frame(row[1], lines, room, f"{title}\nmemory of a step")
        labels.append(_draw_time(row[0], lines))
        labels.append(_draw_memory(row[1], lines, budget_mebibytes))
    _explain_marks(figure, drawn.values())
    _part(figure, labels)
    save_png(figure, target)


def _frame(axes: Axes, lines: Sequence[ScalingLine], room: float, title: str) -> None:
    ticker = require("matplotlib.ticker", "train")
    sizes = sorted({n for line in lines for n in _sizes(line)})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(y=0.1)
    # Names stand to the left of the least size, where there are no lines.
    span = math.log2(sizes[-1] / sizes[0]) if len(sizes) > 1 else 1.0
    axes.set_xlim(sizes[0] * 2 ** (-span * room / _PANEL_WIDTH), sizes[-1] * 2 ** (0.06 * span))
    shown = sizes[:: max(1, math.ceil(len(sizes) / 8))]
    axes.xaxis.set_major_locator(ticker.FixedLocator(shown))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda n, _: _size_text(n)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("N (batch size)", loc="right")
    plain(axes)


def _size_text(size: float) -> str:
    return f"{size / 1024:g}k" if size >= 1024 and size % 1024 == 0 else f"{size:g}"


def _sizes(line: ScalingLine) -> list[int]:
    return [*line.rows, line.stopped[0]] if line.stopped else list(line.rows)


def _draw_time(axes: Axes, lines: Sequence[ScalingLine]) -> list[Annotation]:
    ticker = require("matplotlib.ticker", "train")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: _time_text(value)))
    labels = []
    for line, color in _coloured(lines):
        points = list(zip(line.rows, line.seconds, strict=True))
        if not points:
            continue
        end = None
        if line.stopped:
            end = (line.stopped[0], _continued(points, line.stopped[0]))
        labels.append(_draw(axes, line, color, points, end))
    return labels


def _time_text(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        # A power of ten may lie just below what it is meant to be.
        if seconds >= 0.999 * size:
            return f"{round(seconds / size, 3):g} {unit}"
    return f"{seconds:g} s"


def _draw_memory(
    axes: Axes, lines: Sequence[ScalingLine], budget_mebibytes: float
) -> list[Annotation]:
    ticker = require("matplotlib.ticker", "train")
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g} MiB"))
    labels = []
    sizes = [n for line in lines for n in _sizes(line)]
    ends = (min(sizes), max(sizes))
    style = (0, (6, 3))
    axes.plot(ends, 2 * (budget_mebibytes,), color="#999999", linewidth=0.9, linestyle=style)
    axes.annotate(
        f"budget: {budget_mebibytes / 1024:g} GiB",
        (ends[1], budget_mebibytes),
        (0, 6),
        textcoords="offset points",
        horizontalalignment="right",
        fontsize=_LABEL_SIZE,
        color="#666666",
    )
    for line, color in _coloured(lines):
        known = [
            pair for pair in zip(line.rows, line.mebibytes, strict=True) if pair[1] is not None
        ]
        points = [(n, max(value or 0.0, _LEAST_MIB)) for n, value in known]
        if line.rows and all(value == _LEAST_MIB for _, value in points):
            continue
        end = None
        if line.stopped:
            n, why = line.stopped
            if why == "out of memory":
                end = (n, budget_mebibytes)
            elif points:
                end = (n, _continued(points, n))
        if points or end:
            labels.append(_draw(axes, line, color, points, end))
    return labels


def _continued(points: Sequence[tuple[int, float]], n: int) -> float:
    """The value at `n` of a line that goes on as steeply as between its last two points."""
    (last_n, last) = points[-1]
    slope = 2.0
    if len(points) > 1:
        (former_n, former) = points[-2]
        slope = math.log(last / former) / math.log(last_n / former_n)
    return float(last * (n / last_n) ** slope)


def _coloured(lines: Sequence[ScalingLine]) -> Iterable[tuple[ScalingLine, str]]:
    others = iter(_COLORS * (1 + len(lines) // len(_COLORS)))
    for line in lines:
        own = {"kernel": _KERNEL, "yardstick": _YARDSTICK}.get(line.role)
        yield line, own or next(others)


def _draw(
    axes: Axes,
    line: ScalingLine,
    color: str,
    points: Sequence[tuple[int, float]],
    end: tuple[int, float] | None,
) -> Annotation:
    """A line with its name; `end` is where it had to stop."""
    own = line.role == "kernel"
    axes.plot(
        [n for n, _ in points],
        [value for _, value in points],
        color=color,
        linewidth=2.6 if own else 1.6,
        marker="o",
        markersize=5.0 if own else 3.5,
        zorder=4 if own else 3,
    )
    if end is not None:
        path = [*points[-1:], end]
        axes.plot(
            [n for n, _ in path],
            [value for _, value in path],
            color=color,
            linewidth=1.2,
            linestyle=":",
            zorder=2,
        )
        mark = _MARKS[line.stopped[1]] if line.stopped else ""
        axes.plot(*end, color=color, marker=mark, markersize=8, markeredgecolor="white", zorder=5)
    return axes.annotate(
        line.name,
        points[0] if points else end or (1, 1),
        (-_GAP, 0),
        textcoords="offset points",
        horizontalalignment="right",
        verticalalignment="center",
        arrowprops={
            "arrowstyle": "-",
            "color": color,
            "linewidth": 0.7,
            "relpos": (1.0, 0.5),
            "shrinkA": 1,
            "shrinkB": 2,
        },
        color=color,
        fontsize=_LABEL_SIZE,
        fontweight="bold" if own else "normal",
        zorder=6,
    )


def _explain_marks(figure: Figure, rows: Iterable[Sequence[ScalingLine]]) -> None:
    lines = require("matplotlib.lines", "train")
    reasons = {line.stopped[1] for row in rows for line in row if line.stopped}
    marks = [
        lines.Line2D([], [], color="#666666", marker=_MARKS[why], linestyle=":", label=why)
        for why in _MARKS
        if why in reasons
    ]
    if marks:
        figure.legend(
            handles=marks, loc="outside lower left", ncols=len(marks), fontsize=9, frameon=False
        )


def _part(figure: Figure, panels: Sequence[Sequence[Annotation]]) -> None:
    """Move the names of a panel that cover each other apart, by as little as it takes."""
    # Only a drawing knows where they are.
    figure.draw_without_rendering()
    points_per_pixel = 72 / figure.dpi
    for labels in panels:
        axes = labels[0].axes if labels else None
        if axes is None:
            continue
        own = [float(axes.transData.transform(label.xy)[1]) * points_per_pixel for label in labels]
        floor = axes.bbox.y0 * points_per_pixel + _LINE / 2
        for label, before, after in zip(labels, own, spread(own, _LINE, floor), strict=True):
            label.xyann = (-_GAP, after - before)


def spread(heights: Sequence[float], least: float, floor: float = -math.inf) -> list[float]:
    """The nearest heights, in the sense of least squares, of which no two are closer than `least`.

    In the order given; equal heights rise in that order. Those that would lie below `floor` rise
    to it, and push the others on.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # Without the distances to keep, the heights only have to rise: neighbours that do not are
    # pooled, and share their mean.
    pools: list[list[float]] = []
    for place, number in enumerate(order):
        pools.append([heights[number] - place * least])
        while len(pools) > 1 and math.fsum(pools[-2]) * len(pools[-1]) > math.fsum(pools[-1]) * len(
            pools[-2]
        ):
            pools[-2:] = [pools[-2] + pools[-1]]
    means = [math.fsum(pool) / len(pool) for pool in pools for _ in pool]
    found = [0.0] * len(heights)
    for place, number in enumerate(order):
        found[number] = max(means[place], floor) + place * least
    return found
