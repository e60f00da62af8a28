"""Selections: what holds for every batch."""

from __future__ import annotations

import numpy as np
import oracle
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from neighbors_cases import SELECTIONS, distance_only
from operator_cases import assert_same_bits
from oracle import METRICS
from torch import Tensor

import dmlfast.functional as F


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Small batches full of ties, zero vectors and classes of every size."""
    n, d = draw(st.integers(1, 20)), draw(st.integers(1, 3))
    points = draw(hnp.arrays(np.float32, (n, d), elements=st.integers(-3, 3)))
    classes = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 3)))
    return torch.from_numpy(points), torch.from_numpy(classes)


property_test = settings(max_examples=60, deadline=None, derandomize=True, database=None)
metrics = st.sampled_from(METRICS)


@property_test
@given(batches(), metrics)
def test_the_choice_is_a_candidate_and_no_candidate_is_better(batch, metric):
    x, labels = batch
    value = torch.from_numpy(oracle.values(x, x, metric))
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(x), dtype=torch.bool)
    for selection, candidates, sign in (
        ("nearest_positive", positive, 1),
        ("farthest_positive", positive, -1),
        ("hardest_negative", ~same, 1),
    ):
        found = getattr(F, selection)(x, labels, metric=metric)
        for i, j in enumerate(found.index.tolist()):
            allowed = candidates[i].nonzero()[:, 0].tolist()
            assert (j in allowed) if allowed else j == -1
            for other in allowed:
                better = (sign * value[i, other], other) < (sign * value[i, j], j)
                assert not better


@property_test
@given(batches(), metrics)
def test_renaming_the_classes_changes_nothing(batch, metric):
    x, labels = batch
    renamed = torch.tensor([2**40, -7, 12, -(2**62)])[labels]
    for selection in SELECTIONS:
        function = distance_only(selection, metric=metric)
        assert_same_bits((function(x, renamed),), (function(x, labels),))
    assert_same_bits(
        F.hardest_negative(x, renamed, metric=metric), F.hardest_negative(x, labels, metric=metric)
    )


@property_test
@given(batches(), metrics, st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_distances(batch, metric, shuffle):
    x, labels = batch
    order = list(range(len(x)))
    shuffle.shuffle(order)
    for selection in SELECTIONS:
        function = distance_only(selection, metric=metric)
        assert_same_bits((function(x[order], labels[order]),), (function(x, labels)[order],))


@property_test
@given(batches(), metrics)
def test_the_batch_as_its_own_references_changes_nothing(batch, metric):
    x, labels = batch
    own = {"self_index": torch.arange(len(x)), "metric": metric}
    for selection in ("nearest_positive", "farthest_positive", "hardest_negative"):
        function = getattr(F, selection)
        assert_same_bits(
            function(x, labels, x.clone(), labels.clone(), **own),
            function(x, labels, metric=metric),
        )


@property_test
@given(batches(), st.integers(-20, 20))
def test_scaling_by_a_power_of_two_scales_the_distances(batch, exponent):
    x, labels = batch
    for selection in ("nearest_positive", "farthest_positive", "hardest_negative"):
        found = getattr(F, selection)(x, labels)
        scaled = getattr(F, selection)(x * 2.0**exponent, labels)
        assert_same_bits(scaled, (found.distance * 2.0**exponent, found.index))
