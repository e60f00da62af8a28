"""sample_negative: random references of other classes, on CPU."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from neighbors_cases import Problem
from operator_cases import DTYPES, ISAS, assert_same_bits, each_backend, each_metric
from oracle import DATA, METRICS
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

DISTRIBUTIONS = ("distance_weighted", "uniform")

each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_sphere(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, generator=seeded(seed)))


def probabilities(
    anchor: Tensor,
    references: Tensor,
    candidate: Tensor,
    *,
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    metric: str = "euclidean",
) -> np.ndarray:
    """What one anchor draws each candidate with, from the formula as it is written."""
    value = oracle.values(anchor[None], references, metric)[0]
    if metric == "cosine":
        value = 2 * value
    elif metric == "dot":
        value = 2 + 2 * value
    true = np.sqrt(np.maximum(value, 0.0))
    distance = np.maximum(true, cutoff)
    d = references.shape[1]
    logarithm = (2 - d) * np.log(distance)
    logarithm -= (d - 3) / 2 * np.log(np.maximum(1 - distance**2 / 4, 1e-8))
    weighted = candidate.numpy() & (true < nonzero_loss_cutoff)
    if not weighted.any():
        return candidate.numpy() / candidate.sum().item()
    logarithm = np.where(weighted, logarithm, -math.inf)
    weights = np.exp(logarithm - logarithm.max())
    return weights / weights.sum()


def assert_drawn_as(index: Tensor, expected: np.ndarray) -> None:
    """A chi-square test of many draws of the same anchor."""
    assert (expected[index.numpy()] > 0).all()
    counts = np.bincount(index.numpy(), minlength=len(expected))
    means = expected * len(index)
    # Neighbors in index order share a bin until it expects twenty draws.
    bins = np.minimum((means.cumsum() / 20).astype(int), int(means.sum() / 20) - 1)
    observed, mean = np.bincount(bins, counts), np.bincount(bins, means)
    observed, mean = observed[mean > 0], mean[mean > 0]
    assert len(mean) > 5
    statistic = ((observed - mean) ** 2 / mean).sum()
    # Its mean is the number of free bins, its variance twice that. For the fewest bins five
    # deviations are exceeded about once in 1e4, for many once in 1e6; the seeds are fixed.
    free = len(mean) - 1
    assert statistic < free + 5 * math.sqrt(2 * free)


def draw_many(
    anchor: Tensor, label: int, references: Tensor, labels: Tensor, n: int, **options: object
) -> Tensor:
    """The indices of n draws of one anchor."""
    anchors = anchor.expand(n, -1)
    own = torch.full((n,), label)
    return F.sample_negative(anchors, own, references, labels, **options).index


# --- the distribution -----------------------------------------------------------------------------


# On the sphere of one dimension all distances are 0 or 2: its rows are spread over a line.
SPACES = [("euclidean", 1), *((metric, d) for metric in METRICS for d in (2, 3, 4, 8, 33))]


@each_backend
@pytest.mark.parametrize(("metric", "d"), SPACES)
def test_references_are_drawn_in_proportion_to_their_weights(metric, backend, d):
    # Enough references for several blocks of sums.
    references = on_sphere(900, d) if d > 1 else torch.rand(900, 1, generator=seeded()) * 2
    labels = torch.arange(900) % 5
    with use_backend(backend):
        index = draw_many(
            references[7], 2, references, labels, 4000, metric=metric, generator=seeded(d)
        )
    expected = probabilities(
        references[7].double(), references.double(), labels != 2, metric=metric
    )
    assert_drawn_as(index, expected)


@each_backend
@pytest.mark.parametrize("cutoff", [0.01, 0.8])
@pytest.mark.parametrize("nonzero_loss_cutoff", [1.1, 1.7, math.inf])
def test_the_cutoffs_bound_the_weights(backend, cutoff, nonzero_loss_cutoff):
    references, labels = on_sphere(400, 4, seed=1), torch.arange(400) % 3
    cutoffs = {"cutoff": cutoff, "nonzero_loss_cutoff": nonzero_loss_cutoff}
    with use_backend(backend):
        index = draw_many(references[0], 0, references, labels, 4000, **cutoffs, generator=seeded())
    assert_drawn_as(index, probabilities(references[0], references, labels != 0, **cutoffs))


@each_backend
def test_an_anchor_all_of_whose_weights_are_0_draws_uniformly(backend):
    references, labels = on_sphere(60, 5), torch.arange(60) % 3
    with use_backend(backend):
        index = draw_many(
            references[0], 0, references, labels, 3000, nonzero_loss_cutoff=1e-3, generator=seeded()
        )
    assert_drawn_as(index, (labels != 0).numpy() / 40)


@pytest.mark.parametrize("own", [-1, 0, 1, 20, 58, 59])
@pytest.mark.parametrize("label", [-3, 0, 1, 2, 9])
def test_uniform_draws_every_finite_reference_of_another_class_alike(own, label):
    references = torch.randn(60, 2, generator=seeded(1))
    references[[1, 4, 30], [0, 1, 0]] = math.nan
    references[59, 1] = math.inf
    labels = torch.randint(3, (60,), generator=seeded(2))
    self_index = torch.full((3000,), own)
    index = draw_many(
        torch.ones(2),
        label,
        references,
        labels,
        3000,
        self_index=self_index,
        distribution="uniform",
        generator=seeded(),
    )
    candidate = (labels != label) & references.isfinite().all(1) & (torch.arange(60) != own)
    assert_drawn_as(index, candidate.numpy() / candidate.sum().item())


@each_backend
def test_weights_that_leave_the_range_of_float64_are_drawn_by(backend):
    # Beside the nearest, at 0.5, the weights of the others are below 1e-600, while those
    # differ by a fifteenth from each other.
    d = 4000
    references = torch.zeros(41, d)
    angles = torch.linspace(1.40, 1.4001, 40)
    references[:40, 0], references[:40, 1] = angles.cos(), angles.sin()
    references[40, 0], references[40, 1] = math.cos(0.5), math.sin(0.5)
    anchor = torch.eye(1, d)[0]
    near, far = torch.ones(41, dtype=torch.int64), torch.ones(41, dtype=torch.int64)
    far[40] = 0
    with use_backend(backend):
        assert (draw_many(anchor, 0, references, near, 50, generator=seeded()) == 40).all()
        index = draw_many(anchor, 0, references, far, 1000, generator=seeded())
    assert_drawn_as(index, probabilities(anchor, references, far == 1))


def test_the_numbers_of_rows_and_seeds_are_uniform_and_apart():
    x, labels = torch.zeros(10_000, 1), torch.zeros(10_000, dtype=torch.int64)
    references, others = torch.arange(100.0)[:, None], torch.ones(100, dtype=torch.int64)
    draws = [
        F.sample_negative(
            x, labels, references, others, distribution="uniform", generator=seeded(seed)
        ).index
        for seed in range(3)
    ]
    for index in draws:
        assert_drawn_as(index, np.full(100, 0.01))
    for first, second in ((draws[0], draws[1]), (draws[1], draws[2]), (draws[0], draws[0].roll(1))):
        # Pairs of numbers fill the square: of rows with each other and with another seed's.
        assert_drawn_as(first // 10 * 10 + second // 10, np.full(100, 0.01))


# --- what is drawn --------------------------------------------------------------------------------


@each_metric
@each_distribution
@each_backend
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("form", ["batch", "references and self_index"])
def test_only_negatives_are_drawn_and_their_distance_is_exact(
    metric, distribution, backend, kind, form
):
    problem = Problem(kind, form)
    if form != "batch":
        # Labels that are not those of the rows: self is a negative now.
        problem.labels = problem.labels.roll(1)
    references = problem.others.get("references", problem.x)
    labels = problem.others.get("reference_labels", problem.labels)
    own = problem.others.get("self_index", torch.arange(137))
    with use_backend(backend):
        distance, index = F.sample_negative(
            problem.x,
            problem.labels,
            **problem.others,
            distribution=distribution,
            metric=metric,
            generator=seeded(),
        )
    assert (index >= 0).all()
    assert (labels[index] != problem.labels).all()
    assert (index != own).all()
    value = oracle.values(problem.x, references, metric)
    returned = torch.from_numpy(oracle.distances(value, metric, torch.float32))
    assert torch.equal(distance, returned.gather(1, index[:, None])[:, 0])


@each_metric
@each_distribution
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 2, 3, 16, 700])
def test_kernel_and_reference_draw_the_same(metric, distribution, dtype, d):
    x, labels = on_sphere(300, d).to(dtype), torch.arange(300) % 7
    found = []
    for backend in ("kernel", "reference"):
        with use_backend(backend):
            found.append(
                F.sample_negative(
                    x, labels, distribution=distribution, metric=metric, generator=seeded()
                )
            )
    # Sums round differently by some 1e-14: one draw in 1e11 falls between them.
    assert_same_bits(*found)


@each_distribution
@each_backend
def test_without_a_negative_nothing_is_drawn(distribution, backend):
    x = torch.eye(3).requires_grad_()
    one_class = torch.zeros(3, dtype=torch.int64)
    with use_backend(backend):
        for others in ((), (torch.empty(0, 3), one_class[:0]), (x.detach(), one_class)):
            found = F.sample_negative(x, one_class, *others, distribution=distribution)
            assert found.index.tolist() == [-1] * 3
            assert found.distance.tolist() == [math.inf] * 3
            (gradient,) = torch.autograd.grad(found.distance.sum(), x)
            assert gradient.tolist() == [[0.0] * 3] * 3


@each_distribution
@each_backend
def test_an_empty_batch_is_defined(distribution, backend):
    labels = torch.empty(0, dtype=torch.int64)
    with use_backend(backend):
        found = F.sample_negative(torch.empty(0, 3), labels, distribution=distribution)
    assert found.index.shape == found.distance.shape == (0,)


@each_distribution
@each_backend
def test_without_dimensions_every_negative_is_alike(distribution, backend):
    labels = torch.tensor([0, 0, 1, 2])
    with use_backend(backend):
        found = F.sample_negative(torch.empty(4, 0), labels, distribution=distribution)
    assert (labels[found.index] != labels).all()


@each_metric
@each_distribution
@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_are_neither_drawn_nor_draw(metric, distribution, backend, bad):
    x, labels = on_sphere(60, 3), torch.arange(60) % 3
    x[::2, 1] = bad
    with use_backend(backend):
        found = F.sample_negative(
            x, labels, distribution=distribution, metric=metric, nonzero_loss_cutoff=math.inf
        )
    assert (found.index[::2] == -1).all()
    assert found.distance[::2].isnan().all()
    assert (found.index[1::2] % 2 == 1).all()
    assert found.distance[1::2].isfinite().all()


@each_backend
def test_labels_are_compared_as_int64(backend):
    x = on_sphere(3, 2)
    labels = torch.tensor([2**63 - 1, -(2**63), 2**63 - 1])
    with use_backend(backend):
        for distribution in DISTRIBUTIONS:
            index = F.sample_negative(x, labels, distribution=distribution).index
            assert index[[0, 2]].tolist() == [1, 1]
            assert index[1] in (0, 2)


# --- the same draw again --------------------------------------------------------------------------


@each_distribution
def test_a_generator_of_the_same_state_draws_the_same(distribution):
    x, labels = on_sphere(200, 8), torch.arange(200) % 3
    draw = partial(F.sample_negative, x, labels, distribution=distribution)
    generator = seeded(5)
    first, second = draw(generator=generator), draw(generator=generator)
    assert_same_bits(first, draw(generator=seeded(5)))
    assert (first.index != second.index).any()


@each_distribution
def test_without_a_generator_torchs_own_is_used(distribution):
    x, labels = on_sphere(200, 8), torch.arange(200) % 3
    draw = partial(F.sample_negative, x, labels, distribution=distribution)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        first, second = draw(), draw()
        torch.manual_seed(3)
        assert_same_bits(draw(), first)
        assert (first.index != second.index).any()


@each_metric
def test_every_instruction_set_and_thread_count_gives_the_same_bits(
    metric, select_isa, set_threads
):
    x, labels = on_sphere(777, 19), torch.arange(777) % 5

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        found = F.sample_negative(leaf, labels, metric=metric, generator=seeded())
        return [*found, *torch.autograd.grad(found.distance.square().sum(), leaf)]

    expected = run()
    for isa in ISAS:
        for threads in (1, 2, 3):
            select_isa(isa)
            set_threads(threads)
            assert_same_bits(run(), expected)


# --- gradients, and what torch does around it -----------------------------------------------------


@each_metric
@each_distribution
@each_backend
def test_the_gradient_is_that_of_the_drawn_distances(metric, distribution, backend):
    problem = Problem("random", "references and self_index", torch.float64)
    leaves = (problem.x.requires_grad_(), problem.others["references"].requires_grad_())
    with use_backend(backend):
        found = F.sample_negative(
            problem.x, problem.labels, **problem.others, distribution=distribution, metric=metric
        )
    weight = torch.randn(137, generator=seeded(1), dtype=torch.float64)
    actual = torch.autograd.grad((weight * found.distance).sum(), leaves)
    weights = torch.zeros(137, 201, dtype=torch.float64)
    weights.scatter_(1, found.index[:, None], weight[:, None])
    expected = oracle.triplet_gradients(weights, *leaves, metric)
    for a, e in zip(actual, expected, strict=True):
        assert oracle.relative_error(a, e) < 1e-13  # a thousand roundings


@each_distribution
def test_compiles_whole_forward_and_backward(distribution):
    def function(x: Tensor, labels: Tensor) -> Tensor:
        return F.sample_negative(x, labels, distribution=distribution).distance

    x, labels = on_sphere(24, 4), torch.arange(24) % 3
    leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = function(leaves[0], labels)
        torch.manual_seed(1)
        actual = compiled(leaves[1], labels)
    assert_same_bits((actual,), (expected,))
    for distance in (expected, actual):
        distance.sum().backward()
    assert_same_bits((leaves[1].grad,), (leaves[0].grad,))
    torch.compiler.reset()


def test_the_inputs_are_left_alone():
    problem = Problem("random", "references and self_index")
    tensors = [problem.x, problem.labels, *problem.others.values()]
    before = [t.clone() for t in tensors]
    F.sample_negative(problem.x, problem.labels, **problem.others)
    assert_same_bits(tensors, before)


# --- mistakes -------------------------------------------------------------------------------------

X, LABELS = torch.eye(6)[:, :3].contiguous(), torch.arange(6) % 2

ERRORS = {
    "x is no tensor": ({"x": [[1.0]]}, TypeError, r"x: expected a torch.Tensor, got list"),
    "labels are too few": ({"labels": LABELS[:5]}, ValueError, r"labels: expected shape \(6,\)"),
    "reference_labels are missing": (
        {"references": X},
        ValueError,
        r"reference_labels: expected labels of references, got None",
    ),
    "the distribution is unknown": (
        {"distribution": "normal"},
        ValueError,
        r"distribution: expected one of .*'uniform'.*got 'normal'",
    ),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of .*got 'l2'"),
    "the cutoff is 0": ({"cutoff": 0.0}, ValueError, r"cutoff: expected a finite .*1e-100.*got 0"),
    "the cutoff is infinite": ({"cutoff": math.inf}, ValueError, r"cutoff: expected a finite"),
    "the cutoff is no number": ({"cutoff": "0"}, TypeError, r"cutoff: expected a number, got '0'"),
    "nothing is below the other cutoff": (
        {"nonzero_loss_cutoff": 0},
        ValueError,
        r"nonzero_loss_cutoff: expected a number greater than 0, got 0",
    ),
    "the generator is a seed": (
        {"generator": 0},
        TypeError,
        r"generator: expected a torch.Generator or None, got int",
    ),
}


@each_backend
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named_before_any_work(backend, mistake):
    arguments, error, message = ERRORS[mistake]
    with use_backend(backend), pytest.raises(error, match=message):
        F.sample_negative(**{"x": X, "labels": LABELS, **arguments})


def test_the_operator_refuses_a_fallback_that_is_no_row():
    order, numbers = torch.arange(6), torch.zeros(6, dtype=torch.float64)
    arguments = (X, LABELS, order, X, LABELS, order, None, numbers, torch.full((6,), 6))
    with pytest.raises(RuntimeError, match="fallback: expected rows of references"):
        torch.ops.dmlfast.neighbors_sample(*arguments, False, 0.5, 1.4, "dot")


# --- memory ---------------------------------------------------------------------------------------


def test_16384_rows_need_less_than_80_megabytes(resident_growth):
    # One N x N matrix in float32 would be 1074 MB. The rows are packed in float64, 17 MB, and
    # the sums of blocks are 17 MB.
    growth = resident_growth(
        "x = torch.randn(16384, 128); labels = torch.arange(16384) % 4096",
        "F.sample_negative(x, labels)",
    )
    assert growth < 80e6
