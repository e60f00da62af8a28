"""assign_clusters with a temperature: soft assignment against its formula in float64, on CPU."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from operator_cases import (
    DTYPES,
    ISAS,
    NAMESPACE,
    assert_same_bits,
    compile_whole,
    each_backend,
    each_metric,
    opcheck,
)
from oracle import DATA, METRICS, make
from structure_cases import assert_near, doubles
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

# Rows, centres and dimensions: on both sides of a panel, a strip and a block.
SIZES = [(1, 1, 1), (0, 3, 2), (5, 0, 2), (7, 130, 3), (300, 7, 20), (150, 600, 33)]

each_label = pytest.mark.parametrize("labelled", [False, True])


def problem(
    kind: str, n: int, clusters: int, d: int, dtype: torch.dtype = torch.float32
) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    """Rows and centres as leaves, and the labels of both; class 4 has no centres."""
    x, labels = make(kind, n, d, 5, dtype=dtype)
    centers, center_labels = make(kind, clusters, d, 4, seed=1, dtype=dtype)
    options = {"labels": labels, "center_labels": center_labels}
    return (x.requires_grad_(), centers.requires_grad_()), options


def written_out(
    x: Tensor, centers: Tensor, metric: str, temperature: float, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Soft minimum and mean of float64 rows, +inf without a centre."""
    distance = oracle.distance_matrix(x, centers, metric)
    scaled = torch.where(counts, -distance / temperature, -math.inf)
    found = counts.any(1)
    scaled = torch.where(found[:, None], scaled, 0.0)
    share = scaled.softmax(1) if centers.shape[0] else scaled
    mean = (share * torch.where(counts, distance, 0.0)).sum(1)
    minimum = -temperature * scaled.logsumexp(1)
    return torch.where(found, minimum, math.inf), torch.where(found, mean, math.inf)


def counted(n: int, clusters: int, labels: dict[str, Tensor]) -> Tensor:
    if not labels:
        return torch.ones(n, clusters, dtype=torch.bool)
    return labels["labels"][:, None] == labels["center_labels"][None]


def assert_is_soft(
    leaves: tuple[Tensor, Tensor],
    labels: dict[str, Tensor],
    metric: str,
    temperature: float,
    tolerance: float,
) -> None:
    """Values and gradients against the formula, as vectors."""
    found = F.assign_clusters(*leaves, metric=metric, temperature=temperature, **labels)
    double = doubles(*leaves)
    counts = counted(len(leaves[0]), len(leaves[1]), labels)
    expected = written_out(*double, metric, temperature, counts)
    none = ~counts.any(1)
    generator = torch.Generator().manual_seed(3)
    ups = [torch.randn(len(none), generator=generator, dtype=torch.float64) for _ in range(2)]
    for result, right in zip(found, expected, strict=True):
        assert result.dtype == oracle.returned_dtype(leaves[0].dtype)
        assert torch.isposinf(result[none]).all()
        assert_near(result[~none], right[~none], tolerance)
    actual = torch.autograd.grad(found, leaves, [u.to(found[0].dtype) for u in ups])
    wanted = torch.autograd.grad(
        sum((torch.where(none, 0.0, r) * u).sum() for r, u in zip(expected, ups, strict=True)),
        double,
    )
    for gradient, right, leaf in zip(actual, wanted, leaves, strict=True):
        assert gradient.dtype == leaf.dtype
        assert_near(gradient, right, tolerance)


# --- value and gradient ---------------------------------------------------------------------------


@each_metric
@each_backend
@each_label
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [0.05, 2.0])
def test_soft_minimum_mean_and_gradients_are_those_of_the_formula(
    metric, backend, labelled, dtype, temperature
):
    leaves, labels = problem("random", 90, 70, 6, dtype)
    # Exponents up to some hundreds multiply the few roundings of float32 distances.
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    with use_backend(backend):
        assert_is_soft(leaves, labels if labelled else {}, metric, temperature, tolerance)


@each_backend
@each_label
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_awkward_sizes_are_defined(backend, labelled, size):
    leaves, labels = problem("random", *size)
    with use_backend(backend):
        assert_is_soft(leaves, labels if labelled else {}, "euclidean", 0.5, 2e-5)


