"""Problems and parameters of the tests of the operator of the contrast losses."""

from __future__ import annotations

import math

import numpy as np
import oracle
import pytest
import torch
from oracle import make
from torch import Tensor

from dmlfast.ops._arguments import check_pairs
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums

N = 23

each_arrangement = pytest.mark.parametrize(
    "arrangement", ["batch", "references", "references and self_index"]
)

# What a side may be: its form, its scale, and the bound as a part of the median distance.
SIDES = {
    "none": ("none", 1.0, None),
    "logsumexp": ("logsumexp", 1.5, None),
    "falling logsumexp": ("logsumexp", -2.0, None),
    "bounded logsumexp": ("logsumexp", -0.5, 1.0),
    "hinge": ("hinge", 1.0, 1.0),
    "sum": ("sum", 1.0, None),
    "softplus": ("softplus", 0.7, -0.5),
    "falling softplus": ("softplus", -1.2, 0.5),
}
each_side = pytest.mark.parametrize("side", SIDES)


class Problem:
    """23 anchors and, in two arrangements, 31 references of which 23 are the anchors."""

    def __init__(
        self, kind: str, arrangement: str = "batch", dtype: torch.dtype = torch.float32
    ) -> None:
        points, classes = make(kind, 31, 4, 5, dtype=dtype)
        rows = torch.randperm(31, generator=torch.Generator().manual_seed(2))[:N]
        self.x, self.labels = points[rows].clone().requires_grad_(), classes[rows].clone()
        self.references, self.others, self.own = None, None, None
        self.leaves = [self.x]
        if arrangement != "batch":
            self.references, self.others = points.requires_grad_(), classes
            self.leaves.append(points)
        if arrangement == "references and self_index":
            self.own = torch.where(torch.arange(N) % 5 == 0, -1, rows)

    def options(self, metric: str, positive: str, negative: str) -> dict:
        """Arguments of the operator, bounds as leaves that differ from anchor to anchor."""
        y = self.x if self.references is None else self.references
        middle = np.median(oracle.distances(oracle.values(self.x, y, metric), metric, self.x.dtype))
        options = {"metric": metric}
        for name, side in (("positive", positive), ("negative", negative)):
            form, scale, factor = SIDES[side]
            options |= {f"{name}_form": form, f"{name}_scale": scale}
            if factor is not None:
                spread = 1.01 + 0.1 * torch.linspace(-1, 1, N)  # no bound is a distance
                bound = (float(factor * middle) * spread).to(oracle.returned_dtype(self.x.dtype))
                options[f"{name}_bound"] = bound.requires_grad_()
        return options

    def sums(self, **options: object) -> ContrastSums:
        pairs = check_pairs(self.x, self.labels, self.references, self.others, self.own)
        return contrast_sums(pairs, **options)

    def oracle(self, **options: object) -> tuple[ContrastSums, list[Tensor]]:
        """The sums of a loop in float64, and its leaves: rows, then the bounds there are."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        distance = oracle.distance_matrix(leaves[0], leaves[-1], options["metric"])
        bounds = {
            name: options[f"{name}_bound"].detach().double().requires_grad_()
            for name in ("positive", "negative")
            if f"{name}_bound" in options
        }
        columns = []
        found = oracle.partners(self.labels, self.others, self.own)
        for side, (name, sign) in enumerate((("positive", 1), ("negative", -1))):
            form, scale = options[f"{name}_form"], options[f"{name}_scale"]
            rows = [
                oracle.contrast_side(
                    distance[i],
                    found[i][side],
                    form,
                    scale,
                    bounds[name][i] if name in bounds else None,
                    sign,
                )
                for i in range(N)
            ]
            columns.append((torch.stack([r for r, _ in rows]), torch.tensor([c for _, c in rows])))
        (positive, positive_count), (negative, negative_count) = columns
        sums = ContrastSums(positive, negative, positive_count, negative_count)
        return sums, [*leaves, *bounds.values()]


def bounds_of(options: dict) -> list[Tensor]:
    return [
        options[f"{name}_bound"] for name in ("positive", "negative") if f"{name}_bound" in options
    ]


def assert_sums(actual: ContrastSums, expected: ContrastSums) -> None:
    assert torch.equal(actual.positive_count, expected.positive_count)
    assert torch.equal(actual.negative_count, expected.negative_count)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        # Distances have a relative error of a few 1e-6 in float32; up to 31 of them, of size
        # up to 30 and times up to 2, are added, and terms may cancel down to the atol.
        torch.testing.assert_close(a.double(), e.detach(), rtol=1e-5, atol=2e-4)


def weighted(sums: ContrastSums, up: tuple[Tensor, Tensor]) -> Tensor:
    """Both sums with upstream gradients; an empty log-sum-exp is -inf and has none."""
    total = 0.0
    for values, weights in zip(sums[:2], up, strict=True):
        total = total + (torch.where(values == -math.inf, 0.0, values) * weights).sum()
    return total
