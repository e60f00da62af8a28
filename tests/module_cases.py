"""What the tests of losses as modules share."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import make
from torch import Tensor, nn

from dmlfast import losses


def batch(n: int = 40, **options: object) -> tuple[Tensor, Tensor]:
    x, labels = make("random", n, 6, 5, **options)
    return x.requires_grad_(), labels


def proxy_pair(name: str, **options: float) -> tuple[nn.Module, nn.Module]:
    """Our loss and pytorch-metric-learning's for 7 classes, from the same seed."""
    pml_losses = pytest.importorskip("pytorch_metric_learning.losses")
    modules = []
    for library in (losses, pml_losses):
        torch.manual_seed(0)
        modules.append(getattr(library, name)(num_classes=7, embedding_size=6, **options))
    return tuple(modules)


def assert_same(actual: Tensor, expected: Tensor, *leaves: tuple[Tensor, ...]) -> None:
    """Equal values, and equal gradients by each leaf of the first and of the second."""
    assert actual > 0
    # pytorch-metric-learning's float32 distances come from an expanded square: an error of 1e-7
    # in it is 3e-4 in the distance of two equal points, and next to nothing in most.
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)
    for a, e in zip(
        torch.autograd.grad(actual, leaves[0]),
        torch.autograd.grad(expected, leaves[-1]),
        strict=True,
    ):
        assert oracle.relative_error(a, e) < 1e-3
