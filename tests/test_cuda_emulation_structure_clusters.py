"""The CUDA kernels that assign adaptive distances to clusters, run on the CPU."""

from __future__ import annotations

import math

import emulation
import numpy as np
import pytest
import torch
from pairwise_emulation import EPSILON, decode, rows
from structure_emulation import (
    Case,
    check_gradients,
    gradient_tolerances,
    gradients,
    tolerances,
    true_distances,
    weights,
)
from torch import Tensor

from dmlfast.reference import structure as reference

pytestmark = emulation.needs_compiler


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("structure", tmp_path_factory.getbasetemp())


def problem(number: int, dimensions: int, clusters: int, **options) -> Case:
    """With equal rows and near-duplicates where there is room."""
    e, w = rows(number, dimensions), weights(number, dimensions)
    if number > 5:
        e[3], e[4] = e[-1], e[2] * (1 + 1e-5)
    mean = (2 * dimensions) ** 0.5
    targets = mean * torch.linspace(1, 0.3, clusters, dtype=torch.float64)
    sharpness = 10 / mean * (clusters - 1)
    return Case(e, w, **{"targets": targets, "sharpness": sharpness, **options})


def sums(program, folder, case: Case) -> list[Tensor]:
    number, clusters = len(case.e), len(case.targets)
    shape = (number if case.ordered else 0, clusters)
    content = emulation.run(program, folder, case.encode("clusters"))
    return decode(content, (np.float64, (number,)), (np.float64, shape), (np.float64, shape))


def expected_sums(case: Case) -> tuple[Tensor, ...]:
    e, w, _ = case.doubles()
    return reference.clusters(e, w, case.targets, sharpness=case.sharpness, ordered=case.ordered)


class Pairs:
    """The pairs of a batch, in float64.

    Attributes:
        distance: (N, N); self has none.
        gap: (N, N, K) distances from targets.
        share: (N, N, K) what each cluster holds of a pair.
        error: (N, N) bound of the errors of distances, and of their gaps.
        log: of the number of clusters; the mean exponent of a pair is no more.
    """

    def __init__(self, case: Case) -> None:
        distance = true_distances(case)
        own = torch.eye(len(distance), dtype=torch.bool)
        self.distance = torch.where(own, math.nan, distance)
        self.gap = self.distance[..., None] - case.targets
        self.share = torch.softmax(-case.sharpness * self.gap.abs(), 2)
        # A target is rounded, and so is each difference.
        greatest = case.targets.abs().max()
        self.error = tolerances(case, distance) + 4 * EPSILON * (self.distance + greatest)
        self.log = math.log(len(case.targets))

    def total(self, of: Tensor) -> Tensor:
        """The sum over the partners that are not lost."""
        return of.nan_to_num(0.0, posinf=0.0).sum(1)


def check_sums(actual: list[Tensor], case: Case) -> None:
    pairs = Pairs(case)
    # By its distance the loss of a pair changes by at most 1 + 2 log K; shares, exponents and
    # their sums are 16 roundings, and 32 terms are summed in float32.
    loss = (1 + 2 * pairs.log) * pairs.error + 48 * EPSILON * pairs.gap.abs().amax(2)
    share = 2 * case.sharpness * pairs.error + (16 + 4 * pairs.log) * EPSILON
    moment = (share + 48 * EPSILON) * pairs.distance + pairs.error
    tolerance = [pairs.total(loss)]
    for each in (share + 48 * EPSILON, moment):
        tolerance.append(pairs.total(each)[:, None] if case.ordered else torch.zeros(0, 1))
    for a, e, t in zip(actual, expected_sums(case), tolerance, strict=True):
        assert a.shape == e.shape
        assert torch.equal(a.isnan(), e.isnan())
        assert ((a - e).abs() <= t).logical_or(e.isnan()).all()


