"""Mistakes in the arguments of selections are named before any work."""

from __future__ import annotations

import pytest
import torch
from neighbors_cases import each_selection
from operator_cases import each_backend
from oracle import make

import dmlfast.functional as F
from dmlfast import use_backend

X, LABELS = make("random", 6, 3, 2)
META = X.to("meta")
PAIRS = {"references": X, "reference_labels": LABELS}
ERRORS = {
    "x is a list": ({"x": [[1.0]]}, TypeError, r"x: expected a torch.Tensor, got list"),
    "x is 3-D": ({"x": X[None]}, ValueError, r"x: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "x is 1-D": ({"x": X[0]}, ValueError, r"x: expected a 2-D tensor.*got \(3,\)"),
    "x is integer": ({"x": X.long()}, TypeError, r"x: expected float16.*got .*torch.int64"),
    "x is complex": ({"x": X + 0j}, TypeError, r"x: expected float16.*got .*torch.complex64"),
    "x is sparse": (
        {"x": X.to_sparse()},
        (TypeError, ValueError),
        r"x: expected .*dense.*got torch.sparse_coo",
    ),
    "labels are missing": ({"labels": None}, TypeError, r"labels: expected a torch.Tensor"),
    "labels are float": ({"labels": LABELS.float()}, TypeError, r"labels: expected an integer"),
    "labels are bool": ({"labels": LABELS > 0}, TypeError, r"labels: expected an integer dtype"),
    "labels are too few": ({"labels": LABELS[:5]}, ValueError, r"labels: expected shape \(6,\)"),
    "labels are 2-D": ({"labels": LABELS[:, None]}, ValueError, r"labels: .*\(6,\), got \(6, 1\)"),
    "labels are elsewhere": ({"labels": LABELS.to("meta")}, ValueError, r"labels: .*cpu, got"),
    "references lack labels": ({"references": X}, ValueError, r"reference_labels: expected"),
    "labels lack references": (
        {"reference_labels": LABELS},
        ValueError,
        r"reference_labels: .*without references",
    ),
    "self_index lacks references": (
        {"self_index": LABELS},
        ValueError,
        r"self_index: .*without references",
    ),
    "references have other dimensions": (
        {**PAIRS, "references": X[:, :2]},
        ValueError,
        r"references: expected 3 dim.*got \(6, 2\)",
    ),
    "references have another dtype": (
        {**PAIRS, "references": X.double()},
        TypeError,
        r"references: expected torch.float32.*got",
    ),
    "references are elsewhere": (
        {**PAIRS, "references": META},
        ValueError,
        r"references: expected the device.*cpu.*meta",
    ),
    "references are 1-D": (
        {**PAIRS, "references": X[0]},
        ValueError,
        r"references: expected a 2-D",
    ),
    "reference_labels are too few": (
        {**PAIRS, "reference_labels": LABELS[:2]},
        ValueError,
        r"reference_labels: .*\(6,\), got",
    ),
    "reference_labels are float": (
        {**PAIRS, "reference_labels": LABELS.double()},
        TypeError,
        r"reference_labels: .*integer",
    ),
    "self_index is float": (
        {**PAIRS, "self_index": X[:, 0]},
        TypeError,
        r"self_index: expected an integer dtype",
    ),
    "self_index is too long": (
        {**PAIRS, "self_index": torch.arange(7)},
        ValueError,
        r"self_index: .*\(6,\), got \(7,\)",
    ),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of.*got 'l2'"),
    "the metric is no name": ({"metric": 2}, ValueError, r"metric: expected one of.*got 2"),
}


@each_selection
@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named_before_any_work(selection, backend, mistake):
    arguments, error, message = ERRORS[mistake]
    if selection == "semihard_negative":
        arguments = {**arguments, "beyond": torch.zeros(6)}
    with use_backend(backend), pytest.raises(error, match=message):
        getattr(F, selection)(**{"x": X, "labels": LABELS, **arguments})


@each_backend
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beyond": 1.0}, TypeError, r"beyond: expected a torch.Tensor, got float"),
        ({"beyond": LABELS}, TypeError, r"beyond: expected a floating dtype, got .*int64"),
        ({"beyond": torch.zeros(5)}, ValueError, r"beyond: expected shape \(6,\).*got \(5,\)"),
        ({"beyond": torch.zeros(1, 6)}, ValueError, r"beyond: expected shape .*got \(1, 6\)"),
        ({"beyond": torch.zeros(6, 1, 1)}, ValueError, r"beyond: expected shape .*\(6, 1, 1\)"),
        ({"beyond": torch.zeros(())}, ValueError, r"beyond: expected shape .*got \(\)"),
        ({"beyond": META[:, 0]}, ValueError, r"beyond: expected the device of x, cpu, got .*meta"),
        ({"missing": "none"}, ValueError, r"missing: expected one of .*got 'none'"),
    ],
)
def test_a_mistake_of_semihard_negative_is_named(backend, arguments, error, message):
    with use_backend(backend), pytest.raises(error, match=message):
        F.semihard_negative(X, LABELS, **{"beyond": torch.zeros(6), **arguments})


@pytest.mark.parametrize("least", ["0", True, torch.zeros(1)])
def test_min_distance_must_be_a_number(least):
    with pytest.raises(TypeError, match=r"min_distance: expected a number, got"):
        F.nearest_positive(X, LABELS, min_distance=least)
