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


# --- beyond ---------------------------------------------------------------------------------------


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_distance_handed_in_as_it_is_selects_the_next_one_and_none_twice(metric, backend, dtype):
    x, labels = make("collapsed", 60, 3, 4, dtype=dtype)
    with use_backend(backend):
        hardest = F.hardest_negative(x, labels, metric=metric)
        beyond = hardest.distance
        ascending = [beyond]
        for _ in range(60):
            beyond = F.semihard_negative(x, labels, beyond=beyond, metric=metric).distance
            ascending.append(beyond)
    value = oracle.values(x, x, metric)
    returned = torch.from_numpy(oracle.distances(value, metric, dtype))
    for i, sequence in enumerate(torch.stack(ascending, 1)):
        expected = returned[i][labels != labels[i]].unique()
        assert sequence[: len(expected)].tolist() == expected.tolist()
        assert sequence[len(expected) :].isinf().all()


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_boundary_of_beyond_is_one_unit_in_the_last_place(metric, backend, dtype):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(50, 4, generator=generator, dtype=dtype)
    references = torch.randn(50, 4, generator=generator, dtype=dtype)
    labels, others = torch.zeros(50, dtype=torch.int64), torch.arange(50) + 1

    def select(beyond: Tensor) -> Tensor:
        return F.semihard_negative(x, labels, references, others, beyond=beyond, metric=metric)[1]

    with use_backend(backend):
        found = F.hardest_negative(x, labels, references, others, metric=metric)
        just_below = torch.nextafter(found.distance, torch.tensor(-math.inf, dtype=dtype))
        assert torch.equal(select(just_below), found.index)
        assert not (select(found.distance) == found.index).any()


@each_backend
def test_a_float32_distance_is_compared_after_rounding(backend):
    # The value of the only negative is above 1; its distance in float32 is 1.
    x, labels = torch.tensor([[0.0, 0.0]]), torch.tensor([0])
    references, others = torch.tensor([[1.0, 2.0**-14]]), torch.tensor([1])
    with use_backend(backend):
        beyond = F.hardest_negative(x, labels, references, others).distance
        assert beyond.tolist() == [1.0]
        assert F.semihard_negative(x, labels, references, others, beyond=beyond).index == -1


@each_metric
@each_backend
@pytest.mark.parametrize("beyond", [math.inf, math.nan])
def test_nothing_is_beyond_infinity_or_nan(metric, backend, beyond):
    x, labels = make("random", 12, 3, 3)
    with use_backend(backend):
        found = F.semihard_negative(x, labels, beyond=torch.full((12,), beyond), metric=metric)
    assert (found.index == -1).all()
    assert found.distance.isinf().all()


@each_metric
@each_backend
def test_everything_is_beyond_minus_infinity(metric, backend):
    x, labels = make("random", 12, 3, 3)
    with use_backend(backend):
        found = F.semihard_negative(x, labels, beyond=torch.full((12,), -math.inf), metric=metric)
        assert_same_bits(found, F.hardest_negative(x, labels, metric=metric))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e5m2], ids=str)
def test_beyond_may_have_any_floating_dtype(dtype):
    x, labels = make("random", 30, 3, 3)
    found = F.semihard_negative(x, labels, beyond=torch.full((30,), 1.5).to(dtype))
    assert_same_bits(found, F.semihard_negative(x, labels, beyond=torch.full((30,), 1.5)))


@each_backend
@pytest.mark.parametrize(("metric", "beyond"), [("euclidean", 3.0), ("dot", 3.0), ("cosine", 1.7)])
def test_missing_hardest_falls_back_to_the_nearest_negative(backend, metric, beyond):
    x, labels = make("random", 40, 3, 3)
    threshold = {"beyond": torch.full((40,), beyond), "metric": metric}
    with use_backend(backend):
        dropped = F.semihard_negative(x, labels, **threshold)
        filled = F.semihard_negative(x, labels, **threshold, missing="hardest")
        hardest = F.hardest_negative(x, labels, metric=metric)
    none = dropped.index < 0
    assert 0 < none.sum() < 40
    assert torch.equal(filled.index, torch.where(none, hardest.index, dropped.index))
    assert torch.equal(filled.distance, torch.where(none, hardest.distance, dropped.distance))


@each_backend
def test_missing_hardest_finds_a_negative_whose_distance_overflows(backend):
    # <x, y> = 1e40 is -inf as a float32 distance, and still the nearest.
    x, labels = torch.tensor([[1e20], [1e20]]), torch.tensor([0, 1])
    with use_backend(backend):
        found = F.semihard_negative(
            x, labels, beyond=torch.zeros(2), metric="dot", missing="hardest"
        )
        assert_same_bits(found, F.hardest_negative(x, labels, metric="dot"))


def test_missing_hardest_finds_nothing_without_negatives():
    found = F.semihard_negative(
        torch.eye(3), torch.zeros(3, dtype=torch.int64), beyond=torch.zeros(3), missing="hardest"
    )
    assert found.index.tolist() == [-1] * 3


@each_backend
def test_min_distance_passes_over_exact_duplicates(backend):
    x = torch.tensor([[0.0], [0.0], [1.0], [3.0]])
    labels = torch.zeros(4, dtype=torch.int64)
    with use_backend(backend):
        assert F.nearest_positive(x, labels).index.tolist() == [1, 0, 0, 2]
        assert F.nearest_positive(x, labels, min_distance=0.0).index.tolist() == [2, 2, 0, 2]
        assert F.nearest_positive(x, labels, min_distance=1).index.tolist() == [3, 3, 3, 2]
        assert F.nearest_positive(x, labels, min_distance=3.0).index.tolist() == [-1] * 4


def test_no_gradient_flows_to_beyond():
    x, labels = make("random", 10, 3, 2)
    beyond = torch.zeros(10, requires_grad=True)
    assert not F.semihard_negative(x, labels, beyond=beyond).distance.requires_grad


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


# --- errors ---------------------------------------------------------------------------------------

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


# --- memory ---------------------------------------------------------------------------------------


def test_eps_at_32768_rows_needs_less_than_200_megabytes(resident_growth):
    # One N x N matrix in float32 would be 4295 MB; the embeddings are 17 MB.
    growth = resident_growth(
        "x = torch.randn(32768, 128, requires_grad=True); labels = torch.arange(32768) % 4096",
        'F.triplet_margin_loss(x, labels, margin=0.2, positives="nearest", '
        'negatives="semihard").backward()',
    )
    assert growth < 200e6
