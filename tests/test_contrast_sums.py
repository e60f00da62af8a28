"""The operator of the contrast losses against a loop over pairs, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import oracle
import pytest
import torch
from operator_cases import ISAS, assert_same_bits, compile_whole, each_backend, each_metric, opcheck
from oracle import METRICS, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend
from dmlfast.ops._arguments import check_pairs
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums

N = 23

each_arrangement = pytest.mark.parametrize(
    "arrangement", ["batch", "references", "references and self_index"]
)

# What a side may be: its form, its scale, and the bound as a part of the median distance.
SIDES = {
    "none": ("none", 1.0, None),
    "logsumexp": ("logsumexp", 1.5, None),
    "falling logsumexp": ("logsumexp", -2.0, None),
    "bounded logsumexp": ("logsumexp", -0.5, 1.0),
    "hinge": ("hinge", 1.0, 1.0),
    "sum": ("sum", 1.0, None),
    "softplus": ("softplus", 0.7, -0.5),
    "falling softplus": ("softplus", -1.2, 0.5),
}
each_side = pytest.mark.parametrize("side", SIDES)


class Problem:
    """23 anchors and, in two arrangements, 31 references of which 23 are the anchors."""

    def __init__(
        self, kind: str, arrangement: str = "batch", dtype: torch.dtype = torch.float32
    ) -> None:
        points, classes = make(kind, 31, 4, 5, dtype=dtype)
        rows = torch.randperm(31, generator=torch.Generator().manual_seed(2))[:N]
        self.x, self.labels = points[rows].clone().requires_grad_(), classes[rows].clone()
        self.references, self.others, self.own = None, None, None
        self.leaves = [self.x]
        if arrangement != "batch":
            self.references, self.others = points.requires_grad_(), classes
            self.leaves.append(points)
        if arrangement == "references and self_index":
            self.own = torch.where(torch.arange(N) % 5 == 0, -1, rows)

    def options(self, metric: str, positive: str, negative: str) -> dict:
        """Arguments of the operator, bounds as leaves that differ from anchor to anchor."""
        y = self.x if self.references is None else self.references
        middle = np.median(oracle.distances(oracle.values(self.x, y, metric), metric, self.x.dtype))
        options = {"metric": metric}
        for name, side in (("positive", positive), ("negative", negative)):
            form, scale, factor = SIDES[side]
            options |= {f"{name}_form": form, f"{name}_scale": scale}
            if factor is not None:
                spread = 1.01 + 0.1 * torch.linspace(-1, 1, N)  # no bound is a distance
                bound = (float(factor * middle) * spread).to(oracle.returned_dtype(self.x.dtype))
                options[f"{name}_bound"] = bound.requires_grad_()
        return options

    def sums(self, **options: object) -> ContrastSums:
        pairs = check_pairs(self.x, self.labels, self.references, self.others, self.own)
        return contrast_sums(pairs, **options)

    def oracle(self, **options: object) -> tuple[ContrastSums, list[Tensor]]:
        """The sums of a loop in float64, and its leaves: rows, then the bounds there are."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        distance = oracle.distance_matrix(leaves[0], leaves[-1], options["metric"])
        bounds = {
            name: options[f"{name}_bound"].detach().double().requires_grad_()
            for name in ("positive", "negative")
            if f"{name}_bound" in options
        }
        columns = []
        found = oracle.partners(self.labels, self.others, self.own)
        for side, (name, sign) in enumerate((("positive", 1), ("negative", -1))):
            form, scale = options[f"{name}_form"], options[f"{name}_scale"]
            rows = [
                oracle.contrast_side(
                    distance[i],
                    found[i][side],
                    form,
                    scale,
                    bounds[name][i] if name in bounds else None,
                    sign,
                )
                for i in range(N)
            ]
            columns.append((torch.stack([r for r, _ in rows]), torch.tensor([c for _, c in rows])))
        (positive, positive_count), (negative, negative_count) = columns
        sums = ContrastSums(positive, negative, positive_count, negative_count)
        return sums, [*leaves, *bounds.values()]


def bounds_of(options: dict) -> list[Tensor]:
    return [
        options[f"{name}_bound"] for name in ("positive", "negative") if f"{name}_bound" in options
    ]


def assert_sums(actual: ContrastSums, expected: ContrastSums) -> None:
    assert torch.equal(actual.positive_count, expected.positive_count)
    assert torch.equal(actual.negative_count, expected.negative_count)
    for a, e in zip(actual[:2], expected[:2], strict=True):
        # Distances have a relative error of a few 1e-6 in float32; up to 31 of them, of size
        # up to 30 and times up to 2, are added, and terms may cancel down to the atol.
        torch.testing.assert_close(a.double(), e.detach(), rtol=1e-5, atol=2e-4)


