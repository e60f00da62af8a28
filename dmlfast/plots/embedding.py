"""A picture of an embedding: one point per sample, colour by sub-class, shape by class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlfast._optional import require
from dmlfast.plots._figure import check_matrix, check_png_path, new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

__all__ = ["draw_embedding", "plot_embedding", "projection"]

# Six colours of Okabe and Ito, then the candidates farthest from all before them in OKLab, under
# normal vision and simulated red-green blindness alike: the first n are always the most distinct.
_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#5a0f00"),
    *("#2d0087", "#c300ff", "#a51e69", "#0000ff", "#006900", "#4be1a5", "#7800c3"),
    *("#ff87ff", "#004b5a", "#00c300", "#ffa5b4", "#4b87ff", "#963c00"),
)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")

Names = Sequence[str] | Mapping[int, str]


def projection(embeddings: Tensor) -> Tensor:
    """`embeddings` in two dimensions.

    Two columns are returned as they are and one gets a column of zeros. More are projected on
    the two directions of largest variance (principal components, by singular value decomposition
    of the centred rows in float64), the larger first; each direction is signed such that its
    largest coefficient is positive, so that the same embedding gives the same picture.

    Args:
        embeddings: (N, d) of a floating dtype, N and d at least 1, finite.

    Returns:
        (N, 2) float32 on the CPU. Not differentiable.

    Memory: O(N·d) in float64.

    Raises:
        TypeError: `embeddings` is no Tensor of a floating dtype.
        ValueError: a wrong shape, or rows that are not finite.
    """
    return _project(embeddings)[0]


def draw_embedding(
    axes: Axes,
    embeddings: Tensor,
    subclasses: Tensor,
    *,
    labels: Tensor | None = None,
    class_names: Names | None = None,
    subclass_names: Names | None = None,
    title: str = "",
) -> list[Line2D]:
    """Draw `projection(embeddings)` into `axes`; both axes have the same scale.

    Colours go by the order of the sub-class ids that occur, so panels that show the same
    sub-classes agree. Markers go by class when `labels` holds at most eight different ones.
    Points are drawn in a fixed shuffled order, so that no sub-class hides another.

    Args:
        axes: the matplotlib axes to draw into.
        embeddings: (N, d), as in `projection`.
        subclasses: (N,) of an integer dtype.
        labels: (N,) of an integer dtype, the classes.
        class_names: a name per class, by position or by key; "class" and the label without it.
            Not looked at when the classes have no markers.
        subclass_names: a name per sub-class id, likewise; the id itself without it.
        title: the title of the axes.

    Returns:
        The entries of a legend: sub-classes, then classes when they have markers; empty when there
        are more than 20 sub-classes. It is left to the caller to draw one, for one or many panels.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, rows that are not finite, or a class or sub-class without a name.
    """
    points, shares = _project(embeddings)
    subclass_ids, subclass_of = _check_ids("subclasses", subclasses, points.shape[0])
    class_ids, class_of = [0], torch.zeros_like(subclass_of)
    if labels is not None:
        class_ids, class_of = _check_ids("labels", labels, points.shape[0])
    if labels is None or len(class_ids) > len(_MARKERS):
        class_ids, class_of = [0], torch.zeros_like(subclass_of)
    names = [str(subclass) for subclass in subclass_ids]
    if subclass_names is not None:
        names = names_of("subclass_names", subclass_ids, subclass_names)
    # One class has no entry of its own, so it needs no name either.
    labelled = [f"class {label}" for label in class_ids]
    if class_names is not None and len(class_ids) > 1:
        labelled = names_of("class_names", class_ids, class_names)
    colours = _palette(len(subclass_ids))

    order = torch.randperm(points.shape[0], generator=torch.Generator().manual_seed(0))
    size = min(28.0, max(3.0, 2.0e4 / points.shape[0]))
    for number, marker in enumerate(_MARKERS[: len(class_ids)]):
        chosen = order[class_of[order] == number]
        axes.scatter(
            points[chosen, 0].numpy(),
            points[chosen, 1].numpy(),
            s=size,
            c=[colours[i] for i in subclass_of[chosen].tolist()],
            marker=marker,
            linewidths=0.0,
            alpha=0.8,
        )
    kind = "principal component" if embeddings.shape[1] > 2 else "dimension"
    axes.set_xlabel(f"{kind} 1 ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"{kind} 2 ({shares[1]:.0%} of the variance)")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(title)
    if len(subclass_ids) > len(_COLOURS):
        return []
    return _legend_entries(names, colours, labelled, subclass_of, class_of)


def plot_embedding(
    embeddings: Tensor,
    subclasses: Tensor,
    path: str | os.PathLike[str],
    *,
    labels: Tensor | None = None,
    class_names: Names | None = None,
    subclass_names: Names | None = None,
    title: str = "",
) -> None:
    """Write `draw_embedding` with its legend as a PNG of 1260 x 960 pixels.

    The file is replaced whole: a reader sees the former picture or the new one.

    Args:
        embeddings: (N, d), as in `projection`.
        subclasses: (N,) of an integer dtype.
        path: where to write; ends in .png, in a directory that exists.
        labels: (N,) of an integer dtype, the classes.
        class_names: as in `draw_embedding`.
        subclass_names: as in `draw_embedding`.
        title: the title of the picture.

    Raises:
        TypeError: as `draw_embedding`.
        ValueError: as `draw_embedding`, and for a path that cannot be a PNG.
        ImportError: matplotlib is not installed.
    """
    target = check_png_path(path)
    figure = new_figure(8.4, 6.4)
    entries = draw_embedding(
        figure.add_subplot(),
        embeddings,
        subclasses,
        labels=labels,
        class_names=class_names,
        subclass_names=subclass_names,
        title=title,
    )
    if entries:
        figure.legend(handles=entries, loc="outside right center", fontsize=8, frameon=False)
    save_png(figure, target)


def _project(embeddings: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The (N, 2) projection and the share of the total variance that each column has."""
    rows = check_matrix("embeddings", embeddings, "N, d")
    bad = int((~rows.isfinite().all(dim=1)).sum())
    if bad:
        raise ValueError(f"embeddings: expected finite rows, got {bad} of {rows.shape[0]} not so")
    centred = rows - rows.mean(dim=0)
    points = rows
    if rows.shape[1] > 2:
        directions = torch.linalg.svd(centred, full_matrices=False).Vh[:2]
        largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
        points = centred @ (directions * largest.sign()).T
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    total = float(centred.square().sum()) or 1.0
    first, second = ((points - points.mean(dim=0)).square().sum(dim=0) / total).tolist()
    return points.float(), (first, second)


