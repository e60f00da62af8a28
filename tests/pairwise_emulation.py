"""Distances and moments by the CUDA kernels' own source on the CPU: cases and error bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from emulation import METRICS
from torch import Tensor

from dmlfast.reference import pairwise as reference

OPERATORS = ("distance", "moments", "distance_backward", "moments_backward")
SHARED_BYTES = 99 * 1024
# A row's rounding errors against its length, and those of a product's sums against the lengths of
# both rows. Halves have 11 bits, two of them 22; up to 5 steps of 3 x 8 sums in float32, and what
# the product of the second halves leaves out.
ROUNDING = {"fast": 2.0**-11, "exact": 2.0**-22}
SUMMING = {"fast": 13 * 2.0**-24, "exact": 29 * 2.0**-24 + 2.0**-22}
EPSILON = 2.0**-24  # of float32, half a unit in the last place

each_metric = pytest.mark.parametrize("metric", METRICS)
each_precision = pytest.mark.parametrize("precision", ["fast", "exact"])
each_form = pytest.mark.parametrize("form", ["batch", "references"])


@dataclass
class Case:
    """Rows, and how they are compared; within a batch without references."""

    x: Tensor
    references: Tensor | None = None
    metric: str = "euclidean"
    precision: str = "exact"
    self_index: Tensor | None = None
    wanted_items: int = 0  # to divide the work into, at least; 0 for the usual number
    shared_bytes: int = SHARED_BYTES

    @property
    def others(self) -> Tensor:
        return self.x if self.references is None else self.references

    def doubles(self) -> tuple[Tensor, Tensor | None]:
        return self.x.double(), None if self.references is None else self.references.double()

    def is_self(self) -> Tensor:
        """(N, M) bool, the pairs that moments leave out."""
        own = self.self_index
        if self.references is None:
            own = torch.arange(len(self.x))
        if own is None:
            return torch.zeros(len(self.x), len(self.others), dtype=torch.bool)
        return torch.arange(len(self.others))[None] == own[:, None]

    def encode(self, operator: str) -> bytes:
        header = [
            OPERATORS.index(operator),
            len(self.x),
            *self.others.shape,
            self.references is None,
            METRICS.index(self.metric),
            self.precision == "fast",
            self.self_index is not None,
            self.wanted_items,
            self.shared_bytes,
        ]
        arrays = [np.array(header, dtype=np.int64), self.x.numpy()]
        if self.references is not None:
            arrays.append(self.references.numpy())
        return b"".join(array.tobytes() for array in arrays)


def rows(number: int, dimensions: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + number + dimensions)
    return torch.randn(number, dimensions, generator=generator)


def spoil(x: Tensor) -> Tensor:
    """With a zero row, equal rows, near-duplicates and rows that are not finite."""
    x = x.clone()
    x[1] = 0
    x[3] = x[len(x) - 1]
    x[4] = x[2] * (1 + 1e-5)
    x[5, -1] = math.nan
    x[len(x) - 2, 0] = -math.inf
    return x


def decode(content: bytes, *parts: tuple[type, tuple[int, ...]]) -> list[Tensor]:
    offset, results = 0, []
    for kind, shape in parts:
        array = np.frombuffer(content, kind, math.prod(shape), offset).reshape(shape)
        offset += array.nbytes
        results.append(torch.from_numpy(array.copy()))
    assert offset == len(content)
    return results


def true_distances(case: Case) -> Tensor:
    """(N, M) float64; NaN for a row that is not finite."""
    return reference.distance(*case.doubles(), metric=case.metric)


def packed_rows(case: Case) -> tuple[Tensor, Tensor]:
    """The rows whose products are multiplied, in float64: 0 where not finite."""
    x, y = case.x.double(), case.others.double()
    if case.metric in ("euclidean", "sqeuclidean") and len(y) > 0:
        centre = torch.where(y.isfinite(), y, 0.0).sum(0) / len(y)
        x, y = x - centre, y - centre
    x, y = (torch.where(r.isfinite().all(1)[:, None], r, 0.0) for r in (x, y))
    if case.metric == "cosine":
        return torch.nn.functional.normalize(x), torch.nn.functional.normalize(y)
    return x, y


def near_pairs(case: Case, distance: Tensor) -> Tensor:
    """(N, M) bool, the pairs certainly computed from differences: half of the limit is."""
    if case.metric in ("cosine", "dot"):
        return torch.zeros_like(distance, dtype=torch.bool)
    x, y = (r.square().sum(1) for r in packed_rows(case))
    squares = distance.square() if case.metric == "euclidean" else distance
    return squares < 0.5e-3 * (x[:, None] + y[None])


def tolerances(case: Case, expected: Tensor) -> Tensor:
    """(N, M) bounds of the errors of distances."""
    x, y = (r.square().sum(1) for r in packed_rows(case))
    lengths = (x[:, None] * y[None]).sqrt()
    rounding = ROUNDING[case.precision]
    # Both rows are rounded; 1% for the products of errors.
    rounded = 1.01 * 2 * rounding * lengths
    summed = 1.01 * SUMMING[case.precision] * lengths
    if case.metric in ("cosine", "dot"):
        return rounded + summed + 2 * EPSILON * (lengths + expected.abs())
    squares = expected.square() if case.metric == "euclidean" else expected
    if case.precision == "fast":
        # The distance is that of the rounded rows, which are so much closer or further apart.
        apart = rounding * (x.sqrt()[:, None] + y.sqrt()[None])
        rounded = apart * (squares.sqrt() + apart / 2)
    # Both norms and their sum are rounded, and the distance.
    error = 2 * (rounded + summed)
    error = error + 3 * EPSILON * (x[:, None] + y[None]) + 4 * EPSILON * squares
    error = torch.where(near_pairs(case, expected), 2 * EPSILON * squares, error)
    if case.metric == "sqeuclidean":
        return error
    return torch.where(expected == 0, 0.0, error / expected.clamp(min=1e-40))
