"""Keywords of pytorch-metric-learning that dmlfast does by other means, or not."""

from __future__ import annotations

from typing import Any

_INSTEAD = {
    "distance": 'metric="euclidean" | "sqeuclidean" | "cosine" | "dot", and normalize=True | False',
    "reducer": 'reduction="mean" | "sum" | "none"; "none" gives values per anchor to reduce',
    "triplets_per_anchor": 'positives="all" | "nearest" | "farthest", and negatives',
    "embedding_regularizer": "the regularisation term added to the loss in the training step",
    "embedding_reg_weight": "the regularisation term added to the loss in the training step",
    "collect_stats": "the values themselves: reduction='none' returns them",
    "swap": "an indices_tuple with the anchors and positives exchanged",
    "smooth_loss": "torch.nn.functional.softplus over distances of dmlfast.functional's selections",
}


def refuse_keywords(loss: str, unknown: dict[str, Any]) -> None:
    """Raises TypeError for the first unknown keyword, naming the way to do it here."""
    for name in unknown:
        instead = _INSTEAD.get(name)
        advice = f"; use {instead}" if instead else ""
        raise TypeError(f"{loss} takes no keyword {name!r}{advice}")