@pytest.mark.parametrize("isa", ISAS)
@each_label
# Shifted rows have products of 1e7, which leave float32 nothing of their differences.
@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        *((metric, kind) for metric in METRICS for kind in ("random", "clustered")),
        ("euclidean", "shifted"),
        ("sqeuclidean", "shifted"),
    ],
)
def test_every_instruction_set_agrees(select_isa, isa, metric, labelled, kind):
    select_isa(isa)
    leaves, labels = problem(kind, 130, 300, 17)
    assert_is_soft(leaves, labels if labelled else {}, metric, 1.0, 1e-4)


@each_backend
def test_equal_rows_and_centres_share_evenly(backend):
    x = torch.full((3, 4), 2.0, requires_grad=True)
    centers = torch.full((5, 4), 2.0, requires_grad=True)
    with use_backend(backend):
        found = F.assign_clusters(x, centers, temperature=0.5)
    torch.testing.assert_close(found.distance, torch.full((3,), -0.5 * math.log(5)))
    assert found.mean.tolist() == [0.0] * 3
    for gradient in torch.autograd.grad(sum(found).sum(), (x, centers)):
        assert (gradient == 0).all()


@each_backend
@each_metric
def test_towards_temperature_0_it_is_the_nearest_centre(backend, metric):
    (x, centers), _ = problem("random", 50, 20, 6)
    with use_backend(backend):
        soft = F.assign_clusters(x, centers, metric=metric, temperature=1e-30)
        hard = F.assign_clusters(x, centers, metric=metric)
        soft_gradients = torch.autograd.grad(sum(soft).sum(), (x, centers))
        hard_gradients = torch.autograd.grad(2 * hard.distance.sum(), (x, centers))
    # Distances within some roundings of float32.
    for result in soft:
        torch.testing.assert_close(result, hard.distance, rtol=1e-5, atol=1e-5)
    for a, b in zip(soft_gradients, hard_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@each_backend
def test_the_gradient_of_the_soft_minimum_is_the_row_that_the_centres_make_up(backend):
    (x, centers), _ = problem("random", 40, 30, 5)
    share = torch.softmax(x @ centers.T / 0.7, 1)
    with use_backend(backend):
        found = F.assign_clusters(x, centers, metric="dot", temperature=0.7)
        (gradient,) = torch.autograd.grad(found.distance.sum(), x)
    torch.testing.assert_close(-gradient, share @ centers, rtol=1e-4, atol=1e-5)


@each_backend
def test_the_entropy_of_the_shares_follows(backend):
    (x, centers), _ = problem("random", 40, 30, 5)
    share = torch.softmax(-torch.cdist(x, centers) / 0.7, 1)
    with use_backend(backend):
        found = F.assign_clusters(x, centers, temperature=0.7)
    entropy = -(share * share.log()).sum(1)
    torch.testing.assert_close((found.mean - found.distance) / 0.7, entropy, rtol=1e-4, atol=1e-5)


@each_metric
@each_label
def test_gradcheck(metric, labelled):
    leaves, labels = problem("random", 6, 7, 3, torch.float64)
    # Every class has a centre: +inf has no differences.
    labels = {name: value % 2 for name, value in labels.items()} if labelled else {}

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.assign_clusters(*leaves, metric=metric, temperature=0.8, **labels))

    assert torch.autograd.gradcheck(function, leaves)


# --- what is not finite ---------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_nan_and_spoils_no_other(backend, bad):
    (x, centers), _ = problem("random", 20, 9, 4)
    spoilt = x.detach().clone()
    spoilt[3, 1] = bad
    spoilt.requires_grad_()
    rest = torch.arange(20) != 3
    with use_backend(backend):
        found = F.assign_clusters(spoilt, centers, temperature=1.0)
        clean = F.assign_clusters(x[rest], centers, temperature=1.0)
        to_x, to_centers = torch.autograd.grad(sum(found)[rest].sum(), (spoilt, centers))
        (all_rows,) = torch.autograd.grad(
            F.assign_clusters(spoilt, centers, temperature=1.0).mean.sum(), spoilt
        )
    for result, right in zip(found, clean, strict=True):
        assert result[3].isnan()
        torch.testing.assert_close(result[rest], right, rtol=1e-5, atol=1e-6)
    assert (to_x[3] == 0).all()
    assert to_centers.isfinite().all()
    assert all_rows[3].isnan().all()
    assert all_rows[rest].isfinite().all()


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_centre_that_is_not_finite_does_not_count(backend, bad):
    (x, centers), _ = problem("random", 20, 9, 4)
    spoilt = torch.cat([centers.detach(), torch.full((1, 4), bad)]).requires_grad_()
    with use_backend(backend):
        found = F.assign_clusters(x, spoilt, temperature=1.0)
        clean = F.assign_clusters(x, centers, temperature=1.0)
        (gradient,) = torch.autograd.grad(sum(found).sum(), spoilt)
    for result, right in zip(found, clean, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-5, atol=1e-6)
    assert (gradient[9] == 0).all()


