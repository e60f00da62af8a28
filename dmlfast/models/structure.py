"""Two embeddings of an image: where it is, and the shape of its neighbourhood."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast.ops._arguments import (
    check_count,
    check_dimensions,
    check_embeddings,
    check_positive,
    describe,
)

# Rows of a mean distance of no more roundings of their mean length are taken for the same row.
_ROUNDINGS = 4


class SampleStructure(NamedTuple):
    """What `SampleStructureHead` returns, as `dmlfast.functional.adaptive_distance` takes it.

    Attributes:
        sample: (N, dimensions) sample embeddings.
        structure: (N, dimensions) weights of the dimensions around each.
    """

    sample: Tensor
    structure: Tensor


class SampleStructureHead(nn.Module):
    """Maps features to a sample embedding and to a structure embedding (NASA).

        sample = W features + b
        structure = least + 2 (1 - least) sigmoid(BN(A_2 BN(A_1 features)))

    The sample embedding is not normalised. In training mode it is divided by the mean distance
    between the rows of the batch, which the gradient takes into account and which is then 1, as
    `dmlfast.functional.multi_cluster_loss` expects; in evaluation mode it is left as it is. So it
    is where the rows of the batch are all the same up to rounding, or fewer than two.

    The structure embedding holds weights between `least` and 2 - `least`. No gradient flows from
    one to the other. The batch norms stay in evaluation mode: affine maps of each channel by the
    running statistics, 0 and 1 unless others are loaded. So a row's structure never depends on the
    batch.

    The state dict holds `sample` (W, b) and `structure` (A_1, its norm, A_2, its norm).

    Args:
        feature_size: length of the features.
        dimensions: length of both embeddings.
        least: the least weight of a dimension, above 0 and at most 1. The source has 0.5, weights
            in a ratio of 3 at most; less lets a neighbourhood be told from a sphere further.

    Raises:
        TypeError: a size that is not an integer.
        ValueError: a number out of its range.

    Source: NASA (Li et al., "Neighborhood-adaptive structure augmented metric learning", AAAI
    2022), and the authors' code.
    """

    def __init__(self, feature_size: int, dimensions: int, *, least: float = 0.5) -> None:
        super().__init__()
        self.feature_size = check_count("feature_size", feature_size)
        self.dimensions = check_count("dimensions", dimensions)
        self.least = check_positive("least", least)
        if self.least > 1:
            raise ValueError(f"least: expected a number above 0 and at most 1, got {least}")
        self.sample = nn.Linear(feature_size, dimensions)
        self.structure = nn.Sequential(
            nn.Linear(feature_size, dimensions),
            nn.BatchNorm1d(dimensions),
            nn.Linear(dimensions, dimensions),
            nn.BatchNorm1d(dimensions),
        )
        self.train(self.training)

    def train(self, mode: bool = True) -> SampleStructureHead:
        """Training or evaluation mode; the batch norms stay in evaluation mode."""
        super().train(mode)
        self.structure.eval()
        return self

    def forward(self, features: Tensor) -> SampleStructure:
        """Embed features.

        Args:
            features: (N, feature_size) floating, such as `ConvolutionalEmbedding.backbone` gives.

        Returns:
            `SampleStructure`, in the dtype of the weights or that of autocast; differentiable once
            in `features` and weights.

        Memory: O(N (feature_size + dimensions)), also for the mean distance.

        Raises:
            TypeError: if the features are no tensor of a floating dtype, or, without autocast, of
                another than the weights.
            ValueError: if they have another shape, or are on another device than the weights.
        """
        self._check(features)
        sample = self.sample(features)
        if self.training:
            sample = _divided_by_mean_distance(sample)
        return SampleStructure(sample, self.weights(features))

    def weights(self, features: Tensor) -> Tensor:
        """The structure embedding of (N, feature_size) features alone."""
        share: Tensor = self.structure(features).sigmoid()
        return self.least + 2 * (1 - self.least) * share

    def _check(self, features: object) -> None:
        given, weight = check_embeddings("features", features), self.sample.weight
        check_dimensions("features", given, self.feature_size)
        if given.device != weight.device:
            raise ValueError(
                f"features: expected the device of the weights, {weight.device}, "
                f"got {describe(given)}"
            )
        if given.dtype != weight.dtype and not torch.is_autocast_enabled(given.device.type):
            raise TypeError(
                f"features: expected {weight.dtype} as the weights, got {describe(given)}"
            )


def _divided_by_mean_distance(x: Tensor) -> Tensor:
    mean = functional.distance_statistics(x).mean
    # In float64, as the square of a length may leave the range of float32.
    length = torch.linalg.vector_norm(x.detach(), dim=1, dtype=torch.float64).sum()
    length = length / max(1, len(x))
    # Else a collapsed batch would have its rounding blown up. Not `mean > ...`: NaN has to pass.
    collapsed = mean <= _ROUNDINGS * torch.finfo(x.dtype).eps * length
    return (x.to(mean.dtype) / torch.where(collapsed, 1.0, mean)).to(x.dtype)
