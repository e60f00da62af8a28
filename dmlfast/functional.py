"""Functions over batches of embeddings, in the manner of `torch.nn.functional`.

Everywhere: `x` (N, d) anchors, `labels` (N,), `references` (M, d) with `reference_labels` (M,),
`metric` in "euclidean", "sqeuclidean", "cosine" (1 - cos), "dot" (-<x, y>), so that smaller is
always closer. Nothing here normalises embeddings.
"""

from __future__ import annotations

from dmlfast.ops.contrast import AnchorSums, triplet_margin_loss
from dmlfast.ops.neighbors import (
    Selection,
    farthest_positive,
    hardest_negative,
    nearest_positive,
    semihard_negative,
)

__all__ = [
    "AnchorSums",
    "Selection",
    "farthest_positive",
    "hardest_negative",
    "nearest_positive",
    "semihard_negative",
    "triplet_margin_loss",
]