# --- value, counts, gradient ----------------------------------------------------------------------


@each_side
@each_metric
@each_backend
@each_arrangement
def test_sums_are_those_of_a_loop_over_pairs(side, metric, backend, arrangement):
    problem = Problem("random", arrangement)
    options = problem.options(metric, side, side)
    expected, _ = problem.oracle(**options)
    assert (expected.positive_count.sum() > 0) == (side != "none")
    with use_backend(backend):
        assert_sums(problem.sums(**options), expected)


@each_side
@each_metric
@each_backend
@pytest.mark.parametrize("arrangement", ["batch", "references and self_index"])
def test_gradients_are_those_of_the_loop(side, metric, backend, arrangement):
    problem = Problem("random", arrangement)
    options = problem.options(metric, side, side)
    up = torch.linspace(-1, 2, N), torch.linspace(1, 0.5, N)
    expected, leaves = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
        actual = torch.autograd.grad(
            _weighted(sums, up), [*problem.leaves, *bounds_of(options)], materialize_grads=True
        )
    right = torch.autograd.grad(_weighted(expected, up), leaves, materialize_grads=True)
    for a, e in zip(actual, right, strict=True):
        # exp(2 D) with errors of 1e-5 in 2 D, and differences of rows to 1e-6 of their size.
        assert oracle.relative_error(a, e) < 1e-4


def _weighted(sums: ContrastSums, up: tuple[Tensor, Tensor]) -> Tensor:
    """Both sums with upstream gradients; an empty log-sum-exp is -inf and has none."""
    total = 0.0
    for values, weights in zip(sums[:2], up, strict=True):
        total = total + (torch.where(values == -math.inf, 0.0, values) * weights).sum()
    return total


@pytest.mark.parametrize(
    ("positive", "negative"),
    [("softplus", "bounded logsumexp"), ("none", "hinge"), ("sum", "none"), ("hinge", "logsumexp")],
)
@each_backend
def test_the_sides_do_not_depend_on_each_other(positive, negative, backend):
    problem = Problem("clustered", "references")
    options = problem.options("euclidean", positive, negative)
    with use_backend(backend):
        both = problem.sums(**options)
        only = (
            problem.sums(**{k: v for k, v in options.items() if not k.startswith("negative")}),
            problem.sums(**{k: v for k, v in options.items() if not k.startswith("positive")}),
        )
    # Sides may be walked in another order together.
    torch.testing.assert_close(both.positive, only[0].positive, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(both.negative, only[1].negative, rtol=1e-6, atol=1e-6)


# Shifted points have distances of 4e6 under dot: no float32 number is near their exponents.
@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        (kind, metric)
        for kind in ("clustered", "duplicated", "tied", "shifted", "collapsed")
        for metric in METRICS
        if (kind, metric) != ("shifted", "dot")
    ],
)
@each_backend
@pytest.mark.parametrize("side", ["logsumexp", "sum", "softplus"])
def test_awkward_points_have_the_sums_of_the_loop(kind, metric, backend, side):
    problem = Problem(kind)
    options = problem.options(metric, side, side)
    expected, leaves = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
        assert_sums(sums, expected)
        (actual,) = torch.autograd.grad(_weighted(sums, (torch.ones(N),) * 2), problem.x)
    if metric in ("euclidean", "sqeuclidean"):
        right, *_ = torch.autograd.grad(_weighted(expected, (torch.ones(N),) * 2), leaves[0])
        # Gradients as anchor and as reference nearly cancel in symmetric sums; near-duplicates
        # must not lose their digits to the size of the rows, which is 1e7 times theirs.
        assert oracle.relative_error(actual, right) < 1e-3


@each_side
@each_metric
def test_gradcheck(side, metric):
    # Points in general position: no step of gradcheck, 1e-6, takes a pair across its bound.
    problem = Problem("random", "references and self_index", torch.float64)
    options = problem.options(metric, side, side)
    names = [name for name in options if name.endswith("_bound")]
    if SIDES[side][0] == "logsumexp":
        names = []  # no gradient flows to these bounds

    def sums(x: Tensor, references: Tensor, *bounds: Tensor) -> tuple[Tensor, Tensor]:
        pairs = check_pairs(x, problem.labels, references, problem.others, problem.own)
        given = {k: v.detach() for k, v in options.items() if k.endswith("_bound")}
        fixed = {k: v for k, v in options.items() if not k.endswith("_bound")}
        found = contrast_sums(pairs, **fixed, **{**given, **dict(zip(names, bounds, strict=True))})
        return tuple(torch.where(v == -math.inf, 0.0, v) for v in found[:2])

    leaves = (*problem.leaves, *(options[name] for name in names))
    assert torch.autograd.gradcheck(sums, leaves, atol=1e-5)


