"""The k nearest by the CUDA kernels' own source, run on the CPU."""

from __future__ import annotations

import emulation
import labelled_emulation
import pytest
import torch
from emulation import METRICS
from labelled_emulation import within
from selection_emulation import make_case, some_selves

from dmlfast.reference import neighbors_top as reference

pytestmark = emulation.needs_compiler

RULES = ("all", "positives", "negatives")  # in the order of csrc/label_rule.h

# What blocks may have: for slabs that stay, for some in flight, and for one at a time.
LARGE, MIDDLE, SMALL = 227 * 1024, 99 * 1024, 48 * 1024

each_metric = pytest.mark.parametrize("metric", METRICS)
each_rule = pytest.mark.parametrize("rule", RULES)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return emulation.build("neighbors_top", tmp_path_factory.getbasetemp())


@pytest.fixture
def find(program, tmp_path):
    """Finds the k nearest, compares them with the reference, and returns how many queries each
    step of a search left undecided."""

    def run(case, k, *, metric="euclidean", rule="all", self_index=None, memory=0, searched_with=0):
        x, labels, y, reference_labels = case
        if rule == "all":
            labels, reference_labels = labels * 0, reference_labels * 0
            case = within(x, labels) if x is y else (x, labels, y, reference_labels)
        expected = reference.top(
            x, labels, y, reference_labels, self_index, k=k, candidates=rule, metric=metric
        )
        options = [RULES.index(rule), k, memory, searched_with]
        content = labelled_emulation.run(program, tmp_path, case, metric, self_index, options)
        undecided, *found = labelled_emulation.read(
            content, torch.zeros(4, dtype=torch.int64), *expected
        )
        labelled_emulation.assert_same(found, expected)
        return tuple(undecided.tolist())

    return run


# --- by comparing every pair ----------------------------------------------------------------------


@each_metric
@each_rule
# Of one row, and around the tiles of 64 rows; more neighbors than references.
@pytest.mark.parametrize(("shape", "k"), [((1, 1, 1, 1), 3), ((63, 130, 35, 2), 31)])
def test_all_pairs_are_compared(find, metric, rule, shape, k):
    find(make_case(*shape), k, metric=metric, rule=rule, self_index=some_selves(*shape[:2]))


# So many that a row's array is cut: while it is walked over, more than once, and when parts are
# joined; and as many as there are at most, of fewer references.
@pytest.mark.parametrize(
    ("shape", "k"), [((2, 720, 5, 1), 33), ((66, 330, 4, 1), 100), ((2, 70, 3, 2), 1024)]
)
def test_any_number_of_neighbors_is_kept(find, shape, k):
    find(make_case(*shape), k)


@each_rule
@pytest.mark.parametrize("k", [1, 2, 32, 33])
def test_float64_is_compared_and_returned(find, rule, k):
    find(make_case(65, 64, 17, 3, torch.float64), k, rule=rule)


def tied(anchors, references):
    """Few different rows, spread over tiles and parts."""
    generator = torch.Generator().manual_seed(0)
    _, labels, _, reference_labels = make_case(anchors, references, 1, 1)
    x, y = (
        torch.randint(0, 3, (rows, 2), generator=generator).float()
        for rows in (anchors, references)
    )
    return x, labels, y, reference_labels


@each_rule
@pytest.mark.parametrize("k", [1, 40])
def test_ties_go_to_the_lowest_index(find, rule, k):
    find(tied(20, 300), k, rule=rule)


@each_rule
@pytest.mark.parametrize("k", [2, 33])
def test_queries_are_served_some_at_a_time(find, rule, k):
    # Memory for one block of 64 queries, of two.
    find(make_case(66, 70, 6, 4), k, rule=rule, memory=1)


@each_rule
def test_a_batch_is_compared_with_itself_without_self(find, rule):
    x, labels, _, _ = make_case(100, 5, 35, 3)
    find(within(x, labels), 5, rule=rule, self_index=torch.arange(100))


@each_rule
def test_no_references_find_nothing(find, rule):
    find(make_case(3, 0, 4, 2), 2, metric="cosine", rule=rule)


