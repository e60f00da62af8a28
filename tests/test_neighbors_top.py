"""nearest_neighbors: the k nearest references, on CPU."""

from __future__ import annotations

import math
import warnings

import oracle
import pytest
import torch
from neighbors_cases import Problem
from operator_cases import DTYPES, ISAS, assert_same_bits, compile_whole, each_backend, each_metric
from oracle import DATA, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import _backend, use_backend

RULES = ("all", "positives", "negatives")
FORMS = ("batch", "references", "references and self_index")

each_rule = pytest.mark.parametrize("candidates", RULES)


def find(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    candidates: str = "all",
    **options: object,
) -> F.Selection:
    """nearest_neighbors with the labels that the rule needs."""
    if candidates != "all":
        options |= {"query_labels": labels, "reference_labels": reference_labels}
    return F.nearest_neighbors(x, references, candidates=candidates, **options)


# --- the choice and its distance ------------------------------------------------------------------


@each_metric
@each_rule
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [1, 16, 250])
def test_finds_exactly_what_the_oracle_finds(metric, candidates, kind, form, k):
    problem = Problem(kind, form)
    options = {**problem.others, "k": k, "candidates": candidates, "metric": metric}
    found = find(problem.x, problem.labels, **options)
    # No tolerance: every index, and every distance to the last bit.
    assert_same_bits(found, oracle.nearest(problem.x, problem.labels, **options))


@each_metric
@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["clustered", "tied", "shifted"])
def test_is_exact_for_the_values_as_stored_in_every_dtype(metric, backend, dtype, kind):
    problem = Problem(kind, "references and self_index", dtype)
    options = {**problem.others, "k": 9, "metric": metric}
    with use_backend(backend):
        found = find(problem.x, problem.labels, **options)
    assert_same_bits(found, oracle.nearest(problem.x, problem.labels, **options))


@each_metric
@each_rule
@pytest.mark.parametrize("form", ["batch", "references and self_index"])
@pytest.mark.parametrize(
    "spread", ["ordinary", "tiny", "huge", "six decades", "one far row", "two points", "NaN rows"]
)
def test_the_search_is_exact_whatever_the_norms(select_isa, metric, candidates, form, spread):
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
    elif spread == "two points":
        x = 1e-4 * x + (torch.arange(301) % 2)[:, None]
    others = {}
    if form != "batch":
        others = {"references": x, "reference_labels": labels}
        rows = torch.randperm(301, generator=generator)[:250]
        x, labels, others["self_index"] = x[rows], labels[rows], rows
    options = {**others, "k": 7, "candidates": candidates, "metric": metric}
    expected = oracle.nearest(x, labels, **options)
    for isa in ISAS:
        select_isa(isa)
        assert_same_bits(find(x, labels, **options), expected)


@each_rule
@pytest.mark.parametrize("k", [3, 40])
@pytest.mark.parametrize("dimensions", [1, 2, 33])
def test_is_exact_where_many_lists_overflow_and_are_pruned(candidates, k, dimensions):
    x, labels = make("random", 1500, dimensions, 4)
    options = {"k": k, "candidates": candidates}
    assert_same_bits(find(x, labels, **options), oracle.nearest(x, labels, **options))


@each_metric
@pytest.mark.parametrize("form", ["batch", "references"])
@pytest.mark.parametrize(
    "points", ["all equal", "two tight clusters", "every row forty times", "one row repeated"]
)
def test_rows_that_the_search_cannot_decide_are_exact(metric, form, points, set_threads):
    generator = torch.Generator().manual_seed(2)
    if points == "all equal":
        x = torch.full((700, 6), 0.3)
    elif points == "two tight clusters":
        # Nearer to each other than float32 tells apart beside the other cluster.
        centres = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        x = centres[torch.arange(700) % 2]
        x = x + 1e-9 * torch.randn(700, 6, generator=generator, dtype=torch.float64)
    elif points == "every row forty times":
        x = torch.randn(18, 6, generator=generator).repeat(40, 1)[:700]
    else:
        x = torch.randn(700, 6, generator=generator)
        x[::3] = x[0].clone()
    others = {"references": x.flip(0).contiguous()} if form == "references" else {}
    labels = torch.zeros(700, dtype=torch.int64)
    expected = oracle.nearest(x, labels, **others, k=4, metric=metric)
    for threads in (1, 2):
        set_threads(threads)
        assert_same_bits(find(x, labels, **others, k=4, metric=metric), expected)


