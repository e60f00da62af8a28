"""The margin loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmlfast.losses._base import Given, PairLoss
from dmlfast.losses._pair_lists import segment_sum, triplet_distances, triplets_of
from dmlfast.ops._arguments import (
    Pairs,
    check_classes,
    check_count,
    check_flag,
    check_generator,
    check_integers,
    check_number,
)
from dmlfast.ops._reduction import is_active, reduce
from dmlfast.ops.contrast import AnchorSums
from dmlfast.ops.contrast_hinge import MarginRows, check_margin_options, margin_rows
from dmlfast.reference.distances import fixed_order_sum


class MarginLoss(PairLoss):
    """Margin loss with a learnt boundary, with pytorch-metric-learning's call and defaults.

    The EPS loss is `MarginLoss(positives="nearest", negatives="semihard")`. The boundary `beta`
    is in the state dict, whether it is learnt or not. With reduction "none" an `indices_tuple`
    too gives `AnchorSums`, and the term of `nu` is left out.

    Args:
        margin: in units of the metric, 0.2 by default.
        nu: weight of the boundary in the loss, 0 by default; looked at when it is learnt.
        beta: the boundary at the start, 1.2 by default.
        learn_beta: make the boundary a parameter, else it is a buffer (default).
        num_classes: None (default) for one boundary; a number for one for each label in
            [0, num_classes). Another label raises ValueError; on CUDA and in a compiled call it is
            torch's own failed assertion.
        positives: "all" (default), "nearest" (EPS) or "farthest".
        negatives: "all" (default), "hardest", or with one positive "semihard" or
            "distance_weighted"; see `dmlfast.functional.margin_loss`.
        generator: what decides the draws of "distance_weighted", torch's own by default. Its
            state is not in the state dict.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.
        reduction: "mean" over the terms greater than 0 (default; 0 when there are none), "sum",
            or "none". To "mean" and "sum" a learnt boundary adds `nu * beta`; with one for each
            label, `nu` times the sum of the anchors' boundaries over all triplets, for "mean"
            divided as the loss is.

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, a number of classes below 1, or "semihard" or
            "distance_weighted" negatives of all positives.
    """

    shown = (
        *("margin", "nu", "learn_beta", "num_classes"),
        *("positives", "negatives", "metric", "normalize", "reduction"),
    )

    beta: Tensor

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0.0,
        beta: float = 1.2,
        *,
        learn_beta: bool = False,
        num_classes: int | None = None,
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
        check_margin_options(positives, negatives)
        self.margin = check_number("margin", margin)
        self.nu = check_number("nu", nu)
        self.negatives = negatives
        self.generator = check_generator(generator)
        self.learn_beta = check_flag("learn_beta", learn_beta)
        self.num_classes = None if num_classes is None else check_count("num_classes", num_classes)
        start = torch.full((num_classes or 1,), check_number("beta", beta))
        if learn_beta:
            self.beta = nn.Parameter(start)
        else:
            self.register_buffer("beta", start)

    def _of_pairs(self, pairs: Pairs) -> Tensor | AnchorSums:
        boundary = self._boundary(pairs.labels)
        rows = margin_rows(
            pairs,
            boundary,
            self.margin,
            self.metric,
            self.positives,
            self.negatives,
            self.generator,
        )
        return self._reduce(rows, boundary)

    def _of_indices(self, given: Given) -> Tensor | AnchorSums:
        x, references = given.x, given.references
        count = x.shape[0]
        boundary = self.beta[0]
        if self.num_classes is not None:
            boundary = self._boundary(check_integers("labels", given.labels, count, x.device))
        triplets = triplets_of(given.indices_tuple, x.device)
        near, far = triplet_distances(x, references, triplets, self.metric)
        middle = boundary if boundary.dim() == 0 else boundary[triplets.anchor]
        middle = middle.to(near.dtype)
        pull = torch.relu(near - middle + self.margin)
        push = torch.relu(middle - far + self.margin)
        active = is_active(pull).double() + is_active(push).double()
        rows = MarginRows(
            segment_sum(pull + push, triplets.anchor, count),
            segment_sum(active, triplets.anchor, count).long(),
            torch.bincount(triplets.anchor, minlength=count),
        )
        return self._reduce(rows, boundary)

    def _boundary(self, labels: Tensor) -> Tensor:
        """The boundary of all anchors, (), or that of each, (N,)."""
        if self.num_classes is None:
            return self.beta[0]
        check_classes("labels", labels, self.num_classes)
        # Not beta[labels], which counts negative labels from the end.
        return torch.nn.functional.embedding(labels, self.beta[:, None])[:, 0]

    def _reduce(self, rows: MarginRows, boundary: Tensor) -> Tensor | AnchorSums:
        if self.reduction == "none":
            return AnchorSums(rows.loss, rows.active)
        loss = reduce(rows.loss, rows.active, self.reduction)
        if not self.learn_beta or self.nu == 0:
            return loss
        if boundary.dim() == 0:
            return loss + torch.where(rows.triplets.sum() > 0, self.nu * boundary, 0.0)
        added = self.nu * fixed_order_sum(boundary * rows.triplets)
        if self.reduction == "mean":
            active = rows.active.sum()
            added = torch.where(active > 0, added / active.clamp(min=1), 0.0)
        return loss + added
