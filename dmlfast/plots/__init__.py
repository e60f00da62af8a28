"""Pictures of an embedding, a training run, a search and a benchmark, written as PNG."""

from __future__ import annotations

from dmlfast.plots.collapse import plot_collapse
from dmlfast.plots.curves import plot_curves
from dmlfast.plots.embedding import draw_embedding, plot_embedding, projection
from dmlfast.plots.intensity import plot_intensity
from dmlfast.plots.neighbors import plot_neighbors
from dmlfast.plots.scaling import ScalingLine, plot_scaling

__all__ = [
    "ScalingLine",
    "draw_embedding",
    "plot_collapse",
    "plot_curves",
    "plot_embedding",
    "plot_intensity",
    "plot_neighbors",
    "plot_scaling",
    "projection",
]
