"""Options and arguments that the losses over classes of several centres refuse."""

from __future__ import annotations

import pytest
from oracle import make

import dmlfast.functional as F

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
        (F.sub_center_arcface_loss, {"margin": 181.0}, "margin: .*at most 180 degrees, got 181"),
        (F.sub_center_arcface_loss, {"margin": -1.0}, "margin: expected .*at least 0, got -1"),
        (F.sub_center_arcface_loss, {"scale": 0.0}, "scale: expected a finite number greater"),
    ],
)
def test_a_wrong_option_is_named(function, given, message):
    with pytest.raises(ValueError, match=message):
        function(X, LABELS, X, centers_per_class=3, **given)
