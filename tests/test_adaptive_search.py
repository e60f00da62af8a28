"""Search by the adaptive distance, against the ranking of all references written out."""

from __future__ import annotations

import math

import pytest
import torch
from operator_cases import DTYPES
from torch import Tensor

from dmlfast.evaluation import (
    adaptive,
    adaptive_search,
    evaluate_adaptive_retrieval,
    evaluate_retrieval,
    oracle_structure,
)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def problem(
    n: int = 40, m: int = 300, d: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, their structure, references."""
    generator = torch.Generator().manual_seed(n + m + d)
    queries = torch.randn(n, d, generator=generator)
    structure = 0.5 + torch.rand(n, d, generator=generator)
    references = torch.randn(m, d, generator=generator)
    return queries.to(dtype), structure.to(dtype), references.to(dtype)


def squares(queries: Tensor, structure: Tensor, references: Tensor) -> Tensor:
    gap = references.double() - queries.double()[:, None]
    return (structure.double()[:, None] * gap.square()).sum(2)


def ranking(queries: Tensor, structure: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """All references by rising adaptive distance, the lowest index first among equal ones."""
    found = squares(queries, structure, references).sort(dim=1, stable=True)
    return found.values.sqrt(), found.indices


@each_dtype
@pytest.mark.parametrize("d", [1, 8, 33])
def test_exact_mode_is_the_ranking_of_all_references_for_every_query(dtype, d):
    given = problem(d=d, dtype=dtype)
    found = adaptive_search(*given, 50, shortlist=None)
    distance, index = ranking(*given)
    assert torch.equal(found.index, index[:, :50])
    assert found.distance.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Both sum in float64, rounded once to the dtype.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-7
    torch.testing.assert_close(found.distance.double(), distance[:, :50], rtol=tolerance, atol=0)


def test_the_structure_decides_the_ranking():
    queries, structure, references = problem()
    exact = adaptive_search(queries, structure, references, 10, shortlist=None).index
    plain = adaptive_search(queries, torch.ones_like(queries), references, 10, shortlist=None).index
    assert (exact != plain).any(1).all()


def test_exact_mode_keeps_its_digits_far_from_the_origin():
    queries, structure, references = problem(dtype=torch.float64)
    found = adaptive_search(queries + 3e7, structure, references + 3e7, 50, shortlist=None)
    assert torch.equal(found.index, ranking(queries + 3e7, structure, references + 3e7)[1][:, :50])


def test_exact_mode_keeps_its_digits_beside_a_long_row():
    queries, structure, references = problem()
    references[7] *= 1e12
    found = adaptive_search(queries, structure, references, 50, shortlist=None)
    assert torch.equal(found.index, ranking(queries, structure, references)[1][:, :50])


@each_dtype
@pytest.mark.parametrize("shortlist", [5, 32])
def test_the_nearest_by_euclidean_distance_are_ranked_by_the_structure(dtype, shortlist):
    queries, structure, references = problem(dtype=dtype)
    found = adaptive_search(queries, structure, references, 5, shortlist=shortlist)
    near = squares(queries, torch.ones_like(structure), references).sort(dim=1, stable=True).indices
    value = squares(queries, structure, references)
    for i, row in enumerate(near[:, :shortlist].tolist()):
        expected = sorted(row, key=lambda j: (value[i, j].item(), j))
        assert found.index[i].tolist() == expected[:5]


def test_the_published_shortlist_has_32():
    given = problem()
    assert torch.equal(adaptive_search(*given).index, adaptive_search(*given, 32).index)
    assert adaptive_search(*given).index.shape == (40, 32)


def test_a_shortlist_of_all_is_exact():
    given = problem()
    for listed, exact in zip(
        adaptive_search(*given, 20, shortlist=300),
        adaptive_search(*given, 20, shortlist=None),
        strict=True,
    ):
        assert torch.equal(listed, exact)


@pytest.mark.parametrize("shortlist", [None, 12])
def test_without_references_each_query_is_left_out_by_its_index(shortlist):
    queries, structure, _ = problem()
    queries[7] = queries[3]
    found = adaptive_search(queries, structure, k=5, shortlist=shortlist)
    assert not (found.index == torch.arange(40)[:, None]).any()
    # The duplicate stays.
    assert found.index[7, 0] == 3
    assert found.index[3, 0] == 7
    assert found.distance[3, 0] == 0


@pytest.mark.parametrize("shortlist", [None, 12])
def test_equal_distances_come_in_the_order_of_the_references(shortlist):
    queries, structure, references = problem(m=3)
    found = adaptive_search(queries, structure, references.repeat(4, 1), 12, shortlist=shortlist)
    nearest = ranking(queries, structure, references)[1][:, :1]
    assert torch.equal(found.index[:, :4], nearest + 3 * torch.arange(4))


@pytest.mark.parametrize("shortlist", [None, 32])
@pytest.mark.parametrize(("n", "m"), [(0, 2), (3, 0), (0, 0), (3, 2)])
def test_missing_references_have_no_index(n, m, shortlist):
    found = adaptive_search(*problem(n, m), 4, shortlist=shortlist)
    assert found.index.shape == found.distance.shape == (n, 4)
    assert (found.index[:, m:] == -1).all()
    assert (found.distance[:, m:] == math.inf).all()
    assert (found.index[:, :m].sort(1).values == torch.arange(m)).all()


@pytest.mark.parametrize("shortlist", [None, 32])
def test_chunks_change_nothing(shortlist, monkeypatch):
    given = problem()
    whole = adaptive_search(*given, 4, shortlist=shortlist)
    monkeypatch.setattr(adaptive, "chunk_rows", lambda columns: 7)
    assert all(map(torch.equal, whole, adaptive_search(*given, 4, shortlist=shortlist)))


# --- a given index --------------------------------------------------------------------------------


def test_a_flat_index_gives_the_shortlist_of_the_search():
    faiss = pytest.importorskip("faiss")
    queries, structure, references = problem()
    index = faiss.IndexFlatL2(8)
    index.add(references.numpy())
    found = adaptive_search(queries, structure, references, 6, shortlist=20, index=index)
    assert all(map(torch.equal, found, adaptive_search(*problem(), 6, shortlist=20)))


def test_what_an_index_misses_is_not_found():
    faiss = pytest.importorskip("faiss")
    queries, structure, references = problem()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(8), 8, 30)
    index.train(references.numpy())
    index.add(references.numpy())
    # One cell of thirty holds about ten references.
    seen = index.search(queries.numpy(), 32)[1]
    assert (seen < 0).any()
    found = adaptive_search(queries, structure, references, index=index)
    for row, candidates in zip(found.index.tolist(), seen.tolist(), strict=True):
        assert sorted(row) == sorted(candidates)
    assert torch.equal(found.index < 0, found.distance.isinf())


def test_the_own_row_in_an_index_is_left_out():
    faiss = pytest.importorskip("faiss")
    queries, structure, _ = problem()
    index = faiss.IndexFlatL2(8)
    index.add(queries.numpy())
    found = adaptive_search(queries, structure, k=6, shortlist=9, index=index)
    assert all(map(torch.equal, found, adaptive_search(queries, structure, k=6, shortlist=9)))


class Index:
    """Looks like an index."""

    def __init__(self, d: int, ntotal: int) -> None:
        self.d, self.ntotal = d, ntotal

    def search(self, x: object, k: int) -> tuple[object, object]:
        raise AssertionError("searched before it was checked")


# --- what it refuses ------------------------------------------------------------------------------

BAD = torch.ones(300, 8)
BAD[2, 3] = math.nan
LARGE = torch.full((300, 8), 1e200, dtype=torch.float64)
OF_NORM_1E20 = {"queries": torch.full((40, 8), 1e20 / 8**0.5), "structure": torch.ones(40, 8)}
MISTAKES = {
    "no tensor": ({"queries": [1.0]}, TypeError, "queries: expected"),
    "a structure of another shape": ({"structure": torch.ones(40, 7)}, ValueError, "structure: ex"),
    "a negative weight": ({"structure": -torch.ones(40, 8)}, ValueError, "weights of at least 0"),
    "rows whose squares overflow": (
        {"queries": LARGE[:40], "structure": torch.ones(40, 8).double(), "references": LARGE / 2},
        ValueError,
        "queries, structure: expected values whose weighted squares .* 1e.200 with weights up to 1",
    ),
    "references whose squares overflow": (
        {
            "queries": torch.ones(40, 8).double(),
            "structure": torch.ones(40, 8).double(),
            "references": LARGE,
            "shortlist": None,
        },
        ValueError,
        "references, structure: expected values",
    ),
    "weights that overflow": (
        {
            "queries": torch.ones(40, 8).double(),
            "structure": torch.full((40, 8), 1e308, dtype=torch.float64),
            "references": torch.ones(40, 8).double(),
        },
        ValueError,
        "structure: expected values whose .* got up to 1 with weights up to 1e.308",
    ),
    "NaN": ({"references": BAD}, ValueError, "references: expected finite values"),
    "NaN in a structure": ({"structure": BAD[:40]}, ValueError, "structure: expected finite"),
    "references of another length": ({"references": torch.ones(3, 7)}, ValueError, "references:"),
    "no neighbour": ({"k": 0}, ValueError, "k: expected"),
    "too many neighbours": ({"k": 1025, "shortlist": None}, ValueError, "k: expected"),
    "half a shortlist": ({"shortlist": 40.5}, TypeError, "shortlist: expected an integer"),
    "a shortlist below k": ({"k": 33}, ValueError, "shortlist: expected at least k, 33, or None"),
    "no index": ({"index": "flat"}, TypeError, "index: expected a faiss index, got str"),
    "an index of other rows": ({"index": Index(8, 299)}, ValueError, "index: expected one of 300"),
    "an index of other lengths": ({"index": Index(9, 300)}, ValueError, "index: expected one of"),
    "queries too large for an index": (
        {**OF_NORM_1E20, "references": torch.ones(300, 8), "index": Index(8, 300)},
        ValueError,
        "queries: expected rows of norm 6.52e.18 at most, .* got values up to 3.54e.19 in",
    ),
    "references too large for an index": (
        {"references": torch.full((300, 8), 3e18), "index": Index(8, 300)},
        ValueError,
        "references: expected rows of norm 6.52e.18 at most, .* got values up to 3e.18 in",
    ),
    "an index and no shortlist": (
        {"index": Index(8, 300), "shortlist": None},
        ValueError,
        "index: expected None with shortlist=None",
    ),
}


@pytest.mark.parametrize("shortlist", [None, 32])
@pytest.mark.parametrize("factor", [2.0**-400, 2.0**400])
def test_large_and_small_rows_keep_their_ranking(factor, shortlist):
    queries, structure, references = problem(dtype=torch.float64)
    plain = adaptive_search(queries, structure, references, 10, shortlist=shortlist)
    found = adaptive_search(
        factor * queries, structure, factor * references, 10, shortlist=shortlist
    )
    assert torch.equal(found.index, plain.index)
    assert torch.equal(found.distance, factor * plain.distance)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake):
    given, error, message = MISTAKES[mistake]
    queries, structure, references = problem()
    right = {"queries": queries, "structure": structure, "references": references}
    with pytest.raises(error, match=message):
        adaptive_search(**{**right, **given})


# --- metrics --------------------------------------------------------------------------------------


def labelled(n: int = 60, classes: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of classes that overlap, their structure, their labels; the last is alone in its."""
    generator = torch.Generator().manual_seed(n)
    labels = torch.arange(n) % classes
    labels[-1] = classes
    centres = torch.randn(classes + 1, 8, generator=generator)
    rows = centres[labels] + 0.8 * torch.randn(n, 8, generator=generator)
    return rows, 0.2 + 2 * torch.rand(n, 8, generator=generator), labels


def one_by_one(queries, structure, query_labels, references, labels, *, within):
    """The metrics of each query in the space that its weights stretch, and their mean."""
    found = []
    for i, weights in enumerate(structure.sqrt()):
        kept = torch.arange(len(references)) != i if within else slice(None)
        result = evaluate_retrieval(
            queries[i : i + 1] * weights,
            query_labels[i : i + 1],
            references[kept] * weights,
            labels[kept],
        )
        if result.num_queries:
            found.append(list(result.as_dict().values()))
    return torch.tensor(found).double().mean(0)


def values(metrics) -> Tensor:
    return torch.tensor(list(metrics.as_dict().values()), dtype=torch.float64)


needs_faiss = pytest.mark.usefixtures("_faiss")


@pytest.fixture
def _faiss() -> None:
    pytest.importorskip("faiss")


@needs_faiss
def test_metrics_are_those_in_the_space_of_each_query():
    rows, structure, labels = labelled()
    metrics = evaluate_adaptive_retrieval(rows, structure, labels)
    assert metrics.num_queries == 59
    expected = one_by_one(rows, structure, labels, rows, labels, within=True)
    torch.testing.assert_close(values(metrics), expected)
    assert (values(metrics) != values(evaluate_retrieval(rows, labels))).any()


@needs_faiss
def test_metrics_against_references_leave_nothing_out():
    rows, structure, labels = labelled()
    given = rows[:20], structure[:20], labels[:20], rows, labels
    expected = one_by_one(*given, within=False)
    metrics = evaluate_adaptive_retrieval(*given)
    torch.testing.assert_close(values(metrics), expected)
    assert metrics.recall[1] == 1


@needs_faiss
@pytest.mark.parametrize("shortlist", [None, 4, 100])
def test_equal_weights_give_the_plain_metrics(shortlist):
    rows, _, labels = labelled()
    metrics = evaluate_adaptive_retrieval(
        rows, torch.full_like(rows, 0.7), labels, shortlist=shortlist
    )
    torch.testing.assert_close(values(metrics), values(evaluate_retrieval(rows, labels)))


@needs_faiss
def test_what_is_behind_the_shortlist_stays_as_it_was():
    rows, structure, labels = labelled()
    short = values(evaluate_adaptive_retrieval(rows, structure, labels, shortlist=4))
    plain = values(evaluate_retrieval(rows, labels))
    # Who are the first four and the first eight is as before, which is first is not.
    assert torch.equal(short[2:4], plain[2:4])
    assert short[0] != plain[0]
    one = evaluate_adaptive_retrieval(rows, structure, labels, shortlist=1)
    torch.testing.assert_close(values(one), plain)
    for all_of_them in (59, 100):
        listed = evaluate_adaptive_retrieval(rows, structure, labels, shortlist=all_of_them)
        assert listed == evaluate_adaptive_retrieval(rows, structure, labels)


def test_without_a_query_that_has_a_partner_the_metrics_are_undefined():
    rows, structure, _ = labelled()
    metrics = evaluate_adaptive_retrieval(rows, structure, torch.arange(60))
    assert metrics.num_queries == 0
    assert values(metrics).isnan().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"query_labels": torch.arange(59)}, "query_labels: expected shape"),
        ({"structure": -torch.ones(60, 8)}, "structure: expected weights of at least 0"),
        (
            {"reference_labels": torch.arange(60)},
            "reference_labels: expected None",
        ),
        ({"recall_at": (1, 2000)}, "expected at most 1024 neighbours of a query to look at"),
        ({"shortlist": 0}, "shortlist: expected"),
    ],
)
def test_metrics_name_a_mistake(given, message, monkeypatch):
    rows, structure, labels = labelled()
    if "recall_at" in given:
        rows, structure = rows.repeat(40, 1), structure.repeat(40, 1)
        labels = labels.repeat(40)
    right = {"queries": rows, "structure": structure, "query_labels": labels}
    with pytest.raises(ValueError, match=message):
        evaluate_adaptive_retrieval(**{**right, **given})