def test_is_exact_at_5000_rows_and_a_thousand_neighbors():
    # More than one thread's block of anchors, and lists that are pruned once they hold 2032.
    x, labels = make("tied", 5000, 2, 3, seed=3)
    x += torch.randint(-200, 200, x.shape, generator=torch.Generator().manual_seed(4)) / 8
    found = F.nearest_neighbors(x[:400], x, 600)
    assert_same_bits(found, oracle.nearest(x[:400], labels[:400], x, labels, k=600))
    within = F.nearest_neighbors(x, k=600)
    assert_same_bits(
        [part[:400] for part in within],
        oracle.nearest(x[:400], labels, x, labels, self_index=torch.arange(400), k=600),
    )


@each_metric
@pytest.mark.parametrize(
    ("candidates", "selection"),
    [("positives", "nearest_positive"), ("negatives", "hardest_negative")],
)
def test_the_first_neighbor_is_the_nearest_of_its_rule(metric, candidates, selection):
    x, labels = make("duplicated", 400, 6, 3)
    found = find(x, labels, k=5, candidates=candidates, metric=metric)
    expected = getattr(F, selection)(x, labels, metric=metric)
    assert_same_bits([part[:, 0] for part in found], expected)


# --- what is a candidate --------------------------------------------------------------------------


@each_backend
def test_self_is_excluded_by_index_and_never_by_distance(backend):
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [5.0, 5.0]])
    with use_backend(backend):
        assert F.nearest_neighbors(x, k=2).index.tolist() == [[1, 2], [0, 2], [0, 1]]
        assert F.nearest_neighbors(x, x, 2).index.tolist() == [[0, 1], [0, 1], [2, 0]]
        own = torch.tensor([0, -1, 2])
        found = F.nearest_neighbors(x, x, 2, self_index=own)
        assert found.index.tolist() == [[1, 2], [0, 1], [0, 1]]


@each_backend
def test_ties_come_in_the_order_of_their_indices_whatever_the_order_of_the_labels(backend):
    x = torch.zeros(6, 2)
    labels = torch.tensor([5, 9, 5, -1, 9, 5])
    with use_backend(backend):
        assert F.nearest_neighbors(x, k=3).index[:2].tolist() == [[1, 2, 3], [0, 2, 3]]
        found = find(x, labels, k=3, candidates="negatives")
        assert found.index[:4].tolist() == [[1, 3, 4], [0, 2, 3], [1, 3, 4], [0, 1, 2]]


@each_backend
def test_where_candidates_are_too_few_the_rest_is_missing(backend):
    x = torch.tensor([[0.0], [1.0], [3.0], [math.nan]])
    labels = torch.tensor([0, 0, 1, 1])
    with use_backend(backend):
        found = find(x, labels, k=4)
        assert found.index.tolist() == [[1, 2, -1, -1], [0, 2, -1, -1], [1, 0, -1, -1], [-1] * 4]
        assert found.distance[0].tolist() == [1.0, 3.0, math.inf, math.inf]
        assert found.distance[3].isnan().all()
        positives = find(x, labels, k=2, candidates="positives")
        assert positives.index.tolist() == [[1, -1], [0, -1], [-1, -1], [-1, -1]]


@each_metric
@each_rule
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["batch", "references"])
def test_rows_that_are_not_finite_follow_the_oracle(metric, candidates, backend, bad, form):
    problem = Problem("random", form)
    problem.x[[0, 50, 136], [0, 3, 4]] = bad
    if form == "references":
        problem.others["references"][[1, 77, 200], [4, 0, 2]] = bad
    options = {**problem.others, "k": 6, "candidates": candidates, "metric": metric}
    with use_backend(backend):
        found = find(problem.x, problem.labels, **options)
    assert_same_bits(found, oracle.nearest(problem.x, problem.labels, **options))


