"""kmeans: Lloyd's iterations against the same in numpy, one row at a time, on CPU."""

from __future__ import annotations

import math

import numpy as np
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
)
from oracle import DATA, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend


def start(x: Tensor, clusters: int) -> Tensor:
    """Some of the rows, with repetitions where there are fewer."""
    return x[torch.arange(clusters) * 7 % len(x)].clone()


def filled(index: np.ndarray, value: np.ndarray, clusters: int) -> np.ndarray:
    """The farthest rows handed to the empty clusters."""
    index = index.copy()
    rows = iter(
        sorted((i for i in range(len(index)) if value[i] > 0), key=lambda i: (-value[i], i))
    )
    for cluster in range(clusters):
        if (index == cluster).any():
            continue
        row = next((i for i in rows if (index == index[i]).sum() > 1), None)
        if row is not None:
            index[row] = cluster
    return index


def written_out(
    x: Tensor, initial: Tensor, iterations: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Centres, the nearest of each row, and the inertia before each iteration and at the end."""
    centers, history = initial.clone(), []
    rows = x.double().numpy()
    for step in range(iterations + 1):
        value = oracle.values(x, centers, "sqeuclidean")
        value = np.where(np.isnan(value), np.inf, value)
        index = value.argmin(1)
        index[~np.isfinite(rows).all(1)] = -1
        value = np.where(index < 0, 0.0, value[np.arange(len(x)), index])
        history.append(math.fsum(value))
        if step == iterations:
            break
        members = filled(index, value, len(centers))
        for cluster in range(len(centers)):
            own = rows[members == cluster]
            if len(own):
                total = np.zeros(rows.shape[1])
                for row in own:
                    total += row
                centers[cluster] = torch.from_numpy(total / len(own))
    return centers.numpy(), index, history


def assert_is_lloyd(found: F.KMeans, x: Tensor, initial: Tensor, iterations: int) -> None:
    centers, index, history = written_out(x, initial, iterations)
    np.testing.assert_array_equal(found.index.numpy(), index)
    np.testing.assert_array_equal(found.centers.numpy(), centers)
    # The sums round in another order.
    np.testing.assert_allclose(found.history.numpy(), history, rtol=1e-13, atol=0)
    assert found.inertia == found.history[-1]


# --- the iterations -------------------------------------------------------------------------------


@each_backend
@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize(("clusters", "d"), [(1, 5), (7, 16), (40, 9), (61, 2)])
def test_centres_index_and_history_are_those_of_lloyd(backend, kind, clusters, d):
    x, _ = make(kind, 300, d, 6)
    with use_backend(backend):
        found = F.kmeans(x, clusters, iterations=6, initial=start(x, clusters))
    assert_is_lloyd(found, x, start(x, clusters), 6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", DATA)
def test_the_search_is_exact_on_every_instruction_set(select_isa, isa, kind):
    select_isa(isa)
    # Odd dimensions, several tasks of rows, and centres that fill no tile.
    x, _ = make(kind, 2500, 23, 6)
    found = F.kmeans(x, 75, iterations=3, initial=start(x, 75))
    assert_is_lloyd(found, x, start(x, 75), 3)


def test_centres_beyond_the_cache_are_searched_in_parts():
    x = torch.randn(900, 700, generator=torch.Generator().manual_seed(0))
    assert_is_lloyd(F.kmeans(x, 600, iterations=2, initial=x[:600]), x, x[:600], 2)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
def test_is_exact_where_centres_are_much_shorter_or_longer_than_rows(scale):
    x, _ = make("random", 200, 12, 1)
    initial = start(x, 30) * scale
    assert_is_lloyd(F.kmeans(x, 30, iterations=2, initial=initial), x, initial, 2)


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e150])
def test_is_exact_where_norms_leave_the_range_of_the_search(scale):
    x = make("random", 100, 6, 1, dtype=torch.float64)[0] * scale
    assert_is_lloyd(F.kmeans(x, 9, iterations=2, initial=start(x, 9)), x, start(x, 9), 2)


@each_backend
def test_rows_all_alike_are_one_cluster_and_the_other_centres_stay(backend):
    x = torch.full((50, 3), 2.0)
    initial = torch.tensor([[5.0] * 3, [1.0] * 3, [9.0] * 3])
    with use_backend(backend):
        found = F.kmeans(x, 3, iterations=4, initial=initial)
    assert found.centers[1].tolist() == [2.0] * 3
    assert_is_lloyd(found, x, initial, 4)


@each_backend
def test_more_clusters_than_rows_leave_every_row_alone(backend):
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    with use_backend(backend):
        found = F.kmeans(x, 9, iterations=3, generator=torch.Generator().manual_seed(1))
    assert found.inertia == 0
    assert sorted(found.index.unique().tolist()) == sorted(set(found.index.tolist()))
    assert torch.equal(found.centers[found.index], x)


@each_backend
def test_an_empty_cluster_is_handed_the_row_farthest_from_its_centre(backend):
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [-10.0]])
    initial = torch.tensor([[0.0], [500.0], [600.0]])
    with use_backend(backend):
        found = F.kmeans(x, 3, iterations=1, initial=initial)
    # Rows 3 and 4 are equally far: the lowest comes first.
    assert found.centers[:, 0].tolist() == [1.0, 10.0, -10.0]


@each_backend
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_belong_to_no_cluster(backend, bad):
    x, _ = make("random", 60, 4, 1)
    x[7, 2] = x[40, 0] = bad
    with use_backend(backend):
        found = F.kmeans(x, 5, iterations=3, initial=x[:5])
    assert found.index[[7, 40]].tolist() == [-1, -1]
    assert_is_lloyd(found, x, x[:5], 3)


@each_backend
def test_a_centre_that_is_not_a_number_has_no_rows_and_starts_anew(backend):
    x, _ = make("random", 60, 4, 1)
    initial = x[:5].clone()
    initial[2] = math.nan
    with use_backend(backend):
        found = F.kmeans(x, 5, iterations=2, initial=initial)
    assert found.centers.isfinite().all()
    assert_is_lloyd(found, x, initial, 2)


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_rows_have_float32_centres(backend, dtype):
    x, _ = make("random", 120, 6, 1, dtype=dtype)
    with use_backend(backend):
        found = F.kmeans(x, 8, iterations=3, initial=x[:8])
    wide = x.to(oracle.returned_dtype(dtype))
    assert found.centers.dtype == wide.dtype
    assert_is_lloyd(found, wide, wide[:8], 3)


@each_backend
def test_the_history_falls_and_repeats_once_nothing_moves(backend):
    x, _ = make("clustered", 200, 4, 5)
    with use_backend(backend):
        found = F.kmeans(x, 5, iterations=60, initial=x[:5])
    history = found.history
    assert history.shape == (61,)
    assert (history[1:] <= history[:-1]).all()
    assert history[-1] == history[-2] < history[0]
    # A further iteration would change nothing.
    mean = F.cluster_means(x, found.index, 5).mean
    assert torch.equal(mean, found.centers)


def test_the_greatest_number_of_iterations_is_served():
    x, _ = make("clustered", 20, 4, 5)
    assert F.kmeans(x, 5, iterations=2**20).history.shape == (2**20 + 1,)


@each_backend
def test_no_iteration_only_assigns(backend):
    x, _ = make("random", 50, 3, 1)
    with use_backend(backend):
        found = F.kmeans(x, 4, iterations=0, initial=x[:4])
    assert torch.equal(found.centers, x[:4])
    assert torch.equal(found.index, F.assign_clusters(x, x[:4]).index)


@each_backend
def test_no_rows_leave_the_given_centres(backend):
    initial = torch.randn(3, 4)
    with use_backend(backend):
        found = F.kmeans(torch.zeros(0, 4), 3, iterations=2, initial=initial)
    assert torch.equal(found.centers, initial)
    assert found.history.tolist() == [0.0] * 3


# --- the start ------------------------------------------------------------------------------------


def drawn(x: Tensor, uniform: Tensor) -> list[int]:
    """k-means++ in numpy."""
    finite = np.nonzero(x.isfinite().all(1).numpy())[0]
    rows, least, chosen = x[torch.from_numpy(finite)], None, []
    for number in uniform.tolist():
        row = int(number * len(rows))
        if least is not None and least.sum() > 0:
            sums = np.cumsum(least)
            row = int(np.searchsorted(sums, number * sums[-1], side="right"))
        value = oracle.values(rows, rows[row : row + 1], "sqeuclidean")[:, 0]
        least = value if least is None else np.minimum(least, value)
        chosen.append(int(finite[row]))
    return chosen


@each_backend
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicated", "tied"])
def test_seeds_are_drawn_in_proportion_to_squared_distances(backend, kind):
    x, _ = make(kind, 211, 5, 6)
    x[3, 1] = math.nan
    uniform = torch.rand(17, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = getattr(torch.ops, NAMESPACE[backend]).clusters_seeds(x, uniform)
    assert found.tolist() == drawn(x, uniform)


@each_backend
def test_a_number_on_a_border_draws_the_row_after_it_and_rows_without_weight_never(backend):
    # Weights of 1 at every second row from the fourth on, 256 of them, over several sections.
    x = torch.zeros(515, 1)
    x[3::2] = 1.0
    operators = getattr(torch.ops, NAMESPACE[backend])
    for number in (0.0, 1 / 256, 127 / 256, 128 / 256, 1 - 2.0**-53):
        found = operators.clusters_seeds(x, torch.tensor([0.0, number], dtype=torch.float64))
        assert found.tolist() == [0, 3 + 2 * int(number * 256)]


@each_backend
def test_the_first_centres_are_rows_far_apart(backend):
    x, labels = make("clustered", 400, 8, 10)
    with use_backend(backend):
        found = F.kmeans(x, 10, iterations=0, generator=torch.Generator().manual_seed(0))
    rows = (found.centers[:, None] == x[None]).all(2).float().argmax(1)
    # Ten of ten tight clusters, but for the luck of the draw: uniform draws would hit some 6.5.
    assert len(labels[rows].unique()) >= 9


@each_backend
def test_the_same_generator_gives_the_same_bits_and_another_does_not(backend):
    x, _ = make("random", 200, 4, 1)
    with use_backend(backend):
        found = [
            F.kmeans(x, 12, iterations=2, generator=torch.Generator().manual_seed(s))
            for s in (3, 3, 4)
        ]
    assert_same_bits(found[0], found[1])
    assert not torch.equal(found[0].centers, found[2].centers)


@each_backend
def test_of_several_starts_the_best_is_returned(backend):
    x, _ = make("random", 150, 3, 1)
    options = {"iterations": 3}
    with use_backend(backend):
        generator = torch.Generator().manual_seed(0)
        alone = [F.kmeans(x, 9, generator=generator, **options) for _ in range(4)]
        generator = torch.Generator().manual_seed(0)
        found = F.kmeans(x, 9, restarts=4, generator=generator, **options)
    assert_same_bits(found, min(alone, key=lambda run: run.inertia))


@each_backend
def test_without_a_finite_row_there_is_no_cluster(backend):
    with use_backend(backend):
        found = F.kmeans(torch.full((3, 2), math.nan), 2, iterations=2)
    assert found.index.tolist() == [-1] * 3
    assert found.centers.isnan().all()


# --- what torch does around it --------------------------------------------------------------------


def test_every_thread_count_gives_the_same_bits(set_threads):
    x, _ = make("random", 5000, 20, 1)
    results = []
    for threads in (1, 2):
        set_threads(threads)
        generator = torch.Generator().manual_seed(0)
        results.append(F.kmeans(x, 90, iterations=4, generator=generator))
    assert_same_bits(*results)


@pytest.mark.parametrize("view", ["columns", "transposed"])
def test_strides_do_not_matter(view):
    x, _ = make("random", 80, 12, 1)
    strided = x[:, ::2] if view == "columns" else x.T.contiguous().T
    found, expected = (
        F.kmeans(rows, 6, iterations=3, initial=rows[:6])
        for rows in (strided, strided.contiguous())
    )
    assert_same_bits(found, expected)


def test_it_takes_rows_that_need_a_gradient_and_gives_none():
    x = torch.randn(30, 3, requires_grad=True)
    found = F.kmeans(x, 4, iterations=2)
    assert not any(result.requires_grad for result in found)


@each_backend
def test_compiles_whole(backend):
    def function(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.kmeans(x, 5, iterations=3, initial=x[:5]))

    with use_backend(backend):
        compiled = compile_whole(function)
        x, _ = make("random", 40, 4, 1)
        assert_same_bits(compiled(x), function(x))
    torch.compiler.reset()


@pytest.mark.parametrize("name", ["dmlfast", "dmlfast_reference"])
def test_opcheck(name):
    x, _ = make("random", 40, 4, 1)
    operators = getattr(torch.ops, name)
    torch.library.opcheck(operators.clusters_kmeans.default, (x, x[:5].clone(), 2))
    uniform = torch.rand(4, dtype=torch.float64)
    torch.library.opcheck(operators.clusters_seeds.default, (x, uniform))


MISTAKES = {
    "no cluster": (ValueError, "clusters: expected at least 1, got 0", {"clusters": 0}),
    "negative": (ValueError, "iterations: expected 0 to 1048576, got -1", {"iterations": -1}),
    "endless": (ValueError, "iterations: expected 0 to 1048576, got", {"iterations": 2**20 + 1}),
    "beyond int64": (ValueError, "iterations: expected 0 to 1048576, got", {"iterations": 2**64}),
    "no start": (ValueError, "restarts: expected at least 1", {"restarts": 0}),
    "no rows": (ValueError, "x: expected rows", {"x": torch.zeros(0, 2)}),
    "no generator": (TypeError, "generator: expected a torch.Generator", {"generator": 3}),
    "other number": (ValueError, "initial: expected 3 rows", {"initial": torch.zeros(2, 2)}),
    "other dimensions": (ValueError, "initial: expected 2 dim", {"initial": torch.zeros(3, 1)}),
    "several starts from one": (
        ValueError,
        "restarts: expected 1 with initial, got 2",
        {"initial": torch.zeros(3, 2), "restarts": 2},
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_before_any_work(mistake):
    error, message, given = MISTAKES[mistake]
    arguments = {"x": torch.zeros(5, 2), "clusters": 3, "iterations": 1} | given
    with pytest.raises(error, match=message):
        F.kmeans(**arguments)


def test_65536_rows_need_less_memory_than_their_distances(resident_growth):
    inputs = "x = torch.randn(65536, 64); F.kmeans(x[:64], 2, iterations=1)"
    # Integers and bookkeeping; all distances to the centres are 128 MiB.
    growth = resident_growth(inputs, "F.kmeans(x, 512, iterations=2, initial=x[:512])")
    assert growth < 40 * 2**20
