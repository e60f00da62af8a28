"""Pictures of an embedding and of a training run, written as PNG."""

from __future__ import annotations

from dmlfast.plots.curves import plot_curves
from dmlfast.plots.embedding import draw_embedding, plot_embedding, projection

__all__ = ["draw_embedding", "plot_curves", "plot_embedding", "projection"]