SHAPES = {
    "no queries": torch.empty(0, 4),
    "one query": torch.ones(1, 4),
    "all rows equal": torch.full((19, 3), 0.3),
    "zero vectors": torch.eye(12)[:, :4].contiguous(),
    "one dimension": torch.arange(20.0)[:, None] ** 2,
    "no dimensions": torch.empty(6, 0),
    "one less than a panel": make("tied", 15, 3, 3)[0],
    "one more than a panel": make("tied", 17, 33, 3)[0],
    "few dimensions": make("random", 150, 1, 3)[0],
}


@each_metric
@each_backend
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("k", [1, 5, 1024])
def test_awkward_shapes_are_defined(metric, backend, shape, k):
    x = SHAPES[shape]
    with use_backend(backend):
        found = F.nearest_neighbors(x, k=k, metric=metric)
    assert_same_bits(found, oracle.nearest(x, k=k, metric=metric))


@each_backend
def test_without_references_nothing_is_found(backend):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with use_backend(backend):
        found = F.nearest_neighbors(x, torch.empty(0, 3), 2)
    assert found.index.tolist() == [[-1, -1]] * 5
    assert found.distance.tolist() == [[math.inf, math.inf]] * 5
    found.distance.sum().backward()
    assert x.grad.tolist() == [[0.0] * 3] * 5


# --- same bits on every run -----------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize("form", FORMS[:2])
def test_every_instruction_set_and_thread_count_gives_the_same_bits(
    metric, form, select_isa, set_threads
):
    # Seven blocks of anchors and more, and groups that no number of blocks divides.
    x, labels = make("random", 777, 9, 5)
    others = {} if form == "batch" else {"references": make("random", 533, 9, 5, seed=1)[0]}

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        found = find(leaf, labels, **others, k=6, metric=metric)
        return [*found, *torch.autograd.grad(found.distance.square().sum(), leaf)]

    expected = run()
    for isa in ISAS:
        for threads in (1, 2, 3):
            select_isa(isa)
            set_threads(threads)
            assert_same_bits(run(), expected)


# --- gradients ------------------------------------------------------------------------------------