def _check_ids(name: str, ids: Tensor, rows: int) -> tuple[list[int], Tensor]:
    """The different ids in ascending order, and the position of each row's id among them."""
    if not isinstance(ids, Tensor):
        raise TypeError(f"{name}: expected a Tensor, got {type(ids).__name__}")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer dtype, got {ids.dtype}")
    if ids.shape != (rows,):
        raise ValueError(
            f"{name}: expected shape ({rows},) to match embeddings, got {tuple(ids.shape)}"
        )
    unique, position = torch.unique(ids.to(device="cpu", dtype=torch.int64), return_inverse=True)
    return unique.tolist(), position


def names_of(argument: str, ids: Sequence[int], names: Names) -> list[str]:
    """The name of each id.

    Raises:
        ValueError: an id has none; `argument` is what the message calls `names`.
    """
    for number in ids:
        known = number in names if isinstance(names, Mapping) else 0 <= number < len(names)
        if not known:
            raise ValueError(f"{argument}: expected a name for every id, got none for {number}")
    return [str(names[number]) for number in ids]


def _palette(count: int) -> list[tuple[float, float, float, float]]:
    """`count` colours: the distinct ones while they last, else a colour map from end to end."""
    if count <= len(_COLOURS):
        to_rgba = require("matplotlib.colors", "train").to_rgba
        return [to_rgba(colour) for colour in _COLOURS[:count]]
    turbo = require("matplotlib", "train").colormaps["turbo"]
    return [turbo(i / (count - 1)) for i in range(count)]


def _legend_entries(
    names: Sequence[str],
    colours: Sequence[tuple[float, float, float, float]],
    class_names: Sequence[str],
    subclass_of: Tensor,
    class_of: Tensor,
) -> list[Line2D]:
    line = require("matplotlib.lines", "train").Line2D

    def entry(marker: str, colour: object, text: str) -> Line2D:
        handle: Line2D = line(
            [], [], linestyle="none", marker=marker, color=colour, markersize=6, label=text
        )
        return handle

    entries = []
    for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
        # The class of a sub-class is that of its first sample.
        first = int(class_of[subclass_of == number][0])
        entries.append(entry(_MARKERS[first], colour, name))
    if len(class_names) > 1:
        entries += [
            entry(marker, "#808080", name)
            for marker, name in zip(_MARKERS, class_names, strict=False)
        ]
    return entries
