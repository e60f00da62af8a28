"""Rows of unit length, whatever their length was."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import relative_error
from torch import Tensor

from dmlfast._normalize import unit_rows

X = torch.randn(20, 9, generator=torch.Generator().manual_seed(0))
UP = torch.randn(20, 9, generator=torch.Generator().manual_seed(1))
LOW, HIGH = torch.float32, torch.float64


def units_and_gradient(x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    units = unit_rows(leaf)
    (gradient,) = torch.autograd.grad((units * UP).sum(), leaf)
    return units.detach(), gradient


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [
        *((factor, LOW) for factor in (1e-37, 1e-25, 1e-10, 1e-9, 1.0, 1e9, 1e10, 1e25, 1e37)),
        *((factor, HIGH) for factor in (1e-300, 1e-160, 1e-77, 1.0, 1e77, 1e160, 1e300)),
    ],
    ids=str,
)
def test_a_row_of_any_length_becomes_a_unit_row(factor, dtype):
    x = X.to(dtype) * factor
    units, gradient = units_and_gradient(x)
    # Written out for rows that have ordinary lengths; here the scale is a power of two: exact.
    exponent = 2.0 ** -math.floor(math.log2(factor))
    rows = (x.double() * exponent).requires_grad_()
    expected = rows / rows.norm(dim=1, keepdim=True)
    (by_rows,) = torch.autograd.grad((expected * UP).sum(), rows)
    # A few roundings; the gradient sums what cancels.
    bound = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(units.double(), expected.detach(), rtol=bound, atol=0)
    assert relative_error(gradient.double() / exponent, by_rows) < 4 * bound


@pytest.mark.parametrize("dtype", [LOW, HIGH], ids=str)
def test_rows_of_ordinary_lengths_are_divided_by_their_norm_alone(dtype):
    x = X.to(dtype)
    assert torch.equal(unit_rows(x), x / torch.linalg.vector_norm(x, dim=1, keepdim=True))


def test_a_zero_row_stays_zero_and_has_no_gradient():
    x = X * 1e-25
    x[4] = 0
    units, gradient = units_and_gradient(x)
    assert (units[4] == 0).all()
    assert (gradient[4] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(bad):
    x = X.clone()
    x[4, 2] = bad
    units, gradient = units_and_gradient(x)
    assert units[4].isnan().all()
    assert gradient[4].isnan().all()
    others = torch.arange(20) != 4
    assert torch.equal(units[others], unit_rows(X)[others])
    assert gradient[others].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_has_unit_rows_too(shape):
    x = torch.zeros(shape, requires_grad=True)
    unit_rows(x).sum().backward()
    assert x.grad.shape == shape
