"""The contrastive loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import Given, PairLoss
from dmlfast.losses._pair_lists import list_distances, pairs_of, segment_sum
from dmlfast.ops._arguments import Pairs, check_number
from dmlfast.ops._partners import call
from dmlfast.ops._reduction import is_active, reduce
from dmlfast.ops.contrast_sums import ContrastSums


class ContrastiveLoss(PairLoss):
    """Contrastive loss, with pytorch-metric-learning's call and defaults.

    A pair that an `indices_tuple` holds several times counts as often.

    Args:
        pos_margin: a distance under every metric, 0 by default.
        neg_margin: a distance under every metric, 1 by default.
        positives: "all" (default), "nearest" or "farthest".
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.
        reduction: "mean" as in `dmlfast.functional.contrastive_loss` (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, or NaN.
    """

    shown = ("pos_margin", "neg_margin", "positives", "metric", "normalize", "reduction")

    def __init__(
        self,
        pos_margin: float = 0.0,
        neg_margin: float = 1.0,
        *,
        positives: str = "all",
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
        self.pos_margin = check_number("pos_margin", pos_margin)
        self.neg_margin = check_number("neg_margin", neg_margin)

    def _of_pairs(self, pairs: Pairs) -> Tensor | ContrastSums:
        return call(
            functional.contrastive_loss,
            pairs,
            pos_margin=self.pos_margin,
            neg_margin=self.neg_margin,
            metric=self.metric,
            positives=self.positives,
            reduction=self.reduction,
        )

    def _of_indices(self, given: Given) -> Tensor | ContrastSums:
        x, references = given.x, given.references
        anchor, positive, other_anchor, negative = pairs_of(given.indices_tuple, x.device)
        near = list_distances(x, references, anchor, positive, self.metric)
        far = list_distances(x, references, other_anchor, negative, self.metric)
        pull, push = torch.relu(near - self.pos_margin), torch.relu(self.neg_margin - far)
        if self.reduction != "none":
            total = reduce(pull, is_active(pull), self.reduction)
            return total + reduce(push, is_active(push), self.reduction)
        rows = x.shape[0]
        return ContrastSums(
            segment_sum(pull, anchor, rows),
            segment_sum(push, other_anchor, rows),
            segment_sum(is_active(pull).double(), anchor, rows).long(),
            segment_sum(is_active(push).double(), other_anchor, rows).long(),
        )