# --- by search ------------------------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize("rule", ["all", "negatives"])
@pytest.mark.parametrize(
    ("shape", "k", "shared"), [((1, 1, 1, 1), 1, LARGE), ((40, 130, 9, 2), 4, SMALL)]
)
def test_a_search_finds_the_same(find, metric, rule, shape, k, shared):
    selves = some_selves(*shape[:2])
    find(make_case(*shape), k, metric=metric, rule=rule, self_index=selves, searched_with=shared)


@pytest.mark.parametrize(("metric", "rule"), [("euclidean", "negatives"), ("cosine", "all")])
def test_a_search_goes_over_several_tiles_and_slabs(find, metric, rule):
    case = make_case(129, 257, 70, 5)
    find(case, 3, metric=metric, rule=rule, searched_with=MIDDLE)


def test_a_search_serves_queries_some_at_a_time(find):
    find(make_case(66, 70, 6, 4), 2, rule="negatives", memory=1, searched_with=LARGE)


@pytest.mark.parametrize(("rule", "k"), [("all", 7), ("negatives", 32)])
def test_ties_go_to_the_lowest_index_by_search(find, rule, k):
    find(tied(20, 300), k, rule=rule, searched_with=LARGE)


def ordinary(rows=150, dtype=torch.float32):
    """Rows without a near tie, duplicate or value that is not finite; six classes."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 16, generator=generator, dtype=dtype)
    return x, torch.arange(rows) % 6


@pytest.fixture
def search(find):
    """Searches a batch for its own neighbors. Returns how many queries were left open at half
    precision by windows and by collected columns, and at split precision."""

    def run(x, labels, k, **options):
        return find(
            within(x, labels), k, self_index=torch.arange(len(x)), searched_with=LARGE, **options
        )

    return run


@pytest.mark.parametrize("rule", ["all", "negatives"])
def test_windows_at_half_precision_decide_ordinary_rows(search, rule):
    undecided = search(*ordinary(), 2, rule=rule)
    assert undecided[0] < 8
    assert undecided[1:] == (0, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_windows_lose_is_collected(search, dtype):
    undecided = search(*ordinary(dtype=dtype), 12)
    assert undecided[0] > 75
    assert undecided[1:] == (0, 0, 0)


@pytest.mark.parametrize("k", [1, 12])
def test_split_precision_decides_two_tight_classes(search, k):
    x, labels = ordinary(200)
    x = torch.where(labels[:, None] % 2 == 0, 1.0, -1.0) + 1e-4 * x
    undecided = search(x, labels % 2, k, rule="negatives")
    assert undecided[:2] == (200, 200)
    # Of more neighbors windows lose some at any precision.
    assert (undecided[2] > 50) == (k > 1)
    assert undecided[3] == 0


def test_equal_rows_are_compared_exactly(search):
    x, labels = ordinary()
    assert search(torch.ones_like(x), labels, 3) == (150, 150, 150, 150)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_of_any_magnitude_are_searched(search, scale):
    x, labels = ordinary()
    assert search(x * scale, labels, 2)[1:] == (0, 0, 0)


def test_one_long_row_leaves_the_others_exact(search):
    x, labels = ordinary(130)
    x[17] *= 1e12
    search(x, labels, 2)


def test_float64_beyond_the_range_of_squares_is_compared_exactly(search):
    x, labels = ordinary(70)
    assert search(x.double() * 1e160, labels, 2) == (0, 0, 0, 70)


def test_anchors_that_are_not_finite_are_compared_exactly(search):
    x, labels = ordinary()
    x[::2, 3] = torch.nan
    assert search(x, labels, 2)[1:] == (0, 0, 75)


@pytest.mark.parametrize("metric", ["euclidean", "dot"])
@pytest.mark.parametrize(("rule", "k"), [("negatives", 6), ("all", 20)])
def test_infinite_references_are_neighbors_where_no_others_are_left(find, metric, rule, k):
    x, _, y, _ = make_case(50, 20, 6, 1)
    y[[2, 5]] = torch.tensor([0, 1, 0, torch.inf, 0, 0])
    y[4] = 1
    labels, reference_labels = torch.zeros(50).long(), torch.arange(20) // 14
    case = x, labels, y, reference_labels
    find(case, k, metric=metric, rule=rule, searched_with=LARGE)
