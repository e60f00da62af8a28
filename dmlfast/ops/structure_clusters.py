"""A loss that pulls adaptive distances to a few anchor distances, by soft assignment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_count,
    check_finite,
    check_flag,
    check_not_negative,
    check_option,
    check_share,
)
from dmlfast.ops._operators import register
from dmlfast.ops._reduction import REDUCTIONS, reduce_over_rows
from dmlfast.ops.pairwise import distance_statistics
from dmlfast.ops.structure import check_structure, structure_operators
from dmlfast.reference import structure as reference
from dmlfast.reference.distances import distance_dtype

# Of all pairs of an anchor. Where a cluster holds less, its place says nothing.
_LEAST_MASS = 1e-6

# Beyond, a pair has one cluster, but for ties; products with distances stay finite.
_GREATEST_SHARPNESS = 1e150


def multi_cluster_loss(
    e: Tensor,
    w: Tensor,
    *,
    clusters: int = 2,
    spread: float = 3.0,
    sharpness: float = 10.0,
    floor: float = 0.2,
    include_self: bool = True,
    order_weight: float = 0.0,
    order_margin: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Pulls every adaptive distance of a batch to the nearest of some anchor distances, softly.

    With mean mu and deviation sd of the Euclidean distances within the batch, from which no
    gradient flows, the K anchor distances lie evenly from mu down to one of near neighbours,

        eta_k = mu - (mu - max(floor mu, mu - spread sd)) (k - 1) / (K - 1),   eta_1 = mu,

    and with D_ij as in `adaptive_distance` the loss of an anchor is the mean over the others

        l_i = 1 / (N - 1) sum_{j != i} sum_k c_k(ij) |D_ij - eta_k|
        c_k(ij) = softmax over k of -sharpness (K - 1) |D_ij - eta_k|

    where the gradient flows through c, too. With one cluster all distances are pulled to the mean.
    An `order_weight` adds to l_i that times the sum over k of [m_{k+1}(i) - m_k(i) +
    order_margin]_+, the mean distances m_k(i) = sum_j c_k D_ij / sum_j c_k having to fall as the
    anchor distances do; a cluster that holds less than 1e-6 of a pair takes no part.

    Args:
        e: (N, d) float16, bfloat16, float32 or float64 embeddings, any strides. A `sharpness` of 10
            expects distances around 1, as of embeddings divided by their mean distance.
        w: (N, d) weights of the dimensions, dtype and device of `e`; at least 0.
        clusters: the number K of anchor distances, at least 1.
        spread: how many deviations the smallest anchor distance lies below the mean, at least 0.
        sharpness: of the assignment with two clusters, per unit of distance, at least 0.
        floor: the least anchor distance as a part of the mean, 0 to 1.
        include_self: mean and deviation over all N^2 distances, the zeros of each row to itself
            included, as the source has it; else over N (N - 1).
        order_weight: of the ranking of the clusters, at least 0; 0 (default) leaves it out.
        order_margin: a finite distance.
        reduction: "mean" over the N anchors (default), that is over all ordered pairs, "sum" over
            the anchors, or "none".

    Returns:
        A scalar, or the (N,) l_i with reduction "none"; float64 for float64 rows, else float32.
        Differentiable once in `e` and `w`. An anchor without others has loss 0, and so has a mean
        over none. A pair at distance 0 has gradient 0. A row of `e` that is not finite, or
        distances beyond the returned dtype, make mean and deviation NaN, and so all losses and
        gradients.
        An anchor with a weight that is not finite or is negative has loss NaN, and, where that is
        used, gradient NaN by its weights and by all embeddings.

    Memory: O(N·d), about seven times float32 `e` and `w`, and up to three times more where rows
    have others near them; with an `order_weight` also O(N·K). There is no N x N matrix. Pairs are
    float32 sums of products, near ones of differences, of rows around their mean; sums over pairs
    are float64. Deterministic. float64 rows are served by plain torch everywhere.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: the structure loss of NASA (Li et al., "Neighborhood-adaptive structure augmented metric
    learning", AAAI 2022) is the default, two clusters. More of them, evenly spaced and with
    sharpness in proportion to their number, and the ranking of the clusters are this library's
    reading of the multi-cluster ranking of its successor, NAMR.
    """
    rows, structure = check_structure(e, w)
    clusters = check_count("clusters", clusters)
    spread, floor = check_not_negative("spread", spread), check_share("floor", floor)
    sharpness = check_not_negative("sharpness", sharpness)
    check_flag("include_self", include_self)
    order_weight = check_not_negative("order_weight", order_weight)
    order_margin = check_finite("order_margin", order_margin)
    check_option("reduction", reduction, REDUCTIONS)
    targets = _targets(rows, clusters, spread, floor, include_self)
    loss, mass, moment = structure_operators(rows).structure_clusters(
        rows,
        structure,
        targets,
        min(sharpness * (clusters - 1), _GREATEST_SHARPNESS),
        order_weight > 0,
    )
    loss = loss / max(1, rows.shape[0] - 1)
    if order_weight > 0:
        loss = loss + order_weight * _order_loss(mass, moment, order_margin)
    result: Tensor = reduce_over_rows(loss, reduction).to(distance_dtype(rows))
    return result


