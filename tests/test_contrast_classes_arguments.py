"""Options and arguments that the losses over classes of several centres refuse."""

from __future__ import annotations

import math

import pytest
import torch
from class_cases import K, assert_is_formula, problem
from oracle import make

import dmlfast.functional as F
from dmlfast import losses

X, LABELS = make("random", 6, 3, 2)


@pytest.mark.parametrize("function", [F.soft_triple_loss, F.sub_center_arcface_loss])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"centers": X[:, :2]}, ValueError, "centers: expected 3 dimensions as in x"),
        ({"centers": X.double()}, TypeError, "centers: expected torch.float32 as x"),
        ({"centers_per_class": 4}, ValueError, "centers: expected a multiple of 4 rows"),
        ({"centers_per_class": 0}, ValueError, "centers_per_class: expected at least 1, got 0"),
        ({"centers_per_class": 6}, ValueError, r"labels: expected classes in \[0, 1\), got 1"),
        ({"reduction": "max"}, ValueError, "reduction: expected one of .*got 'max'"),
    ],
)
def test_a_wrong_argument_is_named(function, given, error, message):
    with pytest.raises(error, match=message):
        function(X, LABELS, **({"centers": X, "centers_per_class": 3} | given))


@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        (F.soft_triple_loss, {"metric": "euclidean"}, "metric: expected .*got 'euclidean'"),
        (F.soft_triple_loss, {"gamma": 0.0}, "gamma: expected a finite number greater than 0"),
        (F.soft_triple_loss, {"la": math.inf}, "la: expected a finite number, got inf"),
        (F.soft_triple_loss, {"margin": -math.inf}, "margin: expected a finite number, got -inf"),
        (F.soft_triple_loss, {"la": -1e39}, "^la: expected .* range of torch.float32, got -1e"),
        (
            F.soft_triple_loss,
            {"margin": 1e38},
            r"^la \* margin: expected .* range of torch.float32",
        ),
        (F.sub_center_arcface_loss, {"margin": 181.0}, "margin: .*at most 180 degrees, got 181"),
        (F.sub_center_arcface_loss, {"margin": -1.0}, "margin: expected .*at least 0, got -1"),
        (F.sub_center_arcface_loss, {"scale": 0.0}, "scale: expected a finite number greater"),
        (F.sub_center_arcface_loss, {"scale": 1e39}, "scale: expected .* range of torch.float32"),
    ],
)
def test_a_wrong_option_is_named(function, given, message):
    with pytest.raises(ValueError, match=message):
        function(X, LABELS, X, centers_per_class=3, **given)


@pytest.mark.parametrize(
    ("name", "option"),
    [("SoftTripleLoss", "la"), ("SoftTripleLoss", "margin"), ("SubCenterArcFaceLoss", "scale")],
)
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_module_refuses_a_number_that_is_not_finite(name, option, bad):
    with pytest.raises(ValueError, match=f"{option}: expected a .*number.*, got {bad}"):
        getattr(losses, name)(7, 6, **{option: bad})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("gamma", "limit"), [(1e-60, 1e-9), (1e-46, 1e-9), (1e39, 1e9)])
def test_temperatures_beyond_float32_are_those_at_the_ends_of_its_range(dtype, gamma, limit):
    x, labels, centers = problem(dtype=dtype)
    results = []
    for temperature in (gamma, limit):
        loss = F.soft_triple_loss(x, labels, centers, centers_per_class=K, gamma=temperature)
        results.append((loss, *torch.autograd.grad(loss, (x, centers))))
    for actual, expected in zip(*results, strict=True):
        assert actual.isfinite().all()
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("soft triple", {"la": 1e39, "gamma": 1e39}),
        ("soft triple", {"la": 1e39, "gamma": 1e-46}),
        ("soft triple", {"margin": 1e39}),
        ("sub-centre", {"scale": 1e39}),
    ],
)
def test_float64_has_the_range_of_its_own(name, options):
    assert_is_formula(name, problem(dtype=torch.float64), K, **options)
