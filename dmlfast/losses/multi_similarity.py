"""The multi-similarity loss as a module."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import Given, PairLoss
from dmlfast.losses._pair_lists import list_distances, pairs_of, segment_logsumexp
from dmlfast.ops._arguments import Pairs, check_number, check_positive
from dmlfast.ops._partners import call
from dmlfast.ops._reduction import reduce_over_rows
from dmlfast.ops.contrast_softmax import base_distance, multi_similarity_rows


class MultiSimilarityLoss(PairLoss):
    """Multi-similarity loss, with pytorch-metric-learning's call and defaults.

    `epsilon=0.1` mines its pairs as `MultiSimilarityMiner` does there, without lists of them. A
    pair that an `indices_tuple` holds several times counts once, and `epsilon` not at all.

    Args:
        alpha: factor in the exponent of positives, 2 by default.
        beta: factor in the exponent of negatives, 50 by default.
        base: the similarity around which both turn, 0.5 by default; a distance under the
            Euclidean metrics.
        epsilon: None (default) keeps all pairs; a number as in
            `dmlfast.functional.multi_similarity_loss`.
        positives: "all" (default), "nearest" or "farthest".
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default); the cosine is the same.
        reduction: "mean" over the embeddings (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, or `alpha` or `beta` not above 0.
    """

    shown = (
        *("alpha", "beta", "base", "epsilon"),
        *("positives", "metric", "normalize", "reduction"),
    )

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        *,
        epsilon: float | None = None,
        positives: str = "all",
        metric: str = "cosine",
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
        self.alpha = check_positive("alpha", alpha)
        self.beta = check_positive("beta", beta)
        self.base = check_number("base", base)
        self.epsilon = None if epsilon is None else check_number("epsilon", epsilon)

    def _of_pairs(self, pairs: Pairs) -> Tensor:
        return call(
            functional.multi_similarity_loss,
            pairs,
            alpha=self.alpha,
            beta=self.beta,
            base=self.base,
            epsilon=self.epsilon,
            metric=self.metric,
            positives=self.positives,
            reduction=self.reduction,
        )

    def _of_indices(self, given: Given) -> Tensor:
        x, references = given.x, given.references
        lists = pairs_of(given.indices_tuple, x.device).distinct()
        sides = []
        for anchor, partner, scale in (
            (lists.positive_anchor, lists.positive, self.alpha),
            (lists.negative_anchor, lists.negative, -self.beta),
        ):
            distance = list_distances(x, references, anchor, partner, self.metric)
            sides.append(segment_logsumexp(scale * distance, anchor, x.shape[0]))
        turn = base_distance(self.base, self.metric)
        loss = multi_similarity_rows(sides[0], sides[1], self.alpha, self.beta, turn)
        return reduce_over_rows(loss, self.reduction)
