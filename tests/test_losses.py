"""TripletMarginLoss: the module around triplet_margin_loss, with pytorch-metric-learning's call."""

from __future__ import annotations

import math
from itertools import product

import oracle
import pytest
import torch
from oracle import NEGATIVES, POSITIVES, make
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor

import dmlfast.functional as F
from dmlfast.losses import TripletMarginLoss


def batch(n: int = 40, kind: str = "random", **options: object) -> tuple[Tensor, Tensor]:
    x, labels = make(kind, n, 6, 5, **options)
    return x.requires_grad_(), labels


def value_and_gradient(loss: Tensor, *leaves: Tensor) -> tuple[float, Tensor]:
    return loss.item(), torch.cat(torch.autograd.grad(loss, leaves))


def assert_equal_losses(actual: tuple[float, Tensor], expected: tuple[float, Tensor]) -> None:
    # pytorch-metric-learning's float32 distances come from an expanded square: an error of 1e-7
    # in it is 3e-4 in the distance of two equal points, and next to nothing in most.
    assert actual[0] > 0
    assert actual[0] == pytest.approx(expected[0], rel=1e-4)
    assert oracle.relative_error(actual[1], expected[1]) < 1e-3


# --- the module and the function ------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "negatives"), list(product(POSITIVES, NEGATIVES)))
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_is_the_function_of_normalised_embeddings(positives, negatives, reduction):
    x, labels = batch()
    options = {
        "positives": positives,
        "negatives": negatives,
        "reduction": reduction,
        "margin": 0.3,
        "metric": "sqeuclidean",
    }
    actual = TripletMarginLoss(**options)(x, labels)
    unit = torch.nn.functional.normalize(x, dim=1)
    expected = F.triplet_margin_loss(unit, labels, **options)
    # Unit vectors may differ in the last bit; a loss sums up to about 200 differences of 1e-7.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


def test_normalize_false_takes_the_embeddings_as_they_are():
    x, labels = batch()
    actual = TripletMarginLoss(normalize=False)(3 * x, labels)
    assert torch.equal(actual, F.triplet_margin_loss(3 * x, labels))
    assert not torch.equal(actual, TripletMarginLoss()(3 * x, labels))


def test_references_are_normalised_and_labelled_too():
    x, labels = batch()
    references, others = make("random", 60, 6, 5, seed=1)
    expected = F.triplet_margin_loss(
        torch.nn.functional.normalize(x, dim=1),
        labels,
        torch.nn.functional.normalize(references, dim=1),
        others,
    )
    actual = TripletMarginLoss()(x, labels, ref_emb=5 * references, ref_labels=others)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_zero_vector_has_a_finite_loss_in_every_dtype(dtype, metric):
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=dtype)
    loss = TripletMarginLoss(metric=metric, margin=1.0)(x, torch.tensor([0, 0, 1, 1]))
    assert loss.isfinite()
    assert loss > 0


# --- pytorch-metric-learning ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "shifted", "duplicated"])
def test_the_defaults_are_pytorch_metric_learnings(kind):
    x, labels = batch(kind=kind, dtype=torch.float64 if kind == "shifted" else torch.float32)
    actual = value_and_gradient(TripletMarginLoss()(x, labels), x)
    assert_equal_losses(actual, value_and_gradient(pml_losses.TripletMarginLoss()(x, labels), x))


def test_references_are_those_of_pytorch_metric_learning():
    x, labels = batch()
    references, others = batch(60, seed=1)
    call = {"ref_emb": references, "ref_labels": others}
    actual = TripletMarginLoss(margin=0.2)(x, labels, **call)
    expected = pml_losses.TripletMarginLoss(margin=0.2)(x, labels, **call)
    assert_equal_losses(
        value_and_gradient(actual, x, references), value_and_gradient(expected, x, references)
    )


STRATEGIES = {
    "nearest": "easy",
    "farthest": "hard",
    "all": "all",
    "semihard": "semihard",
    "hardest": "hard",
}


# Its miner has no semi-hard negatives of all positives.
@pytest.mark.parametrize(
    ("positives", "negatives"),
    [pair for pair in product(POSITIVES, NEGATIVES) if pair != ("all", "semihard")],
)
def test_positives_and_negatives_are_the_strategies_of_its_miner(positives, negatives):
    x, labels = batch()
    miner = pml_miners.BatchEasyHardMiner(STRATEGIES[positives], STRATEGIES[negatives])
    expected = pml_losses.TripletMarginLoss(margin=0.2)(x, labels, miner(x, labels))
    loss = TripletMarginLoss(margin=0.2, positives=positives, negatives=negatives)
    assert_equal_losses(value_and_gradient(loss(x, labels), x), value_and_gradient(expected, x))


