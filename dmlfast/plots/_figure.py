"""Figures without pyplot: no global state, no display, safe in any thread."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from dmlfast._optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` inches, laid out so that no label is cut off."""
    engine = require("matplotlib.layout_engine", "train").ConstrainedLayoutEngine(
        w_pad=0.08, h_pad=0.08
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


def save_png(figure: Figure, path: Path) -> None:
    """Write `figure` at 150 dots per inch; `path` never holds half a picture."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=DPI)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
