"""Selections: the contract of nearest, farthest, hardest and semi-hard, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import oracle
import pytest
import torch
from neighbors_cases import FORMS, INTEGERS, SELECTIONS, Problem, distance_only, each_selection
from operator_cases import DTYPES, ISAS, assert_same_bits, each_backend, each_metric
from oracle import DATA, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# --- the choice and its distance ------------------------------------------------------------------


@each_selection
@each_metric
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("form", FORMS)
def test_selects_exactly_what_the_oracle_selects(selection, metric, kind, form):
    problem = Problem(kind, form)
    # No tolerance: every index, and every distance to the last bit.
    assert_same_bits(problem.library(selection, metric), problem.oracle(selection, metric))


@each_selection
@each_metric
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("kind", ["clustered", "tied", "shifted"])
def test_is_exact_for_the_values_as_stored_in_every_dtype(selection, metric, dtype, kind):
    problem = Problem(kind, "references and self_index", dtype)
    found = problem.library(selection, metric)
    assert found.distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same_bits(found, problem.oracle(selection, metric))


@each_metric
@each_selection
@pytest.mark.parametrize("form", ["batch", "references and self_index"])
@pytest.mark.parametrize(
    "spread", ["tiny", "huge", "six decades", "one far row", "two points", "NaN rows"]
)
def test_the_search_is_exact_whatever_the_norms(select_isa, selection, metric, form, spread):
    # A hundred per class, so that positives are searched for as well.
    x, labels = make("random", 301, 40, 3)
    generator = torch.Generator().manual_seed(0)
    if spread == "tiny":
        x *= 1e-30
    elif spread == "huge":
        x *= 1e15
    elif spread == "six decades":
        x *= torch.logspace(-3, 3, 301)[torch.randperm(301, generator=generator)][:, None]
    elif spread == "one far row":
        x[17] *= 1e5
    elif spread == "NaN rows":
        x[::5, 3] = math.nan
    else:
        x = 1e-4 * x + (torch.arange(301) % 2)[:, None]
    others = {}
    if form != "batch":
        others = {"references": x, "reference_labels": labels}
        rows = torch.randperm(301, generator=generator)[:250]
        x, labels, others["self_index"] = x[rows], labels[rows], rows
    extra, beyond = {}, None
    if selection == "semihard_negative":
        positive = oracle.select(x, labels, **others, metric=metric, same_class=True)[0]
        beyond = torch.cat([positive, positive - 1e-3 * positive.abs()], 1)
        extra = {"beyond": beyond}
    rule = SELECTIONS[selection]
    distance, index = oracle.select(x, labels, **others, beyond=beyond, metric=metric, **rule)
    for isa in ISAS:
        select_isa(isa)
        found = getattr(F, selection)(x, labels, **others, metric=metric, **extra)
        actual = found.distance.reshape(index.shape), found.index.reshape(index.shape)
        assert_same_bits(actual, (distance, index))


def test_the_search_is_exact_where_the_norms_leave_the_range_of_float32(select_isa):
    # Beside the others every second row has elements of few bits in float32.
    x, labels = make("random", 301, 8, 3, dtype=torch.float64)
    x[::2] *= 1e-43
    distance, index = oracle.select(x, labels, metric="dot", same_class=False)
    for isa in ISAS:
        select_isa(isa)
        found = F.hardest_negative(x, labels, metric="dot")
        assert_same_bits((found.distance[:, None], found.index[:, None]), (distance, index))


@pytest.mark.parametrize("selection", ["nearest_positive", "farthest_positive", "hardest_negative"])
@pytest.mark.parametrize("scale", [1e12, 1e14, 1e18])
def test_is_exact_for_anchors_much_longer_than_the_references(select_isa, selection, scale):
    # Their squared distances differ by less than float64 rounds them.
    anchors = make("random", 300, 16, 2)
    others = make("random", 70, 16, 2, seed=1)
    batch = (anchors[0] * scale, anchors[1], *others)
    distance, index = oracle.select(*batch, **SELECTIONS[selection])
    for isa in ISAS:
        select_isa(isa)
        found = getattr(F, selection)(*batch)
        assert_same_bits((found.distance[:, None], found.index[:, None]), (distance, index))


@each_selection
def test_is_exact_at_20000_rows(selection):
    # Enough rows for several cache blocks a thread, on a grid: ties are common and far apart.
    x, labels = make("tied", 20_000, 2, 300, seed=3)
    x += torch.randint(-200, 200, x.shape, generator=torch.Generator().manual_seed(4)) / 8
    if selection in ("nearest_positive", "hardest_negative"):
        found = getattr(F, selection)(x, labels)
        distance, index = oracle.select(x, labels, **SELECTIONS[selection])
    else:
        # Their oracle takes longer: a part of the anchors is enough.
        anchors = (x[:3000], labels[:3000], x, labels)
        beyond = torch.full((3000, 1), 2.0) if selection == "semihard_negative" else None
        extra = {} if beyond is None else {"beyond": beyond[:, 0]}
        found = getattr(F, selection)(*anchors, **extra)
        distance, index = oracle.select(*anchors, beyond=beyond, **SELECTIONS[selection])
    assert_same_bits(found, (distance[:, 0], index[:, 0]))


@pytest.mark.parametrize("spread", [1e-3, 1e-6])
def test_distances_of_near_duplicates_are_right_to_1e_6(spread):
    generator = torch.Generator().manual_seed(0)
    centre = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    x = centre + spread * torch.randn(200, 16, generator=generator)
    found = F.nearest_positive(x, torch.arange(200) % 4)
    direct = [math.dist(x[i].tolist(), x[j].tolist()) for i, j in enumerate(found.index.tolist())]
    # Rounding to float32 costs 6e-8; expanding the square in float32 would cost about 1.
    torch.testing.assert_close(
        found.distance.double(), torch.tensor(direct).double(), rtol=1e-6, atol=0.0
    )


@each_selection
@each_metric
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_reference_agree_to_the_last_bit(selection, metric, dtype):
    for kind in DATA:
        problem = Problem(kind, "references and self_index", dtype, d=11)
        with use_backend("reference"):
            expected = problem.library(selection, metric)
        assert_same_bits(problem.library(selection, metric), expected)


# --- shapes ---------------------------------------------------------------------------------------

SHAPES = {
    "no anchors": (torch.empty(0, 4), []),
    "one anchor": (torch.ones(1, 4), [3]),
    "one class": (torch.eye(5), [2] * 5),
    "singleton classes": (torch.eye(9), list(range(9))),
    "all rows equal": (torch.full((19, 3), 0.3), [0, 1] * 9 + [1]),
    "zero vectors": (torch.eye(12)[:, :4].contiguous(), [0, 1, 2] * 4),
    "one dimension": (torch.arange(20.0)[:, None] ** 2, [0, 1, 1, 0] * 5),
    "no dimensions": (torch.empty(6, 0), [0, 0, 1, 1, 2, 2]),
    "half a panel and one": (make("tied", 9, 3, 3)[0], [0, 2, 1] * 3),
    "one less than a panel": (make("tied", 15, 3, 3)[0], [0, 2, 1] * 5),
    "one more than a panel": (make("tied", 17, 33, 3)[0], [1, 0] * 8 + [2]),
}


@each_selection
@each_metric
@pytest.mark.parametrize("shape", SHAPES)
@each_backend
def test_awkward_shapes_are_defined(selection, metric, shape, backend):
    x, classes = SHAPES[shape]
    labels = torch.tensor(classes, dtype=torch.int64)
    beyond = torch.linspace(-1, 2, len(x))
    extra = {"beyond": beyond} if selection == "semihard_negative" else {}
    with use_backend(backend):
        found = getattr(F, selection)(x, labels, metric=metric, **extra)
    distance, index = oracle.select(
        x,
        labels,
        beyond=beyond[:, None] if extra else None,
        metric=metric,
        **SELECTIONS[selection],
    )
    assert_same_bits(found, (distance[:, 0], index[:, 0]))


@each_selection
@each_backend
def test_without_references_nothing_is_found(selection, backend):
    x, labels = make("random", 5, 3, 2)
    x.requires_grad_()
    empty = (torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    extra = {"beyond": torch.zeros(5)} if selection == "semihard_negative" else {}
    with use_backend(backend):
        found = getattr(F, selection)(x, labels, *empty, **extra)
    assert found.index.tolist() == [-1] * 5
    assert found.distance.tolist() == [math.inf] * 5
    found.distance.sum().backward()
    assert x.grad.tolist() == [[0.0] * 3] * 5


@each_backend
@pytest.mark.parametrize("thresholds", [0, 1, 2, 5])
@pytest.mark.parametrize("missing", ["drop", "hardest"])
def test_the_result_has_the_shape_of_beyond(backend, thresholds, missing):
    x, labels = make("clustered", 30, 3, 4)
    beyond = torch.rand(30, thresholds, generator=torch.Generator().manual_seed(1)) * 4
    with use_backend(backend):
        found = F.semihard_negative(x, labels, beyond=beyond, missing=missing)
        columns = [
            F.semihard_negative(x, labels, beyond=column, missing=missing)
            for column in beyond.unbind(1)
        ]
    assert found.distance.shape == found.index.shape == (30, thresholds)
    for t, column in enumerate(columns):
        assert_same_bits((found.distance[:, t], found.index[:, t]), column)


STRIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.T.contiguous().T,
    "every second row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, 1::2],
    "an offset": lambda x: torch.cat([x.new_ones(1, x.shape[1]), x])[1:],
    "a negated view": lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
}


@each_selection
@pytest.mark.parametrize("stride", STRIDES)
def test_strides_do_not_matter(selection, stride):
    x, labels = make("random", 41, 6, 5)
    view = STRIDES[stride](x)
    assert torch.equal(view, x)
    function = distance_only(selection)
    leaves = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    expected, actual = function(leaves[0], labels), function(STRIDES[stride](leaves[1]), labels)
    assert_same_bits((actual,), (expected,))
    expected.nan_to_num(posinf=0.0).sum().backward()
    actual.nan_to_num(posinf=0.0).sum().backward()
    assert_same_bits((leaves[1].grad,), (leaves[0].grad,))


def test_expanded_rows_labels_and_thresholds_are_read_where_they_are():
    row = torch.tensor([[1.0, 2.0]]).expand(6, 2)
    references = torch.tensor([[1.0, 2.0], [4.0, 6.0], [1.0, 3.0]])
    labels = torch.tensor(0).expand(6)
    found = F.semihard_negative(
        row, labels, references, torch.tensor([1, 1, 1]), beyond=torch.tensor(1.0).expand(6)
    )
    assert found.index.tolist() == [1] * 6
    assert found.distance.tolist() == [5.0] * 6


# --- same bits on every run -----------------------------------------------------------------------


def _forward_and_backward(metric: str) -> list[Tensor]:
    x, labels = make("tied", 300, 9, 7)
    references, reference_labels = make("random", 533, 9, 7, seed=1)
    x = (x + make("random", 300, 9, 7, seed=2)[0]).requires_grad_()
    references.requires_grad_()
    results = []
    for selection in SELECTIONS:
        distance = distance_only(selection, metric=metric)(x, labels, references, reference_labels)
        results += [distance, *torch.autograd.grad(distance.square().sum(), (x, references))]
    return results


@each_metric
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_and_thread_count_gives_the_same_bits(
    metric, isa, threads, select_isa, set_threads
):
    expected = _forward_and_backward(metric)
    select_isa(isa)
    set_threads(threads)
    assert_same_bits(_forward_and_backward(metric), expected)


@each_metric
def test_two_runs_give_the_same_bits(metric):
    assert_same_bits(_forward_and_backward(metric), _forward_and_backward(metric))


# --- what is a candidate --------------------------------------------------------------------------


def test_self_is_excluded_by_index_and_never_by_distance():
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
    labels = torch.tensor([0, 0, 0])
    assert F.nearest_positive(x, labels).index.tolist() == [1, 0, 0]
    assert F.nearest_positive(x, labels).distance[:2].tolist() == [0.0, 0.0]


def test_with_references_only_self_index_excludes():
    x, labels = make("clustered", 20, 3, 3)
    own = torch.arange(20)
    assert F.nearest_positive(x, labels, x, labels).index.tolist() == own.tolist()
    excluded = F.nearest_positive(x, labels, x, labels, self_index=own)
    assert_same_bits(excluded, F.nearest_positive(x, labels))


def test_self_index_excludes_from_the_negatives_too():
    x, labels = torch.zeros(1, 2), torch.tensor([0])
    references, others = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 1])
    found = F.hardest_negative(x, labels, references, others, self_index=torch.tensor([0]))
    assert found.index.tolist() == [1]


@each_backend
def test_ties_go_to_the_lowest_index_whatever_the_order_of_the_labels(backend):
    x = torch.zeros(6, 2)
    labels = torch.tensor([5, 9, 5, -1, 9, 5])
    with use_backend(backend):
        assert F.nearest_positive(x, labels).index.tolist() == [2, 4, 0, -1, 1, 0]
        assert F.farthest_positive(x, labels).index.tolist() == [2, 4, 0, -1, 1, 0]
        assert F.hardest_negative(x, labels).index.tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_labels_of_every_integer_dtype_mean_the_same(dtype):
    x, labels = make("random", 40, 3, 5)
    found = F.nearest_positive(
        x, labels.to(dtype), x, labels.to(dtype), self_index=torch.arange(40)
    )
    assert_same_bits(found, F.nearest_positive(x, labels))


@each_backend
@pytest.mark.parametrize(
    "labels",
    [
        [2**24, 2**24 + 1, 2**24],
        [2**53, 2**53 + 1, 2**53],
        [-(2**63), 2**63 - 1, -(2**63)],
        [2**63 - 1, -(2**63), 2**63 - 1],
        [-1, 0, -1],
    ],
)
def test_labels_are_compared_as_int64(backend, labels):
    x = torch.tensor([[0.0], [1.0], [5.0]])
    with use_backend(backend):
        assert F.nearest_positive(x, torch.tensor(labels)).index.tolist() == [2, -1, 0]
        assert F.hardest_negative(x, torch.tensor(labels)).index.tolist() == [1, 0, 1]


def test_uint64_labels_above_int64_stay_distinct():
    labels = torch.tensor([2**64 - 1, 2**64 - 2, 2**64 - 1], dtype=torch.uint64)
    assert F.nearest_positive(torch.eye(3), labels).index.tolist() == [2, -1, 0]


# --- NaN and infinity -----------------------------------------------------------------------------


@each_selection
@each_metric
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["batch", "references"])
def test_rows_that_are_not_finite_follow_the_oracle(selection, metric, backend, bad, form):
    problem = Problem("random", form)
    problem.x[[0, 50, 136], [0, 3, 4]] = bad
    if form == "references":
        problem.others["references"][[1, 77, 200], [4, 0, 2]] = bad
    with use_backend(backend):
        found = problem.library(selection, metric)
    assert_same_bits(found, problem.oracle(selection, metric))


@each_selection
@each_metric
@each_backend
def test_a_nan_candidate_is_never_chosen(selection, metric, backend):
    problem = Problem("random", "references")
    problem.others["references"][::2, 1] = math.nan
    with use_backend(backend):
        found = problem.library(selection, metric)
    assert (found.index[found.index >= 0] % 2 == 1).all()
    assert (found.index >= 0).sum() > 100
    assert not found.distance.isnan().any()


@each_selection
@each_metric
@each_backend
def test_a_nan_anchor_has_distance_and_gradient_nan_and_spoils_no_other(selection, metric, backend):
    x, labels = make("random", 40, 3, 4)
    x[7, 1] = math.nan
    x.requires_grad_()
    with use_backend(backend):
        distance = distance_only(selection, metric=metric)(x, labels)
    assert distance.isnan().nonzero().tolist() == [[7]]
    distance.sum().backward()
    assert x.grad.isnan().any(1).nonzero().tolist() == [[7]]
    assert x.grad[7].isnan().all()


@each_backend
def test_a_nan_anchor_alone_in_its_class_has_distance_nan(backend):
    x = torch.tensor([[math.nan], [1.0], [2.0]])
    with use_backend(backend):
        found = F.nearest_positive(x, torch.tensor([0, 1, 1]))
    assert found.index.tolist() == [-1, 2, 1]
    assert found.distance.isnan().tolist() == [True, False, False]


# --- memory ---------------------------------------------------------------------------------------


def test_eps_at_32768_rows_needs_less_than_200_megabytes(resident_growth):
    # One N x N matrix in float32 would be 4295 MB; the embeddings are 17 MB.
    growth = resident_growth(
        "x = torch.randn(32768, 128, requires_grad=True); labels = torch.arange(32768) % 4096",
        'F.triplet_margin_loss(x, labels, margin=0.2, positives="nearest", '
        'negatives="semihard").backward()',
    )
    assert growth < 200e6
