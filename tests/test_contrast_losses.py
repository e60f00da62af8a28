"""The contrast losses against their formulas, anchor by anchor, on CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product

import oracle
import pytest
import torch
from operator_cases import compile_whole, each_backend, each_metric
from oracle import POSITIVES, make
from torch import Tensor

import dmlfast.functional as F
from dmlfast import use_backend

each_positives = pytest.mark.parametrize("positives", POSITIVES)

N = 19


class Problem:
    """19 anchors and, where asked for, 27 references of which 19 are the anchors."""

    def __init__(self, references: bool = False, dtype: torch.dtype = torch.float32) -> None:
        points, classes = make("random", 27, 4, 4, dtype=dtype)
        rows = torch.randperm(27, generator=torch.Generator().manual_seed(2))[:N]
        self.x, self.labels = points[rows].clone().requires_grad_(), classes[rows].clone()
        self.leaves, self.given = [self.x], {}
        if references:
            own = torch.where(torch.arange(N) % 5 == 0, -1, rows)
            self.leaves.append(points.requires_grad_())
            self.given = {"references": points, "reference_labels": classes, "self_index": own}

    def partners(self, positives: str, distance: Tensor) -> list[tuple[list[int], list[int]]]:
        found = oracle.partners(
            self.labels, self.given.get("reference_labels"), self.given.get("self_index")
        )
        if positives == "all":
            return found
        best = min if positives == "nearest" else max
        return [
            ([best(p, key=lambda j, i=i: distance[i, j].item())] if p else [], n)
            for i, (p, n) in enumerate(found)
        ]


# The formulas: each from the distances to positives p and to negatives n of one anchor.


def multi_similarity(p: Tensor, n: Tensor, metric: str, alpha=2.0, beta=3.0, base=0.4):
    turn = {"cosine": 1 - base, "dot": -base}.get(metric, base)
    pull = (1 + (alpha * (p - turn)).exp().sum()).log() / alpha
    return pull + (1 + (beta * (turn - n)).exp().sum()).log() / beta


def info_nce(p: Tensor, n: Tensor, metric: str, temperature=0.7):
    far = (-n / temperature).exp().sum()
    return -torch.log((-p / temperature).exp() / ((-p / temperature).exp() + far)).sum()


def supcon(p: Tensor, n: Tensor, metric: str, temperature=0.7):
    if not len(p):
        return p.sum()
    everyone = (-torch.cat([p, n]) / temperature).logsumexp(0)
    return (p / temperature + everyone).mean()


def nca(p: Tensor, n: Tensor, metric: str, softmax_scale=0.6):
    if not len(p):
        return p.sum()
    near = (-softmax_scale * p).exp().sum()
    return -torch.log(near / (near + (-softmax_scale * n).exp().sum()))


def contrastive(p: Tensor, n: Tensor, metric: str, pos_margin=0.5, neg_margin=1.5):
    return torch.relu(p - pos_margin).sum() + torch.relu(neg_margin - n).sum()


def margin(p: Tensor, n: Tensor, metric: str, boundary=1.1, width=0.3):
    pull, push = torch.relu(p - boundary + width), torch.relu(boundary - n + width)
    return pull.sum() * len(n) + push.sum() * len(p)


LOSSES = {
    "multi-similarity": (
        multi_similarity,
        F.multi_similarity_loss,
        {"alpha": 2.0, "beta": 3.0, "base": 0.4},
    ),
    "InfoNCE": (info_nce, F.info_nce_loss, {"temperature": 0.7}),
    "SupCon": (supcon, F.supcon_loss, {"temperature": 0.7}),
    "NCA": (nca, F.nca_loss, {"softmax_scale": 0.6}),
    "contrastive": (contrastive, F.contrastive_loss, {"pos_margin": 0.5, "neg_margin": 1.5}),
    "margin": (margin, F.margin_loss, {"boundary": 1.1, "margin": 0.3}),
}
each_loss = pytest.mark.parametrize("loss", LOSSES)


def expected_rows(problem: Problem, loss: str, metric: str, positives: str) -> tuple[Tensor, list]:
    """(N,) losses of the anchors by the formula in float64, and their leaves."""
    leaves = [leaf.detach().double().requires_grad_() for leaf in problem.leaves]
    distance = oracle.distance_matrix(leaves[0], leaves[-1], metric)
    formula = LOSSES[loss][0]
    rows = [
        formula(distance[i, p], distance[i, n], metric)
        for i, (p, n) in enumerate(problem.partners(positives, distance))
    ]
    return torch.stack(rows), leaves


def rows_of(result: Tensor | F.AnchorSums | F.ContrastSums) -> Tensor:
    """The losses of the anchors, whatever reduction="none" gives."""
    if isinstance(result, F.AnchorSums):
        return result.loss
    return result.positive + result.negative if isinstance(result, F.ContrastSums) else result


# --- the formulas ---------------------------------------------------------------------------------


@each_loss
@each_metric
@each_positives
@each_backend
@pytest.mark.parametrize("references", [False, True])
def test_value_and_gradient_are_those_of_the_formula(loss, metric, positives, backend, references):
    problem = Problem(references)
    expected, leaves = expected_rows(problem, loss, metric, positives)
    _, function, options = LOSSES[loss]
    with use_backend(backend):
        actual = rows_of(
            function(
                problem.x,
                problem.labels,
                **problem.given,
                metric=metric,
                positives=positives,
                reduction="none",
                **options,
            )
        )
        # Errors of 1e-6 in up to 26 distances, of size up to 30 and times up to 3.
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)
        up = torch.linspace(0.5, 1.5, N)
        gradients = torch.autograd.grad((actual * up).sum(), problem.leaves)
    right = torch.autograd.grad((expected * up).sum(), leaves)
    for a, e in zip(gradients, right, strict=True):
        assert oracle.relative_error(a, e) < 1e-4


@each_loss
@each_positives
def test_gradcheck(loss, positives):
    problem = Problem(references=True, dtype=torch.float64)
    _, function, options = LOSSES[loss]

    def mean(x: Tensor, references: Tensor) -> Tensor:
        given = {**problem.given, "references": references}
        return function(x, problem.labels, **given, positives=positives, **options)

    assert torch.autograd.gradcheck(mean, tuple(problem.leaves), atol=1e-6)


# --- reductions -----------------------------------------------------------------------------------

# What "mean" divides by, given the losses of one anchor's terms by the formula.
ACTIVE = {
    "multi-similarity": lambda p, n: 1,
    "InfoNCE": lambda p, n: len(p),
    "SupCon": lambda p, n: int(len(p) > 0),
    "NCA": lambda p, n: int(len(p) > 0),
    "margin": lambda p, n: (
        int((p - 1.1 + 0.3 > 0).sum()) * len(n) + int((1.1 - n + 0.3 > 0).sum()) * len(p)
    ),
}


@pytest.mark.parametrize("loss", ACTIVE)
@each_positives
@each_backend
def test_mean_divides_by_the_documented_number_and_sum_does_not(loss, positives, backend):
    problem = Problem()
    problem.labels[3] = 99  # alone in its class
    _, function, options = LOSSES[loss]
    options = {**options, "metric": "euclidean", "positives": positives}
    expected, _ = expected_rows(problem, loss, "euclidean", positives)
    distance = oracle.distance_matrix(problem.x, problem.x, "euclidean")
    number = sum(
        ACTIVE[loss](distance[i, p], distance[i, n])
        for i, (p, n) in enumerate(problem.partners(positives, distance))
    )
    with use_backend(backend):
        mean, total = (
            function(problem.x, problem.labels, reduction=reduction, **options).item()
            for reduction in ("mean", "sum")
        )
    assert total == pytest.approx(expected.sum().item(), rel=1e-5)
    assert mean == pytest.approx(expected.sum().item() / number, rel=1e-5)


@each_backend
def test_contrastive_averages_active_positives_and_active_negatives_apart(backend):
    x = torch.tensor([[0.0], [2.0], [2.5], [9.0]])
    with use_backend(backend):
        loss = F.contrastive_loss(x, torch.tensor([0, 0, 1, 1]), pos_margin=1.0, neg_margin=1.0)
        rows = F.contrastive_loss(x, torch.tensor([0, 0, 1, 1]), pos_margin=1.0, reduction="none")
    # Positive pairs 2 and 6.5 apart, both ways; one negative pair nearer than 1, both ways.
    assert loss.item() == pytest.approx((1 + 1 + 5.5 + 5.5) / 4 + (0.5 + 0.5) / 2)
    assert rows.positive_count.tolist() == [1, 1, 1, 1]
    assert rows.negative_count.tolist() == [0, 1, 1, 0]


@each_backend
def test_margin_counts_a_term_once_for_each_triplet(backend):
    problem = Problem()
    distance = oracle.distance_matrix(problem.x.double(), problem.x.double(), "euclidean")
    total, active = torch.zeros(N), torch.zeros(N, dtype=torch.int64)
    for i, (positive, negative) in enumerate(problem.partners("all", distance)):
        for p in positive:
            for n in negative:
                terms = distance[i, p] - 1.2 + 0.2, 1.2 - distance[i, n] + 0.2
                total[i] += sum(t.item() for t in terms if t > 0)
                active[i] += sum(t.item() > 0 for t in terms)
    with use_backend(backend):
        rows = F.margin_loss(problem.x, problem.labels, boundary=1.2, reduction="none")
    torch.testing.assert_close(rows.loss.detach(), total, rtol=1e-5, atol=1e-5)
    assert torch.equal(rows.active, active)


# --- anchors without partners ---------------------------------------------------------------------

NO_PAIRS = {
    "no anchors": (torch.empty(0, 3), []),
    "one anchor": (torch.ones(1, 3), [0]),
    "one class": (torch.eye(5), [1] * 5),
    "singleton classes": (torch.eye(5), [0, 1, 2, 3, 4]),
}


@pytest.mark.parametrize("loss", ["InfoNCE", "SupCon", "NCA", "margin"])
@each_positives
@each_backend
@pytest.mark.parametrize("batch", NO_PAIRS)
def test_no_positives_or_no_negatives_give_loss_0_and_gradient_0(loss, positives, backend, batch):
    x, classes = NO_PAIRS[batch]
    x, labels = x.clone().requires_grad_(), torch.tensor(classes, dtype=torch.int64)
    _, function, options = LOSSES[loss]
    for reduction in ("mean", "sum"):
        with use_backend(backend):
            result = function(x, labels, positives=positives, reduction=reduction, **options)
        (gradient,) = torch.autograd.grad(result, x)
        assert result.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("loss", ["multi-similarity", "contrastive"])
@each_positives
@each_backend
@pytest.mark.parametrize("batch", NO_PAIRS)
def test_one_half_remains_without_the_other(loss, positives, backend, batch):
    x, classes = NO_PAIRS[batch]
    x, labels = x.clone().requires_grad_(), torch.tensor(classes, dtype=torch.int64)
    formula, function, options = LOSSES[loss]
    distance = oracle.distance_matrix(x, x, "euclidean")
    expected = torch.zeros(())
    for i, (p, n) in enumerate(oracle.partners(labels)):
        chosen = p if positives == "all" else p[:1]  # all are at the same distance
        expected = expected + formula(distance[i, chosen], distance[i, n], "euclidean")
    with use_backend(backend):
        result = function(
            x, labels, metric="euclidean", positives=positives, reduction="sum", **options
        )
    assert (result > 0) == (len(x) > 1)
    torch.testing.assert_close(result, expected.detach(), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(result, x)[0].isfinite().all()


@each_backend
def test_supcon_of_the_only_partner_is_0_and_not_averaged(backend):
    # Anchors 0 and 1 see nobody but each other among the references that are not their own.
    x = torch.tensor([[1.0, 0.3], [0.2, 1.0], [0.5, 0.5]])
    references, others = torch.tensor([[0.3, 0.7], [1.0, 1.0]]), torch.tensor([0, 1])
    own = torch.tensor([1, 1, -1])
    with use_backend(backend):
        rows, mean = (
            F.supcon_loss(
                x, torch.tensor([0, 0, 0]), references, others, self_index=own, reduction=reduction
            )
            for reduction in ("none", "mean")
        )
    assert rows[:2].tolist() == [0.0, 0.0]
    assert mean == rows[2] > 0


# --- multi-similarity mining ----------------------------------------------------------------------


@each_metric
@each_backend
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_epsilon_keeps_the_pairs_of_the_mining_rule(metric, backend, references, epsilon):
    problem = Problem(references)
    problem.labels[3] = 99  # no positive: it keeps no negative
    leaves = [leaf.detach().double().requires_grad_() for leaf in problem.leaves]
    distance = oracle.distance_matrix(leaves[0], leaves[-1], metric)
    rows, kept = [], 0
    for i, (p, n) in enumerate(problem.partners("all", distance)):
        d = distance[i].tolist()
        positive = [j for j in p if n and d[j] > min(d[k] for k in n) - epsilon]
        negative = [j for j in n if p and d[j] < max(d[k] for k in p) + epsilon]
        kept += len(positive) + len(negative)
        rows.append(multi_similarity(distance[i, positive], distance[i, negative], metric))
    assert 0 < kept < N * (distance.shape[1] - 1)
    with use_backend(backend):
        options = {**LOSSES["multi-similarity"][2], "metric": metric, "epsilon": epsilon}
        loss = F.multi_similarity_loss(problem.x, problem.labels, **problem.given, **options)
        gradients = torch.autograd.grad(loss, problem.leaves)
    expected = torch.stack(rows).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for a, e in zip(gradients, torch.autograd.grad(expected, leaves), strict=True):
        assert oracle.relative_error(a, e) < 1e-4


@each_backend
def test_epsilon_with_the_nearest_positive_keeps_negatives_by_it(backend):
    x = torch.tensor([[0.0], [1.0], [3.0], [1.3], [2.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    options = {"alpha": 1.0, "beta": 1.0, "base": 0.0, "metric": "euclidean"}
    with use_backend(backend):
        rows = F.multi_similarity_loss(
            x, labels, epsilon=0.5, positives="nearest", reduction="none", **options
        )
    # Of anchor 0 the nearest positive is at 1: the negative at 1.3 is kept, that at 2 is not.
    expected = math.log(1 + math.exp(1.0)) + math.log(1 + math.exp(-1.3))
    assert rows[0].item() == pytest.approx(expected, rel=1e-6)


# --- margin ---------------------------------------------------------------------------------------


# A semi-hard negative is one of a single positive.
@pytest.mark.parametrize(
    ("positives", "negatives"),
    [pair for pair in product(POSITIVES, oracle.NEGATIVES) if pair != ("all", "semihard")],
)
@each_backend
@pytest.mark.parametrize("per_anchor", [False, True])
def test_margin_takes_a_boundary_to_which_gradients_flow(positives, negatives, backend, per_anchor):
    problem = Problem()
    start = torch.linspace(0.8, 1.4, N) if per_anchor else torch.tensor(1.1)
    boundary = start.clone().requires_grad_()
    exact = start.double().requires_grad_()
    distance = oracle.distance_matrix(problem.x.double(), problem.x.double(), "euclidean")
    rows = []
    for i, (p, n) in enumerate(problem.partners(positives, distance)):
        chosen = n
        if negatives == "semihard" and p:
            chosen = [j for j in n if distance[i, j] > distance[i, p[0]]]
        if negatives != "all" and chosen:
            chosen = [min(chosen, key=lambda j, i=i: distance[i, j].item())]
        middle = exact[i] if per_anchor else exact
        rows.append(margin(distance[i, p], distance[i, chosen], "euclidean", middle))
    expected = torch.stack(rows)
    with use_backend(backend):
        result = F.margin_loss(
            problem.x,
            problem.labels,
            boundary=boundary,
            margin=0.3,
            positives=positives,
            negatives=negatives,
            reduction="none",
        )
        (gradient,) = torch.autograd.grad(rows_of(result).sum(), boundary)
    torch.testing.assert_close(rows_of(result).double(), expected, rtol=1e-5, atol=1e-5)
    (right,) = torch.autograd.grad(expected.sum(), exact)
    assert right.norm() > 0
    torch.testing.assert_close(gradient.double(), right, rtol=1e-6, atol=1e-6)


def test_margin_has_no_semihard_negative_of_all_positives():
    message = r"negatives: expected one of \('all', 'hardest'\) with positives="
    with pytest.raises(ValueError, match=message):
        F.margin_loss(*make("random", 6, 3, 2), boundary=1.2, negatives="semihard")


# --- NaN, infinity, large exponents ---------------------------------------------------------------


@each_loss
@each_positives
@each_backend
def test_a_nan_row_gives_loss_nan_and_gradient_nan_to_itself_alone(loss, positives, backend):
    problem = Problem()
    with torch.no_grad():
        problem.x[11, 2] = math.nan
    _, function, options = LOSSES[loss]
    with use_backend(backend):
        result = function(problem.x, problem.labels, positives=positives, **options)
        (gradient,) = torch.autograd.grad(result, problem.x)
    assert result.isnan()
    assert gradient.isnan().any(1).nonzero().tolist() == [[11]]


@each_loss
@each_positives
@each_backend
def test_a_nan_reference_is_no_partner(loss, positives, backend):
    problem = Problem(references=True)
    keep = torch.arange(27) % 3 != 0
    _, function, options = LOSSES[loss]
    points, classes = problem.given["references"], problem.given["reference_labels"]
    with use_backend(backend):
        fewer = function(
            problem.x, problem.labels, points[keep], classes[keep], positives=positives, **options
        )
        holes = torch.where(keep[:, None], points, math.nan)
        same = function(problem.x, problem.labels, holes, classes, positives=positives, **options)
    assert same.item() == pytest.approx(fewer.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["multi-similarity", "InfoNCE", "SupCon", "NCA"])
@each_positives
@each_backend
def test_exponents_beyond_the_range_of_float32_give_finite_losses(loss, positives, backend):
    x, labels = make("random", 20, 4, 3)
    x = (30 * x).requires_grad_()
    with use_backend(backend):
        result = LOSSES[loss][1](x, labels, metric="dot", positives=positives)
        (gradient,) = torch.autograd.grad(result, x)
    assert result.isfinite()
    assert gradient.isfinite().all()


# --- what torch does around it --------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize("positives", ["all", "nearest"])
@each_backend
def test_compiles_whole_forward_and_backward(loss, positives, backend):
    _, function, options = LOSSES[loss]
    call = partial(function, positives=positives, **options)
    results = []
    with use_backend(backend):
        for f in (call, compile_whole(lambda x, labels: call(x, labels))):
            problem = Problem()
            value = f(problem.x, problem.labels)
            results.append((value, torch.autograd.grad(value, problem.x)[0]))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_multi_similarity_mining_compiles_whole():
    problem = Problem(dtype=torch.float64)
    compiled = compile_whole(lambda x, labels: F.multi_similarity_loss(x, labels, epsilon=0.1))
    torch.testing.assert_close(
        compiled(problem.x, problem.labels),
        F.multi_similarity_loss(problem.x, problem.labels, epsilon=0.1),
    )
    torch.compiler.reset()


# --- errors ---------------------------------------------------------------------------------------

X, LABELS = make("random", 6, 3, 2)
ERRORS = {
    "x is 3-D": ({"x": X[None]}, ValueError, r"x: expected a 2-D tensor.*got \(1, 6, 3\)"),
    "labels are float": ({"labels": LABELS.float()}, TypeError, r"labels: expected an integer"),
    "references lack labels": ({"references": X}, ValueError, r"reference_labels: expected"),
    "positives are unknown": ({"positives": "easy"}, ValueError, r"positives: .*got 'easy'"),
    "the metric is unknown": ({"metric": "l2"}, ValueError, r"metric: expected one of.*got 'l2'"),
    "the reduction is unknown": ({"reduction": "avg"}, ValueError, r"reduction: .*got 'avg'"),
}


@each_loss
@pytest.mark.parametrize("mistake", ERRORS)
def test_a_mistake_is_named(loss, mistake):
    arguments, error, message = ERRORS[mistake]
    _, function, options = LOSSES[loss]
    with pytest.raises(error, match=message):
        function(**{"x": X, "labels": LABELS, **options, **arguments})


@pytest.mark.parametrize(
    ("function", "options", "error", "message"),
    [
        (F.multi_similarity_loss, {"alpha": 0}, ValueError, "alpha: expected a finite number gr"),
        (F.multi_similarity_loss, {"beta": "1"}, TypeError, "beta: expected a number, got '1'"),
        (F.multi_similarity_loss, {"epsilon": "1"}, TypeError, "epsilon: expected a number"),
        (F.info_nce_loss, {"temperature": -1.0}, ValueError, "temperature: expected a finite"),
        (F.supcon_loss, {"temperature": math.inf}, ValueError, "temperature: expected a finite"),
        (F.nca_loss, {"softmax_scale": 0.0}, ValueError, "softmax_scale: expected a finite"),
        (F.contrastive_loss, {"pos_margin": None}, TypeError, "pos_margin: expected a number"),
        (F.margin_loss, {"boundary": "1"}, TypeError, "boundary: expected a number"),
        (F.margin_loss, {"boundary": torch.ones(5)}, ValueError, r"boundary: expected shape \(\)"),
        (F.margin_loss, {"boundary": torch.tensor(1)}, TypeError, "boundary: expected a floating"),
        (
            F.margin_loss,
            {"boundary": torch.ones((), device="meta")},
            ValueError,
            "boundary: expected the device of x",
        ),
        (F.margin_loss, {"boundary": 1, "negatives": "hard"}, ValueError, "negatives: .*got 'hard"),
    ],
)
def test_a_wrong_option_is_named(function: Callable, options, error, message):
    with pytest.raises(error, match=message):
        function(X, LABELS, **options)
