"""Indexes and their searches against brute force."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from operator_cases import DTYPES
from torch import Tensor

import dmlfast.functional as F
from dmlfast.evaluation import adaptive_search, build_index, index_settings, search_index

faiss = pytest.importorskip("faiss")

KINDS = ("flat", "ivf", "hnsw", "pq")
ROWS, DIMENSIONS = 400, 8


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def brute_force(queries: Tensor, rows: Tensor, k: int, metric: str = "euclidean") -> F.Selection:
    return F.nearest_neighbors(queries, rows, k, metric=metric)


# --- build_index and search_index ---


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_flat_index_is_brute_force(dtype: torch.dtype, metric: str) -> None:
    x, queries = randn(ROWS, DIMENSIONS).to(dtype), randn(30, DIMENSIONS, seed=1).to(dtype)
    found = search_index(build_index(x, metric=metric), queries, 9)
    # In float32 both: a tie of rounded rows may come in another order, so distances are compared.
    expected = brute_force(queries.float(), x.float(), 9, metric)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-5)
    assert found.distance.dtype == torch.float32
    assert found.index.dtype == torch.int64
    if dtype == torch.float32:
        assert torch.equal(found.index, expected.index)


def test_ivf_that_looks_into_every_cell_is_brute_force() -> None:
    x, queries = randn(ROWS, DIMENSIONS), randn(30, DIMENSIONS, seed=1)
    index = build_index(x, "ivf", generator=seeded(), lists=20, probes=20)
    found, expected = search_index(index, queries, 9), brute_force(queries, x, 9)
    assert torch.equal(found.index, expected.index)
    torch.testing.assert_close(found.distance, expected.distance, rtol=1e-5, atol=1e-5)


def test_the_cells_of_ivf_are_those_of_our_kmeans() -> None:
    x = randn(ROWS, DIMENSIONS)
    index = build_index(x, "ivf", generator=seeded(3), lists=20, iterations=4)
    first = torch.randperm(ROWS, generator=seeded(3))[:20]
    clusters = F.kmeans(x, 20, iterations=4, initial=x[first])
    held = torch.as_tensor(faiss.downcast_index(index.quantizer).reconstruct_n(0, 20))
    assert torch.equal(held, clusters.centers)
    for cell in range(20):
        size = index.invlists.list_size(cell)
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(cell), size).copy()
        assert (clusters.index[torch.from_numpy(ids)] == cell).all()


def test_ivf_finds_more_with_more_probes() -> None:
    x, queries = randn(ROWS, DIMENSIONS), randn(50, DIMENSIONS, seed=1)
    expected = brute_force(queries, x, 10).index
    shares = []
    for probes in (1, 4, 20):
        index = build_index(x, "ivf", generator=seeded(), lists=20, probes=probes)
        found = search_index(index, queries, 10).index
        shares.append((found[:, :, None] == expected[:, None]).any(1).double().mean().item())
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_is_the_same_each_time(kind: str) -> None:
    x = randn(ROWS, DIMENSIONS)
    one, other = (faiss.serialize_index(build_index(x, kind, generator=seeded())) for _ in range(2))
    assert (one == other).all()


def test_hnsw_leaves_the_threads_of_faiss_as_they_were() -> None:
    before = faiss.omp_get_max_threads()
    build_index(randn(50, 4), "hnsw")
    assert faiss.omp_get_max_threads() == before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 1), (3, 5), (60, 7), (300, 12)])
def test_small_and_odd_sizes_are_served_by_default(kind: str, shape: tuple[int, int]) -> None:
    x = randn(*shape)
    index = build_index(x, kind, generator=seeded())
    assert (index.ntotal, index.d) == shape
    found = search_index(index, x, shape[0] + 1)
    assert found.index.shape == (shape[0], shape[0] + 1)
    assert (found.index[:, -1] == -1).all()
    assert (found.distance[:, -1] == math.inf).all()


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_the_own_row_is_left_out_and_its_duplicate_stays(kind: str) -> None:
    x = randn(40, 4)
    x[7] = x[3]
    index = build_index(x, kind, generator=seeded())
    found = search_index(index, x, 5, self_index=torch.arange(40))
    assert not (found.index == torch.arange(40)[:, None]).any()
    assert found.index[3, 0] == 7
    assert found.index[7, 0] == 3
    assert found.distance[3, 0] == 0


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_greatest_norm_are_found_as_small_ones_are(kind: str, metric: str) -> None:
    if kind == "ivf":
        metric = "euclidean"
    x = 1.414 * torch.nn.functional.normalize(randn(ROWS, DIMENSIONS), dim=1)
    x[ROWS // 2 :] = -x[: ROWS // 2]  # as far apart as they can be
    # A power of two changes no digit of a product or a sum, and 1.414 of it is the greatest norm.
    found, plain = (
        search_index(build_index(rows, kind, metric=metric, generator=seeded()), rows, ROWS)
        for rows in (x * 2.0**62, x)
    )
    assert torch.equal(found.index < 0, plain.index < 0)
    assert torch.equal(found.distance.isinf(), found.index < 0)
    if kind != "pq":  # faiss ends its training of tables by fixed bounds
        assert torch.equal(found.index, plain.index)


class Asked:
    """An index that keeps how many it was asked for."""

    def __init__(self, index: Any) -> None:
        self.index, self.d, self.ntotal = index, index.d, index.ntotal
        self.metric_type = index.metric_type
        self.asked: list[int] = []

    def search(self, x: Any, k: int, /) -> tuple[Any, Any]:
        self.asked.append(k)
        return self.index.search(x, k)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize("own", [None, torch.tensor([0, -1, 4])])
def test_faiss_is_asked_for_no_more_than_it_has(own: Tensor | None, metric: str) -> None:
    x = randn(6, 4)
    index = Asked(build_index(x, metric=metric))
    found = search_index(index, x[:3], 5000, self_index=own)
    assert index.asked == [6]
    assert found.index.shape == found.distance.shape == (3, 5000)
    few = search_index(index.index, x[:3], 6, self_index=own)
    assert torch.equal(found.index[:, :6], few.index)
    assert torch.equal(found.distance[:, :6], few.distance)
    assert (found.index[:, 6:] == -1).all()
    assert (found.distance[:, 6:] == math.inf).all()


def test_an_index_without_rows_finds_nothing() -> None:
    found = search_index(faiss.IndexFlatL2(4), randn(3, 4), 2, self_index=torch.zeros(3).long())
    assert found.index.tolist() == [[-1, -1]] * 3
    assert found.distance.isinf().all()


def test_one_that_is_no_row_has_nothing_left_out() -> None:
    x = randn(6, 4)
    own = torch.tensor([-1, 1, -1])
    found = search_index(build_index(x), x[:3], 7, self_index=own)
    plain = search_index(build_index(x), x[:3], 7)
    assert torch.equal(found.index[[0, 2]], plain.index[[0, 2]])
    assert found.index[1].tolist() == [*plain.index[1, 1:].tolist(), -1][:7]


@pytest.mark.parametrize(
    ("kind", "rows", "dimensions", "expected"),
    [
        ("flat", 9, 3, {}),
        ("ivf", 10, 3, {"lists": 1, "probes": 1, "iterations": 10}),
        ("ivf", 780, 3, {"lists": 20, "probes": 8, "iterations": 10}),
        ("ivf", 10**6, 3, {"lists": 4000, "probes": 250, "iterations": 10}),
        ("hnsw", 9, 3, {"links": 32, "breadth": 64}),
        ("pq", 9, 64, {"parts": 16}),
        ("pq", 9, 10, {"parts": 2}),
        ("pq", 9, 13, {"parts": 1}),
    ],
)
def test_default_settings(kind: str, rows: int, dimensions: int, expected: dict) -> None:
    assert index_settings(kind, rows, dimensions) == expected


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("hnsw", {"links": 1024, "breadth": 2**20}), ("ivf", {"iterations": 2**20})],
)
def test_the_greatest_settings_are_served(kind: str, settings: dict[str, int]) -> None:
    x = randn(50, 4)
    found = search_index(build_index(x, kind, generator=seeded(), **settings), x, 1)
    assert torch.equal(found.index[:, 0], torch.arange(50))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "dimensions", "error", "message"),
    [
        (0, 3, ValueError, "rows: expected at least 1, got 0"),
        (-4, 3, ValueError, "rows: expected at least 1, got -4"),
        (9, 0, ValueError, "dimensions: expected at least 1, got 0"),
        (9.0, 3, TypeError, "rows: expected an integer, got 9.0"),
        (9, True, TypeError, "dimensions: expected an integer, got True"),
    ],
)
def test_index_settings_names_a_size_that_is_wrong(
    kind: str, rows: int, dimensions: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        index_settings(kind, rows, dimensions)


NAN = randn(5, 4)
NAN[2, 1] = math.nan
# A single row of norm 6.6e18, that float32 holds, beside many that are small.
LONG = torch.zeros(2**20 // 4 + 1, 4)
LONG[-1] = 3.3e18


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x: expected a torch.Tensor, got list"),
        ({"x": torch.ones(3)}, ValueError, "x: expected a 2-D tensor"),
        ({"x": torch.ones(3, 2).long()}, TypeError, "x: expected float16"),
        ({"x": torch.ones(0, 2)}, ValueError, "x: expected a row and a dimension at least"),
        ({"x": NAN}, ValueError, "x: expected values that are finite"),
        ({"x": LONG}, ValueError, "x: expected rows of norm 6.52e.18 at most.* up to 3.3e.18 in"),
        ({"x": 1e100 * randn(5, 4).double()}, ValueError, "x: expected rows of norm 6.52e.18"),
        ({"x": torch.ones(1, 4), "kind": "pq"}, ValueError, "x: expected at least 2 rows"),
        ({"kind": "tree"}, ValueError, "kind: expected one of .* got 'tree'"),
        ({"metric": "cosine"}, ValueError, "metric: expected one of .* got 'cosine'"),
        ({"kind": "ivf", "metric": "dot"}, ValueError, "metric: expected 'euclidean' with kind"),
        ({"generator": 3}, TypeError, "generator: expected"),
        ({"lists": 3}, ValueError, "lists: expected no setting for an index of kind flat"),
        ({"kind": "pq", "lists": 3}, ValueError, "lists: expected parts for an index of kind pq"),
        ({"kind": "ivf", "rows": 3}, ValueError, "rows: expected lists, probes, iterations for"),
        ({"dimensions": 3}, ValueError, "dimensions: expected no setting for an index of kind"),
        ({"kind": "ivf", "lists": 0}, ValueError, "lists: expected 1 to 40, got 0"),
        ({"kind": "ivf", "lists": 41}, ValueError, "lists: expected 1 to 40, got 41"),
        ({"kind": "ivf", "lists": 4, "probes": 5}, ValueError, "probes: expected 1 to 4, got 5"),
        ({"kind": "ivf", "iterations": 1.5}, TypeError, "iterations: expected an integer"),
        (
            {"kind": "ivf", "iterations": 2**42},
            ValueError,
            "iterations: expected 0 to 1048576, got",
        ),
        ({"kind": "hnsw", "links": 1}, ValueError, "links: expected 2 to 1024, got 1"),
        (
            {"kind": "hnsw", "links": 3 * 10**9},
            ValueError,
            "links: expected 2 to 1024, got 3000000",
        ),
        (
            {"kind": "hnsw", "breadth": 2**31},
            ValueError,
            "breadth: expected 2 to 1048576, got 2147",
        ),
        ({"kind": "pq", "parts": 3}, ValueError, "parts: expected a divisor of 4 dimensions"),
    ],
)
def test_build_index_names_what_is_wrong(
    arguments: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_index(**{"x": randn(40, 4), **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"index": object()}, TypeError, "index: expected a faiss index, got object"),
        ({"queries": torch.ones(3, 5)}, ValueError, "queries: expected 4 dimensions"),
        ({"queries": NAN}, ValueError, "queries: expected values that are finite"),
        (
            {"queries": LONG},
            ValueError,
            "queries: expected rows of norm 6.52e.18 at most",
        ),
        ({"queries": 1e200 * randn(3, 4).double()}, ValueError, "queries: expected rows of norm"),
        ({"k": 0}, ValueError, "k: expected at least 1, got 0"),
        ({"self_index": torch.zeros(2).long()}, ValueError, "self_index: expected shape"),
        ({"self_index": torch.zeros(3)}, TypeError, "self_index: expected an integer dtype"),
    ],
)
def test_search_index_names_what_is_wrong(
    arguments: dict, error: type[Exception], message: str
) -> None:
    given = {"index": build_index(randn(40, 4)), "queries": randn(3, 4), **arguments}
    with pytest.raises(error, match=message):
        search_index(**given)


# --- adaptive_search of some of the rows of an index ---


@pytest.mark.parametrize("shortlist", [12, None])
@pytest.mark.parametrize("indexed", [True, False])
def test_some_rows_find_what_they_find_among_all(shortlist: int | None, indexed: bool) -> None:
    x, structure = randn(60, 8), 0.5 + torch.rand(60, 8, generator=seeded())
    chosen = torch.tensor([4, 9, 30])
    index = build_index(x) if indexed and shortlist else None
    whole = adaptive_search(x, structure, k=5, shortlist=shortlist)
    some = adaptive_search(
        *(x[chosen], structure[chosen], x, 5),
        shortlist=shortlist,
        index=index,
        self_index=chosen,
    )
    assert torch.equal(some.index, whole.index[chosen])
    assert torch.equal(some.distance, whole.distance[chosen])


def test_the_own_row_within_a_batch_is_not_to_be_named() -> None:
    x = randn(5, 3)
    with pytest.raises(ValueError, match="self_index: expected None without references"):
        adaptive_search(x, x.abs(), k=2, self_index=torch.arange(5))
