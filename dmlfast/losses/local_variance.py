"""Structure embeddings that even out the variance around each sample, as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import ShownModule
from dmlfast.losses._classes import Classes
from dmlfast.losses._pair_lists import segment_sum
from dmlfast.ops._arguments import check_count, check_integers, check_positive
from dmlfast.ops.neighbors_top import GREATEST_K
from dmlfast.ops.structure import check_structure
from dmlfast.reference.distances import distance_dtype, fixed_order_sum


class LocalVarianceLoss(ShownModule):
    """Makes the weights of the dimensions inverse to the variance around each sample.

    With v_ik the variance of dimension k around sample i, of its class in the batch or of its
    nearest neighbours whatever their class, the loss of a sample is the variance over the
    dimensions of

        log(w_ik (v_ik + floor mean_k v_ik))

    and the loss that of the mean sample. It is 0 where the neighbourhood is a sphere in the
    adaptive distance, w_ik ~ 1 / v_ik, the diagonal metric in which a class is told from others
    best. Neither the scale of the embeddings nor that of a sample's weights matters, as neither
    does for the ranking of its references.

        loss = losses.MultiClusterLoss(losses.TripletMarginLoss(0.2, normalize=False), weight=0.2)
        local = losses.LocalVarianceLoss()
        sample, structure = head(features)
        total = loss(sample, labels, structure=structure)
        (total + 0.2 * local(sample, labels, structure=structure)).backward()

    Args:
        neighbors: how many nearest of the batch, 1 to 1024, without labels; None (default) for the
            class.
        floor: added to each variance, as a part of the mean over the dimensions, above 0: a
            dimension that happens not to vary in a small batch does not take all of the weight.

    Raises:
        TypeError: a wrong type.
        ValueError: a number out of its range.

    Source: this library's. `MultiClusterLoss` alone, whose pairs are mostly of distant samples,
    teaches the weights little about a neighbourhood.
    """

    shown = ("neighbors", "floor")

    def __init__(self, neighbors: int | None = None, *, floor: float = 0.01) -> None:
        super().__init__()
        self.neighbors = (
            None if neighbors is None else check_count("neighbors", neighbors, greatest=GREATEST_K)
        )
        self.floor = check_positive("floor", floor)

    def forward(
        self, embeddings: Tensor, labels: Tensor | None = None, *, structure: Tensor
    ) -> Tensor:
        """Computes the loss.

        Args:
            embeddings: (N, d) floating sample embeddings.
            labels: (N,) integers; needed without `neighbors`, and not looked at with them.
            structure: (N, d) weights of the dimensions around each embedding, dtype and device of
                `embeddings`; above 0.

        Returns:
            A scalar, float64 for float64 embeddings, else float32; differentiable in `structure`
            alone: the embeddings are taken as they are. A sample whose neighbourhood does not vary,
            or by so little beside the largest embedding that `floor` times its variance leaves the
            dtype's range, or that is alone in its class, is left out; without any other the loss is
            0, attached to the graph. Where an embedding is not finite it is NaN.

        Memory: O(N·d), with `neighbors` O(N (d + neighbors)).

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, or labels that are missing.
        """
        x, weights = check_structure(embeddings, structure, ("embeddings", "structure"))
        dtype = distance_dtype(x)
        with torch.no_grad():
            # Of size 1 at most, so that no square is lost; the scale does not matter.
            rows = x.detach().to(dtype)
            size = rows.abs().amax() if rows.numel() else rows.new_zeros(())
            variance = self._variance(rows / torch.where(size == 0, 1.0, size), labels)
            mean = variance.mean(dim=1, keepdim=True)
            # Not `>=`: NaN has to pass.
            counts = ~(self.floor * mean < torch.finfo(dtype).tiny) & (variance.shape[1] > 0)
            logarithm = torch.where(counts, variance + self.floor * mean, 1.0).log()
        # A weight of a sample that is left out may be anything.
        radii = torch.where(counts, weights.to(dtype), 1.0).log() + logarithm
        uneven = (radii - radii.mean(dim=1, keepdim=True)).square().mean(dim=1)
        total = fixed_order_sum(torch.where(counts[:, 0], uneven, 0.0))
        return total / counts.sum().clamp(min=1)

    def _variance(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(N, d), up to a factor of the row; 0 without a neighbourhood."""
        if self.neighbors is not None:
            return _variance_of_neighbors(x, self.neighbors)
        if labels is None:
            raise ValueError("labels: expected (N,) integers without neighbors, got None")
        return _variance_of_class(x, check_integers("labels", labels, x.shape[0], x.device))


def _variance_of_class(x: Tensor, labels: Tensor) -> Tensor:
    classes = Classes.of(labels)
    count = (classes.end - classes.begin)[:, None]
    mean = segment_sum(x, classes.begin, x.shape[0])[classes.begin] / count
    # A class of equal rows does not vary, whatever their mean is rounded to.
    first = x[classes.order[classes.begin]]
    differs = (x != first).to(x.dtype)
    varies = segment_sum(differs, classes.begin, x.shape[0])[classes.begin] > 0
    squares = (x - mean).square()
    return torch.where(varies, segment_sum(squares, classes.begin, x.shape[0])[classes.begin], 0.0)


def _variance_of_neighbors(x: Tensor, neighbors: int) -> Tensor:
    found = functional.nearest_neighbors(x, k=neighbors).index
    # 0, and NaN for a row that is not finite, which has no neighbours.
    total = x - x
    for index in found.unbind(1):
        squares = (x - x[index]).square()
        total += torch.where((index >= 0)[:, None], squares, 0.0)
    return total
