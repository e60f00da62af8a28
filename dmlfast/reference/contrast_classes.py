"""Similarities to classes of several centres, in plain torch, by blocks of rows and classes.

Products are of matrices whose sizes are multiples of `_SIDE`, filled up with zeros, and whose right
one lies row by row. Of such ones MKL 2024.2 gave the same bits for 1 to 32 threads and at every
place in memory, as far as tried; it cuts others where the number of threads decides, and rounds at
a cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast._normalize import unit_rows, unit_rows_gradient
from dmlfast.reference.distances import distance_dtype

# Products of a block: on the CPU as many as stay in its caches, elsewhere enough to fill a device.
_CPU_PRODUCTS, _DEVICE_PRODUCTS = 2**19, 2**25
# Rows of a block, enough of them to make a pass over the centres' gradient worth it.
_ROWS = 1024
# Classes of a block; a single thread adds up so many.
_CLASSES = 2**14
_SIDE = 16
# Exponents whose exp is nothing beside 1, even a million times; and that squared is no subnormal
# number, which would take a hundred times as long.
_NEGLIGIBLE = {torch.float32: -40.0, torch.float64: -300.0}


class Form(NamedTuple):
    """What the similarity to a class is, and what is summed over classes.

    Attributes:
        name: "greatest", that to the nearest centre, or "relaxed", the mean of those to all by
            the shares softmax_k(s_k / temperature).
        temperature: greater than 0.
        scale: factor of the similarities in the exponent.
        metric: "cosine" or "dot".
    """

    name: str
    temperature: float
    scale: float
    metric: str


class _Rows(NamedTuple):
    """The rows of x in the dtype of the products, and lost ones up to a multiple of `_SIDE`.

    Attributes:
        units: (P, q) rows, of unit length under "cosine"; 0 where lost, and beyond d dimensions.
        labels: (P,) int64.
        lost: (P,) bool: rows that are not finite or whose class has no centres.
    """

    units: Tensor
    labels: Tensor
    lost: Tensor

    def of(self, part: slice) -> _Rows:
        """Some of the rows."""
        return _Rows(self.units[part], self.labels[part], self.lost[part])


class Sums(NamedTuple):
    """What a loss over classes needs of the logits, scale * S, of each row.

    The sum and its peak are apart: added up they would be rounded to a length of the peak, by
    which the shares of the classes would no longer add up to 1.

    Attributes:
        own: (N,) similarity S to the row's own class, in the dtype of distances.
        total: (N,) float64 sum over the other classes of exp(logit - peak).
        peak: (N,) in the dtype of distances: greatest logit of the other classes; 0 where it is
            infinite, or where there is none.
    """

    own: Tensor
    total: Tensor
    peak: Tensor


class _Similarity(NamedTuple):
    """The similarities of a block of rows to a block of classes.

    Attributes:
        value: (R, B).
        total: (R, B) sum of the shares before they add up to 1; of "relaxed" alone.
        mean: (R, B) mean exponent of the shares; of "relaxed" alone.
    """

    value: Tensor
    total: Tensor
    mean: Tensor


def _rows(x: Tensor, labels: Tensor, classes: int, metric: str) -> _Rows:
    lost = ~x.isfinite().all(1) | (labels < 0) | (labels >= classes)
    units = torch.where(lost[:, None], 0.0, x.to(distance_dtype(x)))
    units = unit_rows(units) if metric == "cosine" else units
    return _Rows(_filled(units), _filled_rows(labels, 0), _filled_rows(lost, True))


def _filled(matrix: Tensor) -> Tensor:
    """A (..., n, d) matrix with zeros up to multiples of `_SIDE`."""
    sides = (0, -matrix.shape[-1] % _SIDE, 0, -matrix.shape[-2] % _SIDE)
    return torch.nn.functional.pad(matrix, sides)


def _filled_rows(values: Tensor, value: float) -> Tensor:
    """(N,) values with another up to a multiple of `_SIDE`."""
    return torch.nn.functional.pad(values, (0, -values.shape[0] % _SIDE), value=value)


def _multiple(size: int) -> int:
    """The greatest multiple of `_SIDE` that is not above a size, or the least one."""
    return max(_SIDE, size // _SIDE * _SIDE)


def _row_parts(count: int, per_class: int, products: int) -> list[slice]:
    """Parts of about equal size, multiples of `_SIDE`, whose products with classes fit a block."""
    greatest = _multiple(min(_ROWS, products // (_SIDE * per_class)))
    parts = max(1, -(-count // greatest))
    size = _multiple(-(-count // parts) + _SIDE - 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


class _Block(NamedTuple):
    """Centres of some classes.

    Attributes:
        first: the first of the classes.
        units: (K, P, q) first centres of the classes, second ones, ..., of unit length under
            "cosine", and zeros up to multiples of `_SIDE`; NaN where they are not finite.
        centers: (K, B, d) as they were handed in, in the dtype of the products.
        places: which of the centres they are.
    """

    first: int
    units: Tensor
    centers: Tensor
    places: slice

    @property
    def classes(self) -> int:
        """B, how many classes there are."""
        return self.centers.shape[1]


def _blocks(
    centers: Tensor, per_class: int, rows: int, products: int, form: Form
) -> Iterator[_Block]:
    classes = centers.shape[0] // per_class
    step = _multiple(min(_CLASSES, products // (max(1, rows) * per_class)))
    for first in range(0, classes, step):
        places = slice(first * per_class, min(first + step, classes) * per_class)
        part = centers[places].to(distance_dtype(centers)).unflatten(0, (-1, per_class))
        part = part.transpose(0, 1).contiguous()
        units = unit_rows(part) if form.metric == "cosine" else part
        yield _Block(first, _filled(units + _nan_marks(units)), part, places)


def _nan_marks(units: Tensor) -> Tensor:
    """NaN for rows that are not finite, 0 for the others."""
    # 0 times what is not finite; the sum over a row overflows nowhere.
    return (0 * units).sum(-1, keepdim=True)


def _planes(rows: _Rows, block: _Block) -> Tensor:
    """(K, R, P) products of the rows with the first centres of the classes, the second, ...

    What is beyond B is 0.
    """
    planes = rows.units.new_empty(len(block.units), len(rows.units), block.units.shape[1])
    for plane, centers in zip(planes, block.units, strict=True):
        torch.mm(rows.units, centers.T.contiguous(), out=plane)
    return planes


def _similarity(planes: Tensor, form: Form) -> _Similarity:
    """Of (K, R, B) products; those of "relaxed" become exponents of the shares, at most 0."""
    best = planes[0].clone()
    for plane in planes[1:]:
        torch.maximum(best, plane, out=best)
    if form.name == "greatest":
        return _Similarity(best, best, best)
    total, mean = torch.zeros_like(best), torch.zeros_like(best)
    # Plane by plane: a sum over them would be in an order that the number of threads decides.
    for plane in planes:
        plane.sub_(best).div_(form.temperature).clamp_(min=_NEGLIGIBLE[planes.dtype])
        share = plane.exp()
        total.add_(share)
        mean.addcmul_(share, plane)
    mean.div_(total)
    return _Similarity(best.add_(mean, alpha=form.temperature), total, mean)


def _weigh(planes: Tensor, similarity: _Similarity, weights: Tensor, form: Form) -> None:
    """Makes the products the derivatives by them, given (R, B) those by the similarities."""
    if form.name == "relaxed":
        weights = weights / similarity.total
        slope = 1 - similarity.mean
        for plane in planes:
            share = plane.exp()
            plane.add_(slope).mul_(share).mul_(weights)
        return
    # In numbers: selecting by a mask takes ten times as long.
    left = torch.ones_like(weights)
    for plane in planes:
        plane.eq_(similarity.value).mul_(left)
        left.sub_(plane)
        plane.mul_(weights)


def _own(rows: _Rows, block: _Block) -> tuple[Tensor, Tensor]:
    """(R, 1) whether the class of a row is in the block, and which it is."""
    place = (rows.labels - block.first)[:, None]
    return (place >= 0) & (place < block.classes), place.clamp(0, block.classes - 1)


def sums(x: Tensor, labels: Tensor, centers: Tensor, centers_per_class: int, form: Form) -> Sums:
    """The similarity of each row to its own class, and the sum over the others.

    Args:
        x: (N, d).
        labels: (N,) int64 classes.
        centers: (C * K, d), class after class.
        centers_per_class: K.
        form: what the similarity to a class is.

    Returns:
        `Sums`. The first two NaN for a row that is not finite or of no class in [0, C); what
        centres that are not finite belong to is NaN. O((N + C·K)·d) memory.
    """
    products = _CPU_PRODUCTS if x.device.type == "cpu" else _DEVICE_PRODUCTS
    with torch.autocast(x.device.type, enabled=False):
        rows = _rows(x, labels, centers.shape[0] // centers_per_class, form.metric)
        own = rows.units.new_full((len(rows.units),), math.nan)
        peak = torch.full_like(own, -math.inf)
        total = torch.zeros_like(own, dtype=torch.float64)
        parts = _row_parts(len(own), centers_per_class, products)
        longest = parts[0].stop if parts else 0
        for block in _blocks(centers, centers_per_class, longest, products, form):
            for part in parts:
                chunk = rows.of(part)
                planes = _planes(chunk, block)[..., : block.classes]
                similarity = _similarity(planes, form).value
                inside, place = _own(chunk, block)
                found = similarity.gather(1, place)
                own[part] = torch.where(inside, found, own[part, None])[:, 0]
                _add(similarity.mul_(form.scale), inside, place, peak[part], total[part])
        lost = torch.where(rows.lost, math.nan, 0.0).to(own.dtype)
        sums = own + lost, total + lost, _finite(peak)
        return Sums(*(values[: x.shape[0]].clone() for values in sums))


def _put(matrix: Tensor, inside: Tensor, place: Tensor, value: Tensor | float) -> None:
    """Writes a value in a row at its place, where that is inside."""
    matrix.scatter_(1, place, torch.where(inside, value, matrix.gather(1, place)))


def _finite(peak: Tensor) -> Tensor:
    """0 in place of infinities, which have no differences."""
    return torch.where(peak.isinf(), 0.0, peak)


def _add(logits: Tensor, inside: Tensor, place: Tensor, peak: Tensor, total: Tensor) -> None:
    """Raises the peak to the greatest logit, and adds exp(logits - peak) to the total.

    The own class, which is at a place inside the block or not, counts in neither.
    """
    _put(logits, inside, place, -math.inf)
    raised = torch.maximum(peak, logits.amax(1))
    origin = _finite(raised)
    total.mul_((peak - origin).double().exp())
    logits.sub_(origin[:, None]).clamp_(min=_NEGLIGIBLE[logits.dtype]).exp_()
    _put(logits, inside, place, 0.0)
    total.add_(logits.sum(1))
    peak.copy_(raised)


def sums_backward(
    grad_own: Tensor,
    grad_total: Tensor,
    peak: Tensor,
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    form: Form,
) -> tuple[Tensor, Tensor]:
    """Gradients of `sums` by x and by the centres, for (N,) upstream gradients and its `peak`.

    The total is differentiated as if the peak were a constant.

    Products are computed again, and gradients added up in an order that the sizes decide.
    """
    products = _CPU_PRODUCTS if x.device.type == "cpu" else _DEVICE_PRODUCTS
    with torch.autocast(x.device.type, enabled=False):
        rows = _rows(x, labels, centers.shape[0] // centers_per_class, form.metric)
        lost = rows.lost[: x.shape[0]]
        own = torch.where(lost, 0.0, grad_own)
        total = torch.where(lost, 0.0, form.scale * grad_total).to(own.dtype)
        upstream = _Upstream(*(_filled_rows(each, 0)[:, None] for each in (own, total, peak)))
        to_rows = torch.zeros_like(rows.units)
        to_centers = centers.new_empty(centers.shape)
        parts = _row_parts(len(to_rows), centers_per_class, products)
        longest = parts[0].stop if parts else 0
        for block in _blocks(centers, centers_per_class, longest, products, form):
            to_units = torch.zeros_like(block.units)
            for part in parts:
                chunk = rows.of(part)
                weights = _weights(chunk, block, upstream.of(part), form)
                for plane, units, to_plane in zip(weights, block.units, to_units, strict=True):
                    to_rows[part].addmm_(plane, units)
                    to_plane.addmm_(plane.T, chunk.units)
            to_units = to_units[:, : block.classes, : x.shape[1]]
            if form.metric == "cosine":
                units = block.units[:, : block.classes, : x.shape[1]]
                to_units = unit_rows_gradient(to_units, block.centers, units)
            to_centers[block.places] = to_units.transpose(0, 1).flatten(0, 1)
        to_rows = to_rows[: x.shape[0], : x.shape[1]]
        if form.metric == "cosine":
            given = torch.where(lost[:, None], 0.0, x.to(to_rows.dtype))
            to_rows = unit_rows_gradient(to_rows, given, rows.units[: x.shape[0], : x.shape[1]])
        spoilt = lost & ((grad_own != 0) | (grad_total != 0))
        return torch.where(spoilt[:, None], math.nan, to_rows).to(x.dtype), to_centers


class _Upstream(NamedTuple):
    """What a block of rows needs of the gradients of its sums, (R, 1) each.

    Attributes:
        own: by the similarity to the own class.
        total: by the total of the others, times the scale.
        peak: the peak of that total.
    """

    own: Tensor
    total: Tensor
    peak: Tensor

    def of(self, part: slice) -> _Upstream:
        """Those of some of the rows."""
        return _Upstream(self.own[part], self.total[part], self.peak[part])


def _weights(rows: _Rows, block: _Block, upstream: _Upstream, form: Form) -> Tensor:
    """(K, R, P) derivatives by the products, 0 beyond B."""
    planes = _planes(rows, block)
    inner = planes[..., : block.classes]
    similarity = _similarity(inner, form)
    weights = similarity.value * form.scale
    weights.sub_(upstream.peak).clamp_(min=_NEGLIGIBLE[weights.dtype]).exp_()
    weights.mul_(upstream.total)
    inside, place = _own(rows, block)
    _put(weights, inside, place, upstream.own)
    _weigh(inner, similarity, weights, form)
    return planes
