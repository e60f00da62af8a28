"""The collapse metrics against worked values and a plain-Python oracle."""

from __future__ import annotations

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from dmlfast.evaluation import _rows, effective_rank, evaluate_collapse


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def parities(rows: int = 60, spread: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Rows around a centre for each of six digits, with parity and digit."""
    digits = torch.arange(rows) % 6
    return randn(6, 5)[digits] + spread * randn(rows, 5, seed=1), digits % 2, digits


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def ratios_by_definition(x: Tensor, labels: Tensor, finer: Tensor) -> tuple[float, float]:
    points, y, s = x.tolist(), labels.tolist(), finer.tolist()
    pairs = [(i, j, math.dist(points[i], points[j])) for i, j in permutations(range(len(y)), 2)]
    in_class = mean([d for i, j, d in pairs if y[i] == y[j]])
    between = mean([d for i, j, d in pairs if y[i] != y[j]])
    in_subclass = mean([d for i, j, d in pairs if y[i] == y[j] and s[i] == s[j]])
    across = mean([d for i, j, d in pairs if y[i] == y[j] and s[i] != s[j]])
    return in_class / between, in_subclass / across


def active_by_definition(x: Tensor, labels: Tensor, margin: float) -> float:
    points, y = torch.nn.functional.normalize(x.double()).tolist(), labels.tolist()
    active = []
    for i, label in enumerate(y):
        far = [math.dist(points[i], point) for point in points]
        same = [d for j, d in enumerate(far) if y[j] == label and j != i]
        if same:
            beyond = [d for j, d in enumerate(far) if y[j] != label and d > min(same)]
            if beyond:
                active.append(min(same) - min(beyond) + margin > 0)
    return mean(active)


@pytest.mark.parametrize("spread", [0.1, 1.0])
@pytest.mark.parametrize("margin", [0.05, 0.2])
def test_the_values_are_their_definitions(spread: float, margin: float) -> None:
    x, labels, digits = parities(spread=spread)
    metrics = evaluate_collapse(x, labels, digits, margin=margin)
    expected = ratios_by_definition(x, labels, digits)
    # float32 distances, each right to 1e-6.
    assert metrics.class_distance_ratio == pytest.approx(expected[0], rel=2e-6)
    assert metrics.subclass_distance_ratio == pytest.approx(expected[1], rel=2e-6)
    assert metrics.active_triplets == active_by_definition(x, labels, margin)
    assert metrics.effective_rank == effective_rank(x)
    assert metrics.num_rows == 60


def test_sub_classes_of_the_same_number_in_other_classes_are_others() -> None:
    x, labels, digits = parities()
    assert evaluate_collapse(x, labels, digits // 2) == evaluate_collapse(x, labels, digits)


def test_without_sub_classes_their_ratio_is_left_out() -> None:
    x, labels, digits = parities()
    with_them, without = evaluate_collapse(x, labels, digits), evaluate_collapse(x, labels)
    assert without.subclass_distance_ratio is None
    expected = with_them.as_dict()
    del expected["subclass_distance_ratio"]
    assert without.as_dict() == expected


def test_classes_that_are_points_have_collapsed() -> None:
    _, labels, digits = parities()
    metrics = evaluate_collapse(torch.tensor([[1.0, 0.0], [0.0, 1.0]])[labels], labels, digits)
    assert metrics.class_distance_ratio == 0
    assert math.isnan(metrics.subclass_distance_ratio)  # 0 / 0
    assert metrics.active_triplets == 0
    # Half of the rows on each axis: equal singular values.
    assert metrics.effective_rank == pytest.approx(2)


def test_sub_classes_that_are_points_have_the_ratio_0() -> None:
    x, labels, digits = parities(spread=0.0)
    assert evaluate_collapse(x, labels, digits).subclass_distance_ratio == 0


def test_sub_classes_that_mix_have_a_ratio_near_1() -> None:
    labels, digits = torch.arange(600) % 2, torch.arange(600) // 2 % 3
    ratio = evaluate_collapse(randn(600, 5), labels, digits).subclass_distance_ratio
    assert ratio == pytest.approx(1, abs=0.05)


def test_what_does_not_matter_to_ratios_does_not_change_them() -> None:
    x, labels, digits = parities()
    expected = list(evaluate_collapse(x.double(), labels, digits).as_dict().values())
    for factor in (1e-30, 1e30):
        metrics = evaluate_collapse(factor * x.double(), labels, digits)
        assert list(metrics.as_dict().values()) == pytest.approx(expected, rel=1e-6)
    shifted = evaluate_collapse(x.double() + 1e6, labels, digits)
    # float64 holds a shifted row to 1e-10.
    assert shifted.class_distance_ratio == pytest.approx(expected[0], rel=1e-6)
    assert shifted.subclass_distance_ratio == pytest.approx(expected[1], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_has_the_values_of_its_rows(dtype: torch.dtype) -> None:
    x, labels, digits = parities()
    x = x.to(dtype)
    expected = evaluate_collapse(x.float(), labels, digits).as_dict()
    found = evaluate_collapse(x, labels, digits).as_dict()
    assert found == pytest.approx(expected, rel=1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, digits = parities()
    expected = evaluate_collapse(x, labels, digits).as_dict()
    monkeypatch.setattr(_rows, "CHUNK_ENTRIES", 70)
    assert evaluate_collapse(x, labels, digits).as_dict() == pytest.approx(expected, rel=1e-12)


def test_ratios_and_triplets_have_the_same_bits_for_every_number_of_threads(set_threads) -> None:
    x, labels, digits = parities(1500, 1.0)
    found = []
    for threads in (1, 2):
        set_threads(threads)
        found.append(evaluate_collapse(x, labels, digits))
    assert found[0].class_distance_ratio == found[1].class_distance_ratio
    assert found[0].subclass_distance_ratio == found[1].subclass_distance_ratio
    assert found[0].active_triplets == found[1].active_triplets


@pytest.mark.parametrize(
    ("labels", "digits", "defined"),
    [
        ([0, 0, 0, 0], [0, 0, 1, 1], {"subclass_distance_ratio"}),
        ([0, 0, 1, 1], [0, 1, 2, 3], {"class_distance_ratio", "active_triplets"}),
        ([0, 0, 1, 1], [0, 0, 1, 1], {"class_distance_ratio", "active_triplets"}),
        ([0, 1, 2, 3], [0, 1, 2, 3], set()),
        ([0], [0], set()),
        ([], [], set()),
    ],
)
def test_what_has_no_pair_is_nan(labels: list[int], digits: list[int], defined: set[str]) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.5], [0.0, 1.0], [0.3, 1.0]])[: len(labels)]
    integers = [torch.tensor(values, dtype=torch.int64) for values in (labels, digits)]
    found = evaluate_collapse(x, *integers).as_dict()
    if labels:
        defined = {*defined, "effective_rank"}
    assert {name for name, value in found.items() if not math.isnan(value)} == defined


@pytest.mark.parametrize("singular", [[1.0], [4.0, 2.0, 1.0, 1.0], [1.0] * 7, [1.0, 0.0, 0.0]])
def test_the_effective_rank_is_the_entropy_of_the_singular_values(singular: list[float]) -> None:
    size = len(singular)
    left = torch.linalg.qr(randn(20, size).double())[0]
    right = torch.linalg.qr(randn(size, size, seed=1).double())[0]
    x = left @ torch.diag(torch.tensor(singular).double()) @ right
    shares = [value / sum(singular) for value in singular if value]
    expected = math.exp(-math.fsum(share * math.log(share) for share in shares))
    # A singular value of 0 is one of some 1e-16 here, which adds 4e-15 to the entropy.
    assert effective_rank(x) == pytest.approx(expected, rel=1e-12)
    assert effective_rank(1e-20 * x) == pytest.approx(expected, rel=1e-12)


def test_rows_that_are_all_the_same_have_the_effective_rank_1() -> None:
    assert effective_rank(torch.full((9, 4), 0.3)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(5, 3)])
def test_the_effective_rank_of_nothing_is_nan(x: Tensor) -> None:
    assert math.isnan(effective_rank(x))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.zeros(6)}, ValueError, r"x: expected a 2-D tensor .*\(6,\)"),
        ({"x": torch.full((6, 2), math.inf)}, ValueError, "x: expected rows that are finite"),
        ({"labels": torch.zeros(6)}, TypeError, "labels: expected an integer dtype"),
        (
            {"labels": torch.zeros(5).long()},
            ValueError,
            r"labels: expected shape \(6,\)",
        ),
        ({"subclasses": torch.zeros(6)}, TypeError, "subclasses: expected an integer dtype"),
        (
            {"subclasses": torch.zeros(5).long()},
            ValueError,
            r"subclasses: expected shape \(6,\)",
        ),
        ({"margin": -0.1}, ValueError, "margin: expected a finite number of at least 0, got -0.1"),
        ({"margin": "0.1"}, TypeError, "margin: expected a number, got '0.1'"),
    ],
)
def test_arguments_are_checked_before_any_work(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"x": torch.zeros(6, 2), "labels": torch.zeros(6).long(), **change}
    with pytest.raises(error, match=message):
        evaluate_collapse(**arguments)