# --- who is a partner -----------------------------------------------------------------------------


@each_side
@each_backend
def test_a_batch_without_partners_has_empty_sums_and_gradient_0(side, backend):
    for x, labels, empty in (
        (torch.empty(0, 3), [], "both"),
        (torch.ones(1, 3), [0], "both"),
        (torch.eye(3), [0, 1, 2], "positive"),
        (torch.eye(3), [7, 7, 7], "negative"),
    ):
        x = x.clone().requires_grad_()
        options = dict(
            zip(("positive_form", "positive_scale", "positive_bound"), SIDES[side], strict=True),
            **dict(
                zip(("negative_form", "negative_scale", "negative_bound"), SIDES[side], strict=True)
            ),
        )
        with use_backend(backend):
            sums = contrast_sums(
                check_pairs(x, torch.tensor(labels, dtype=torch.int64)), metric="cosine", **options
            )
            names = ("positive", "negative") if empty == "both" else (empty,)
            nothing = -math.inf if SIDES[side][0] == "logsumexp" else 0.0
            for name in names:
                value = getattr(sums, name)
                assert value.tolist() == [nothing] * len(labels)
                assert getattr(sums, f"{name}_count").tolist() == [0] * len(labels)
                # Even NaN from above must not reach rows by a sum of nothing.
                (gradient,) = torch.autograd.grad(
                    value, x, torch.full_like(value, math.nan), retain_graph=True
                )
                assert torch.equal(gradient, torch.zeros_like(x))


@each_side
@each_backend
def test_no_references_give_empty_sums(side, backend):
    form, scale, bound = SIDES[side]
    x, labels = make("random", 5, 3, 2)
    references = torch.empty(0, 3, requires_grad=True)
    pairs = check_pairs(x.requires_grad_(), labels, references, torch.empty(0, dtype=torch.int64))
    with use_backend(backend):
        sums = contrast_sums(
            pairs,
            metric="euclidean",
            positive_form=form,
            positive_scale=scale,
            positive_bound=bound,
        )
    assert sums.positive.tolist() == [-math.inf if form == "logsumexp" else 0.0] * 5
    gradients = torch.autograd.grad(sums.positive.sum(), (x, references))
    assert [g.shape for g in gradients] == [(5, 3), (0, 3)]


@each_backend
def test_references_that_are_the_batch_itself_are_references_all_the_same(backend):
    x, labels = make("random", 12, 3, 3)
    nobody = torch.full((12,), -1)
    with use_backend(backend):
        given = contrast_sums(
            check_pairs(x, labels, x, labels, nobody), metric="euclidean", positive_form="sum"
        )
        within = contrast_sums(check_pairs(x, labels), metric="euclidean", positive_form="sum")
    assert torch.equal(given.positive_count, within.positive_count + 1)


@each_metric
@each_backend
def test_zero_distances_and_zero_vectors_have_gradient_0(metric, backend):
    x = torch.zeros(4, 3, requires_grad=True)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(x, torch.tensor([0, 0, 1, 1])),
            metric=metric,
            positive_form="sum",
            negative_form="logsumexp",
        )
    each = 1.0 if metric == "cosine" else 0.0
    assert sums.positive.tolist() == [each] * 4
    assert sums.negative.tolist() == pytest.approx([math.log(2) + each] * 4)
    sums.positive.sum().add(sums.negative.sum()).backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


# --- NaN and infinity -----------------------------------------------------------------------------


@each_side
@each_metric
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_nan_itself_and_nobodys_partner(side, metric, backend, bad):
    problem = Problem("random")
    options = problem.options(metric, side, side)
    with torch.no_grad():
        problem.x[11, 2] = bad
    keep = torch.arange(N) != 11
    fewer = {k: v[keep].detach() if k.endswith("_bound") else v for k, v in options.items()}
    with use_backend(backend):
        sums = problem.sums(**options)
        total = _weighted(sums, (torch.ones(N),) * 2)
        gradient = torch.autograd.grad(total, problem.x, materialize_grads=True)[0]
        others = contrast_sums(check_pairs(problem.x[keep].detach(), problem.labels[keep]), **fewer)
    for a, e in zip(sums[:2], others[:2], strict=True):
        torch.testing.assert_close(a[keep], e, rtol=1e-6, atol=1e-6)
    lost = SIDES[side][0] != "none"
    assert sums.positive[11].isnan() == sums.negative[11].isnan() == lost
    assert [c[11].item() for c in sums[2:]] == [int(lost)] * 2
    assert gradient.isnan().any(1).nonzero().tolist() == ([[11]] if lost else [])
    assert gradient[11].isnan().all() == lost


