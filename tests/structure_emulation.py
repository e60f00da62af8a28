"""Adaptive distances by the CUDA kernels' own source on the CPU: cases and error bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import emulation
import numpy as np
import pytest
import torch
from pairwise_emulation import EPSILON, ROUNDING, SHARED_BYTES, decode
from torch import Tensor

from dmlfast.reference import structure as reference

OPERATORS = ("distance", "distance_backward", "clusters", "clusters_backward")
# Split elements are off by this much of themselves, and a small one by this much of the greatest.
OFF = ROUNDING["exact"]
OFF_GREATEST = 2.0**-39

each_form = pytest.mark.parametrize("form", ["batch", "references"])
each_squared = pytest.mark.parametrize("squared", [False, True])


def weights(number: int, dimensions: int) -> Tensor:
    """From 0.5 to 1.5, as the source's heads have them."""
    generator = torch.Generator().manual_seed(number + dimensions)
    return 0.5 + torch.rand(number, dimensions, generator=generator)


@dataclass
class Case:
    """Anchors and their weights, and references; within a batch without these."""

    e: Tensor
    w: Tensor
    references: Tensor | None = None
    squared: bool = False
    wanted_items: int = 0  # to divide the work into, at least; 0 for the usual number
    shared_bytes: int = SHARED_BYTES
    targets: Tensor | None = None  # (K,) float64, of the clusters
    sharpness: float = 10.0
    ordered: bool = False

    @property
    def others(self) -> Tensor:
        return self.e if self.references is None else self.references

    def doubles(self) -> tuple[Tensor, Tensor, Tensor | None]:
        others = None if self.references is None else self.references.double()
        return self.e.double(), self.w.double(), others

    def encode(self, operator: str) -> bytes:
        header = [
            OPERATORS.index(operator),
            len(self.e),
            *self.others.shape,
            self.references is None,
            self.squared,
            self.wanted_items,
            self.shared_bytes,
            0 if self.targets is None else len(self.targets),
            self.ordered,
        ]
        arrays = [np.array(header, dtype=np.int64), self.e.numpy(), self.w.numpy()]
        if self.references is not None:
            arrays.append(self.references.numpy())
        if self.targets is not None:
            arrays += [self.targets.numpy(), np.array(self.sharpness)]
        return b"".join(array.tobytes() for array in arrays)


def true_distances(case: Case) -> Tensor:
    """(N, M) float64; NaN where lost."""
    return reference.distance(*case.doubles(), squared=case.squared)


@dataclass
class Packed:
    """What the kernels multiply, in float64; 0 where lost.

    Attributes:
        e: (N, d) less the centre.
        w: (N, d).
        y: (M, d) less the centre.
        greatest: bounds of the elements of e and y, and of w.
    """

    e: Tensor
    w: Tensor
    y: Tensor
    greatest: tuple[float, float]

    @property
    def squares(self) -> Tensor:
        """(N, 1) weighted squares of the anchors."""
        return (self.w * self.e.square()).sum(1, keepdim=True)

    @property
    def least(self) -> float:
        """Of two elements of 2^-14 of the greatest each, in every dimension, times 64."""
        of_rows, of_weights = self.greatest
        return 64 * 2.0**-28 * of_rows**2 * of_weights * self.e.shape[1]

    def near(self, squares: Tensor) -> Tensor:
        """(N, M) bool, the pairs certainly computed from differences: half of a limit is."""
        return (squares < 0.5e-3 * self.squares) | (squares < self.least / 2)


def packed(case: Case) -> Packed:
    e, w, y = case.e.double(), case.w.double(), case.others.double()
    if len(y) > 0:
        centre = torch.where(y.isfinite(), y, 0.0).sum(0) / len(y)
        e, y = e - centre, y - centre
    used = (e.isfinite() & w.isfinite() & (w >= 0)).all(1)[:, None]
    rows = [torch.where(r.isfinite().all(1)[:, None], r, 0.0) for r in (e, y)]
    greatest = max([0.0, *(r.abs().max().item() for r in rows if r.numel())])
    w = torch.where(used, w, 0.0)
    of_weights = w.max().item() if w.numel() else 0.0
    # Powers of two beyond; that of the weights is even.
    powers = [2.0 * 2.0 ** math.floor(math.log2(g)) if g > 0 else 1.0 for g in (greatest,)]
    powers.append(4.0 * 4.0 ** math.floor(math.log2(of_weights) / 2) if of_weights > 0 else 1.0)
    return Packed(torch.where(used, rows[0], 0.0), w, rows[1], (powers[0], powers[1]))