@each_metric
@each_backend
@pytest.mark.parametrize("form", ["batch", "references and self_index"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_is_that_of_the_chosen_distances(metric, backend, form, dtype):
    problem = Problem("random", form, dtype)
    leaves = [problem.x.requires_grad_()]
    if form != "batch":
        leaves.append(problem.others["references"].requires_grad_())
    with use_backend(backend):
        found = find(problem.x, problem.labels, **problem.others, k=5, metric=metric)
    weight = torch.randn(137, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = torch.autograd.grad((weight * found.distance).sum(), leaves)
    weights = torch.zeros(137, len(leaves[-1]), dtype=torch.float64)
    weights.scatter_(1, found.index, weight)
    expected = oracle.triplet_gradients(
        weights, problem.x, problem.others.get("references"), metric
    )
    # The sums are rounded once to the dtype (within a batch twice, and added there); the upstream
    # gradient was rounded to float32 first. float64 allows a thousand roundings.
    tolerance = {torch.float64: 1e-13, torch.float32: 4e-7}[dtype]
    for a, e in zip(actual, expected, strict=False):
        assert oracle.relative_error(a, e) < tolerance


def test_a_second_backward_raises():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    distance = F.nearest_neighbors(x, k=2).distance.sum()
    (gradient,) = torch.autograd.grad(distance, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate"):
        (gradient.square().sum() + x.sum()).backward()


# --- what torch does around it --------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    def function(x: Tensor, k: int) -> Tensor:
        return F.nearest_neighbors(x, k=k).distance

    with use_backend(backend):
        compiled = compile_whole(function, dynamic=dynamic)
        for n, k in ((24, 2), (35, 3)):
            x = make("clustered", n, 4, 3)[0]
            leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
            expected, actual = function(leaves[0], k), compiled(leaves[1], k)
            assert_same_bits((actual,), (expected,))
            for distance in (expected, actual):
                distance.sum().backward()
            assert_same_bits((leaves[1].grad,), (leaves[0].grad,))
    torch.compiler.reset()


def test_the_inputs_are_left_alone():
    problem = Problem("random", "references and self_index")
    tensors = [problem.x, problem.labels, *problem.others.values()]
    before = [t.clone() for t in tensors]
    find(problem.x, problem.labels, **problem.others, k=3, candidates="negatives")
    assert_same_bits(tensors, before)


@pytest.mark.parametrize("name", ["neighbors_top", "neighbors_sample"])
def test_plain_torch_serves_where_the_operator_has_no_kernel_with_one_warning(monkeypatch, name):
    monkeypatch.setattr(_backend, "_warned", set())
    device = torch.device("xpu")
    with pytest.warns(RuntimeWarning, match=f"{name}.* on xpu.*it has no kernels there"):
        assert not _backend.uses_kernel(name, device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not _backend.uses_kernel(name, device)
        assert _backend.uses_kernel(name, torch.device("cpu"))


# --- mistakes -------------------------------------------------------------------------------------

X, LABELS = torch.eye(6)[:, :3].contiguous(), torch.arange(6) % 2

ERRORS = {
    "k is no integer": ({"k": 2.0}, TypeError, r"k: expected an integer, got 2.0"),
    "k is a flag": ({"k": True}, TypeError, r"k: expected an integer, got True"),
    "k is 0": ({"k": 0}, ValueError, r"k: expected 1 to 1024, got 0"),
    "k is too great": ({"k": 1025}, ValueError, r"k: expected 1 to 1024, got 1025"),
    "queries are no tensor": ({"queries": [[1.0]]}, TypeError, r"queries: expected a torch.Tensor"),
    "queries are 1-D": ({"queries": X[0]}, ValueError, r"queries: expected a 2-D tensor"),
    "queries are integers": ({"queries": LABELS[:, None]}, TypeError, r"queries: .*float16.*int64"),
    "references are wider": (
        {"references": torch.eye(4)},
        ValueError,
        r"references: expected 3 dimensions as in queries, got \(4, 4\)",
    ),
    "references are float64": (
        {"references": X.double()},
        TypeError,
        r"references: expected torch.float32 as queries",
    ),
    "candidates are unknown": (
        {"candidates": "same"},
        ValueError,
        r"candidates: expected one of .*'positives'.*got 'same'",
    ),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of .*got 'l2'"),
    "labels are missing": (
        {"candidates": "positives"},
        ValueError,
        r"query_labels: expected labels with candidates='positives', got None",
    ),
    "labels of the references are missing": (
        {"candidates": "negatives", "query_labels": LABELS, "references": X},
        ValueError,
        r"reference_labels: expected labels of references, got None",
    ),
    "labels are not used": (
        {"query_labels": LABELS},
        ValueError,
        r"query_labels: expected None with candidates='all', got \(6,\) torch.int64",
    ),
    "labels of the references are not used": (
        {"references": X, "reference_labels": LABELS},
        ValueError,
        r"reference_labels: expected None with candidates='all'",
    ),
    "labels are too few": (
        {"candidates": "positives", "query_labels": LABELS[:5]},
        ValueError,
        r"query_labels: expected shape \(6,\), got \(5,\)",
    ),
    "self_index lacks references": (
        {"self_index": LABELS},
        ValueError,
        r"self_index: expected None without references",
    ),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named_before_any_work(backend, mistake):
    arguments, error, message = ERRORS[mistake]
    with use_backend(backend), pytest.raises(error, match=message):
        F.nearest_neighbors(**{"queries": X, **arguments})


def test_the_operator_refuses_a_k_beyond_its_range():
    order = torch.arange(6)
    arguments = (X, LABELS, order, X, LABELS, order, None)
    for k in (0, 1025):
        with pytest.raises(RuntimeError, match=f"k: expected 1 to 1024, got {k}"):
            torch.ops.dmlfast.neighbors_top(*arguments, k, "all", "dot")


# --- memory ---------------------------------------------------------------------------------------


def test_32768_rows_need_less_than_120_megabytes(resident_growth):
    # One N x N matrix in float32 would be 4295 MB. The embeddings are 17 MB, packed once more;
    # 64 places for candidates a row are 17 MB, the result 6 MB, and none grows with the threads.
    growth = resident_growth("x = torch.randn(32768, 128)", "F.nearest_neighbors(x, k=16)")
    assert growth < 120e6
