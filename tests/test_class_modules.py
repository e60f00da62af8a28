"""The losses with learnt proxies as modules: options, what they compute, and outliers."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from module_cases import assert_same, batch, proxy_pair
from torch import nn

import dmlfast.functional as F
from dmlfast import losses
from dmlfast.ops import _arguments

# Module, its parameter, and the function with the same defaults.
CLASS_LOSSES = {
    "SoftTripleLoss": ("fc", partial(F.soft_triple_loss, centers_per_class=10)),
    "SubCenterArcFaceLoss": ("W", partial(F.sub_center_arcface_loss, centers_per_class=3)),
}
each_class_loss = pytest.mark.parametrize("name", CLASS_LOSSES)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ProxyNCALoss", {"softmax_scale": 2.5}),
        ("ProxyAnchorLoss", {"margin": 0.4, "alpha": 5.0}),
        ("SoftTripleLoss", {"centers_per_class": 3}),
        ("SoftTripleLoss", {"la": 6.0}),
        ("SoftTripleLoss", {"gamma": 0.4}),
        ("SoftTripleLoss", {"margin": 0.3}),
        ("SubCenterArcFaceLoss", {"margin": 50.0}),
        ("SubCenterArcFaceLoss", {"scale": 10.0}),
        ("SubCenterArcFaceLoss", {"sub_centers": 5}),
    ],
)
def test_options_of_losses_with_proxies_are_pytorch_metric_learnings(name, options):
    x, labels = batch()
    ours, theirs = proxy_pair(name, **options)
    defaults = proxy_pair(name)[0](x, labels)
    loss = ours(x, labels)
    assert loss.item() != pytest.approx(defaults.item(), rel=1e-3)
    assert_same(loss, theirs(x, labels), (x, *ours.parameters()), (x, *theirs.parameters()))


@each_class_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_over_classes_is_the_function_of_its_columns(name, reduction):
    parameter, function = CLASS_LOSSES[name]
    x, labels = batch()
    loss = getattr(losses, name)(7, 6, reduction=reduction)
    centers = getattr(loss, parameter).T
    torch.testing.assert_close(
        loss(x, labels), function(x, labels, centers, reduction=reduction), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("normalize", [False, True])
def test_soft_triple_of_products_normalises_embeddings_and_centres_or_neither(normalize):
    x, labels = batch(dtype=torch.float64)
    loss = losses.SoftTripleLoss(7, 6, metric="dot", normalize=normalize).double()
    given = x, loss.fc.T
    if normalize:
        given = tuple(nn.functional.normalize(rows, dim=1) for rows in given)
    expected = F.soft_triple_loss(given[0], labels, given[1], metric="dot")
    torch.testing.assert_close(loss(x, labels), expected, rtol=1e-12, atol=1e-12)


@each_class_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_embeddings_and_centres_meet_in_the_dtype_that_holds_both(name, dtype):
    x, labels = batch(dtype=dtype)
    loss = getattr(losses, name)(7, 6)
    found = loss(x, labels)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    expected = getattr(losses, name)(7, 6).to(found.dtype)
    expected.load_state_dict(loss.state_dict())
    assert torch.equal(found, expected(x.to(found.dtype), labels))
    found.backward()
    assert x.grad.dtype == dtype
    assert all(leaf.grad.dtype == leaf.dtype == torch.float32 for leaf in loss.parameters())


# --- outliers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [40, 75.0, 110])
def test_outliers_are_those_of_pytorch_metric_learning(threshold):
    x, labels = batch(60)
    ours, theirs = proxy_pair("SubCenterArcFaceLoss")
    rows, centers = ours.get_outliers(x, labels, threshold)
    expected, expected_centers = theirs.get_outliers(x, labels, threshold)
    assert 0 < len(rows) < 60
    assert rows.tolist() == expected.tolist()
    # It leaves the columns of classes without embeddings as they happen to be.
    present = labels.bincount(minlength=7) > 0
    assert torch.equal(centers[:, present], expected_centers[:, present])
    assert (centers[:, ~present] == 0).all()
    only = ours.get_outliers(x, labels, threshold, return_dominant_centers=False)
    assert torch.equal(only, rows)


def test_embeddings_that_are_not_finite_are_outliers_and_do_not_vote():
    loss = losses.SubCenterArcFaceLoss(7, 6)
    x = loss.W.detach().T[2].repeat(5, 1)  # on the third centre of class 0
    x[0, 1], x[1, 2], x[4] = math.nan, math.inf, math.nan
    rows, centers = loss.get_outliers(x, torch.zeros(5, dtype=torch.int64))
    assert rows.tolist() == [0, 1, 4]
    assert torch.equal(centers[:, 0], loss.W[:, 2])
    # A class of nothing else has no centre.
    rows, centers = loss.get_outliers(x[:2], torch.zeros(2, dtype=torch.int64))
    assert rows.tolist() == [0, 1]
    assert (centers == 0).all()


def test_outliers_look_at_labels_where_the_loss_does_not(monkeypatch):
    x, labels = batch()
    monkeypatch.setattr(_arguments, "can_read", lambda labels: False)
    loss = losses.SubCenterArcFaceLoss(5, 6)
    assert loss(x, labels + 1).isnan()
    with pytest.raises(ValueError, match=r"labels: expected classes in \[0, 5\), got 5"):
        loss.get_outliers(x, labels + 1)


def test_outliers_of_nothing_are_none():
    loss = losses.SubCenterArcFaceLoss(7, 6)
    rows, centers = loss.get_outliers(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    assert rows.dtype == torch.int64
    assert rows.shape == (0,)
    assert (centers == torch.zeros(6, 7)).all()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"threshold": 181}, ValueError, "threshold: expected an angle of at most 180 degrees"),
        ({"return_dominant_centers": 1}, TypeError, "return_dominant_centers: expected True or"),
        ({"embeddings": torch.ones(2, 5)}, ValueError, "embeddings: expected 6 dimensions"),
        ({"labels": torch.tensor([0, 7])}, ValueError, r"labels: expected classes in \[0, 7\)"),
    ],
)
def test_a_wrong_argument_of_outliers_is_named(given, error, message):
    call = {"embeddings": torch.ones(2, 6), "labels": torch.tensor([0, 1])} | given
    with pytest.raises(error, match=message):
        losses.SubCenterArcFaceLoss(7, 6).get_outliers(**call)
