"""A picture of what a search found: queries at the left, their neighbours at the right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlfast._optional import require
from dmlfast.ops._arguments import describe
from dmlfast.plots._figure import check_png_path, new_figure, save_png
from dmlfast.plots.embedding import Names, names_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

__all__ = ["plot_neighbors"]

_RIGHT, _WRONG, _UNKNOWN = "#009e73", "#d4351c", "#999999"
_PLAIN = "#333333"
_PANEL = 0.82  # inches


def plot_neighbors(
    queries: Tensor,
    references: Tensor,
    index: Tensor,
    path: str | os.PathLike[str],
    *,
    query_labels: Tensor | None = None,
    reference_labels: Tensor | None = None,
    class_names: Names | None = None,
    title: str = "",
) -> None:
    """Write a grid of pictures as a PNG: a row for each query, at its right the nearest first.

    Each picture whose label is given has the name of its class below it. With both labels,
    neighbours of the query's class have a green frame and others a red, broken one. Title and
    legend are never cut off: the picture is as wide as they need. The file is replaced whole: a
    reader sees the former picture or the new one.

    Args:
        queries: (N, 1, H, W) floating images, ink 1 on ground 0, N at least 1.
        references: (M, 1, H, W) likewise.
        index: (N, k) int64 rows of the references, k at least 1; -1 leaves a place empty.
        path: where to write; ends in .png, in a directory that exists.
        query_labels: (N,) of an integer dtype, the classes.
        reference_labels: (M,) likewise.
        class_names: a name per class, by position or by key; the label itself without it.
        title: of the picture.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, a row that is no reference, a class without a name, or a path
            that cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    figure = _figure_of(
        _check_images("queries", queries),
        _check_images("references", references),
        _check_index(index, len(queries), len(references)),
        _check_labels("query_labels", query_labels, len(queries)),
        _check_labels("reference_labels", reference_labels, len(references)),
        class_names,
        title,
    )
    save_png(figure, target)


def _figure_of(
    queries: Tensor,
    references: Tensor,
    index: Tensor,
    query_labels: Tensor | None,
    reference_labels: Tensor | None,
    class_names: Names | None,
    title: str,
) -> Figure:
    rows, columns = index.shape
    names = _class_names(query_labels, reference_labels, class_names)
    named = 0.22 if names else 0.0
    # The queries stand a little apart.
    widths = [1.0, 0.18, *[1.0] * columns]
    figure = new_figure(_PANEL * (sum(widths) + 0.4), (_PANEL + named) * rows + 0.8, pad=0.04)
    grid = figure.add_gridspec(rows, columns + 2, width_ratios=widths)
    for row in range(rows):
        own = None if query_labels is None else int(query_labels[row])
        axes = figure.add_subplot(grid[row, 0])
        _draw(axes, queries[row], _PLAIN, "-", names.get(own, ""))
        if row == 0:
            axes.set_title("query", fontsize=9)
        for place, found in enumerate(index[row].tolist()):
            axes = figure.add_subplot(grid[row, place + 2])
            if row == 0:
                axes.set_title(str(place + 1), fontsize=9)
            if found < 0:
                axes.set_axis_off()
                continue
            other = None if reference_labels is None else int(reference_labels[found])
            known = own is not None and other is not None
            colour = (_RIGHT if own == other else _WRONG) if known else _UNKNOWN
            style = "--" if known and own != other else "-"
            _draw(axes, references[found], colour, style, names.get(other, ""))
    across: list[Artist] = []
    if title:
        across.append(figure.suptitle(title, fontsize=10))
    if query_labels is not None and reference_labels is not None:
        across.append(_legend(figure))
    _widen(figure, across)
    return figure


def _widen(figure: Figure, across: Sequence[Artist]) -> None:
    """Make the figure as wide as what goes across it, if the panels are not."""
    width, height = figure.get_size_inches()
    needed = [artist.get_window_extent().width / figure.dpi + 0.2 for artist in across]
    figure.set_size_inches(max([width, *needed]), height)


def _draw(axes: Axes, image: Tensor, colour: str, style: str, name: str) -> None:
    axes.imshow(image[0].numpy(), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.2, linestyle=style)
    if name:
        # The grey of a frame that says nothing is too light for letters.
        dark = _PLAIN if colour == _UNKNOWN else colour
        axes.set_xlabel(name, fontsize=8, labelpad=2, color=dark, parse_math=False)


def _legend(figure: Figure) -> Legend:
    line = require("matplotlib.lines", "train").Line2D
    entries = [
        line([], [], color=_RIGHT, linewidth=2.2, label="class of the query"),
        line([], [], color=_WRONG, linewidth=2.2, linestyle="--", label="another class"),
    ]
    return figure.legend(
        handles=entries, loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )


def _class_names(
    query_labels: Tensor | None, reference_labels: Tensor | None, class_names: Names | None
) -> dict[int | None, str]:
    """The name of each class that occurs; none without labels."""
    given = [labels for labels in (query_labels, reference_labels) if labels is not None]
    if not given:
        return {}
    ids = torch.cat(given).unique().tolist()
    if class_names is None:
        return {label: str(label) for label in ids}
    return dict(zip(ids, names_of("class_names", ids, class_names), strict=True))


def _check_images(name: str, images: object) -> Tensor:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point Tensor, got {describe(images)}")
    if images.dim() != 4 or images.shape[1] != 1 or 0 in images.shape:
        raise ValueError(f"{name}: expected shape (N, 1, H, W), got {tuple(images.shape)}")
    return images.detach().cpu().float()


def _check_index(index: object, rows: int, references: int) -> Tensor:
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index: expected a Tensor of int64, got {describe(index)}")
    if index.dim() != 2 or index.shape[0] != rows or index.shape[1] == 0:
        raise ValueError(f"index: expected shape ({rows}, k), got {tuple(index.shape)}")
    if not -1 <= int(index.min()) <= int(index.max()) < references:
        raise ValueError(
            f"index: expected rows from 0 to {references - 1}, or -1 for none, got some from "
            f"{int(index.min())} to {int(index.max())}"
        )
    return index.cpu()


def _check_labels(name: str, labels: object, rows: int) -> Tensor | None:
    if labels is None:
        return None
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"{name}: expected a Tensor of an integer dtype, got {describe(labels)}")
    if labels.shape != (rows,):
        raise ValueError(f"{name}: expected shape ({rows},), got {tuple(labels.shape)}")
    return labels.to(device="cpu", dtype=torch.int64)
