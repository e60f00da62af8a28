"""NMI, AMI and purity against plain-Python oracles, scikit-learn and pytorch-metric-learning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

import dmlfast.functional as F
from dmlfast.evaluation import (
    adjusted_mutual_information,
    evaluate_clustering,
    normalized_mutual_information,
    purity,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")

MEASURES = (normalized_mutual_information, adjusted_mutual_information, purity)


def integers(rows: int, count: int, seed: int) -> Tensor:
    return torch.randint(count, (rows,), generator=torch.Generator().manual_seed(seed))


def noisy(rows: int, count: int) -> tuple[Tensor, Tensor]:
    """Classes, and clusters that are right for about half of the rows."""
    labels = integers(rows, count, 1)
    return labels, torch.where(integers(rows, 2, 2) == 0, labels, integers(rows, count, 3))


ASSIGNMENTS: dict[str, tuple[Tensor, Tensor]] = {
    "random": (integers(60, 5, 0), integers(60, 7, 1)),
    "noisy": noisy(90, 6),
    "perfect": (integers(60, 5, 0), integers(60, 5, 0)),
    "perfect by other names": (integers(60, 5, 0), 17 - 3 * integers(60, 5, 0)),
    "one cluster": (integers(60, 5, 0), torch.zeros(60, dtype=torch.int64)),
    "one class": (torch.zeros(60, dtype=torch.int64), integers(60, 5, 0)),
    "one of both": (torch.zeros(9, dtype=torch.int64), torch.full((9,), 3)),
    "every row apart": (torch.arange(60), torch.arange(60).flip(0)),
    "negative": (integers(60, 5, 0) - 2**62, integers(60, 4, 1) - 1),
    "one row": (torch.tensor([4]), torch.tensor([-1])),
}
each_assignment = pytest.mark.parametrize("name", ASSIGNMENTS)


def entropy(counts: Sequence[int]) -> float:
    total = sum(counts)
    return -math.fsum(n / total * math.log(n / total) for n in counts)


def information(n: int, a: int, b: int, total: int) -> float:
    """What a cell of `n` rows adds to the mutual information, of a class of a, a cluster of b."""
    return n / total * math.log(total * n / (a * b))


def oracle(labels: Tensor, index: Tensor) -> tuple[float, float, float]:
    """NMI, AMI and purity by their definitions, with exact integers for what chance gives."""
    pairs = Counter(zip(labels.tolist(), index.tolist(), strict=True))
    classes, clusters = Counter(labels.tolist()), Counter(index.tolist())
    total = len(labels)
    found = math.fsum(information(n, classes[y], clusters[c], total) for (y, c), n in pairs.items())
    mean = (entropy(list(classes.values())) + entropy(list(clusters.values()))) / 2
    chance = math.fsum(
        information(n, a, b, total)
        * (math.comb(a, n) * math.comb(total - a, b - n) / math.comb(total, b))
        for a in classes.values()
        for b in clusters.values()
        for n in range(max(1, a + b - total), min(a, b) + 1)
    )
    most = sum(max(pairs[y, c] for y in classes) for c in clusters)
    return found / mean, (found - chance) / (mean - chance), most / total


@pytest.mark.parametrize("name", ["random", "noisy", "perfect", "one cluster", "negative"])
def test_the_measures_are_their_definitions(name: str) -> None:
    labels, index = ASSIGNMENTS[name]
    expected = oracle(labels, index)
    # Sums of a few hundred terms of at most log 60 each; what chance gives is subtracted from them.
    for measure, value in zip(MEASURES, expected, strict=True):
        assert measure(labels, index) == pytest.approx(value, rel=1e-11, abs=1e-11)


@each_assignment
def test_both_informations_are_scikit_learns(name: str) -> None:
    labels, index = ASSIGNMENTS[name]
    for measure, theirs in (
        (normalized_mutual_information, sklearn_metrics.normalized_mutual_info_score),
        (adjusted_mutual_information, sklearn_metrics.adjusted_mutual_info_score),
    ):
        expected = theirs(labels.tolist(), index.tolist())
        assert measure(labels, index) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", ["perfect", "perfect by other names", "one of both", "one row"])
def test_the_classes_themselves_have_the_value_1(name: str) -> None:
    for measure in MEASURES:
        assert measure(*ASSIGNMENTS[name]) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_any_integer_dtype_is_the_same(dtype: torch.dtype) -> None:
    labels, index = ASSIGNMENTS["noisy"]
    for measure in MEASURES:
        assert measure(labels.to(dtype), index.to(dtype)) == measure(labels, index)


def test_purity_is_the_worked_value() -> None:
    # The example of Manning et al., figure 16.4: (5 + 4 + 3) of 17.
    index = torch.tensor([0] * 6 + [1] * 6 + [2] * 5)
    labels = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 1, 2, 0, 0, 2, 2, 2])
    assert purity(labels, index) == 12 / 17


def test_without_a_row_every_value_is_nan() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert all(math.isnan(measure(none, none)) for measure in MEASURES)
    metrics = evaluate_clustering(torch.zeros(0, 3), none)
    assert metrics.num_rows == 0
    assert all(math.isnan(value) for value in metrics.as_dict().values())


@pytest.mark.parametrize(
    ("labels", "index", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), TypeError, "labels: expected an integer dtype"),
        (torch.zeros(3).long(), [0, 1, 2], TypeError, "index: expected a torch.Tensor, got list"),
        (
            torch.zeros(3).long(),
            torch.zeros(4).long(),
            ValueError,
            r"index: expected shape \(3,\)",
        ),
        (
            torch.zeros(3, 1).long(),
            torch.zeros(3).long(),
            ValueError,
            r"labels: .* got \(3, 1\)",
        ),
    ],
)
@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_wrong_is_named(
    measure: Callable[..., float],
    labels: Tensor,
    index: object,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        measure(labels, index)


def rows(spread: float, classes: int = 6, count: int = 120) -> tuple[Tensor, Tensor]:
    """Rows around a centre for each class, which lie 1.4 from each other."""
    labels = torch.arange(count) % classes
    generator = torch.Generator().manual_seed(5)
    return torch.eye(classes)[labels] + spread * torch.randn(
        count, classes, generator=generator
    ), labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_k_means_clusters_of_separate_classes_are_the_classes() -> None:
    metrics = evaluate_clustering(*rows(0.01), restarts=20)
    assert metrics.as_dict() == pytest.approx({"nmi": 1, "ami": 1, "purity": 1})
    assert (metrics.num_clusters, metrics.num_rows) == (6, 120)


@pytest.mark.parametrize("options", [{}, {"clusters": 4}, {"iterations": 1}, {"restarts": 3}])
def test_the_metrics_are_those_of_the_clusters_of_k_means(options: dict[str, int]) -> None:
    x, labels = rows(1.5)
    metrics = evaluate_clustering(x, labels, generator=seeded(), **options)
    settings = {"clusters": 6, "iterations": 20, **options}
    index = F.kmeans(x, generator=seeded(), **settings).index
    assert list(metrics.as_dict().values()) == [measure(labels, index) for measure in MEASURES]


def test_the_values_are_those_of_pytorch_metric_learning() -> None:
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = rows(0.5)
    theirs = calculator.AccuracyCalculator(
        include=("NMI", "AMI"),
        device=torch.device("cpu"),
        kmeans_func=lambda x, count: F.kmeans(x, count, iterations=20, generator=seeded()).index,
    ).get_accuracy(x, labels)
    ours = evaluate_clustering(x, labels, generator=seeded())
    assert ours.nmi == pytest.approx(theirs["NMI"], rel=1e-12)
    assert ours.ami == pytest.approx(theirs["AMI"], rel=1e-12)


def test_the_same_rows_have_the_same_values_and_no_stream_is_used() -> None:
    x, labels = rows(0.8)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = evaluate_clustering(x, labels)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert evaluate_clustering(x, labels) == first


def test_the_generator_decides_the_start() -> None:
    x, labels = rows(2.0)
    found = {evaluate_clustering(x, labels, generator=seeded(seed)).nmi for seed in range(5)}
    assert len(found) > 1
    assert found == {
        evaluate_clustering(x, labels, generator=seeded(seed)).nmi for seed in range(5)
    }


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(6, 2).long()}, TypeError, "x: expected float16, bfloat16"),
        ({"x": torch.full((6, 2), math.nan)}, ValueError, "x: expected rows that are finite"),
        (
            {"labels": torch.zeros(5).long()},
            ValueError,
            r"labels: expected shape \(6,\)",
        ),
        ({"clusters": 0}, ValueError, "clusters: expected at least 1, got 0"),
        ({"iterations": -1}, ValueError, "iterations: expected 0 to 1048576, got -1"),
        ({"iterations": 2**40}, ValueError, "iterations: expected 0 to 1048576, got 1099511627776"),
        ({"restarts": 1.5}, TypeError, "restarts: expected an integer, got 1.5"),
        ({"generator": 0}, TypeError, "generator: expected a torch.Generator"),
    ],
)
def test_arguments_are_checked_before_any_work(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"x": torch.zeros(6, 2), "labels": torch.zeros(6).long(), **change}
    with pytest.raises(error, match=message):
        evaluate_clustering(**arguments)
