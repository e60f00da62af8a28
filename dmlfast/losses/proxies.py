"""Losses against learnt proxies of the classes as modules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast.losses._base import EmbeddingLoss, no_references, promoted
from dmlfast.losses._pair_lists import anchors_of, index_lists, row_weights
from dmlfast.ops._arguments import (
    METRICS,
    MODULE_NAMES,
    check_classes,
    check_count,
    check_dimensions,
    check_number,
    check_pairs,
    check_positive,
)
from dmlfast.ops._reduction import reduce, reduce_over_rows
from dmlfast.ops.contrast_proxies import proxy_pairs
from dmlfast.ops.contrast_softmax import nca_rows
from dmlfast.ops.contrast_sums import ContrastSums


class _ProxyLoss(EmbeddingLoss, ABC):
    """A loss of embeddings against parameters of its own."""

    # Whether the weights of an index tuple count a row's places as an anchor alone.
    anchors_alone: ClassVar[bool] = False

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        *,
        metric: str,
        normalize: bool,
        reduction: str,
        unknown: dict[str, Any],
        metrics: tuple[str, ...] = METRICS,
    ) -> None:
        super().__init__(
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
            metrics=metrics,
        )
        self.num_classes = check_count("num_classes", num_classes)
        self.embedding_size = check_count("embedding_size", embedding_size)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor | ContrastSums:
        """Computes the loss.

        Args:
            embeddings: (N, embedding_size) floating.
            labels: (N,) integers in [0, num_classes). Looked at on the CPU alone, and not where
                the call is compiled: elsewhere the class says what others do.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors. They weight the embeddings by how often each occurs, over the most;
                the class says how.
            ref_emb: None.
            ref_labels: None.

        Returns:
            A scalar; with reduction "none" what the loss's function in `dmlfast.functional`
            returns, with the weights.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, references, or a label that is no class.
            IndexError: an index of `indices_tuple` that is no row.
        """
        no_references(type(self).__name__, ref_emb, ref_labels)
        pairs = check_pairs(embeddings, labels, names=MODULE_NAMES)
        check_dimensions("embeddings", pairs.x, self.embedding_size)
        check_classes("labels", pairs.labels, self.num_classes)
        weights = None
        if indices_tuple is not None:
            indices = index_lists(indices_tuple, pairs.x.device)
            if self.anchors_alone:
                indices = anchors_of(indices)
            weights = row_weights(indices, pairs.x.shape[0])
        return self._of_rows(pairs.x, pairs.labels, weights)

    @abstractmethod
    def _of_rows(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor | ContrastSums:
        """The loss of checked embeddings, with a weight for each where a tuple gave them."""


class ProxyNCALoss(_ProxyLoss):
    """Proxy-NCA with one learnt proxy a class, with pytorch-metric-learning's call and defaults.

    An `indices_tuple` multiplies the embeddings' losses with weights: how often each occurs as an
    anchor, over the most. Where labels are not looked at, an embedding whose label is no class
    has no loss. The state dict holds `proxies` (num_classes, embedding_size), normally
    distributed at the start.

    Args:
        num_classes: labels are in [0, num_classes).
        embedding_size: dimensions of the embeddings.
        softmax_scale: factor of the distances, greater than 0, 1 by default.
        metric: "sqeuclidean" (default), "euclidean", "cosine" or "dot".
        normalize: scale the embeddings and the proxies to unit L2 norm first (default).
        reduction: "mean" over the embeddings whose class has a proxy (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, a size below 1, or a scale not above 0.
    """

    shown = ("num_classes", "embedding_size", "softmax_scale", "metric", "normalize", "reduction")
    anchors_alone = True

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        softmax_scale: float = 1.0,
        *,
        metric: str = "sqeuclidean",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
        )
        self.softmax_scale = check_positive("softmax_scale", softmax_scale)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.proxies)

    def _of_rows(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        x, proxies = promoted(x, self.proxies)
        pairs = proxy_pairs(self._unit(x), labels, self._unit(proxies))
        rows = nca_rows(pairs, self.softmax_scale, self.metric, "all")
        loss = rows.loss if weights is None else rows.loss * weights.to(rows.loss.dtype)
        return loss if self.reduction == "none" else reduce(loss, rows.active, self.reduction)


class ProxyAnchorLoss(_ProxyLoss):
    """Proxy-anchor loss, with pytorch-metric-learning's call and defaults.

    An `indices_tuple` adds to both exponents of each embedding how often it occurs, over the
    most, less 1. Where labels are not looked at, an embedding whose label is no class is a
    negative of all proxies. The state dict holds `proxies` (num_classes, embedding_size), by
    Kaiming's normal initialisation at the start.

    Args:
        num_classes: labels are in [0, num_classes).
        embedding_size: dimensions of the embeddings.
        margin: a similarity, 0.1 by default.
        alpha: greater than 0, 32 by default.
        metric: "cosine" (default) or "dot".
        normalize: scale the embeddings and the proxies to unit L2 norm first (default); the
            cosine is the same.
        reduction: "mean" as in `dmlfast.functional.proxy_anchor_loss` (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, a size below 1, or `alpha` not above 0.
    """

    shown = (
        *("num_classes", "embedding_size", "margin", "alpha"),
        *("metric", "normalize", "reduction"),
    )

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.1,
        alpha: float = 32.0,
        *,
        metric: str = "cosine",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
            metrics=("cosine", "dot"),
        )
        self.margin = check_number("margin", margin)
        self.alpha = check_positive("alpha", alpha)
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def _of_rows(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor | ContrastSums:
        x, proxies = promoted(x, self.proxies)
        return functional.proxy_anchor_loss(
            self._unit(x),
            labels,
            self._unit(proxies),
            margin=self.margin,
            alpha=self.alpha,
            offsets=None if weights is None else weights - 1,
            metric=self.metric,
            reduction=self.reduction,
        )


class SoftTripleLoss(_ProxyLoss):
    """SoftTriple loss, with pytorch-metric-learning's call and defaults.

    An `indices_tuple` multiplies the embeddings' losses with weights: how often each occurs, over
    the most. Where labels are not looked at, one that is no class is torch's own failed
    assertion. The state dict holds `fc` (embedding_size, num_classes * centers_per_class), the
    centres as columns, class after class, by Kaiming's uniform initialisation at the start.

    Args:
        num_classes: labels are in [0, num_classes).
        embedding_size: dimensions of the embeddings.
        centers_per_class: 10 by default.
        la: factor of the similarities in the cross-entropy, 20 by default.
        gamma: temperature of the weights of a class's centres, greater than 0, 0.1 by default.
        margin: a similarity, 0.01 by default.
        metric: "cosine" (default) or "dot".
        normalize: scale the embeddings and the centres to unit L2 norm first (default); the
            cosine is the same.
        reduction: "mean" over the embeddings (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, a size below 1, or `gamma` not above 0.
    """

    shown = (
        *("num_classes", "embedding_size", "centers_per_class", "la", "gamma", "margin"),
        *("metric", "normalize", "reduction"),
    )

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20.0,
        gamma: float = 0.1,
        margin: float = 0.01,
        *,
        metric: str = "cosine",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
            metrics=("cosine", "dot"),
        )
        self.centers_per_class = check_count("centers_per_class", centers_per_class)
        self.la = check_number("la", la)
        self.gamma = check_positive("gamma", gamma)
        self.margin = check_number("margin", margin)
        self.fc = nn.Parameter(torch.empty(embedding_size, num_classes * centers_per_class))
        nn.init.kaiming_uniform_(self.fc, a=math.sqrt(5))

    def _of_rows(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        x, centers = promoted(x, self.fc.T)
        loss = functional.soft_triple_loss(
            self._unit(x),
            labels,
            self._unit(centers),
            centers_per_class=self.centers_per_class,
            la=self.la,
            gamma=self.gamma,
            margin=self.margin,
            metric=self.metric,
            reduction="none",
        )
        if weights is not None:
            loss = loss * weights.to(loss.dtype)
        return reduce_over_rows(loss, self.reduction)
