"""Adaptive distances, and their soft assignment to clusters, in plain torch, by chunks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.reference.distances import distance_dtype, row_parts, square_root


def _squares(e: Tensor, w: Tensor, others: Tensor) -> Tensor:
    """(C, M) float64 sums over k ascending of w_ik (e_ik - y_jk)^2.

    NaN for a row of embeddings that is not finite, and an anchor whose weights are not a metric.
    """
    total = torch.zeros((e.shape[0], others.shape[0]), dtype=torch.float64, device=e.device)
    for e_k, w_k, y_k in zip(
        e.double().unbind(1), w.double().unbind(1), others.double().unbind(1), strict=True
    ):
        difference = e_k[:, None] - y_k[None]
        total += w_k[:, None] * (difference * difference)
    usable = e.isfinite().all(1) & (w.isfinite() & (w >= 0)).all(1)
    return torch.where(usable[:, None] & others.isfinite().all(1)[None], total, math.nan)


def distance(e: Tensor, w: Tensor, references: Tensor | None, *, squared: bool) -> Tensor:
    """All distances of e (N, d), by its own weights w (N, d), to references (M, d), or to e itself.

    Returns:
        (N, M) float64 for float64 rows, else float32; NaN as `_squares`.
    """
    others = e if references is None else references
    result = e.new_empty((e.shape[0], others.shape[0]), dtype=distance_dtype(e))
    for part in row_parts(*result.shape):
        squares = _squares(e[part], w[part], others)
        result[part] = (squares if squared else square_root(squares)).to(result.dtype)
    return result


def distance_backward(
    grad: Tensor,
    distance: Tensor,
    e: Tensor,
    w: Tensor,
    references: Tensor | None,
    *,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `distance` for an upstream gradient (N, M).

    Returns:
        Those by e, by w and by the references; within a batch that by e is the whole, and the last
        is (0, d).
    """
    sums = _Gradients(e, w, references)
    for part in row_parts(*grad.shape):
        slopes, found = grad[part].double(), distance[part].double()
        if squared:
            # NaN for a pair without a distance that somebody asks for.
            sums.add(part, torch.where(found.isnan() & (slopes != 0), math.nan, slopes))
        else:
            sums.add(part, _through_root(slopes, found))
    return sums.rounded()


def _through_root(slopes: Tensor, distance: Tensor) -> Tensor:
    """Derivatives by the square from those by the distance: 0 at distance 0."""
    # 0 / NaN: nothing comes from a pair that nobody asks for.
    nothing = (slopes == 0) | (distance == 0)
    return torch.where(nothing, 0.0, slopes / (2 * torch.where(nothing, 1.0, distance)))