@each_dtype
def test_the_oracle_weighs_by_the_inverse_variance_within_the_class(dtype):
    rows, _, labels = labelled()
    weights = oracle_structure(rows.to(dtype), labels)
    assert weights.dtype == dtype
    for label in range(9):
        members = labels == label
        inverse = 1 / rows.to(dtype)[members].double().var(0)
        expected = (inverse / inverse.mean()).to(dtype).expand(int(members.sum()), -1)
        torch.testing.assert_close(weights[members], expected)
    assert (weights[-1] == 1).all()


def test_the_oracle_of_equal_rows_weighs_all_dimensions_alike():
    # Three times a tenth is not a tenth of three in float64.
    rows = torch.tensor([0.1, 0.7, 0.3], dtype=torch.float64).expand(3, 3)
    assert torch.equal(oracle_structure(rows, torch.zeros(3).long()), torch.ones_like(rows))


def test_no_ranks_at_all_leave_the_other_metrics():
    rows, labels = torch.randn(6, 2), torch.arange(6) % 2
    metrics = evaluate_adaptive_retrieval(rows, torch.ones_like(rows), labels, recall_at=())
    assert dict(metrics.recall) == {}
    assert metrics.map_at_r == evaluate_retrieval(rows, labels).map_at_r


def test_the_oracle_is_bounded_where_a_dimension_does_not_vary():
    rows = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 3.0], [3.0, 3.0]])
    weights = oracle_structure(rows, torch.tensor([0, 0, 1, 1]))
    # Of the relative variances 2 and 0, which counts as 1e-6.
    first = 2 * torch.tensor([0.5, 1e6]) / (0.5 + 1e6)
    torch.testing.assert_close(weights, torch.stack([first, first, *torch.ones(2, 2)]))
