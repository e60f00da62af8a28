"""A picture of a training run: loss and retrieval metrics against the step."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dmlfast.plots._figure import check_png_path, legend_below, new_figure, plain, save_png
from dmlfast.plots._history import (
    LEVEL_NAMES,
    LEVELS,
    SPLITS,
    Series,
    draw_series,
    series_of,
    step_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves"]

_PANELS = {"map@r": "MAP@R", "recall@1": "Recall@1"}

# From this many steps on, the loss is also drawn as its running mean.
_SMOOTH_FROM = 60


def plot_curves(history: Sequence[Mapping[str, object]], path: str | os.PathLike[str]) -> None:
    """Write the training loss and the retrieval metrics against the step as a PNG.

    One panel each for the loss, MAP@R and Recall@1, as far as `history` has them, each 720 x 660
    pixels. Classes and sub-classes differ in colour, validation and test in line style. From 60
    losses on, a running mean over a tenth of them lies over the loss. The file is replaced
    whole: a reader sees the former picture or the new one.

    Args:
        history: rows such as `{"step": 50, "loss": 0.1, "validation/class/map@r": 0.4}`. Read are
            `loss` and `{validation|test}/{class|subclass}/{map@r|recall@1}`; any but `step` may be
            missing, None or NaN in any row, and other keys are ignored. Rows in any order.
        path: where to write; ends in .png, in a directory that exists.

    Raises:
        TypeError: a value that is not a number.
        ValueError: a row without a step, nothing to draw, or a path that cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    loss = series_of(history, "loss")
    metrics = {metric: _metric_lines(history, metric) for metric in _PANELS}
    panels = [metric for metric, lines in metrics.items() if lines]
    if not loss[0] and not panels:
        raise ValueError(
            f"history: expected a loss or a metric to draw, got none in {len(history)} rows"
        )
    count = bool(loss[0]) + len(panels)
    figure = new_figure(4.8 * count, 4.4)
    axes: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    if loss[0]:
        _draw_loss(axes.pop(0), loss)
    for panel, metric in zip(axes, panels, strict=True):
        _draw_metric(panel, _PANELS[metric], metrics[metric])
    save_png(figure, target)


def _metric_lines(
    history: Sequence[Mapping[str, object]], metric: str
) -> dict[tuple[str, str], Series]:
    """The series of `metric` by (split, level), without the empty ones."""
    lines = {
        (split, level): series_of(history, f"{split}/{level}/{metric}")
        for level in LEVELS
        for split in SPLITS
    }
    return {key: series for key, series in lines.items() if series[0]}


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and its neighbours, up to `width // 2` on either side."""
    half = width // 2
    means = []
    for place in range(len(values)):
        # As many on the left as on the right, fewer near the ends: no lag, no bend.
        reach = min(half, place, len(values) - 1 - place)
        window = values[place - reach : place + reach + 1]
        means.append(math.fsum(window) / len(window))
    return means


def _draw_loss(axes: Axes, loss: Series) -> None:
    steps, values = loss
    smooth = len(values) >= _SMOOTH_FROM
    axes.plot(
        steps,
        values,
        color="#bbbbbb" if smooth else "#333333",
        linewidth=0.8 if smooth else 1.6,
        marker="." if len(values) == 1 else "",
        label="as logged",
    )
    if smooth:
        mean = _running_mean(values, len(values) // 10)
        axes.plot(steps, mean, color="#333333", linewidth=1.6, label="running mean")
    _finish(axes, "Training loss", legend=smooth)


def _draw_metric(axes: Axes, title: str, lines: Mapping[tuple[str, str], Series]) -> None:
    marked = max(len(steps) for steps, _ in lines.values()) <= 30
    for (split, level), series in lines.items():
        draw_series(
            axes,
            series,
            colour=LEVELS[level],
            split=split,
            marked=marked,
            label=f"{LEVEL_NAMES[level]}, {split}",
        )
    _finish(axes, title, legend=True)


def _finish(axes: Axes, title: str, *, legend: bool) -> None:
    axes.set_title(title)
    step_axis(axes)
    plain(axes)
    if legend:
        legend_below(axes)
