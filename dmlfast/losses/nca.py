"""Neighbourhood components analysis as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import PairLoss
from dmlfast.losses._pair_lists import anchors_of, index_lists, row_weights
from dmlfast.ops._arguments import Pairs, check_positive
from dmlfast.ops._partners import call
from dmlfast.ops._reduction import reduce
from dmlfast.ops.contrast_softmax import nca_rows


class NCALoss(PairLoss):
    """Neighbourhood components analysis, with pytorch-metric-learning's call and defaults.

    An `indices_tuple` gives weights, by which the embeddings' losses are multiplied: how often
    each occurs in it, over the most; with `ref_emb`, as an anchor. All references stay in the
    comparison, and `self_index` and `positives` are looked at.

    Args:
        softmax_scale: factor of the distances, greater than 0, 1 by default.
        positives: "all" (default), "nearest" or "farthest"; see `dmlfast.functional.nca_loss`.
        metric: "sqeuclidean" (default), "euclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.
        reduction: "mean" over the anchors with a positive (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, or a scale not above 0.
    """

    shown = ("softmax_scale", "positives", "metric", "normalize", "reduction")

    def __init__(
        self,
        softmax_scale: float = 1.0,
        *,
        positives: str = "all",
        metric: str = "sqeuclidean",
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
        self.softmax_scale = check_positive("softmax_scale", softmax_scale)

    def _of_pairs(self, pairs: Pairs) -> Tensor:
        return call(
            functional.nca_loss,
            pairs,
            softmax_scale=self.softmax_scale,
            metric=self.metric,
            positives=self.positives,
            reduction=self.reduction,
        )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss: as that of other losses, with an index tuple for weights.

        Args:
            embeddings: (N, d) floating.
            labels: (N,) integers.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors, of which the class makes weights.
            ref_emb: (M, d) references, the batch itself by default.
            ref_labels: (M,) their labels.
            self_index: (N,) integers, the row of `ref_emb` that is the anchor itself and is
                neither its positive nor its negative, -1 for none. Only with `ref_emb`.

        Returns:
            A scalar, or (N,) losses with reduction "none".

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, `ref_emb` without `ref_labels`, or `self_index`
                without `ref_emb`.
            IndexError: an index of `indices_tuple` that is no row.
        """
        pairs = self._pairs(embeddings, labels, ref_emb, ref_labels, self_index)
        if indices_tuple is None:
            return self._of_pairs(pairs)
        indices = index_lists(indices_tuple, pairs.x.device)
        if ref_emb is not None:
            indices = anchors_of(indices)
        weights = row_weights(indices, pairs.x.shape[0])
        rows = nca_rows(pairs, self.softmax_scale, self.metric, self.positives)
        loss = rows.loss * weights.to(rows.loss.dtype)
        return loss if self.reduction == "none" else reduce(loss, rows.active, self.reduction)
