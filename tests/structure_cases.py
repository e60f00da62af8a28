"""What the tests of the adaptive distance and of its clusters share."""

from __future__ import annotations

import pytest
import torch
from operator_cases import DTYPES
from oracle import make
from torch import Tensor

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)

# Elements of a temporary of all pairs and dimensions that a test may have: 64 MiB of float64.
_DIRECT = 2**23


def rows(
    n: int, d: int, dtype: torch.dtype = torch.float32, kind: str = "random", seed: int = 0
) -> Tensor:
    """(n, d) leaf, divided by about its mean distance."""
    x = make(kind, n, d, 4, seed=seed, dtype=torch.float64)[0] / max(1.0, 2 * d) ** 0.5
    return x.to(dtype).requires_grad_()


def weights(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(n, d) leaf of numbers from 0.5 to 1.5, as the source's heads have them."""
    generator = torch.Generator().manual_seed(n + d)
    return (0.5 + torch.rand(n, d, generator=generator)).to(dtype).requires_grad_()


def clusters_problem(
    n: int, d: int, dtype: torch.dtype = torch.float32, kind: str = "random"
) -> tuple[Tensor, Tensor]:
    """Embeddings and their weights."""
    return rows(n, d, dtype, kind), weights(n, d, dtype)


def doubles(*leaves: Tensor) -> tuple[Tensor, ...]:
    """float64 leaves of the same values."""
    return tuple(leaf.detach().double().requires_grad_() for leaf in leaves)


def squares_written_out(e: Tensor, w: Tensor, y: Tensor) -> Tensor:
    """(N, M) squared adaptive distances of float64 rows for autograd.

    From their differences where that fits; large problems must have no near-duplicates.
    """
    if e.shape[0] * y.shape[0] * e.shape[1] <= _DIRECT:
        return (w[:, None] * (e[:, None] - y[None]).square()).sum(2)
    return (w * e * e).sum(1)[:, None] - 2 * (w * e) @ y.T + w @ (y * y).T


def root(squares: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, slack: float = 0.0) -> None:
    """As vectors, within a tolerance of the expected one and a slack, and the dtype's rounding."""
    rounding = {torch.float64: 0.0, torch.float32: 2e-7}.get(
        actual.dtype, torch.finfo(actual.dtype).eps
    )
    # What float16 and bfloat16 cannot hold.
    least = torch.finfo(actual.dtype).smallest_normal * actual.numel() ** 0.5
    error = (actual.detach().double() - expected.detach()).norm().item()
    assert error <= (tolerance + rounding) * expected.norm().item() + slack + least
