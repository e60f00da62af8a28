"""The phenomenon easy positive sampling is about: label noise collapses classes, unless positives
are easy. Free points in the plane, 2 classes of 6, margin 0.2, plain distances, Adam."""

from __future__ import annotations

from functools import cache
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

import dmlfast.functional as F

CLASSES, SAMPLES, MARGIN = 2, 6, 0.2


def truth_of(samples: int) -> Tensor:
    """The true labels."""
    return torch.arange(CLASSES).repeat_interleave(samples)


TRUTH = truth_of(SAMPLES)
N = len(TRUTH)


@pytest.fixture(autouse=True)
def one_thread(set_threads):
    """Twelve points are not worth waking another for, thousands of times."""
    set_threads(1)


class Spread:
    """Distances within the true classes and between them."""

    def __init__(self, x: Tensor) -> None:
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        same = TRUTH[:, None] == TRUTH
        self.within = distance[same & ~torch.eye(N, dtype=torch.bool)]
        self.across = distance[~same]


def points(seed: int, n: int = N) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 2, generator=generator, dtype=torch.float64).requires_grad_()


def of_labels(truth: Tensor, p: float) -> Tensor:
    """(n, classes) probabilities of observed labels: right with p, else any of the others."""
    wrong = torch.full((len(truth), CLASSES), (1 - p) / (CLASSES - 1), dtype=torch.float64)
    return wrong.scatter(1, truth[:, None], p)


@cache
def of_triplets(p: float, samples: int) -> Tensor:
    """(n, n, n) probabilities that independent noisy labels make (a, b, c) a triplet."""
    observed = of_labels(truth_of(samples), p)
    n = len(observed)
    probability = torch.zeros(n, n, n, dtype=torch.float64)
    for own, other in permutations(range(CLASSES), 2):
        a, c = observed[:, own], observed[:, other]
        probability += a[:, None, None] * a[None, :, None] * c[None, None, :]
    distinct = ~torch.eye(n, dtype=torch.bool)
    return probability * (distinct[:, :, None] & distinct[:, None, :] & distinct[None, :, :])


def expected_loss(x: Tensor, p: float) -> Tensor:
    """The expectation over observed labels of the sum over all triplets."""
    squares = (x[:, None] - x[None]).square().sum(-1)
    zero = squares == 0
    distance = torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
    hinge = torch.relu(distance[:, :, None] - distance[:, None, :] + MARGIN)
    return (of_triplets(p, len(x) // CLASSES) * hinge).sum()


def observed(p: float, generator: torch.Generator) -> Tensor:
    """True labels, each replaced by another with probability 1 - p."""
    wrong = torch.rand(N, generator=generator) >= p
    return torch.where(wrong, (TRUTH + 1) % CLASSES, TRUTH)


def settle(x: Tensor, steps: int, loss_of: object) -> Spread:
    """Adam with a rate that falls to 0: the hinge has a kink in its minimum."""
    optimiser = torch.optim.Adam([x], lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss_of().backward()
        optimiser.step()
        schedule.step()
    return Spread(x.detach())


def settle_with_resampled_labels(positives: str, seed: int, steps: int) -> Spread:
    x = points(seed)
    generator = torch.Generator().manual_seed(100 + seed)
    return settle(
        x,
        steps,
        lambda: F.triplet_margin_loss(
            x,
            observed(0.90, generator),
            margin=MARGIN,
            positives=positives,
            negatives="all",
            reduction="sum",
        ),
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("p", [0.95, 0.80])
def test_the_expected_loss_of_all_positives_collapses_under_label_noise(p, seed):
    x = points(seed)
    spread = settle(x, 1500, lambda: expected_loss(x, p) / N)
    # The unique minimum: classes are points, at the margin from each other.
    assert spread.within.max() < 0.01
    torch.testing.assert_close(
        spread.across, torch.full_like(spread.across, MARGIN), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_the_expected_loss_of_all_positives_does_not_collapse_without_noise(seed):
    x = points(seed)
    spread = settle(x, 1500, lambda: expected_loss(x, 1.0) / N)
    assert expected_loss(x, 1.0) < 1e-2
    assert spread.within.max() > 0.3
    assert spread.across.min() > MARGIN


def test_the_expected_loss_is_the_mean_over_all_labellings():
    # Of 2 x 3 points there are 64 labellings: the expectation, term by term, by the library.
    x, probability = points(3, 6), of_labels(truth_of(3), 0.8)
    mean = 0.0
    for labelling in product(range(CLASSES), repeat=6):
        labels = torch.tensor(labelling)
        loss = F.triplet_margin_loss(x, labels, margin=MARGIN, reduction="sum").item()
        mean += loss * probability[torch.arange(6), labels].prod().item()
    assert mean == pytest.approx(expected_loss(x, 0.8).item(), rel=1e-12)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_positives_collapse_when_labels_are_resampled(seed):
    spread = settle_with_resampled_labels("all", seed, 3000)
    # What is left is the noise of single draws at the end of the schedule.
    assert spread.within.max() < 0.02
    assert abs(spread.across.mean() - MARGIN) < 0.02


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nearest_positives_do_not_collapse_when_labels_are_resampled(seed):
    spread = settle_with_resampled_labels("nearest", seed, 3000)
    assert spread.within.max() > 2 * MARGIN
    assert spread.within.mean() > MARGIN