# --- what torch does around it --------------------------------------------------------------------


def test_every_thread_count_gives_the_same_bits(set_threads):
    (x, centers), labels = problem("clustered", 700, 300, 9)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        found = F.assign_clusters(x, centers, temperature=0.3, **labels)
        kept = torch.isfinite(found.mean)
        gradients = torch.autograd.grad(sum(found)[kept].sum(), (x, centers))
        results.append((*found, *gradients))
    assert_same_bits(*results)


@pytest.mark.parametrize("kind", DATA)
def test_kernel_and_reference_agree(kind):
    (x, centers), labels = problem(kind, 60, 50, 7)
    results = []
    for backend in ("kernel", "reference"):
        with use_backend(backend):
            found = F.assign_clusters(x, centers, temperature=0.5, **labels)
        results.append(torch.stack(found).detach())
    # A distance is right to some 1e-6 of the rows' length around their mean, here at most 10.
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@each_backend
def test_a_second_backward_raises(backend):
    (x, centers), _ = problem("random", 6, 5, 3)
    with use_backend(backend):
        found = F.assign_clusters(x, centers, temperature=1.0)
        (gradient,) = torch.autograd.grad(found.mean.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once"):
        gradient.sum().backward()


@each_backend
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_forward_and_backward(backend, dynamic):
    def function(x: Tensor, centers: Tensor) -> Tensor:
        found = F.assign_clusters(x, centers, temperature=0.5)
        return found.distance + 2 * found.mean

    with use_backend(backend):
        compiled = compile_whole(function, dynamic=dynamic)
        for n in (24, 35):
            leaves, _ = problem("random", n, 7, 4)
            results = []
            for f in (function, compiled):
                result = f(*leaves)
                results.append((result, *torch.autograd.grad(result.sum(), leaves)))
            assert_same_bits(*results)
    torch.compiler.reset()


@each_backend
def test_opcheck(backend, operator_calls):
    leaves, labels = problem("random", 12, 7, 4)

    def work() -> None:
        found = F.assign_clusters(*leaves, temperature=0.5, **labels)
        torch.autograd.grad(found.mean[torch.isfinite(found.mean)].sum(), leaves)

    with use_backend(backend):
        calls = operator_calls(work, NAMESPACE[backend])
    assert [f.overloadpacket.__name__ for f, _ in calls] == [
        "clusters_soft",
        "clusters_soft_backward",
    ]
    opcheck(calls)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, "temperature: expected a finite number greater", {"temperature": 0.0}),
        (ValueError, "temperature: expected a finite number", {"temperature": math.inf}),
        (TypeError, "temperature: expected a number", {"temperature": "1"}),
        (ValueError, "top: expected 1 with a temperature, got 3", {"top": 3}),
    ],
)
def test_a_mistake_is_named_before_any_work(error, message, given):
    with pytest.raises(error, match=message):
        F.assign_clusters(torch.zeros(3, 2), torch.zeros(2, 2), **({"temperature": 1.0} | given))


def test_16384_rows_need_less_memory_than_their_shares(resident_growth):
    inputs = "x = torch.randn(16384, 32, requires_grad=True); c = x[:4096].detach()"
    # The shares of 4096 centres are 256 MiB.
    code = "F.assign_clusters(x, c, temperature=1.0).mean.sum().backward()"
    assert resident_growth(inputs, code) < 26 * 2**20