def _targets(e: Tensor, clusters: int, spread: float, floor: float, include_self: bool) -> Tensor:
    """(K,) float64 anchor distances, the greatest first; constants."""
    statistics = distance_statistics(e.detach(), include_self=include_self)
    mean, deviation = statistics.mean.double(), statistics.deviation.double()
    least = torch.maximum(floor * mean, mean - spread * deviation)
    step = torch.arange(clusters, dtype=torch.float64, device=e.device) / max(1, clusters - 1)
    return mean - (mean - least) * step


def _order_loss(mass: Tensor, moment: Tensor, margin: float) -> Tensor:
    """(N,) sums of how far mean distances of clusters fail to fall by a margin."""
    holds = mass >= _LEAST_MASS
    place = torch.where(holds, moment, 0.0) / torch.where(holds, mass, 1.0)
    rise = place[:, 1:] - place[:, :-1] + margin
    return torch.where(holds[:, 1:] & holds[:, :-1], rise.relu(), 0.0).sum(1)


def _reference(
    e: Tensor, w: Tensor, targets: Tensor, sharpness: float, ordered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.clusters(e, w, targets, sharpness=sharpness, ordered=ordered)


def _reference_backward(
    grad_loss: Tensor,
    grad_mass: Tensor,
    grad_moment: Tensor,
    e: Tensor,
    w: Tensor,
    targets: Tensor,
    sharpness: float,
    ordered: bool,
) -> tuple[Tensor, Tensor]:
    return reference.clusters_backward(
        grad_loss, grad_mass, grad_moment, e, w, targets, sharpness=sharpness, ordered=ordered
    )


def _fake(
    e: Tensor, w: Tensor, targets: Tensor, sharpness: float, ordered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    sums = (e.shape[0] if ordered else 0, targets.shape[0])
    return (
        e.new_empty(e.shape[0], dtype=torch.float64),
        e.new_empty(sums, dtype=torch.float64),
        e.new_empty(sums, dtype=torch.float64),
    )


def _fake_backward(
    grad_loss: Tensor, grad_mass: Tensor, grad_moment: Tensor, e: Tensor, w: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return e.new_empty(e.shape), e.new_empty(w.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.sharpness, ctx.ordered = inputs
    ctx.save_for_backward(*tensors)


def _backward(
    operators: Any, ctx: Any, grad_loss: Tensor, grad_mass: Tensor, grad_moment: Tensor
) -> tuple[Tensor | None, ...]:
    e, w, targets = ctx.saved_tensors
    to_e, to_w = operators.structure_clusters_backward(
        grad_loss, grad_mass, grad_moment, e, w, targets, ctx.sharpness, ctx.ordered
    )
    return to_e, to_w, None, None, None


register(
    "structure_clusters",
    reference=_reference,
    reference_backward=_reference_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
)