@pytest.mark.parametrize(
    "miner",
    [
        pml_miners.TripletMarginMiner(margin=0.5),
        pml_miners.BatchHardMiner(),
        pml_miners.MultiSimilarityMiner(epsilon=0.5),
        pml_miners.PairMarginMiner(pos_margin=0.1, neg_margin=1.2),
    ],
    ids=lambda miner: type(miner).__name__,
)
@pytest.mark.parametrize("with_references", [False, True])
def test_tuples_of_its_miners_mean_what_they_mean_there(miner, with_references):
    x, labels = batch()
    call, leaves = {}, [x]
    if with_references:
        references, others = batch(60, seed=1)
        call, leaves = {"ref_emb": references, "ref_labels": others}, [x, references]
    indices = miner(x, labels, *call.values())
    assert min(map(len, indices)) > 0
    actual = TripletMarginLoss(margin=0.2)(x, labels, indices, **call)
    expected = pml_losses.TripletMarginLoss(margin=0.2)(x, labels, indices, **call)
    assert_equal_losses(value_and_gradient(actual, *leaves), value_and_gradient(expected, *leaves))


# --- indices_tuple --------------------------------------------------------------------------------

TRIPLETS = (torch.tensor([0, 0, 3, 0]), torch.tensor([1, 2, 5, 1]), torch.tensor([7, 7, 8, 7]))


@pytest.mark.parametrize("metric", oracle.METRICS)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_a_tuple_of_3_is_exactly_its_triplets(metric, reduction):
    x, labels = batch()
    loss = TripletMarginLoss(margin=0.4, metric=metric, reduction=reduction, normalize=False)
    distance = oracle.distance_matrix(x.double(), x.double(), metric)
    a, p, n = TRIPLETS
    each = torch.relu(distance[a, p] - distance[a, n] + 0.4)
    expected = {"none": each, "sum": each.sum(), "mean": each.sum() / (each > 0).sum()}[reduction]
    actual = loss(x, labels, TRIPLETS)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(actual.sum(), x)
    (right,) = torch.autograd.grad(expected.sum(), x)
    assert oracle.relative_error(gradient, right) < 1e-5


def test_a_tuple_of_4_combines_the_pairs_of_each_anchor():
    x, labels = batch()
    a1, p = torch.tensor([4, 0, 4, 9]), torch.tensor([1, 2, 3, 3])
    a2, n = torch.tensor([0, 4, 7, 4, 0, 0]), torch.tensor([10, 11, 12, 13, 14, 10])
    loss = TripletMarginLoss(margin=2.0, reduction="none")
    expected = [
        loss(x, labels, tuple(torch.tensor([i]) for i in (a, positive, negative))).item()
        for a, positive in zip(a1.tolist(), p.tolist(), strict=True)
        for b, negative in zip(a2.tolist(), n.tolist(), strict=True)
        if a == b
    ]
    actual = loss(x, labels, (a1, p, a2, n))
    assert len(expected) == 7
    assert sorted(actual.tolist()) == sorted(expected)


@pytest.mark.parametrize("length", [3, 4])
def test_an_empty_tuple_gives_loss_0_and_gradient_0(length):
    x, labels = batch()
    loss = TripletMarginLoss()(x, labels, (torch.empty(0, dtype=torch.int64),) * length)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_a_tuple_may_have_any_integer_dtype(dtype):
    x, labels = batch()
    loss = TripletMarginLoss(margin=1.0)
    narrow = loss(x, labels, tuple(index.to(dtype) for index in TRIPLETS))
    assert torch.equal(narrow, loss(x, labels, TRIPLETS))


@pytest.mark.parametrize("metric", oracle.METRICS)
def test_coinciding_and_zero_rows_of_a_tuple_have_gradient_0(metric):
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = TripletMarginLoss(margin=2.0, metric=metric, normalize=False)
    triplet = tuple(torch.tensor([i]) for i in (0, 1, 2))
    loss(x, torch.tensor([0, 0, 1]), triplet).backward()
    sums = oracle.triplet_sums(x, torch.tensor([0, 0, 1]), metric=metric, margin=2.0)
    weights = sums.weights * torch.tensor([[1.0], [0.0], [0.0]])
    expected, _ = oracle.triplet_gradients(weights, x, None, metric)
    torch.testing.assert_close(x.grad.double(), expected)