@each_backend
def test_an_anchor_that_is_not_finite_has_gradient_0_without_an_upstream_one(backend):
    problem = Problem("random")
    with torch.no_grad():
        problem.x[11] = math.nan
    with use_backend(backend):
        sums = problem.sums(metric="euclidean", positive_form="sum", negative_form="sum")
        (gradient,) = torch.autograd.grad(sums.positive, problem.x, (torch.arange(N) != 11).float())
    assert gradient.isfinite().all()


@each_backend
@pytest.mark.parametrize("side", ["bounded logsumexp", "hinge", "softplus"])
def test_a_bound_of_nan_gives_its_side_nan(backend, side):
    problem = Problem("random")
    options = problem.options("euclidean", side, side)
    with torch.no_grad():
        options["negative_bound"][3] = math.nan
    with use_backend(backend):
        sums = problem.sums(**options)
    assert sums.negative.isnan().nonzero().tolist() == [[3]]
    assert not sums.positive.isnan().any()


@each_backend
def test_exponents_above_the_range_of_float32_stay_finite(backend):
    x, labels = make("random", 20, 4, 3)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(50 * x, labels),
            metric="dot",
            negative_form="logsumexp",
            negative_scale=-1.0,
        )
    assert sums.negative.max() > 1000
    assert sums.negative.isfinite().all()


@each_backend
def test_a_distance_that_overflows_stays_on_its_own_side(backend):
    # <x, y> of the two positives is 1e40; masks that multiply would make the others NaN.
    x = torch.tensor([[1e20, 0.0], [1e20, 1.0], [0.0, 1.0]])
    pairs = check_pairs(x, torch.tensor([0, 0, 1]))
    with use_backend(backend):
        both = contrast_sums(pairs, metric="dot", positive_form="logsumexp", negative_form="sum")
        alone = contrast_sums(pairs, metric="dot", negative_form="sum")
    assert both.negative.tolist() == alone.negative.tolist() == [0.0, -1.0, -1.0]


@each_backend
def test_labels_that_no_float32_tells_apart_are_different_classes(backend):
    x, _ = make("random", 3, 4, 2)
    with use_backend(backend):
        sums = contrast_sums(
            check_pairs(x, torch.tensor([2**24, 2**24 + 1, -(2**62)])),
            metric="euclidean",
            positive_form="sum",
            negative_form="sum",
        )
    assert sums.positive_count.tolist() == [0, 0, 0]
    assert sums.negative_count.tolist() == [2, 2, 2]


# --- dtypes, bits, threads ------------------------------------------------------------------------


@each_side
@each_metric
def test_kernel_and_reference_agree(side, metric):
    for kind, dtype in (("clustered", torch.float32), ("random", torch.bfloat16)):
        problem = Problem(kind, "references and self_index", dtype)
        options = problem.options(metric, side, side)
        results = []
        for backend in ("kernel", "reference"):
            with use_backend(backend):
                sums = problem.sums(**options)
                total = _weighted(sums, (torch.linspace(-1, 2, N), torch.ones(N)))
                leaves = [*problem.leaves, *bounds_of(options)]
                gradients = torch.autograd.grad(total, leaves, materialize_grads=True)
            results.append((sums, gradients))
        (kernel, to_kernel), (reference, to_reference) = results
        assert_sums(
            kernel, ContrastSums(*(t.double() if t.is_floating_point() else t for t in reference))
        )
        for a, e in zip(to_kernel, to_reference, strict=True):
            assert a.dtype == e.dtype
            # As against the loop; a gradient in bfloat16 is rounded to 2^-9 of itself.
            assert oracle.relative_error(a, e) < (1e-4 if a.dtype == torch.float32 else 1e-2)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_rows_are_summed_in_float32_as_they_are_stored(backend, dtype):
    problem = Problem("random", dtype=dtype)
    options = problem.options("euclidean", "logsumexp", "softplus")
    expected, _ = problem.oracle(**options)
    with use_backend(backend):
        sums = problem.sums(**options)
    assert sums.positive.dtype == torch.float32
    assert_sums(sums, expected)
    assert torch.autograd.grad(sums.negative.sum(), problem.x)[0].dtype == dtype