# --- the ends of the range ------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("field", ["distance", "mean"])
@pytest.mark.parametrize("temperature", [1e-2, 1e-6, 1e-8, 1e-12, 1e-16, 1e-30])
def test_the_shares_add_up_to_1_at_any_temperature(temperature, field, dtype, backend):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 8, generator=generator, dtype=dtype).requires_grad_()
    centers = torch.randn(1, 8, generator=generator, dtype=dtype).repeat(3, 1).requires_grad_()
    with use_backend(backend):
        found = F.assign_clusters(x, centers, metric="sqeuclidean", temperature=temperature)
        to_x, to_centers = torch.autograd.grad(getattr(found, field).sum(), (x, centers))
    # Equal centres have equal distances: shares of a third, known to the roundings of the dtype.
    difference = 2 * (x - centers[0]).detach()
    tolerance = 1e-13 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(to_x, difference, rtol=tolerance, atol=tolerance)
    shared = -difference.sum(0).expand(3, 8) / 3
    torch.testing.assert_close(to_centers, shared, rtol=tolerance, atol=tolerance)


@each_backend
@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "dot"])
# The squares of the second and the fourth leave their dtype.
@pytest.mark.parametrize(
    ("dtype", "length"),
    [
        (torch.float32, 1e15),
        (torch.float32, 1e25),
        (torch.float64, 1e100),
        (torch.float64, 1e200),
    ],
    ids=str,
)
def test_a_centre_far_away_has_no_share_and_spoils_none(backend, metric, dtype, length):
    (x, centers), _ = problem("random", 20, 9, 4, dtype)
    x = x.detach().abs().requires_grad_()
    # Under the dot product it is far from all rows, which have no negative element.
    far = torch.cat([centers.detach(), torch.full((1, 4), -length, dtype=dtype)]).requires_grad_()
    with use_backend(backend):
        found = F.assign_clusters(x, far, metric=metric, temperature=1.0)
        clean = F.assign_clusters(x, centers, metric=metric, temperature=1.0)
        to_x, to_far = torch.autograd.grad(sum(found).sum(), (x, far))
        expected = torch.autograd.grad(sum(clean).sum(), (x, centers))
    for result, right in zip((*found, to_x, to_far[:9]), (*clean, *expected), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-5, atol=1e-5)
    assert (to_far[9] == 0).all()


@each_backend
@pytest.mark.parametrize("metric", ["sqeuclidean", "dot"])
@pytest.mark.parametrize("temperature", [1e-14, 1e-4, 1.0, 1e4])
def test_a_centre_may_be_1e30_times_the_root_of_the_temperature_long(backend, metric, temperature):
    (x, centers), _ = problem("random", 40, 30, 6)
    root = math.sqrt(temperature)
    x = (root * x).detach().abs().requires_grad_()
    centers = (root * centers).detach().requires_grad_()
    row = torch.full((1, 6), -1e30 * root / math.sqrt(6))
    far = torch.cat([centers.detach(), row]).requires_grad_()
    double = doubles(x, centers)
    with use_backend(backend):
        found = F.assign_clusters(x, far, metric=metric, temperature=temperature)
        to_x, to_far = torch.autograd.grad(sum(found).sum(), (x, far))
    expected = written_out(*double, metric, temperature, counted(40, 30, {}))
    for result, right in zip(found, expected, strict=True):
        assert_near(result, right, 1e-5)
    for gradient, right in zip(
        (to_x, to_far[:30]), torch.autograd.grad(sum(expected).sum(), double), strict=True
    ):
        assert_near(gradient, right, 1e-5)
    assert (to_far[30] == 0).all()


@each_backend
@each_metric
@pytest.mark.parametrize("temperature", [1e10, 1e15, 1e20, 1e30, 1e38, 1e100, 1e300])
def test_towards_an_infinite_temperature_all_centres_count_alike(backend, metric, temperature):
    leaves, _ = problem("random", 20, 9, 4)
    double = doubles(*leaves)
    with use_backend(backend):
        found = F.assign_clusters(*leaves, metric=metric, temperature=temperature)
        gradients = [torch.autograd.grad(r.sum(), leaves, retain_graph=True) for r in found]
    mean = oracle.distance_matrix(*double, metric).mean(1)
    expected = torch.autograd.grad(mean.sum(), double)
    # Exponents of at most some 1e-9 are left out, and distances have float32's roundings.
    assert_near(found.mean, mean, 1e-5)
    for of_result in gradients:
        for gradient, right in zip(of_result, expected, strict=True):
            assert_near(gradient, right, 1e-5)
