"""What the tests of the distances and of their statistics share."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import make
from torch import Tensor

each_form = pytest.mark.parametrize("form", ["batch", "references"])


class Problem:
    """37 rows and, in one of the forms, 45 references."""

    def __init__(self, kind: str, form: str = "batch", dtype: torch.dtype = torch.float32) -> None:
        points = make(kind, 82, 5, 4, dtype=dtype)[0]
        self.x = points[:37].clone().requires_grad_()
        self.references = None
        if form == "references":
            self.references = points[37:].clone().requires_grad_()
        self.leaves = [self.x] if self.references is None else [self.x, self.references]
        self.others = self.x if self.references is None else self.references

    def oracle(self, metric: str) -> Tensor:
        """(N, M) float64 distances of the values as stored."""
        value = oracle.values(self.x, self.others, metric)
        return torch.from_numpy(oracle.distances(value, metric, torch.float64))

    def doubles(self) -> list[Tensor]:
        """The leaves in float64, for autograd through a plain distance matrix."""
        return [leaf.detach().double().requires_grad_() for leaf in self.leaves]


def off_diagonal(n: int) -> Tensor:
    """(n, n) bool, False on the diagonal."""
    return ~torch.eye(n, dtype=torch.bool)