@each_side
@each_metric
def test_float64_is_exact_under_every_backend(side, metric):
    problem = Problem("random", "references", torch.float64)
    options = problem.options(metric, side, side)
    expected, leaves = problem.oracle(**options)
    up = torch.linspace(-1, 2, N), torch.linspace(1, 0.5, N)
    sums = problem.sums(**options)
    for a, e in zip(sums[:2], expected[:2], strict=True):
        assert a.dtype == torch.float64
        # Sums of up to 31 float64 numbers in another order.
        torch.testing.assert_close(a, e, rtol=1e-13, atol=1e-13)
    actual = torch.autograd.grad(
        _weighted(sums, up), [*problem.leaves, *bounds_of(options)], materialize_grads=True
    )
    right = torch.autograd.grad(_weighted(expected, up), leaves, materialize_grads=True)
    for a, e in zip(actual, right, strict=True):
        assert oracle.relative_error(a, e) < 1e-12


def _everything(side: str, metric: str) -> list[Tensor]:
    x, labels = make("random", 203, 6, 5)
    references, others = make("random", 317, 6, 5, seed=1)
    form, scale, bound = SIDES[side]
    results = []
    for pairs, leaves in (
        (check_pairs(x.requires_grad_(), labels), (x,)),
        (check_pairs(x, labels, references.requires_grad_(), others), (x, references)),
    ):
        sums = contrast_sums(
            pairs,
            metric=metric,
            positive_form=form,
            positive_scale=scale,
            positive_bound=bound,
            negative_form=form,
            negative_scale=scale,
            negative_bound=bound,
        )
        total = _weighted(sums, (torch.linspace(-1, 2, 203), torch.ones(203)))
        results += [*sums, *torch.autograd.grad(total, leaves)]
    return results


@pytest.mark.parametrize("side", ["bounded logsumexp", "hinge", "softplus"])
@each_metric
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_thread_count_gives_the_same_bits(
    side, metric, isa, threads, select_isa, set_threads
):
    select_isa(isa)
    set_threads(2)
    expected = _everything(side, metric)
    set_threads(threads)
    assert_same_bits(_everything(side, metric), expected)


# --- what torch does around it --------------------------------------------------------------------


@each_backend
def test_a_second_backward_raises(backend):
    problem = Problem("random")
    with use_backend(backend):
        sums = problem.sums(metric="euclidean", positive_form="sum")
        (gradient,) = torch.autograd.grad(sums.positive.sum(), problem.x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiate"):
            (gradient.square().sum() + problem.x.sum()).backward()


@each_backend
def test_opcheck_accepts_the_operator_and_its_gradient(backend, operator_calls: Callable):
    def run() -> None:
        for arrangement in ("batch", "references and self_index"):
            problem = Problem("random", arrangement)
            options = problem.options("euclidean", "hinge", "bounded logsumexp")
            with use_backend(backend):
                sums = problem.sums(**options)
                torch.autograd.grad(_weighted(sums, (torch.ones(N),) * 2), problem.leaves)

    namespace = "dmlfast" if backend == "kernel" else "dmlfast_reference"
    calls = operator_calls(run, namespace)
    assert len(calls) == 4
    opcheck(calls)


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    def function(x: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        sums = contrast_sums(
            check_pairs(x, labels),
            metric="euclidean",
            positive_form="hinge",
            positive_bound=bound,
            negative_form="logsumexp",
            negative_scale=-1.0,
            negative_bound=2.0,
        )
        return sums.positive.sum() + torch.where(sums.negative_count > 0, sums.negative, 0.0).sum()

    compiled = compile_whole(function, dynamic=dynamic)
    with use_backend(backend):
        for n in (24, 35):
            x, labels = make("clustered", n, 4, 3)
            results = []
            for f in (function, compiled):
                leaves = x.clone().requires_grad_(), torch.full((n,), 0.1, requires_grad=True)
                loss = f(leaves[0], labels, leaves[1])
                results.append((loss, *torch.autograd.grad(loss, leaves)))
            torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_needs_no_matrix_of_pairs(resident_growth: Callable, dtype: torch.dtype):
    # One 4096 x 4096 matrix in float32 would be 67 MB.
    growth = resident_growth(
        f"x = torch.randn(4096, 16).to({dtype}).requires_grad_();labels = torch.arange(4096) % 8",
        "F.info_nce_loss(x, labels).backward()",
    )
    assert growth < 4096 * 4096 * 4 / 2


def test_the_functions_of_the_family_are_public():
    assert F.ContrastSums is ContrastSums
