"""A picture of how far the classes of a training run collapse, against the step."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dmlfast.plots._figure import check_png_path, new_figure, plain, save_png
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
    from matplotlib.lines import Line2D

__all__ = ["plot_collapse"]

_COLOURS = {**LEVELS, "collapse": "#333333"}
_NAMES = {**LEVEL_NAMES, "collapse": "embedding"}
_TRAINING, _GREY = "training batches", "#999999"
# Beyond this many evaluations, a marker for each would hide the line.
_MOST_MARKERS = 30


class _Panel(NamedTuple):
    """What is drawn of one metric.

    Attributes:
        groups: those that have it.
        title: its name.
        unit: what it is counted or measured in.
        greatest: the upper end of the axis; None for what the values need.
    """

    groups: tuple[str, ...]
    title: str
    unit: str
    greatest: float | None = None


_OF_CLUSTERS = ("class", "subclass")
_PANELS = {
    "class_distance_ratio": _Panel(
        ("collapse",), "Class distance ratio", "mean in a class / between classes"
    ),
    "subclass_distance_ratio": _Panel(
        ("collapse",), "Sub-class distance ratio", "mean in one / between those of a class"
    ),
    "effective_rank": _Panel(("collapse",), "Effective rank", "dimensions"),
    "active_triplets": _Panel(("collapse",), "Active triplets", "share of the anchors", 1.0),
    "purity": _Panel(_OF_CLUSTERS, "Purity of clusters", "share of the images", 1.0),
    "nmi": _Panel(_OF_CLUSTERS, "NMI of clusters", "share of the entropy", 1.0),
    "ami": _Panel(_OF_CLUSTERS, "AMI of clusters", "share of the entropy above chance", 1.0),
}


def plot_collapse(
    history: Sequence[Mapping[str, object]],
    path: str | os.PathLike[str],
    *,
    training_triplets: bool = False,
) -> None:
    """Write the collapse metrics against the step as a PNG: a small panel each.

    The metrics are those of `dmlfast.evaluation.evaluate_collapse` and of k-means clusters, by
    `evaluate_clustering`. Panels are 510 x 450 pixels, in two rows where there are more than three;
    the place after the last has the legend. Every axis begins at 0, or below where a value is.
    Classes, sub-classes and what is of the whole embedding differ in colour, validation and test in
    line style. The file is replaced whole: a reader sees the former picture or the new one.

    Args:
        history: rows such as `{"step": 50, "test/collapse/effective_rank": 9.3}`. Read are
            `{validation|test}/collapse/{class_distance_ratio|subclass_distance_ratio|
            effective_rank|active_triplets}` and `{validation|test}/{class|subclass}/
            {purity|nmi|ami}`; any but `step` may be missing, None or NaN in any row, and other
            keys are ignored. Rows in any order.
        path: where to write; ends in .png, in a directory that exists.
        training_triplets: draw `active` too, as the share of the anchors of training batches that
            have an active triplet.

    Raises:
        TypeError: a value that is not a number.
        ValueError: a row without a step, nothing to draw, or a path that cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    drawn = {metric: _lines(history, metric) for metric in _PANELS}
    drawn = {metric: lines for metric, lines in drawn.items() if lines}
    if not drawn:
        raise ValueError(f"history: expected a metric to draw, got none in {len(history)} rows")
    batches = series_of(history, "active") if training_triplets else ([], [])
    cells = len(drawn) + 1
    rows = 1 if cells <= 4 else 2
    columns = -(-cells // rows)
    figure = new_figure(3.4 * columns, 3.0 * rows)
    panels: list[Axes] = list(figure.subplots(rows, columns, squeeze=False).flatten())
    entries: dict[str, Line2D] = {}
    for axes, (metric, lines) in zip(panels, drawn.items(), strict=False):
        if metric == "active_triplets" and batches[0]:
            entries[_TRAINING] = draw_series(
                axes, batches, colour=_GREY, split=None, marked=_marked([batches]), label=_TRAINING
            )
        entries |= _draw(axes, _PANELS[metric], lines)
    for axes in panels[len(drawn) :]:
        axes.set_axis_off()
    panels[len(drawn)].legend(
        entries.values(), entries.keys(), loc="center", fontsize=9, frameon=False
    )
    save_png(figure, target)


def _lines(history: Sequence[Mapping[str, object]], metric: str) -> dict[tuple[str, str], Series]:
    """The series of a metric by (group, split), without the empty ones."""
    lines = {
        (group, split): series_of(history, f"{split}/{group}/{metric}")
        for group in _PANELS[metric].groups
        for split in SPLITS
    }
    return {key: series for key, series in lines.items() if series[0]}


def _marked(lines: Iterable[Series]) -> bool:
    """Whether each evaluation has a marker, without which a single one would not show."""
    return max(len(steps) for steps, _ in lines) <= _MOST_MARKERS


def _draw(axes: Axes, panel: _Panel, lines: Mapping[tuple[str, str], Series]) -> dict[str, Line2D]:
    """Draw a panel; returns its lines by what the legend calls them."""
    marked = _marked(lines.values())
    entries = {}
    for (group, split), series in lines.items():
        label = f"{_NAMES[group]}, {split}"
        entries[label] = draw_series(
            axes, series, colour=_COLOURS[group], split=split, marked=marked, label=label
        )
    axes.set_title(panel.title, fontsize=11)
    axes.set_ylabel(panel.unit, fontsize=8)
    values = [value for _, values in lines.values() for value in values]
    least = min(0.0, *values)
    greatest = (panel.greatest or max(values)) - least or 1.0
    # Room for markers at the ends.
    axes.set_ylim(least - 0.03 * greatest, least + 1.05 * greatest)
    step_axis(axes)
    plain(axes)
    return entries
