"""The structure loss beside any other (NASA) as a module."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from dmlfast import functional
from dmlfast.losses._base import ShownModule, base_loss
from dmlfast.ops._arguments import (
    check_count,
    check_finite,
    check_flag,
    check_not_negative,
    check_option,
    check_share,
    describe,
)
from dmlfast.ops.structure import check_structure

STRUCTURE_GRADIENTS = ("both", "structure")


class MultiClusterTerms(NamedTuple):
    """What `MultiClusterLoss` is the sum of, scalars all.

    Attributes:
        base: the base loss.
        structure: the structure loss, without its weight.
        total: the loss.
    """

    base: Tensor
    structure: Tensor
    total: Tensor


class MultiClusterLoss(ShownModule):
    """A base loss of sample embeddings, and the structure loss of both embeddings (NASA).

    The loss is the base loss plus `weight` times `dmlfast.functional.multi_cluster_loss`, which
    says what the other options mean. The base loss needs the labels, the structure loss does not.

        head = models.SampleStructureHead(feature_size, dimensions)
        loss = losses.MultiClusterLoss(losses.TripletMarginLoss(0.2, normalize=False))
        sample, structure = head(features)
        loss(sample, labels, structure=structure).backward()

    Args:
        base: a loss module with pytorch-metric-learning's call and a scalar result, such as
            `CrossBatchMemory` of another. It gets the embeddings as they are; the source has the
            triplet loss, without normalisation.
        weight: of the structure loss, at least 0.
        clusters: number of anchor distances, at least 1.
        spread: how many deviations the smallest lies below the mean, at least 0.
        sharpness: of the assignment with two clusters, per unit of distance, at least 0.
        floor: the least anchor distance as a part of the mean, 0 to 1.
        include_self: mean and deviation include the distance of each row to itself.
        order_weight: of the ranking of the clusters within the structure loss, at least 0.
        order_margin: a finite distance.
        structure_gradient: where the gradient of the structure loss flows to: "both" embeddings
            (default), as published, or the "structure" alone.

    Raises:
        TypeError: a wrong type.
        ValueError: a number out of its range, or an unknown option.

    Source: NASA (Li et al., "Neighborhood-adaptive structure augmented metric learning", AAAI
    2022). More than two clusters and their ranking are this library's reading of its successor,
    NAMR.
    """

    shown = (
        "weight",
        "clusters",
        "spread",
        "sharpness",
        "floor",
        "include_self",
        "order_weight",
        "order_margin",
        "structure_gradient",
    )

    def __init__(
        self,
        base: nn.Module,
        *,
        weight: float = 2.0,
        clusters: int = 2,
        spread: float = 3.0,
        sharpness: float = 10.0,
        floor: float = 0.2,
        include_self: bool = True,
        order_weight: float = 0.0,
        order_margin: float = 0.0,
        structure_gradient: str = "both",
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Module):
            raise TypeError(f"base: expected a loss module, got {describe(base)}")
        self.base = base
        self.weight = check_not_negative("weight", weight)
        self.clusters = check_count("clusters", clusters)
        self.spread = check_not_negative("spread", spread)
        self.sharpness = check_not_negative("sharpness", sharpness)
        self.floor = check_share("floor", floor)
        self.include_self = check_flag("include_self", include_self)
        self.order_weight = check_not_negative("order_weight", order_weight)
        self.order_margin = check_finite("order_margin", order_margin)
        self.structure_gradient = check_option(
            "structure_gradient", structure_gradient, STRUCTURE_GRADIENTS
        )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        structure: Tensor,
    ) -> Tensor:
        """Computes the loss.

        Args:
            embeddings: (N, d) floating sample embeddings. The default `sharpness` expects distances
                around 1, as `dmlfast.models.SampleStructureHead` has them in training.
            labels: (N,) integers, for the base loss.
            indices_tuple: for the base loss.
            ref_emb: (M, d) for the base loss.
            ref_labels: (M,) for the base loss.
            structure: (N, d) weights of the dimensions around each embedding, dtype and device of
                `embeddings`; at least 0.

        Returns:
            A scalar in the dtype of the base loss; differentiable once in `embeddings`, `structure`
            and the parameters of the base loss.

        Memory: that of the base loss, and O(N·d), with an `order_weight` also O(N·clusters).

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, or a base loss that is not a scalar.
        """
        given = (embeddings, labels, indices_tuple, ref_emb, ref_labels)
        return self.terms(*given, structure=structure).total

    def terms(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        structure: Tensor,
    ) -> MultiClusterTerms:
        """The parts of `forward`, which takes the same arguments."""
        x, weights = check_structure(embeddings, structure, ("embeddings", "structure"))
        base = base_loss(self.base, x, labels, indices_tuple, ref_emb, ref_labels)
        clusters = functional.multi_cluster_loss(
            x if self.structure_gradient == "both" else x.detach(),
            weights,
            clusters=self.clusters,
            spread=self.spread,
            sharpness=self.sharpness,
            floor=self.floor,
            include_self=self.include_self,
            order_weight=self.order_weight,
            order_margin=self.order_margin,
        )
        return MultiClusterTerms(base, clusters, base + (self.weight * clusters).to(base.dtype))
