"""Figures without pyplot: no global state, no display, safe in any thread; and their look."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlfast._optional import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150


def new_figure(width: float, height: float, pad: float = 0.08) -> Figure:
    """An empty figure of `width` x `height` inches, laid out so that no label is cut off.

    Panels keep `pad` inches around them.
    """
    engine = require("matplotlib.layout_engine", "train").ConstrainedLayoutEngine(
        w_pad=pad, h_pad=pad
    )
    figure: Figure = require("matplotlib.figure", "train").Figure(
        figsize=(width, height), layout=engine, facecolor="white"
    )
    return figure


def check_png_path(path: str | os.PathLike[str]) -> Path:
    """`path`, checked to end in .png and to lie in a directory that exists.

    Raises:
        ValueError: it does not.
    """
    target = Path(path)
    if target.suffix.lower() != ".png":
        raise ValueError(f"path: expected a name that ends in .png, got {str(target)!r}")
    if not target.parent.is_dir():
        raise ValueError(f"path: expected an existing directory to lie in, got {str(target)!r}")
    return target


def plain(axes: Axes) -> None:
    """A light grid below what is drawn, and no frame above and to the right."""
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, title: str | None = None) -> None:
    """A legend below the axes, where it covers no line."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=2,
        fontsize=8,
        frameon=False,
        title=title,
        title_fontsize=8,
    )


def check_matrix(name: str, value: object, shape: str) -> Tensor:
    """`value` as float64 on the CPU, checked to be a floating matrix with a row and a column.

    Raises:
        TypeError: it is no tensor of a floating dtype.
        ValueError: it has another shape; `shape` are the letters of its sizes.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}: expected a floating-point Tensor, got {got}")
    if value.dim() != 2 or 0 in value.shape:
        raise ValueError(
            f"{name}: expected shape ({shape}) with {shape} >= 1, got {tuple(value.shape)}"
        )
    return value.detach().to(device="cpu", dtype=torch.float64)


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` at 150 dots per inch; `path` never holds half a picture.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