def tolerances(case: Case, expected: Tensor) -> Tensor:
    """(N, M) bounds of the errors of distances."""
    p = packed(case)
    squares = expected if case.squared else expected.square()
    # The terms of a square: rounded elements, summed 24 times in float32 in steps of 16.
    steps = math.ceil(2 * case.e.shape[1] / 16)
    terms = p.w @ p.y.square().T + 2 * (p.w * p.e.abs()) @ p.y.abs().T
    error = (1.01 * 3 * OFF + (24 + 4 * steps) * EPSILON) * terms
    error = error + 4 * EPSILON * (p.squares + squares) + p.least * 2.0**-15
    error = torch.where(p.near(squares), 2 * EPSILON * squares, error)
    if case.squared:
        return error
    return torch.where(expected == 0, 0.0, error / expected.clamp(min=1e-45))


def distances(program: Path, folder: Path, case: Case) -> Tensor:
    content = emulation.run(program, folder, case.encode("distance"))
    return decode(content, (np.float32, (len(case.e), len(case.others))))[0]


def gradients(
    program: Path, folder: Path, case: Case, operator: str, *arrays: Tensor
) -> list[Tensor]:
    """Those by e, w and the references, in float64."""
    content = case.encode(operator) + b"".join(a.contiguous().numpy().tobytes() for a in arrays)
    others = (0 if case.references is None else len(case.others), case.e.shape[1])
    shapes = tuple(case.e.shape), tuple(case.w.shape), others
    results = decode(emulation.run(program, folder, content), *((np.float32, s) for s in shapes))
    return [result.double() for result in results]


# A weight is rounded as an element is; a tile sums 64 times (thrice) in float32, and the weights
# alone 32 times; 8 roundings of what a weight is computed from.
WEIGHTED = 1.01 * 2 * OFF + 3 * 72 * EPSILON
ALONE = 48 * EPSILON


def gradient_tolerances(
    case: Case, distance: Tensor, derivative: Tensor, error: Tensor | float = 0.0
) -> list[Tensor]:
    """Bounds of the errors of the gradients by e, w and the references.

    Args:
        case: the rows.
        distance: (N, M) float64.
        derivative: (N, M) of the loss by the distance.
        error: (N, M) bound of the error of the derivative.
    """
    p = packed(case)
    exists = distance.isfinite()
    divisor = torch.tensor(0.5)
    if not case.squared:
        exists = exists & (distance > 0)
        divisor = torch.where(exists, distance, 1.0)
    weight = torch.where(exists, derivative.abs(), 0.0) / divisor
    error = torch.where(exists, torch.as_tensor(error), 0.0) / divisor
    near = p.near(distance if case.squared else distance.square())
    far = torch.where(near, 0.0, weight)
    close = (torch.where(near, 16 * EPSILON * weight, 0.0) + error)[..., None]
    of_rows, of_weights = p.greatest
    e, y, w = p.e.abs(), p.y.abs(), p.w
    apart = (p.e[:, None] - p.y[None]).abs()
    # Small elements are off by a part of the greatest.
    y_off, w_off = OFF_GREATEST * of_rows, OFF_GREATEST * of_weights
    sums, own = WEIGHTED * (far @ y) + far.sum(1, keepdim=True) * y_off, far.sum(1, keepdim=True)
    to_e = w * (sums + ALONE * own * e + (close * apart).sum(1))
    squares = WEIGHTED * (far @ y.square()) + own * y_off * of_rows
    to_w = (squares + ALONE * own * e.square() + 2 * e * sums) / 2
    to_w = to_w + (close * apart.square()).sum(1) / 2
    own = far.sum(0)[:, None]
    to_y = 2 * y * (WEIGHTED * (far.T @ w) + own * w_off)
    to_y = to_y + WEIGHTED * (far.T @ (w * e)) + own * w_off * of_rows
    to_y = to_y + (close * w[:, None] * apart).sum(0)
    if case.references is None:
        return [to_e + to_y, to_w, to_y[:0]]
    return [to_e, to_w, to_y]


def check_gradients(
    actual: list[Tensor], expected: tuple[Tensor, ...], tolerance: list[Tensor]
) -> None:
    for a, e, t in zip(actual, expected, tolerance, strict=True):
        assert a.shape == e.shape
        assert torch.equal(a.isnan(), e.isnan())
        assert ((a - e).abs() <= t + 4 * EPSILON * e.abs()).logical_or(e.isnan()).all()
