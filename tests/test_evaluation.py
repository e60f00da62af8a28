"""Retrieval metrics against worked values and a plain-Python oracle, and the embedding pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmlfast.evaluation import (
    RetrievalMetrics,
    _rows,
    embed,
    evaluate_neighbors,
    evaluate_retrieval,
    retrieval,
)

pytest.importorskip("faiss")

METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
KEYS = ["recall@1", "recall@2", "recall@4", "recall@8", "r_precision", "map@r"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(a: Sequence[float], b: Sequence[float], metric: str) -> float:
    dot = math.fsum(p * q for p, q in zip(a, b, strict=True))
    if metric == "dot":
        return -dot
    if metric == "cosine":
        return 1 - dot / (math.hypot(*a) * math.hypot(*b) or math.inf)
    return math.dist(a, b)


def metrics_of_hits(lists: Sequence[tuple[Sequence[bool], int]], ks: Sequence[int]) -> list[float]:
    """Recall@K for `ks`, R-precision and MAP@R from (hits nearest first, R) per query."""
    lists = [(hits, relevant) for hits, relevant in lists if relevant > 0]
    sums = [0.0] * (len(ks) + 2)
    for hits, relevant in lists:
        for place, k in enumerate(ks):
            sums[place] += any(hits[:k])
        found = 0
        for rank in range(1, relevant + 1):
            if hits[rank - 1]:
                found += 1
                sums[-1] += found / rank / relevant
        sums[-2] += found / relevant
    return [total / len(lists) if lists else math.nan for total in sums]


def oracle(
    queries: Tensor,
    query_labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metric: str = "euclidean",
    ks: Sequence[int] = (1, 2, 4, 8),
) -> list[float]:
    within = references is None
    rows = (queries if references is None else references).tolist()
    labels = (query_labels if reference_labels is None else reference_labels).tolist()
    lists = []
    for i, (query, label) in enumerate(zip(queries.tolist(), query_labels.tolist(), strict=True)):
        candidates = [j for j in range(len(rows)) if not (within and j == i)]
        far = {j: distance(query, rows[j], metric) for j in candidates}
        candidates.sort(key=far.__getitem__)
        hits = [labels[j] == label for j in candidates]
        lists.append((hits, sum(hits)))
    return metrics_of_hits(lists, ks)


def values(metrics: RetrievalMetrics) -> list[float]:
    return list(metrics.as_dict().values())


def from_ranks(hits: Sequence[bool]) -> RetrievalMetrics:
    """One query at the origin of a line; the reference at rank k is at distance k."""
    references = torch.arange(1.0, len(hits) + 1).unsqueeze(1)
    labels = torch.tensor(hits, dtype=torch.int64)
    return evaluate_retrieval(
        torch.zeros(1, 1), torch.ones(1, dtype=torch.int64), references, labels
    )


@pytest.mark.parametrize(
    ("ranks", "r_precision", "map_at_r"),
    [
        ([1], 0.1, 0.1),
        ([10], 0.1, 0.01),
        ([1, 2, 3, 4, 5], 0.5, 0.5),
        ([6, 7, 8, 9, 10], 0.5, (1 / 6 + 2 / 7 + 3 / 8 + 4 / 9 + 5 / 10) / 10),
        (list(range(1, 11)), 1.0, 1.0),
        ([], 0.0, 0.0),
    ],
)
def test_hits_at_given_ranks_of_ten_relevant_give_the_worked_values(
    ranks: list[int], r_precision: float, map_at_r: float
) -> None:
    late = range(11, 21 - len(ranks))  # the rest of the ten, beyond rank R
    got = from_ranks([rank in ranks or rank in late for rank in range(1, 31)])
    assert got.r_precision == pytest.approx(r_precision, abs=1e-12)
    assert got.map_at_r == pytest.approx(map_at_r, abs=1e-12)


@pytest.mark.parametrize(("rank", "expected"), [(1, [1, 1, 1, 1]), (3, [0, 0, 1, 1]), (9, [0] * 4)])
def test_recall_at_k_asks_for_one_hit_among_the_k_nearest(rank: int, expected: list[int]) -> None:
    got = from_ranks([place == rank for place in range(1, 13)])
    assert list(got.recall.values()) == expected


def clustered(seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(90) % 7
    return randn(7, 6, seed=seed)[labels] + 0.7 * randn(90, 6, seed=seed + 1), labels


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["random", "clustered", "separate"])
def test_metrics_equal_the_oracle_within_a_set(metric: str, kind: str) -> None:
    if kind == "random":
        x = randn(80, 5, seed=3)
        labels = torch.randint(0, 12, (80,), generator=torch.Generator().manual_seed(4))
    elif kind == "clustered":
        x, labels = clustered(5)
    else:
        labels = torch.arange(40) % 4
        x = 50 * torch.eye(4)[labels] + randn(40, 4)
    got = evaluate_retrieval(x, labels, metric=metric)
    assert values(got) == pytest.approx(oracle(x, labels, metric=metric), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_equal_the_oracle_between_two_sets(metric: str) -> None:
    x, labels = clustered(8)
    query, gallery = (x[:30], labels[:30]), (x[30:], labels[30:] + 2)  # two classes lack queries
    got = evaluate_retrieval(*query, *gallery, metric=metric)
    assert values(got) == pytest.approx(oracle(*query, *gallery, metric=metric), abs=1e-12)
    assert got.num_queries == int((labels[:30] >= 2).sum())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_order_of_references_is_scored_as_the_definition_says(data: st.DataObject) -> None:
    count, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 9))
    label = st.integers(-1, 1)
    query_labels = data.draw(st.lists(label, min_size=count, max_size=count))
    reference_labels = data.draw(st.lists(label, min_size=size, max_size=size))
    orders = [data.draw(st.permutations(range(size))) for _ in range(count)]
    # Query i is a unit vector, so its score of reference j is column i of row j: any order at all.
    references = torch.zeros(size, count)
    for i, order in enumerate(orders):
        for rank, j in enumerate(order):
            references[j, i] = -rank
    got = evaluate_retrieval(
        torch.eye(count),
        torch.tensor(query_labels),
        references,
        torch.tensor(reference_labels),
        metric="dot",
        recall_at=(1, 3),
    )
    lists = []
    for order, own in zip(orders, query_labels, strict=True):
        hits = [reference_labels[j] == own for j in order]
        lists.append((hits, sum(hits)))
    assert values(got) == pytest.approx(metrics_of_hits(lists, (1, 3)), abs=1e-12, nan_ok=True)


@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16), classes=st.integers(1, 6), metric=st.sampled_from(METRICS))
def test_metrics_do_not_depend_on_the_order_of_rows_or_the_names_of_classes(
    seed: int, classes: int, metric: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 8, generator=generator)
    labels = torch.randint(0, classes, (12,), generator=generator)
    order = torch.randperm(12, generator=generator)
    # A tie would be free to come out either way.
    scores = [[distance(a, b, metric) for b in x.tolist()] for a in x.tolist()]
    assume(all(b - a > 1e-4 for row in map(sorted, scores) for a, b in pairwise(row)))
    got = evaluate_retrieval(x, labels, metric=metric)
    moved = evaluate_retrieval(x[order], -(2**40) * labels[order] - 1, metric=metric)
    assert values(moved) == pytest.approx(values(got), abs=1e-12, nan_ok=True)
    if got.num_queries:
        assert sorted(got.recall.values()) == list(got.recall.values())
        assert 0 <= got.map_at_r <= got.r_precision <= 1


def test_self_is_dropped_by_index_not_by_distance() -> None:
    # Rows 0 and 1 coincide but differ in class: each is the other's nearest neighbour.
    x = torch.tensor([[0.0], [0.0], [5.0], [7.0]])
    got = evaluate_retrieval(x, torch.tensor([0, 1, 0, 1]), recall_at=(1,))
    assert got.recall[1] == 0.0


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
def test_rows_with_more_duplicates_than_neighbours_never_find_themselves(metric: str) -> None:
    # Two piles of 40 equal rows; the only row of a query's class lies in the other pile. Most rows
    # are not among their own 9 nearest, and a self that stayed would count as a hit.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat_interleave(40, dim=0)
    got = evaluate_retrieval(x, torch.arange(80) % 40, metric=metric)
    assert values(got) == [0.0] * 6


def test_duplicates_of_the_same_class_are_hits() -> None:
    got = evaluate_retrieval(torch.ones(40, 3), torch.zeros(40, dtype=torch.int64))
    assert values(got) == [1.0] * 6


@pytest.mark.parametrize("rows", [[5, 0, 3], [5, 7, 3], [7, 1, 2]])
def test_a_row_missing_from_its_own_list_loses_the_last_neighbour(rows: list[int]) -> None:
    kept = _rows.drop_self(torch.tensor([rows]), torch.tensor([7])).tolist()
    assert kept == [[row for row in rows if row != 7][:2]]


def test_the_same_set_given_as_references_keeps_self() -> None:
    x, labels = randn(6, 3), torch.arange(6)
    got = evaluate_retrieval(x, labels, x, labels)
    assert values(got) == [1.0] * 6


def test_a_lone_query_counts_in_no_mean_but_stays_a_reference() -> None:
    x = torch.tensor([[0.0], [1.0], [1.4]])
    got = evaluate_retrieval(x, torch.tensor([0, 9, 0]), recall_at=(1, 2))
    assert got.num_queries == 2
    assert got.recall == {1: 0.0, 2: 1.0}
    assert got.map_at_r == 0.0


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_no_query_left_gives_nan(rows: int) -> None:
    got = evaluate_retrieval(randn(rows, 4), torch.arange(rows))
    assert list(got.as_dict()) == KEYS
    assert all(math.isnan(value) for value in values(got))
    assert got.num_queries == 0


def test_no_reference_gives_nan() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    got = evaluate_retrieval(
        randn(3, 4), torch.zeros(3, dtype=torch.int64), torch.empty(0, 4), empty
    )
    assert math.isnan(got.map_at_r)


@pytest.mark.parametrize(
    ("one", "other"), [(2**24, 2**24 + 1), (2**53, 2**53 + 1), (-1, 1), (-(2**63), 2**63 - 1)]
)
def test_labels_are_compared_as_int64(one: int, other: int) -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [4.5]])
    got = evaluate_retrieval(x, torch.tensor([one, other, one, other]), recall_at=(1,))
    assert values(got) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_dtype_give_the_same_metrics(dtype: torch.dtype) -> None:
    x, labels = clustered(1)
    assert evaluate_retrieval(x, labels.to(dtype)) == evaluate_retrieval(x, labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_float_dtype_are_searched_as_stored(
    dtype: torch.dtype, metric: str
) -> None:
    x, labels = clustered(2)
    got = evaluate_retrieval(x.to(dtype), labels, metric=metric)
    assert got == evaluate_retrieval(x.to(dtype).float(), labels, metric=metric)


def test_a_common_offset_does_not_blur_the_ranking() -> None:
    x, labels = clustered(3)
    x = (x * 64).round() / 64  # so that the offset itself rounds nothing away
    assert evaluate_retrieval(x + 4096, labels) == evaluate_retrieval(x, labels)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_values_whose_squares_leave_float32_are_ranked(scale: float, metric: str) -> None:
    x, labels = clustered(4)
    got = evaluate_retrieval(x * scale, labels, metric=metric)
    assert got == evaluate_retrieval(x, labels, metric=metric)


def test_a_zero_vector_is_at_cosine_distance_one() -> None:
    query, labels = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    references = torch.tensor([[-1.0, 0.1], [0.0, 0.0], [1.0, 1.0]])
    found = [
        evaluate_retrieval(
            query, labels, references, torch.arange(3) - place, metric="cosine", recall_at=(1, 2, 3)
        ).recall
        for place in range(3)
    ]
    assert found == [{1: 0, 2: 0, 3: 1}, {1: 0, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 1}]


def test_strided_input_with_gradient_is_accepted() -> None:
    x, labels = clustered(6)
    strided = x.T.contiguous().T.requires_grad_()
    assert evaluate_retrieval(strided, labels) == evaluate_retrieval(x, labels)


def test_chunks_do_not_change_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clustered(7)
    whole = values(evaluate_retrieval(x, labels))
    for entries in (1, 100, 1000):
        monkeypatch.setattr(_rows, "CHUNK_ENTRIES", entries)
        assert values(evaluate_retrieval(x, labels)) == pytest.approx(whole, abs=1e-12)


def test_k_beyond_the_references_is_clipped() -> None:
    got = evaluate_retrieval(randn(3, 2), torch.zeros(3, dtype=torch.int64), recall_at=(1, 50))
    assert values(got) == [1.0] * 4


def test_no_more_neighbours_are_searched_than_the_metrics_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    searcher = retrieval._searcher

    def spy(queries: Tensor, references: Tensor, metric: str) -> Callable[[Tensor, int], Tensor]:
        search = searcher(queries, references, metric)

        def noted(rows: Tensor, k: int) -> Tensor:
            asked.append(k)
            return search(rows, k)

        return noted

    monkeypatch.setattr(retrieval, "_searcher", spy)
    # 4 rows a class, so 3 relevant ones; within a set the query itself is found too.
    x, labels = randn(400, 4), torch.arange(400) // 4
    evaluate_retrieval(x, labels, recall_at=(1,))
    evaluate_retrieval(x, labels, recall_at=(1, 8))
    evaluate_retrieval(x[:40], labels[:40], x, labels, recall_at=(1,))
    assert asked == [3 + 1, 8 + 1, 4]


def test_inputs_are_left_unchanged() -> None:
    x, labels = clustered(9)
    before = x.clone()
    evaluate_retrieval(x, labels, metric="cosine")
    assert torch.equal(x, before)


def test_as_dict_has_the_keys_in_order_as_python_floats() -> None:
    got = evaluate_retrieval(*clustered(1)).as_dict()
    assert list(got) == KEYS
    assert {type(value) for value in got.values()} == {float}


def test_recall_at_keeps_its_order_and_drops_repetitions() -> None:
    got = evaluate_retrieval(*clustered(1), recall_at=(10, 1, 10))
    assert list(got.as_dict()) == ["recall@10", "recall@1", "r_precision", "map@r"]


X, Y = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
NOT_FINITE = torch.tensor([[0.0, math.nan], [1.0, 2.0], [math.inf, 0.0], [0.0, 0.0]])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.numpy(), Y), {}, TypeError, "queries: expected a torch.Tensor, got ndarray"),
        ((X.long(), Y), {}, TypeError, "queries: expected float16, .* got .*int64"),
        ((X[0], Y), {}, ValueError, r"queries: expected a 2-D tensor .* got \(2,\)"),
        ((X[:, :0], Y), {}, ValueError, r"queries: expected at least 1 dimension, got \(4, 0\)"),
        ((X, [0] * 4), {}, TypeError, "query_labels: expected a torch.Tensor, got list"),
        ((X, Y.float()), {}, TypeError, "query_labels: expected an integer dtype, got .*float32"),
        ((X, Y.bool()), {}, TypeError, "query_labels: expected an integer dtype, got .*bool"),
        ((X, Y[:3]), {}, ValueError, r"query_labels: expected shape \(4,\), got \(3,\)"),
        ((X, Y[:, None]), {}, ValueError, r"query_labels: expected shape .* got \(4, 1\)"),
        ((X, Y, X), {}, ValueError, "reference_labels: expected labels of references, got None"),
        ((X, Y, None, Y), {}, ValueError, "reference_labels: expected None without references"),
        ((X, Y, X[:, :1], Y), {}, ValueError, r"references: expected 2 dimensions, got \(4, 1\)"),
        ((X, Y, X, Y[:2]), {}, ValueError, r"reference_labels: expected shape \(4,\)"),
        ((NOT_FINITE, Y), {}, ValueError, "queries: expected rows that are finite .* got 2 of 4"),
        (
            (X, Y, NOT_FINITE, Y),
            {},
            ValueError,
            "references: expected rows .* got 2 of 4",
        ),
        ((X.double() + 1e300, Y), {}, ValueError, "finite in float32, got 4 of 4"),
        ((X, Y), {"metric": "l2"}, ValueError, "metric: expected one of .* got 'l2'"),
        ((X, Y), {"recall_at": 1}, TypeError, "recall_at: expected a sequence .* got int"),
        ((X, Y), {"recall_at": (1, 0)}, ValueError, r"recall_at\[1\]: expected at least 1, got 0"),
        ((X, Y), {"recall_at": (1.0,)}, TypeError, r"recall_at\[0\]: expected an integer, got 1.0"),
        ((X, Y), {"recall_at": (True,)}, TypeError, r"recall_at\[0\]: expected an integer, got T"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: tuple[Tensor, ...],
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        evaluate_retrieval(*arguments, **options)  # type: ignore[arg-type]


def test_without_faiss_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'dmlfast\[train\]'"):
        evaluate_retrieval(*clustered(1))


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(6, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(images.shape[0])
        result: Tensor = self.norm(self.linear(images.flatten(1)))
        return result


@pytest.mark.parametrize(("rows", "sizes"), [(7, [3, 3, 1]), (6, [3, 3]), (0, [0])])
def test_embed_gives_the_evaluation_output_in_batches(rows: int, sizes: list[int]) -> None:
    model, images = Model(), randn(rows, 2, 3)
    got = embed(model, images, batch_size=3)
    assert model.sizes == sizes
    assert (got.shape, got.dtype, got.requires_grad) == ((rows, 3), torch.float32, False)
    torch.testing.assert_close(got, model.eval()(images).detach())


def test_embed_returns_float32_for_a_double_model() -> None:
    assert embed(Model().double(), randn(2, 6).double()).dtype == torch.float32


def test_embed_restores_the_mode_of_every_submodule() -> None:
    model = Model()
    model.norm.eval()
    embed(model, randn(4, 6))
    assert (model.training, model.linear.training, model.norm.training) == (True, True, False)
    assert int(model.norm.num_batches_tracked or 0) == 0


def test_embed_restores_the_mode_after_an_error() -> None:
    model = Model()
    with pytest.raises(RuntimeError):
        embed(model, randn(4, 5))
    assert model.training


@pytest.mark.parametrize(
    ("model", "images", "batch_size", "error", "message"),
    [
        (Model(), [1.0], 2, TypeError, "images: expected a torch.Tensor, got list"),
        (Model(), torch.tensor(1.0), 2, ValueError, "images: expected shape"),
        (Model(), X, 0, ValueError, "batch_size: expected at least 1, got 0"),
        (Model(), X, 2.0, TypeError, "batch_size: expected an integer, got 2.0"),
        (torch.nn.Flatten(0), X, 2, ValueError, r"model: expected it to return shape \(2, d\)"),
        (torch.nn.Identity(), Y, 2, TypeError, "model: expected it to return a floating dtype"),
    ],
)
def test_embed_names_what_is_wrong(
    model: torch.nn.Module, images: Tensor, batch_size: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        embed(model, images, batch_size=batch_size)


def nearest(rows: Tensor, k: int) -> Tensor:
    far = torch.cdist(rows, rows).fill_diagonal_(math.inf)
    return far.argsort(dim=1)[:, :k]


def test_the_metrics_of_complete_lists_are_those_of_the_search() -> None:
    rows, labels = clustered(0)
    found = evaluate_neighbors(nearest(rows, 20), labels)
    assert found == evaluate_retrieval(rows, labels)
    copies = evaluate_neighbors(nearest(rows, 20)[:9].int(), labels[:9], labels)
    assert copies.num_queries == 9
    # With references a query counts its own row, which these lists lack.
    within = evaluate_neighbors(nearest(rows, 20), labels)
    assert copies.r_precision != within.r_precision


def test_what_a_list_lacks_is_not_found() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    lists = torch.tensor([[1, 2], [-1, -1], [0, -1], [5, 4], [0, 5], [4, -1]])
    assert values(evaluate_neighbors(lists, labels)) == pytest.approx(
        metrics_of_hits(
            [
                ([True, True, False], 3),
                ([False] * 3, 3),
                ([True, False, False], 3),
                ([False] * 3, 3),
                ([False, True], 1),
                ([True, False], 1),
            ],
            (1, 2, 4, 8),
        )
    )


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        (torch.zeros(4, 2), TypeError, "neighbors: expected an integer dtype, got .*float32"),
        (torch.zeros(4, 0, dtype=torch.int64), ValueError, "neighbors: expected shape"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, "query_labels: expected shape .3,."),
        (torch.full((4, 2), 4), ValueError, "neighbors: expected rows from 0 to 3, or -1"),
        (
            torch.full((4, 2), -2),
            ValueError,
            "neighbors: expected rows from 0 to 3, or -1",
        ),
    ],
)
def test_lists_that_are_none_are_refused(lists: Tensor, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        evaluate_neighbors(lists, torch.arange(4))