class _Gradients:
    """float64 sums of the gradients of anchors, of their weights and of references."""

    def __init__(self, e: Tensor, w: Tensor, references: Tensor | None) -> None:
        self._e, self._w, self._references = e, w, references
        self._others = (e if references is None else references).double()
        self._to_e, self._to_w = (torch.zeros_like(rows, dtype=torch.float64) for rows in (e, w))
        self._to_others = torch.zeros_like(self._others)

    def add(self, part: slice, weights: Tensor) -> None:
        """Adds those of sum(weights * squares) over a chunk of anchors and all references."""
        rows, metric = self._e[part].double(), self._w[part].double()
        unused = weights == 0
        for k in range(rows.shape[1]):
            difference = rows[:, k, None] - self._others[None, :, k]
            # 0 * NaN: a row that is not finite must not reach pairs without weight.
            pull = torch.where(unused, 0.0, weights * difference)
            along = torch.where(unused, 0.0, 2 * metric[:, k, None] * pull)
            self._to_w[part, k] += torch.where(unused, 0.0, pull * difference).sum(1)
            self._to_e[part, k] += along.sum(1)
            self._to_others[:, k] -= along.sum(0)

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients in the dtype of the rows; within a batch, both roles in the first."""
        dtype, to_e, to_others = self._e.dtype, self._to_e, self._to_others
        if self._references is None:
            to_e, to_others = to_e + to_others, to_others[:0]
        return to_e.to(dtype), self._to_w.to(dtype), to_others.to(dtype)


class _Assignment(NamedTuple):
    """How the pairs of a chunk of anchors belong to the clusters.

    Attributes:
        distance: (C, N, 1) float64 adaptive distances, 0 for an anchor and itself.
        gap: (C, N, K) distance less target.
        share: (C, N, K) of the pair that each cluster holds; 0 for an anchor and itself.
    """

    distance: Tensor
    gap: Tensor
    share: Tensor


def _assign(
    part: slice, e: Tensor, w: Tensor, targets: Tensor, sharpness: float
) -> tuple[_Assignment, Tensor]:
    """The assignment of a chunk, and (C, N) whether a pair is an anchor and itself."""
    own = torch.arange(e.shape[0], device=e.device)
    is_self = own[part, None] == own[None]
    squares = torch.where(is_self, 0.0, _squares(e[part], w[part], e))
    distance = square_root(squares)[..., None]
    gap = distance - targets
    share = torch.softmax(-sharpness * gap.abs(), 2)
    return _Assignment(distance, gap, torch.where(is_self[..., None], 0.0, share)), is_self


def clusters(
    e: Tensor, w: Tensor, targets: Tensor, *, sharpness: float, ordered: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor, over the others: the sum of c_k |D - target_k|, and those of c_k and of c_k D.

    Args:
        e: (N, d) embeddings.
        w: (N, d) weights of their dimensions.
        targets: (K,) float64.
        sharpness: c is the softmax over k of -sharpness |D - target_k|.
        ordered: whether the latter two are wanted.

    Returns:
        float64 (N,), (N, K) and (N, K), the latter (0, K) unless wanted. NaN where a distance is or
        a target is not finite.
    """
    loss = e.new_zeros(e.shape[0], dtype=torch.float64)
    mass = loss.new_zeros((e.shape[0] if ordered else 0, targets.shape[0]))
    moment = torch.zeros_like(mass)
    for part in row_parts(e.shape[0], e.shape[0] * targets.shape[0]):
        found, is_self = _assign(part, e, w, targets, sharpness)
        terms = (found.share * found.gap.abs()).sum(2)
        loss[part] = torch.where(is_self, 0.0, terms).sum(1)
        if ordered:
            mass[part] = found.share.sum(1)
            moment[part] = (found.share * found.distance).sum(1)
    return loss, mass, moment


def clusters_backward(
    grad_loss: Tensor,
    grad_mass: Tensor,
    grad_moment: Tensor,
    e: Tensor,
    w: Tensor,
    targets: Tensor,
    *,
    sharpness: float,
    ordered: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of `clusters` by e and by w for upstream gradients of its shapes."""
    sums = _Gradients(e, w, None)
    for part in row_parts(e.shape[0], e.shape[0] * targets.shape[0]):
        found, is_self = _assign(part, e, w, targets, sharpness)
        upstream = grad_loss[part, None, None].double()
        unused = is_self | (upstream[..., 0] == 0)
        # By each share, and by the distance where the shares stay as they are.
        to_share = upstream * found.gap.abs()
        direct = (upstream * found.share * found.gap.sign()).sum(2)
        if ordered:
            to_mass, to_moment = (g[part, None].double() for g in (grad_mass, grad_moment))
            unused = unused & ((to_mass == 0) & (to_moment == 0)).all(2)
            to_share = to_share + to_mass + to_moment * found.distance
            direct = direct + (to_moment * found.share).sum(2)
        sign = found.gap.sign()
        change = -sharpness * found.share * (sign - (found.share * sign).sum(2, keepdim=True))
        slopes = torch.where(unused | is_self, 0.0, direct + (to_share * change).sum(2))
        sums.add(part, _through_root(slopes, found.distance[..., 0]))
    return sums.rounded()[:2]
