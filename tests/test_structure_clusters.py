"""multi_cluster_loss against its formula in float64, on CPU."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from operator_cases import ISAS, NAMESPACE, each_backend
from oracle import returned_dtype
from structure_cases import (
    assert_near,
    clusters_problem,
    doubles,
    each_dtype,
    root,
    rows,
    squares_written_out,
    weights,
)
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

CLUSTERS = (1, 2, 4, 8)
# No row, a row without others, rows that fill no panel, one block and several.
SIZES = [(0, 3), (1, 3), (2, 1), (2, 130), (7, 3), (130, 1), (130, 64), (130, 130), (1000, 3)]
LARGE = (1000, 130)

each_clusters = pytest.mark.parametrize("clusters", CLUSTERS)
each_include_self = pytest.mark.parametrize("include_self", [True, False])


class WrittenOut(NamedTuple):
    """The loss with all matrices, of float64 rows.

    Attributes:
        loss: (N,) losses.
        distance: (N, N) adaptive distances.
        targets: (K,) anchor distances.
    """

    loss: Tensor
    distance: Tensor
    targets: Tensor


def written_out(
    e: Tensor,
    w: Tensor,
    *,
    clusters: int = 2,
    spread: float = 3.0,
    sharpness: float = 10.0,
    floor: float = 0.2,
    include_self: bool = True,
    order_weight: float = 0.0,
    order_margin: float = 0.0,
) -> WrittenOut:
    n = len(e)
    off = ~torch.eye(n, dtype=torch.bool)
    plain = squares_written_out(e.detach(), torch.ones_like(e), e.detach()).clamp(min=0).sqrt()
    plain = plain.flatten() if include_self else plain[off]
    mean = plain.mean() if plain.numel() else torch.zeros(())
    deviation = plain.std() if plain.numel() > 1 else torch.zeros(())
    least = torch.maximum(floor * mean, mean - spread * deviation)
    targets = torch.stack(
        [mean - (mean - least) * (k / max(1, clusters - 1)) for k in range(clusters)]
    )
    squares = torch.where(off, squares_written_out(e, w, e), 0.0)
    distance = root(squares)
    gap = (distance[..., None] - targets).abs()
    share = torch.softmax(-sharpness * (clusters - 1) * gap, 2)
    share = torch.where(off[..., None], share, 0.0)
    loss = (share * gap).sum((1, 2)) / max(1, n - 1)
    if order_weight:
        mass = share.sum(1)
        held = mass >= 1e-6
        place = (share * distance[..., None]).sum(1) / torch.where(held, mass, 1.0)
        rise = (place[:, 1:] - place[:, :-1] + order_margin).relu()
        loss = loss + order_weight * torch.where(held[:, 1:] & held[:, :-1], rise, 0.0).sum(1)
    return WrittenOut(loss, distance, targets)


def kinks(found: WrittenOut) -> int:
    """How many pairs lie so near to an anchor distance that float32 may take the other side."""
    gap = (found.distance[..., None] - found.targets).abs().amin(2)
    # Several roundings of a distance that is not small; the diagonal is no pair.
    off = ~torch.eye(len(gap), dtype=torch.bool)
    return int(((gap < 1e-6 * found.targets[0]) & off).sum())


def kink_slack(found: WrittenOut, up: Tensor) -> tuple[float, float]:
    """The most that taking the other side changes the gradients by e and by w, as vectors.

    The derivative by such a distance jumps by 2. That of the distance has a norm of at most
    sqrt(2 * 1.5) by the two rows, and of D / (2 * 0.5) by weights of 0.5 to 1.5.
    """
    n = len(up)
    if n < 2:
        return 0.0, 0.0
    each = 2 * kinks(found) * up.abs().max().item() / (n - 1)
    return each * 3**0.5, each * found.targets[0].item()


# --- value and gradient ---------------------------------------------------------------------------


@each_clusters
@each_dtype
@each_backend
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_loss_and_its_gradients_are_those_of_the_formula(clusters, dtype, backend, size):
    e, w = clusters_problem(*size, dtype)
    up = torch.linspace(-1, 2, size[0], dtype=torch.float64)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=clusters, reduction="none")
        gradients = torch.autograd.grad(loss, (e, w), up.to(loss.dtype))
    double = doubles(e, w)
    found = written_out(*double, clusters=clusters)
    assert loss.dtype == returned_dtype(dtype)
    exact = dtype == torch.float64
    assert_near(loss, found.loss, 1e-13 if exact else 2e-6)
    right = torch.autograd.grad((found.loss * up).sum() + 0 * sum(x.sum() for x in double), double)
    slack = (0.0, 0.0) if exact else kink_slack(found, up)
    for gradient, wanted, room in zip(gradients, right, slack, strict=True):
        assert gradient.dtype == dtype
        # The slope changes by some 10 (K - 1) per unit of a distance that is off by 1e-6.
        assert_near(gradient, wanted, 1e-10 if exact else 1e-6 * (clusters + 4), room)


def test_a_large_batch_is_right():
    test_the_loss_and_its_gradients_are_those_of_the_formula(4, torch.float32, "kernel", LARGE)


@each_include_self
@each_backend
def test_two_clusters_are_the_structure_loss_of_nasa(include_self, backend):
    e, w = clusters_problem(60, 8, torch.float64)
    n = len(e)
    # As the formulas stand in the source, for rows that are nowhere nearly equal.
    plain = (e[:, None] - e[None]).square().sum(2).sqrt().detach()
    off = ~torch.eye(n, dtype=torch.bool)
    entries = plain.flatten() if include_self else plain[off]
    mu, sd = entries.mean(), entries.std()
    far, near = mu, torch.maximum(0.2 * mu, mu - 3 * sd)
    squares = (w[:, None] * (e[:, None] - e[None]).square().clamp(min=1e-12)).sum(2)
    distance = squares.sqrt()
    to_far, to_near = (distance - far).abs(), (distance - near).abs()
    a_far, a_near = (-10 * to_far).exp(), (-10 * to_near).exp()
    total = a_far + a_near
    expected = (a_far / total * to_far + a_near / total * to_near)[off].mean()
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, include_self=include_self)
        gradients = torch.autograd.grad(loss, (e, w))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for gradient, right in zip(gradients, torch.autograd.grad(expected, (e, w)), strict=True):
        assert_near(gradient, right, 1e-11)


@each_backend
@pytest.mark.parametrize(
    "options",
    [
        {"spread": 0.5},
        {"spread": 100.0, "floor": 0.4},
        {"spread": 0.0},
        {"sharpness": 0.0},
        {"sharpness": 1.0},
        {"sharpness": 200.0},
        {"floor": 0.0},
        {"include_self": False},
        {"include_self": False, "spread": 1.0, "clusters": 3},
    ],
    ids=str,
)
def test_every_option_is_that_of_the_formula(backend, options):
    options = {"clusters": 4, **options}
    e, w = clusters_problem(90, 6)
    up = torch.ones(90, dtype=torch.float64)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, reduction="none", **options)
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    double = doubles(e, w)
    found = written_out(*double, **options)
    assert_near(loss, found.loss, 2e-6)
    right = torch.autograd.grad(found.loss.sum(), double)
    steepness = 1e-6 * (5 + options.get("sharpness", 10.0))
    for gradient, wanted, room in zip(gradients, right, kink_slack(found, up), strict=True):
        assert_near(gradient, wanted, steepness, room)


@each_clusters
@each_backend
@pytest.mark.parametrize("margin", [0.0, 0.3, -0.05])
def test_the_ranking_of_clusters_is_that_of_the_formula(clusters, backend, margin):
    e, w = clusters_problem(90, 6)
    options = {"clusters": clusters, "order_weight": 0.7, "order_margin": margin}
    up = torch.linspace(-1, 2, 90, dtype=torch.float64)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, reduction="none", **options)
        gradients = torch.autograd.grad(loss, (e, w), up.float())
    double = doubles(e, w)
    found = written_out(*double, **options)
    assert_near(loss, found.loss, 2e-6)
    right = torch.autograd.grad((found.loss * up).sum(), double)
    for gradient, wanted, room in zip(gradients, right, kink_slack(found, up), strict=True):
        assert_near(gradient, wanted, 2e-5, 5 * room)


@each_backend
def test_reductions_are_over_all_anchors(backend):
    e, w = clusters_problem(37, 5)
    expected = written_out(*doubles(e, w)).loss.detach()
    with use_backend(backend):
        mean, total = (F.multi_cluster_loss(e, w, reduction=r) for r in ("mean", "sum"))
        assert torch.equal(F.multi_cluster_loss(e, w), mean)
    torch.testing.assert_close(total.double(), expected.sum(), rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), expected.mean(), rtol=2e-6, atol=0)


@each_clusters
@pytest.mark.parametrize("order_weight", [0.0, 0.7])
def test_gradcheck(clusters, order_weight):
    leaves = clusters_problem(6, 3, torch.float64)
    # Mean and deviation are constants, which a numeric derivative would move.
    with pytest.MonkeyPatch.context() as patch:
        targets = 0.3 + 0.7 * torch.arange(clusters, 0, -1, dtype=torch.float64) / clusters
        patch.setattr("dmlfast.ops.structure_clusters._targets", lambda *_: targets)
        function = partial(
            F.multi_cluster_loss,
            clusters=clusters,
            sharpness=2.0,
            order_weight=order_weight,
            order_margin=0.2,
            reduction="none",
        )
        assert torch.autograd.gradcheck(function, leaves)


@each_backend
def test_strides_do_not_matter(backend):
    e, w = (f(60, 18).detach() for f in (rows, weights))
    results = []
    for view in (
        lambda x: x[::2, ::3].contiguous(),
        lambda x: x[::2, ::3],
        lambda x: x.T.contiguous().T[::2, ::3],
    ):
        leaves = [view(x).requires_grad_() for x in (e, w)]
        with use_backend(backend):
            loss = F.multi_cluster_loss(*leaves, clusters=3, reduction="none")
            up = torch.linspace(-1, 2, 60)[::2]
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves, up)))
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


# --- nothing to assign, near and equal rows -------------------------------------------------------


@each_clusters
@each_backend
@pytest.mark.parametrize("size", [(0, 0), (0, 3), (1, 3), (1, 0), (3, 0)], ids=str)
def test_without_distances_the_loss_is_0_and_attached(clusters, backend, size):
    e, w = clusters_problem(*size)
    for order_weight in (0.0, 1.0):
        with use_backend(backend):
            loss = F.multi_cluster_loss(e, w, clusters=clusters, order_weight=order_weight)
            gradients = torch.autograd.grad(loss, (e, w))
        assert loss.item() == 0
        for gradient in gradients:
            assert torch.equal(gradient, torch.zeros(size))


@each_clusters
@each_backend
@each_dtype
def test_equal_rows_have_loss_0_and_gradient_0(clusters, backend, dtype):
    e = torch.full((21, 5), 0.7, dtype=dtype, requires_grad=True)
    w = weights(21, 5, dtype)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=clusters)
        gradients = torch.autograd.grad(loss, (e, w))
    assert loss.item() == 0
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(e))


@each_clusters
@each_backend
@pytest.mark.parametrize("gap", [0.0, 1e-6, 1e-4, 1e-2])
def test_near_duplicates_keep_the_digits_of_their_gradient(clusters, backend, gap):
    e = 3 + rows(40, 8).detach()
    e = torch.cat([e, e + gap * rows(40, 8, seed=1).detach()]).requires_grad_()
    w = weights(80, 8)
    up = torch.ones(80, dtype=torch.float64)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=clusters, reduction="none")
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    double = doubles(e, w)
    found = written_out(*double, clusters=clusters)
    assert_near(loss, found.loss, 2e-6)
    right = torch.autograd.grad(found.loss.sum(), double)
    for gradient, wanted, room in zip(gradients, right, kink_slack(found, up), strict=True):
        assert_near(gradient, wanted, 1e-6 * (clusters + 4), room)


@each_backend
@pytest.mark.parametrize("kind", ["shifted", "clustered", "tied"])
def test_a_shift_and_ties_cost_no_digits(backend, kind):
    e, w = clusters_problem(60, 7, kind=kind)
    up = torch.ones(60, dtype=torch.float64)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=4, reduction="none")
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    double = doubles(e, w)
    found = written_out(*double, clusters=4)
    assert_near(loss, found.loss, 2e-6)
    right = torch.autograd.grad(found.loss.sum(), double)
    for gradient, wanted, room in zip(gradients, right, kink_slack(found, up), strict=True):
        assert_near(gradient, wanted, 2e-5, room)


@each_backend
@pytest.mark.parametrize("size", [1e-15, 1e-6, 1e6, 1e15])
def test_the_size_of_embeddings_is_a_unit(backend, size):
    e, w = (x.detach() for x in clusters_problem(50, 5))
    exponent = 2.0 ** round(math.log2(size))
    results = []
    for factor in (1.0, exponent):
        leaves = (e * factor).requires_grad_(), w.clone().requires_grad_()
        with use_backend(backend):
            loss = F.multi_cluster_loss(*leaves, clusters=4, sharpness=10 / factor)
            to_e, to_w = torch.autograd.grad(loss, leaves)
        results.append((loss.detach() / factor, to_e, to_w / factor))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@each_backend
@pytest.mark.parametrize("sharpness", [1e3, 1e10, 1e30, 1e300])
def test_the_sharpest_assignment_is_to_the_nearest(backend, sharpness):
    e, w = clusters_problem(50, 5)
    found = written_out(*doubles(e, w), clusters=3)
    gap = (found.distance[..., None] - found.targets).abs().amin(2)
    expected = gap.fill_diagonal_(0).sum(1) / 49
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, clusters=3, sharpness=sharpness, reduction="none")
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    assert_near(loss, expected, 1e-3 if sharpness == 1e3 else 2e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)


# --- what is not finite, and what is no distance --------------------------------------------------


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_makes_everything_nan(backend, bad):
    e, w = clusters_problem(33, 5)
    with torch.no_grad():
        e[4, 1] = bad
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, reduction="none")
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    assert loss.isnan().all()
    assert all(gradient.isnan().all() for gradient in gradients)


@each_backend
def test_distances_beyond_float32_make_everything_nan(backend):
    e = (3e38 * rows(33, 5).detach().sign()).requires_grad_()
    w = weights(33, 5)
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, reduction="none")
        gradients = torch.autograd.grad(loss.sum(), (e, w))
    assert loss.isnan().all()
    assert all(gradient.isnan().all() for gradient in gradients)


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_operator_has_no_loss_without_one_of_its_targets(backend, bad):
    e, w = clusters_problem(33, 5)
    operators = getattr(torch.ops, NAMESPACE[backend])
    targets = torch.tensor([bad, 0.5], dtype=torch.float64)
    loss, *_ = operators.structure_clusters(e, w, targets, 10.0, True)
    gradients = torch.autograd.grad(loss.sum(), (e, w))
    assert loss.isnan().all()
    assert all(gradient.isnan().all() for gradient in gradients)


@each_backend
@pytest.mark.parametrize("order_weight", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_weights_that_are_no_metric_make_an_anchor_nan(backend, order_weight, bad):
    e, w = clusters_problem(33, 5)
    with torch.no_grad():
        w[6, 2] = bad
    keep = torch.arange(33) != 6
    with use_backend(backend):
        loss = F.multi_cluster_loss(e, w, order_weight=order_weight, reduction="none")
        used, unused = (
            torch.autograd.grad(loss, (e, w), up, retain_graph=True)
            for up in (torch.ones(33), keep.float())
        )
    assert loss.isnan().nonzero().tolist() == [[6]]
    assert used[0].isnan().all()
    assert used[1].isnan().any(1).nonzero().tolist() == [[6]]
    assert used[1][6].isnan().all()
    assert all(gradient.isfinite().all() for gradient in unused)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_right(isa, select_isa):
    select_isa(isa)
    test_the_ranking_of_clusters_is_that_of_the_formula(4, "kernel", 0.3)
    test_near_duplicates_keep_the_digits_of_their_gradient(4, "kernel", 1e-4)
    test_the_loss_and_its_gradients_are_those_of_the_formula(8, torch.float32, "kernel", (130, 64))
