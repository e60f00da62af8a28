"""The triplet margin loss as a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._keywords import LOSS_KEYWORDS, refuse_keywords
from dmlfast._normalize import unit_rows
from dmlfast.losses._pair_lists import triplet_distances, triplets_of
from dmlfast.ops._arguments import (
    METRICS,
    check_embeddings,
    check_flag,
    check_number,
    check_option,
    check_pairs,
    check_references,
)
from dmlfast.ops._reduction import REDUCTIONS, is_active, reduce
from dmlfast.ops.contrast import NEGATIVES, POSITIVES, AnchorSums

# What the arguments of `check_pairs` are called here.
_NAMES = ("embeddings", "labels", "ref_emb", "ref_labels", "self_index")


class TripletMarginLoss(nn.Module):
    """Triplet margin loss over a batch, with pytorch-metric-learning's call and defaults.

    The EPS loss is `TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")`.

    Args:
        margin: in units of the metric, 0.05 by default.
        positives: "all" (default), "nearest" (EPS) or "farthest"; see
            `dmlfast.functional.triplet_margin_loss`.
        negatives: "all" (default), "hardest" or "semihard".
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.
        reduction: "mean" over the active triplets, those with a loss greater than 0 (default;
            0 when none is active), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option.
    """

    def __init__(
        self,
        margin: float = 0.05,
        *,
        positives: str = "all",
        negatives: str = "all",
        metric: str = "euclidean",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_keywords("TripletMarginLoss", unknown, LOSS_KEYWORDS)
        self.margin = check_number("margin", margin)
        self.positives = check_option("positives", positives, POSITIVES)
        self.negatives = check_option("negatives", negatives, NEGATIVES)
        self.metric = check_option("metric", metric, METRICS)
        self.normalize = check_flag("normalize", normalize)
        self.reduction = check_option("reduction", reduction, REDUCTIONS)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
    ) -> Tensor | AnchorSums:
        """Computes the loss.

        Args:
            embeddings: (N, d) floating.
            labels: (N,) integers; not needed with `indices_tuple`.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors, as miners return; then exactly these triplets count and
                `positives` and `negatives` are not looked at. Costs O(triplets·d) memory and
                plain torch arithmetic. Anchors are rows of `embeddings`, the others of `ref_emb`.
            ref_emb: (M, d) references, the batch itself by default. Every one of them is compared
                with every anchor, also where it is the anchor's own copy, unless `self_index`
                says which that is.
            ref_labels: (M,) their labels.
            self_index: (N,) integers, the row of `ref_emb` that is the anchor itself and is
                neither its positive nor its negative, -1 for none. Only with `ref_emb`; not
                looked at with `indices_tuple`.

        Returns:
            A scalar; with reduction "none" as in `dmlfast.functional.triplet_margin_loss`, or
            (triplets,) losses when `indices_tuple` is given.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, `ref_emb` without `ref_labels`, or `self_index`
                without `ref_emb`.
        """
        if indices_tuple is not None:
            return self._given_triplets(embeddings, ref_emb, indices_tuple)
        # Checks come first: normalising would hide what was handed in.
        pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, self_index, names=_NAMES)
        return functional.triplet_margin_loss(
            self._unit(pairs.x),
            pairs.labels,
            None if ref_emb is None else self._unit(pairs.references),
            ref_labels,
            self_index=self_index,
            margin=self.margin,
            metric=self.metric,
            positives=self.positives,
            negatives=self.negatives,
            reduction=self.reduction,
        )

    def _unit(self, x: Tensor) -> Tensor:
        return unit_rows(x) if self.normalize else x

    def _given_triplets(
        self, embeddings: Tensor, ref_emb: Tensor | None, indices_tuple: tuple[Tensor, ...]
    ) -> Tensor:
        x = self._unit(check_embeddings("embeddings", embeddings))
        references = x
        if ref_emb is not None:
            references = self._unit(check_references("ref_emb", ref_emb, "embeddings", embeddings))
        triplets = triplets_of(indices_tuple, x.device)
        to_positive, to_negative = triplet_distances(x, references, triplets, self.metric)
        loss = torch.relu(to_positive - to_negative + self.margin)
        return loss if self.reduction == "none" else reduce(loss, is_active(loss), self.reduction)

    def extra_repr(self) -> str:
        """The parameters, for printing."""
        return (
            f"margin={self.margin}, positives={self.positives!r}, negatives={self.negatives!r}, "
            f"metric={self.metric!r}, normalize={self.normalize}, reduction={self.reduction!r}"
        )
