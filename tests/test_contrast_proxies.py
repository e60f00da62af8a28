"""The losses against proxies of the classes against their formulas, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from operator_cases import each_backend, each_metric
from oracle import METRICS, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend


@each_metric
@each_backend
def test_proxy_nca_is_nca_against_the_proxies(metric, backend):
    x, labels = make("random", 20, 4, 5)
    proxies = make("random", 6, 4, 2, seed=1)[0]
    with use_backend(backend):
        actual = F.proxy_nca_loss(x, labels, proxies, metric=metric, softmax_scale=0.5)
        expected = F.nca_loss(x, labels, proxies, torch.arange(6), metric=metric, softmax_scale=0.5)
    assert torch.equal(actual, expected)


def proxy_anchor(
    x: Tensor, labels: Tensor, proxies: Tensor, metric: str, offsets: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """(C,) losses over the positives and over the negatives of each proxy."""
    distance = oracle.distance_matrix(proxies, x, metric)
    similarity = 1 - distance if metric == "cosine" else -distance
    positive = labels[None] == torch.arange(len(proxies))[:, None]
    pull = (-5 * (similarity - 0.2) + offsets).exp() * positive
    push = (5 * (similarity + 0.2) + offsets).exp() * ~positive
    return torch.log(1 + pull.sum(1)), torch.log(1 + push.sum(1))


@pytest.mark.parametrize(
    ("metric", "offset"), [*((m, False) for m in METRICS), ("cosine", True), ("dot", True)]
)
@each_backend
def test_proxy_anchor_is_its_formula(metric, offset, backend):
    x, labels = make("random", 20, 4, 5)
    proxies = make("random", 6, 4, 2, seed=1)[0]  # class 5 has no embedding
    leaves = x.requires_grad_(), proxies.requires_grad_()
    offsets = torch.linspace(-1, 0, 20) if offset else None
    with use_backend(backend):
        mean, total, rows = (
            F.proxy_anchor_loss(
                x,
                labels,
                proxies,
                margin=0.2,
                alpha=5.0,
                offsets=offsets,
                metric=metric,
                reduction=reduction,
            )
            for reduction in ("mean", "sum", "none")
        )
        gradients = torch.autograd.grad(mean, leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    pull, push = proxy_anchor(
        exact[0], labels, exact[1], metric, offsets.double() if offset else 0.0
    )
    expected = pull.sum() / 5 + push.mean()
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total.double(), (pull + push).sum(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rows.positive.double(), pull, rtol=1e-5, atol=1e-5)
    for a, e in zip(gradients, torch.autograd.grad(expected, exact), strict=True):
        assert oracle.relative_error(a, e) < 1e-4


@each_backend
@pytest.mark.parametrize("loss", [F.proxy_nca_loss, F.proxy_anchor_loss])
def test_an_embedding_of_nan_reaches_every_loss_with_proxies(loss, backend):
    x, labels = make("random", 20, 4, 5)
    x[3, 1] = math.nan
    with use_backend(backend):
        assert loss(x, labels, torch.randn(5, 4)).isnan()


def test_a_label_without_a_proxy_has_no_loss_of_proxy_nca():
    x, labels = make("random", 20, 4, 5)
    others = labels != 4
    proxies = make("random", 4, 4, 2, seed=1)[0]
    loss = F.proxy_nca_loss(x, labels, proxies, reduction="sum")
    assert loss.isclose(F.proxy_nca_loss(x[others], labels[others], proxies, reduction="sum"))


def test_a_label_without_a_proxy_is_a_negative_of_all_in_proxy_anchor():
    x, labels = make("random", 20, 4, 5)
    proxies = make("random", 4, 4, 2, seed=1)[0]
    sums = F.proxy_anchor_loss(x, labels, proxies, reduction="none")
    count = (labels == torch.arange(4)[:, None]).sum(1)
    assert torch.equal(sums.positive_count, count)
    assert torch.equal(sums.negative_count, 20 - count)


X, LABELS = make("random", 6, 3, 2)


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (F.proxy_nca_loss, {"proxies": X[:, :2]}, ValueError, "proxies: expected 3 dimensions"),
        (F.proxy_anchor_loss, {"proxies": X.double()}, TypeError, "proxies: expected torch.float"),
        (
            F.proxy_anchor_loss,
            {"proxies": X, "offsets": torch.ones(5)},
            ValueError,
            r"offsets: expected shape \(6,\)",
        ),
        (
            F.proxy_anchor_loss,
            {"proxies": X, "offsets": torch.ones(6), "metric": "euclidean"},
            ValueError,
            "metric: expected one of .*got 'euclidean'",
        ),
    ],
)
def test_a_wrong_option_is_named(function: Callable, options, error, message):
    with pytest.raises(error, match=message):
        function(X, LABELS, **options)
