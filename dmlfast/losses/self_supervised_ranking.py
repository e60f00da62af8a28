"""Self-supervised ranking of views, and of synthesised samples, as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._normalize import unit_rows
from dmlfast.losses._base import ShownModule
from dmlfast.losses._synthesis import SynthesisHead
from dmlfast.ops._arguments import (
    FLOAT_DTYPES,
    check_dimensions,
    check_embeddings,
    check_finite,
    check_option,
    check_positive,
    check_tensor,
    describe,
)
from dmlfast.ops._reduction import REDUCTIONS, reduce_over_rows


class _ViewRanking(ShownModule):
    """The ranking and the attraction of the similarities of views to their source."""

    shown = ("margin", "bound", "scale", "positive_weight", "reduction")

    def __init__(
        self,
        margin: float,
        bound: float,
        scale: float,
        positive_weight: float,
        reduction: str,
    ) -> None:
        super().__init__()
        self.margin = check_finite("margin", margin)
        self.bound = check_finite("bound", bound)
        self.scale = check_positive("scale", scale)
        self.positive_weight = check_finite("positive_weight", positive_weight)
        self.reduction = check_option("reduction", reduction, REDUCTIONS)

    def forward(self, similarities: Tensor) -> Tensor:
        """The loss of (M, N) similarities by rising strength."""
        falling = functional.ranking_loss(
            similarities, margin=self.margin, scale=self.scale, pairs="adjacent", reduction="none"
        )
        exponents = self.scale * (self.bound - similarities)
        close = torch.nn.functional.pad(exponents, (0, 1)).logsumexp(1) / self.scale
        return reduce_over_rows(falling + self.positive_weight * close, self.reduction)


class SelfSupervisedRankingLoss(nn.Module):
    """Ranking of views of an image by the strength of their transform (SSR).

    With the cosine S_n between a sample and its view n, n = 1, ..., N by rising strength,

        L = (1 / scale) log(1 + sum_{n<N} exp(scale (S_{n+1} - S_n + margin)))
          + positive_weight (1 / scale) log(1 + sum_n exp(-scale (S_n - bound)))

    Views become less similar as the transform gets stronger, but each remains a positive. It is
    added, with a weight (0.8 as published), to a metric loss on embeddings of another head.

    Args:
        margin: by how much the cosine shall fall from one view to the next, 0.05 by default.
        bound: the cosine that every view shall have at least, 0.5 by default.
        scale: greater than 0, 12 by default.
        positive_weight: of the second term, 1 by default.
        reduction: "mean" over the samples (default), "sum", or "none".

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, NaN, a margin that is not finite, or `scale` not above 0.

    Source: Fu et al., "Deep metric learning with self-supervised ranking", AAAI 2021.
    """

    def __init__(
        self,
        margin: float = 0.05,
        bound: float = 0.5,
        scale: float = 12.0,
        *,
        positive_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.rank = _ViewRanking(margin, bound, scale, positive_weight, reduction)

    def forward(self, sources: Tensor, views: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            sources: (M, d) floating, the samples; scaled to unit length here.
            views: (M, N, d) of the same dtype and device, views of each by rising strength;
                likewise.

        Returns:
            A scalar, or (M,) with reduction "none". 0 for no sample. Differentiable once in both.

        Memory: O(M N d).

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device.
        """
        rows = check_embeddings("sources", sources)
        others = _check_views(views, rows)
        units = unit_rows(others.flatten(0, 1)).view(others.shape)
        similarities = (units * unit_rows(rows)[:, None]).sum(2)
        loss: Tensor = self.rank(similarities)
        return loss


class SelfSupervisedSynthesisRankingLoss(SynthesisHead):
    """Ranking of samples synthesised around each sample by their distance from it.

    The loss of `SelfSupervisedRankingLoss` over samples that are moved along learnt directions of
    unit length by rising intensity, instead of over views, as `SyntheticRankingLoss` synthesises
    and compares them: S_n = <q(x + n radius u_n), q(x)>. No label is needed. The state dict holds
    `directions` and the `projector`, as there.

    Args:
        embedding_size: dimensions of the embeddings.
        count: intensities, and directions; 4 by default.
        radius: distance of one intensity from the next, of embeddings of length 1; 1 by default.
        projection_size: dimensions of what is compared; None (default) for `embedding_size`.
        margin: as there, and the next three.
        bound: 0.5 by default, near which <q(x), q(x)> starts: the ReLU keeps about half.
        scale: greater than 0, 12 by default.
        positive_weight: 1 by default.
        reduction: "mean" over the samples (default), "sum", or "none".
        generator: what decides which direction is at which intensity, drawn at every call;
            torch's own by default. Its state is not in the state dict.

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, NaN, a margin that is not finite, a size below 1, or `radius`
            or `scale` not above 0.

    Source: after the abstract of "Deep metric learning with self-supervised synthesis ranking",
    IEEE TCSVT; the formula is a reading of it, with the constants of the above.
    """

    def __init__(
        self,
        embedding_size: int,
        count: int = 4,
        radius: float = 1.0,
        projection_size: int | None = None,
        *,
        margin: float = 0.05,
        bound: float = 0.5,
        scale: float = 12.0,
        positive_weight: float = 1.0,
        reduction: str = "mean",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            count=count,
            radius=radius,
            projection_size=projection_size,
            shuffle="batch",
            generator=generator,
        )
        self.rank = _ViewRanking(margin, bound, scale, positive_weight, reduction)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            embeddings: (N, embedding_size) floating; scaled to unit length here.

        Returns:
            A scalar, or (N,) with reduction "none". 0 for no sample. Differentiable once in the
            embeddings and the parameters.

        Memory: O(N (embedding_size + projection_size + count)).

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape.
        """
        x = check_embeddings("embeddings", embeddings)
        check_dimensions("embeddings", x, self.embedding_size)
        groups = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        loss: Tensor = self.rank(self.similarities(unit_rows(x), self.draw(groups)))
        return loss


def _check_views(value: object, sources: Tensor) -> Tensor:
    views = check_tensor("views", value)
    if views.dtype not in FLOAT_DTYPES or views.dtype != sources.dtype:
        raise TypeError(f"views: expected {sources.dtype} as sources, got {describe(views)}")
    samples, dimensions = sources.shape
    if views.dim() != 3 or (views.shape[0], views.shape[2]) != (samples, dimensions):
        raise ValueError(
            f"views: expected shape ({samples}, N, {dimensions}) for sources of "
            f"{tuple(sources.shape)}, got {describe(views)}"
        )
    if views.device != sources.device:
        raise ValueError(f"views: expected the device of sources, got {describe(views)}")
    return views