def test_a_nan_of_a_tuple_reaches_the_loss():
    x, labels = make("random", 10, 6, 5)
    x[0] = math.nan
    assert TripletMarginLoss()(x, labels, TRIPLETS).isnan()


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (TRIPLETS[:2], TypeError, r"indices_tuple: expected \(anchor, positive, negative\).*of 2"),
        (TRIPLETS[0], TypeError, r"indices_tuple: expected .*got Tensor"),
        ((*TRIPLETS[:2], [1]), TypeError, r"indices_tuple\[2\]: expected an integer tensor.*list"),
        ((*TRIPLETS[:2], torch.ones(4)), TypeError, r"indices_tuple\[2\]: .*got .*float32"),
        ((*TRIPLETS[:2], TRIPLETS[2][:3]), ValueError, r"indices_tuple\[2\]: expected equal len"),
        ((*TRIPLETS[:2], TRIPLETS[2][None]), ValueError, r"indices_tuple\[2\]: expected 1-D"),
        ((*TRIPLETS, TRIPLETS[2][:3]), ValueError, r"indices_tuple\[3\]: expected equal lengths"),
        ((*TRIPLETS[:2], TRIPLETS[2].to("meta")), ValueError, r"indices_tuple\[2\]: .*device"),
    ],
)
def test_a_tuple_that_is_none_is_named(indices, error, message):
    x, labels = batch()
    with pytest.raises(error, match=message):
        TripletMarginLoss()(x, labels, indices)


# --- construction ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keyword", "instead"),
    [
        ("distance", "metric="),
        ("reducer", "reduction="),
        ("triplets_per_anchor", "positives="),
        ("swap", "indices_tuple"),
        ("smooth_loss", "softplus"),
        ("embedding_regularizer", "added to the loss"),
        ("embedding_reg_weight", "added to the loss"),
        ("collect_stats", "reduction='none'"),
    ],
)
def test_a_keyword_of_pytorch_metric_learning_is_refused_with_the_way_to_do_it(keyword, instead):
    with pytest.raises(TypeError, match=rf"takes no keyword '{keyword}'; use .*{instead}"):
        TripletMarginLoss(**{keyword: None})


def test_an_unknown_keyword_is_refused():
    with pytest.raises(TypeError, match="TripletMarginLoss takes no keyword 'marginn'"):
        TripletMarginLoss(marginn=0.1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"margin": "0.1"}, TypeError, "margin: expected a number"),
        ({"positives": "easy"}, ValueError, "positives: expected one of .*got 'easy'"),
        ({"negatives": "hard"}, ValueError, "negatives: expected one of .*got 'hard'"),
        ({"metric": "l2"}, ValueError, "metric: expected one of .*got 'l2'"),
        ({"reduction": "avg"}, ValueError, "reduction: expected one of .*got 'avg'"),
        ({"normalize": "no"}, TypeError, "normalize: expected"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        TripletMarginLoss(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": torch.zeros(39, dtype=torch.int64)}, ValueError, r"labels: expected shape"),
        ({"labels": torch.zeros(40)}, TypeError, r"labels: expected an integer dtype"),
        ({"ref_emb": torch.zeros(3, 6)}, ValueError, r"ref_labels: expected labels of ref_emb"),
        ({"ref_labels": torch.zeros(3)}, ValueError, r"ref_labels: expected None without ref_emb"),
        ({"embeddings": torch.zeros(40, 6).long()}, TypeError, r"expected float16, bfloat16"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    x, labels = batch()
    with pytest.raises(error, match=message):
        TripletMarginLoss()(**{"embeddings": x, "labels": labels, **arguments})


def test_has_no_state():
    loss = TripletMarginLoss()
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


def test_prints_its_parameters():
    assert repr(TripletMarginLoss(0.2, positives="nearest", negatives="semihard")) == (
        "TripletMarginLoss(margin=0.2, positives='nearest', negatives='semihard', "
        "metric='euclidean', normalize=True, reduction='mean')"
    )


@pytest.mark.parametrize("length", [None, 3, 4])
def test_compiles_whole(length):
    x, labels = batch()
    indices = None if length is None else (*TRIPLETS[:2], *(TRIPLETS[0], TRIPLETS[2])[4 - length :])
    loss = TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert_equal_losses(
        value_and_gradient(compiled(x, labels, indices), x),
        value_and_gradient(loss(x, labels, indices), x),
    )
    torch.compiler.reset()
