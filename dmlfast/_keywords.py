"""Keywords of pytorch-metric-learning that dmlfast does by other means, or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DISTANCE = 'metric="euclidean" | "sqeuclidean" | "cosine" | "dot", and normalize=True | False'

LOSS_KEYWORDS = {
    "distance": _DISTANCE,
    "reducer": 'reduction="mean" | "sum" | "none"; "none" gives values per anchor to reduce',
    "triplets_per_anchor": 'positives="all" | "nearest" | "farthest", and negatives',
    "embedding_regularizer": "the regularisation term added to the loss in the training step",
    "embedding_reg_weight": "the regularisation term added to the loss in the training step",
    "collect_stats": "the values themselves: reduction='none' returns them",
    "weight_regularizer": "the regularisation term added to the loss in the training step",
    "weight_reg_weight": "the regularisation term added to the loss in the training step",
    "weight_init_func": "torch.nn.init on the loss's parameter",
    "swap": "an indices_tuple with the anchors and positives exchanged",
    "smooth_loss": "torch.nn.functional.softplus over distances of dmlfast.functional's selections",
}

MINER_KEYWORDS = {
    "distance": _DISTANCE,
    "collect_stats": "the distances of dmlfast.functional's selections",
}


def refuse_keywords(owner: str, unknown: dict[str, Any], instead: Mapping[str, str]) -> None:
    """Raises TypeError for the first unknown keyword, naming the way to do it here."""
    for name in unknown:
        advice = f"; use {instead[name]}" if name in instead else ""
        raise TypeError(f"{owner} takes no keyword {name!r}{advice}")
