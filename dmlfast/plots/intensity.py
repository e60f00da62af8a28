"""A picture of how similarity falls with intensity."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlfast.plots._figure import (
    check_matrix,
    check_png_path,
    legend_below,
    new_figure,
    plain,
    save_png,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_intensity"]

_COLOURS = {"train": "#0072b2", "validation": "#009e73", "test": "#d55e00"}
_NAMES = {
    "train": "classes trained on",
    "validation": "validation split",
    "test": "test split",
}
_TITLES = {
    "views": "Views of an image",
    "synthetic": "Synthesised samples, projected",
}
_AXES = {"views": "n, of the transform's strength tanh(0.2 n)", "synthetic": "intensity"}


def plot_intensity(
    similarities: Mapping[str, Mapping[str, Tensor]], path: str | os.PathLike[str]
) -> None:
    """Write how the similarity to a sample falls with the intensity of its variants, as a PNG.

    One panel for each group, 720 x 660 pixels. A line is the mean over the samples of a split, the
    band around it holds the middle half of them, which the legend says. The file is replaced
    whole: a reader sees the former picture or the new one.

    Args:
        similarities: by group ("views", "synthetic" or another name), then by split ("train",
            "validation", "test" or another), (N, J) floating, the columns by rising intensity;
            N and J at least 1.
        path: where to write; ends in .png, in a directory that exists.

    Raises:
        TypeError: similarities that are no tensor of a floating dtype.
        ValueError: a wrong shape, values that are not finite, nothing to draw, or a path that
            cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    panels = {
        group: {split: _check(f"{group}, {split}", rows) for split, rows in splits.items()}
        for group, splits in similarities.items()
    }
    if not any(panels.values()):
        raise ValueError("similarities: expected something to draw, got nothing")
    figure = new_figure(4.8 * len(panels), 4.4)
    axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for panel, (group, splits) in zip(axes, panels.items(), strict=True):
        _draw(panel, group, splits)
    save_png(figure, target)


def _check(where: str, rows: Tensor) -> Tensor:
    values = check_matrix(f"similarities of {where}", rows, "N, J")
    if not values.isfinite().all():
        raise ValueError(f"similarities of {where}: expected finite values")
    return values


def _draw(axes: Axes, group: str, splits: Mapping[str, Tensor]) -> None:
    for number, (split, rows) in enumerate(splits.items()):
        colour = _COLOURS.get(split, f"C{number}")
        steps = list(range(1, rows.shape[1] + 1))
        low, high = torch.quantile(rows, torch.tensor([0.25, 0.75], dtype=rows.dtype), dim=0)
        axes.fill_between(steps, low.tolist(), high.tolist(), color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            steps,
            rows.mean(0).tolist(),
            color=colour,
            marker="o",
            markersize=4.0,
            linewidth=1.6,
            label=_NAMES.get(split, split),
        )
        axes.set_xticks(steps)
    axes.set_title(_TITLES.get(group, group))
    axes.set_xlabel(_AXES.get(group, "intensity"))
    axes.set_ylabel("similarity")
    plain(axes)
    legend_below(axes, "line: mean; band: middle half of the samples")
