"""Losses against learnt proxies of the classes as modules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._normalize import unit_rows
from dmlfast.losses._base import EmbeddingLoss, no_references, promoted
from dmlfast.losses._pair_lists import anchors_of, index_lists, row_weights
from dmlfast.ops._arguments import (
    METRICS,
    MODULE_NAMES,
    Pairs,
    check_classes,
    check_count,
    check_dimensions,
    check_finite,
    check_flag,
    check_number,
    check_pairs,
    check_positive,
)
from dmlfast.ops._reduction import reduce, reduce_over_rows
from dmlfast.ops.contrast_classes import check_angle
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
        pairs = self._checked(embeddings, labels)
        weights = None
        if indices_tuple is not None:
            indices = index_lists(indices_tuple, pairs.x.device)
            if self.anchors_alone:
                indices = anchors_of(indices)
            weights = row_weights(indices, pairs.x.shape[0])
        return self._of_rows(pairs.x, pairs.labels, weights)

    def _checked(self, embeddings: object, labels: object, *, waits: bool = False) -> Pairs:
        pairs = check_pairs(embeddings, labels, names=MODULE_NAMES)
        check_dimensions("embeddings", pairs.x, self.embedding_size)
        check_classes("labels", pairs.labels, self.num_classes, waits=waits)
        return pairs

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
    the most. Where labels are not looked at, one that is no class has a loss of NaN. The state
    dict holds `fc` (embedding_size, num_classes * centers_per_class), the
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
        ValueError: an unknown option, a number that is not finite, a size below 1, or `gamma` not
            above 0; a call, where `la` or la * margin is beyond the range of the result's dtype.
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
        self.la = check_finite("la", la)
        self.gamma = check_positive("gamma", gamma)
        self.margin = check_finite("margin", margin)
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
        return _weighted(loss, weights, self.reduction)


class SubCenterArcFaceLoss(_ProxyLoss):
    """Sub-centre ArcFace loss, with pytorch-metric-learning's call and defaults.

    With one centre a class it is the ArcFace loss. An `indices_tuple` multiplies the embeddings'
    losses with weights: how often each occurs, over the most. Where labels are not looked at, one
    that is no class has a loss of NaN. Embeddings and centres may have any length. The state dict
    holds `W` (embedding_size, num_classes * sub_centers), the centres as columns, class after
    class, normally distributed at the start.

    Args:
        num_classes: labels are in [0, num_classes).
        embedding_size: dimensions of the embeddings.
        margin: an angle in degrees, from 0 to 180, 28.6 by default.
        scale: factor of the cosines in the cross-entropy, greater than 0, 64 by default.
        sub_centers: centres of every class, 3 by default.
        reduction: "mean" over the embeddings (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, NaN, a size below 1, or a number out of its range; a call,
            where `scale` is beyond the range of the result's dtype.
    """

    shown = ("num_classes", "embedding_size", "margin", "scale", "sub_centers", "reduction")

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 28.6,
        scale: float = 64.0,
        sub_centers: int = 3,
        *,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(
            num_classes,
            embedding_size,
            metric="cosine",
            normalize=True,
            reduction=reduction,
            unknown=unknown,
        )
        self.margin = check_angle("margin", margin)
        self.scale = check_positive("scale", scale)
        self.sub_centers = check_count("sub_centers", sub_centers)
        self.W = nn.Parameter(torch.empty(embedding_size, num_classes * sub_centers))
        nn.init.normal_(self.W)

    def _of_rows(self, x: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
        x, centers = promoted(x, self.W.T)
        loss = functional.sub_center_arcface_loss(
            x,
            labels,
            centers,
            centers_per_class=self.sub_centers,
            margin=self.margin,
            scale=self.scale,
            reduction="none",
        )
        return _weighted(loss, weights, self.reduction)

    @torch.no_grad()
    def get_outliers(
        self,
        embeddings: Tensor,
        labels: Tensor,
        threshold: float = 75.0,
        return_dominant_centers: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Finds embeddings that are far from the dominant centre of their class.

        That is the centre which is the nearest to the most embeddings of the class, the lowest of
        such centres. What is far from it has a wrong label, or should not be learnt from. An
        embedding that is not finite is near none, and far.

        Args:
            embeddings: (N, embedding_size) floating.
            labels: (N,) integers in [0, num_classes), looked at on every device.
            threshold: an angle in degrees, from 0 to 180, beyond which it is far, 75 by default.
            return_dominant_centers: whether to return the centres, too.

        Returns:
            (M,) int64 rows, class after class and ascending within a class; and
            (embedding_size, num_classes) the dominant centres as columns, 0 for a class without
            finite embeddings. Memory O(N·sub_centers·embedding_size).

        Raises:
            TypeError: something is not a tensor, number or flag, or has a wrong dtype.
            ValueError: a wrong shape or device, a number out of its range, or a label that is no
                class.
        """
        bound = math.cos(math.radians(check_angle("threshold", threshold)))
        check_flag("return_dominant_centers", return_dominant_centers)
        pairs = self._checked(embeddings, labels, waits=True)
        x, columns = promoted(pairs.x, self.W.T)
        centers = columns.unflatten(0, (self.num_classes, self.sub_centers))
        units = unit_rows(centers[pairs.labels])
        cosine = (unit_rows(x)[:, None] * units).sum(2)
        nearest = pairs.labels * self.sub_centers + cosine.argmax(1)
        votes = nearest[x.isfinite().all(1)].bincount(minlength=len(columns))
        votes = votes.unflatten(0, centers.shape[:2])
        dominant = votes.argmax(1)
        far = ~(cosine.gather(1, dominant[pairs.labels, None])[:, 0] >= bound)
        order = pairs.labels.argsort(stable=True)
        outliers = order[far[order]]
        if not return_dominant_centers:
            return outliers
        chosen = centers[torch.arange(self.num_classes, device=x.device), dominant]
        return outliers, torch.where(votes.any(1, keepdim=True), chosen, 0.0).T


def _weighted(loss: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """The reduction of (N,) losses, with a weight for each where a tuple gave them."""
    if weights is not None:
        loss = loss * weights.to(loss.dtype)
    return reduce_over_rows(loss, reduction)
