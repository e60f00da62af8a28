"""What the tests of the losses over classes of several centres share: formulas and problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import oracle
import pytest
import torch
from oracle import make
from structure_cases import assert_near, doubles
from torch import Tensor

import dmlfast.functional as F

CLASSES, K, D = 7, 3, 6


def soft_triple(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    per_class: int,
    *,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    metric: str = "cosine",
) -> Tensor:
    """(N,) losses of float64 rows as the paper writes them."""
    if metric == "cosine":
        x, centers = (torch.nn.functional.normalize(rows) for rows in (x, centers))
    similarity = (x @ centers.T).unflatten(1, (-1, per_class))
    relaxed = ((similarity / gamma).softmax(2) * similarity).sum(2)
    own = torch.nn.functional.one_hot(labels, relaxed.shape[1]).to(relaxed.dtype)
    logits = la * (relaxed - margin * own)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def sub_center_arcface(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    per_class: int,
    *,
    margin: float = 28.6,
    scale: float = 64.0,
) -> Tensor:
    """(N,) losses of float64 rows by angles."""
    x, centers = (torch.nn.functional.normalize(rows) for rows in (x, centers))
    cosine = (x @ centers.T).unflatten(1, (-1, per_class)).amax(2)
    angle, margin = cosine.clamp(-1, 1).acos(), math.radians(margin)
    beyond = cosine - margin * math.sin(margin)
    moved = torch.where(angle <= math.pi - margin, (angle + margin).cos(), beyond)
    own = torch.nn.functional.one_hot(labels, cosine.shape[1]).bool()
    logits = scale * torch.where(own, moved, cosine)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


# Function and formula.
LOSSES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "soft triple": (F.soft_triple_loss, soft_triple),
    "soft triple, dot": (
        partial(F.soft_triple_loss, metric="dot"),
        partial(soft_triple, metric="dot"),
    ),
    "sub-centre": (F.sub_center_arcface_loss, sub_center_arcface),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


def problem(
    n: int = 40,
    classes: int = CLASSES,
    per_class: int = K,
    d: int = D,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and centres as leaves, and labels; the last class has no rows."""
    x, labels = make("random", n, d, max(1, classes - 1), dtype=dtype)
    centers = make("random", classes * per_class, d, 2, seed=1, dtype=dtype)[0]
    return x.requires_grad_(), labels, centers.requires_grad_()


def assert_is_formula(
    name: str, given: tuple[Tensor, Tensor, Tensor], per_class: int, **options: float
) -> None:
    """Values and gradients as vectors, for random upstream gradients."""
    function, formula = LOSSES[name]
    x, labels, centers = given
    found = function(x, labels, centers, centers_per_class=per_class, reduction="none", **options)
    double = doubles(x, centers)
    expected = formula(double[0], labels, double[1], per_class, **options)
    # Exponents up to some 200 of a few roundings each, which losses near 0 are differences of.
    tolerance = 1e-11 if x.dtype == torch.float64 else 1e-4
    assert found.dtype == oracle.returned_dtype(x.dtype)
    assert_near(found, expected, tolerance, slack=tolerance)
    up = torch.randn(len(x), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    actual = torch.autograd.grad(found, (x, centers), up.to(found.dtype))
    wanted = torch.autograd.grad(expected, double, up)
    for gradient, right, leaf in zip(actual, wanted, (x, centers), strict=True):
        assert gradient.dtype == leaf.dtype
        # Gradients of 16-bit leaves are rounded to 16 bits.
        rounding = torch.finfo(leaf.dtype).eps
        assert_near(gradient, right, max(tolerance, rounding), slack=tolerance)
