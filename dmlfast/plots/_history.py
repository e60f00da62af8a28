"""What pictures of a training run share: series of its history, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dmlfast._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

LEVELS = {"class": "#0072b2", "subclass": "#d55e00"}
LEVEL_NAMES = {"class": "class", "subclass": "sub-class"}
SPLITS = {"validation": "-", "test": "--"}

# Steps and values, by ascending step.
Series = tuple[list[float], list[float]]


def series_of(history: Sequence[Mapping[str, object]], key: str) -> Series:
    """Steps and values of the rows in which `key` has a finite value, by ascending step."""
    points = []
    for number, row in enumerate(history):
        if row.get("step") is None:
            raise ValueError(f"history: expected a step in every row, got none in row {number}")
        step = _number(row["step"], "step", number)
        value = row.get(key)
        if value is not None and math.isfinite(_number(value, key, number)):
            points.append((step, _number(value, key, number)))
    points.sort(key=lambda point: point[0])
    return [step for step, _ in points], [value for _, value in points]


def draw_series(
    axes: Axes, series: Series, *, colour: str, split: str | None, marked: bool, label: str
) -> Line2D:
    """A line in the style of its split, with a marker for each evaluation where it is `marked`.

    What is of no split is a thin line.
    """
    (line,) = axes.plot(
        *series,
        color=colour,
        linestyle="-" if split is None else SPLITS[split],
        linewidth=1.2 if split is None else 1.6,
        marker="o" if marked else "",
        markersize=4.0,
        markerfacecolor="white" if split == "test" else colour,
        label=label,
    )
    return line


def step_axis(axes: Axes) -> None:
    """Name the axis of the steps, which are whole, however few there are."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(
        require("matplotlib.ticker", "train").MaxNLocator("auto", integer=True, min_n_ticks=1)
    )


def _number(value: object, key: str, row: int) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(
            f"history: expected numbers, got {type(value).__name__} for {key!r} in row {row}"
        )
    return float(value)
