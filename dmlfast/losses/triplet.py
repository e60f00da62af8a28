"""The triplet margin loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import Given, PairLoss
from dmlfast.losses._pair_lists import triplet_distances, triplets_of
from dmlfast.ops._arguments import Pairs, check_generator, check_number
from dmlfast.ops._partners import call
from dmlfast.ops._reduction import is_active, reduce
from dmlfast.ops.contrast import AnchorSums, check_negatives


class TripletMarginLoss(PairLoss):
    """Triplet margin loss over a batch, with pytorch-metric-learning's call and defaults.

    The EPS loss is `TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")`.
    With reduction "none" an `indices_tuple` gives (triplets,) losses.

    Args:
        margin: in units of the metric, 0.05 by default.
        positives: "all" (default), "nearest" (EPS) or "farthest"; see
            `dmlfast.functional.triplet_margin_loss`.
        negatives: "all" (default), "hardest", "semihard" or, with one positive,
            "distance_weighted".
        generator: what decides the draws of "distance_weighted", torch's own by default. Its
            state is not in the state dict.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.
        reduction: "mean" over the active triplets, those with a loss greater than 0 (default;
            0 when none is active), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, or "distance_weighted" negatives of all positives.
    """

    shown = ("margin", "positives", "negatives", "metric", "normalize", "reduction")

    def __init__(
        self,
        margin: float = 0.05,
        *,
        positives: str = "all",
        negatives: str = "all",
        generator: torch.Generator | None = None,
        metric: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(
            positives=positives,
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
        )
        self.margin = check_number("margin", margin)
        check_negatives(positives, negatives)
        self.negatives = negatives
        self.generator = check_generator(generator)

    def _of_pairs(self, pairs: Pairs) -> Tensor | AnchorSums:
        return call(
            functional.triplet_margin_loss,
            pairs,
            margin=self.margin,
            metric=self.metric,
            positives=self.positives,
            negatives=self.negatives,
            generator=self.generator,
            reduction=self.reduction,
        )

    def _of_indices(self, given: Given) -> Tensor:
        x, references = given.x, given.references
        triplets = triplets_of(given.indices_tuple, x.device)
        to_positive, to_negative = triplet_distances(x, references, triplets, self.metric)
        loss = torch.relu(to_positive - to_negative + self.margin)
        return loss if self.reduction == "none" else reduce(loss, is_active(loss), self.reduction)