def upstream(case: Case) -> list[Tensor]:
    """Of the sums; an anchor in five has none."""
    generator = torch.Generator().manual_seed(5)
    number = len(case.e)
    shape = (number if case.ordered else 0, len(case.targets))
    used = (torch.arange(number) % 5 != 0).double()
    grads = [torch.randn(number, dtype=torch.float64, generator=generator) * used]
    for _ in range(2):
        grad = torch.randn(shape, dtype=torch.float64, generator=generator)
        grads.append(grad * used[: shape[0], None])
    return grads


def derivatives(case: Case, pairs: Pairs, grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(N, N) those of the sums by the distances, by autograd, and bounds of their errors."""
    lost = pairs.distance.isnan()
    distance = torch.where(lost, 1.0, pairs.distance).requires_grad_()
    gap = (distance[..., None] - case.targets).abs()
    share = torch.softmax(-case.sharpness * gap, 2)
    total = (grads[0][:, None] * (share * gap).sum(2)).sum()
    if case.ordered:
        total = total + (grads[1][:, None] * share).sum()
        total = total + (grads[2][:, None] * share * distance[..., None]).sum()
    (derivative,) = torch.autograd.grad(total, distance)
    distance, gap, error = distance.detach(), gap.detach(), pairs.error
    a = case.sharpness
    loss = grads[0].abs()[:, None]
    # How fast each derivative changes, and by how much where a target is passed.
    speed, jump = 4 * a * (1 + 2 * pairs.log) * loss, 2 * loss
    size = (1 + 2 * pairs.log) * loss
    if case.ordered:
        mass, moment = (g.abs().sum(1)[:, None] for g in grads[1:])
        both = mass + distance * moment
        speed = speed + 4 * a**2 * both + 4 * a * moment
        jump = jump + 2 * a * both
        size = size + 2 * a * both + moment
    passed = (gap <= 2 * error[..., None]).any(2)
    bound = speed * error + torch.where(passed, jump, 0.0) + 48 * EPSILON * size
    # The distance divides.
    bound = bound + derivative.abs() * error / distance.clamp(min=1e-40)
    return torch.where(lost, 0.0, derivative), torch.where(lost, 0.0, bound)


def check_cluster_gradients(program, folder, case: Case, grads: list[Tensor] | None = None) -> None:
    grads = upstream(case) if grads is None else grads
    arrays = torch.stack([grads[0], torch.zeros_like(grads[0])], 1), grads[1].T, grads[2].T
    actual = gradients(program, folder, case, "clusters_backward", *arrays)
    e, w, _ = case.doubles()
    expected = reference.clusters_backward(
        *grads, e, w, case.targets, sharpness=case.sharpness, ordered=case.ordered
    )
    pairs = Pairs(case)
    tolerance = gradient_tolerances(case, pairs.distance, *derivatives(case, pairs, grads))
    check_gradients(actual, (*expected, e[:0]), tolerance)
    for a, right in zip(actual, expected, strict=False):
        # As vectors: where a sharp assignment multiplies errors, bounds of the worst say little.
        assert (a - right).nan_to_num(0.0).norm() <= 5e-6 * right.nan_to_num(0.0).norm()


each_ordered = pytest.mark.parametrize("ordered", [False, True])
# Without others, of several tiles, and over several slabs or chunks of 128 of the packed
# dimensions; in several parts, and in one.
SIZES = [(1, 3, 2, 0), (2, 1, 1, 0), (131, 17, 4, 0), (140, 5, 2, 1), (10, 70, 3, 0)]


@each_ordered
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sums_are_those_of_the_reference(program, tmp_path, ordered, size):
    *size, wanted_items = size
    case = problem(*size, ordered=ordered, wanted_items=wanted_items)
    check_sums(sums(program, tmp_path, case), case)


@each_ordered
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradients_are_those_of_the_reference(program, tmp_path, ordered, size):
    *size, wanted_items = size
    case = problem(*size, ordered=ordered, wanted_items=wanted_items)
    check_cluster_gradients(program, tmp_path, case)


@pytest.mark.parametrize("sharpness", [0.0, 1e3, 1e300])
def test_any_sharpness_is_defined(program, tmp_path, sharpness):
    case = problem(20, 5, 3, sharpness=sharpness, ordered=True)
    loss, mass, _ = sums(program, tmp_path, case)
    pairs = Pairs(case)
    if sharpness == 0:
        check_sums([loss, mass, _], case)
    else:
        # All but the nearest target is beyond a difference of float32 in the last place.
        nearest = pairs.total(pairs.gap.abs().amin(2))
        torch.testing.assert_close(loss, nearest, rtol=2e-3 if sharpness == 1e3 else 1e-6, atol=0)
    torch.testing.assert_close(mass.sum(1), torch.full((20,), 19.0).double(), rtol=1e-6, atol=0)
    grads = upstream(case)
    grads[1:] = [torch.zeros_like(g) for g in grads[1:]]
    arrays = torch.stack([grads[0], grads[0]], 1), grads[1].T, grads[2].T
    for gradient in gradients(program, tmp_path, case, "clusters_backward", *arrays):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("factor", [2.0**-50, 2.0**50])
def test_the_size_of_embeddings_is_a_unit(program, tmp_path, factor):
    case = problem(20, 5, 3, ordered=True)
    scaled = problem(20, 5, 3, ordered=True)
    scaled.e, scaled.targets = case.e * factor, case.targets * factor
    scaled.sharpness = case.sharpness / factor
    powers = (factor, 1.0, factor)
    for a, b, power in zip(
        sums(program, tmp_path, scaled), sums(program, tmp_path, case), powers, strict=True
    ):
        torch.testing.assert_close(a, b * power, rtol=1e-6, atol=0)
    check_cluster_gradients(program, tmp_path, scaled)


# The last is beyond float32, and its gradients are among the numbers of fewer digits.
@pytest.mark.parametrize("factor", [2.0**-125, 2.0**-140])
def test_upstream_gradients_are_factors(program, tmp_path, factor):
    case = problem(20, 5, 3, ordered=True)

    def run(factor: float) -> list[Tensor]:
        grads = [grad * factor for grad in upstream(case)]
        arrays = torch.stack([grads[0], grads[0]], 1), grads[1].T, grads[2].T
        return gradients(program, tmp_path, case, "clusters_backward", *arrays)

    for small, plain in zip(run(factor), run(1.0), strict=True):
        torch.testing.assert_close(small, plain * factor, rtol=1e-6, atol=2.0**-149)


@each_ordered
@pytest.mark.parametrize("used", ["all", "some", "others"])
@pytest.mark.parametrize("lost", ["row", "weights", "both"])
def test_what_is_lost_reaches_those_who_use_it(program, tmp_path, ordered, used, lost):
    case = problem(20, 5, 3, ordered=ordered)
    if lost != "weights":
        case.e[7, 1] = math.inf
    if lost != "row":
        case.w[11, 2] = -1.0
    check_sums(sums(program, tmp_path, case), case)
    grads = upstream(case)
    if used == "others":
        for grad in grads:
            grad[11:12] = 0
    if used == "all":
        grads[0] = torch.ones(20, dtype=torch.float64)
    check_cluster_gradients(program, tmp_path, case, grads)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_without_one_of_the_targets_no_pair_has_a_loss(program, tmp_path, bad):
    case = problem(20, 5, 3, ordered=True)
    case.targets[1] = bad
    for result in sums(program, tmp_path, case):
        assert result.isnan().all()
    grads = upstream(case)
    arrays = torch.stack([grads[0], grads[0]], 1), grads[1].T, grads[2].T
    to_e, to_w, _ = gradients(program, tmp_path, case, "clusters_backward", *arrays)
    assert to_e.isnan().all()
    # The weights of anchors that nobody uses are not lost.
    unused = torch.arange(20) % 5 == 0
    assert torch.equal(to_w.isnan().all(1), ~unused)
    assert (to_w[unused] == 0).all()
