"""The structure loss beside a base loss, against its formulas in plain float64."""

from __future__ import annotations

import math

import pytest
import torch
from operator_cases import each_backend
from structure_cases import assert_near, doubles, rows, weights
from torch import Tensor, nn

import dmlfast.functional as F
from dmlfast import losses, use_backend
from dmlfast.losses import CrossBatchMemory, MultiClusterLoss
from dmlfast.models import SampleStructureHead

N, D, CLASSES = 12, 6, 4
LABELS = torch.arange(N) % CLASSES


def triplet() -> nn.Module:
    return losses.TripletMarginLoss(0.2, normalize=False)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return rows(N, D, dtype), weights(N, D, dtype)


def structure_loss(e: Tensor, w: Tensor) -> Tensor:
    """As published: two anchor distances, pair by pair."""
    plain = [math.dist(a, b) for a in e.tolist() for b in e.tolist()]
    mean = sum(plain) / len(plain)
    deviation = math.sqrt(sum((p - mean) ** 2 for p in plain) / (len(plain) - 1))
    anchors = (mean, max(0.2 * mean, mean - 3 * deviation))
    total = e.new_zeros(())
    for i in range(len(e)):
        for j in range(len(e)):
            if i != j:
                distance = (w[i] * (e[i] - e[j]).square()).sum().sqrt()
                gaps = torch.stack([(distance - anchor).abs() for anchor in anchors])
                shares = torch.exp(-10 * gaps) / torch.exp(-10 * gaps).sum()
                total = total + (shares * gaps).sum()
    return total / (len(e) * (len(e) - 1))


def triplet_loss(e: Tensor) -> Tensor:
    """The mean of the triplets that are active."""
    values = []
    for a in range(N):
        for p in range(N):
            for n in range(N):
                if a != p and LABELS[a] == LABELS[p] and LABELS[a] != LABELS[n]:
                    values.append(((e[a] - e[p]).norm() - (e[a] - e[n]).norm() + 0.2).relu())
    stacked = torch.stack(values)
    return stacked.sum() / (stacked > 0).sum()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_loss_and_its_gradients_are_those_of_the_formulas(dtype, backend):
    e, w = batch(dtype)
    with use_backend(backend):
        value = MultiClusterLoss(triplet())(e, LABELS, structure=w)
        actual = torch.autograd.grad(value, (e, w))
    double = doubles(e, w)
    expected = triplet_loss(double[0]) + 2 * structure_loss(*double)
    wanted = torch.autograd.grad(expected, double)
    # Sums of a hundred products; the sharpness of 10 turns 1e-7 of a distance into 1e-6.
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5
    assert_near(value, expected, tolerance)
    for gradient, right in zip(actual, wanted, strict=True):
        assert_near(gradient, right, tolerance)


def test_the_total_is_the_weighted_sum_of_the_terms():
    e, w = batch()
    terms = MultiClusterLoss(triplet(), weight=0.3).terms(e, LABELS, structure=w)
    assert min(terms.base, terms.structure) > 0
    torch.testing.assert_close(terms.total, terms.base + 0.3 * terms.structure)


@pytest.mark.parametrize(
    "options",
    [
        {"clusters": 4},
        {"spread": 0.5},
        {"sharpness": 3.0},
        {"floor": 0.95},
        {"include_self": False},
        {"order_weight": 0.7, "order_margin": 0.3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_the_options_are_those_of_the_function(options):
    e, w = batch()
    loss = MultiClusterLoss(triplet(), **options)
    structure = loss.terms(e, LABELS, structure=w).structure
    assert structure == F.multi_cluster_loss(e, w, **options)
    assert structure != MultiClusterLoss(triplet()).terms(e, LABELS, structure=w).structure
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(loss)


def test_the_structure_loss_may_train_the_structure_alone():
    e, w = batch()
    loss = MultiClusterLoss(triplet(), structure_gradient="structure")
    to_e, to_w = torch.autograd.grad(loss(e, LABELS, structure=w), (e, w))
    both = MultiClusterLoss(triplet())
    assert torch.equal(to_e, torch.autograd.grad(triplet()(e, LABELS), e)[0])
    assert torch.equal(to_w, torch.autograd.grad(both(e, LABELS, structure=w), w)[0])
    assert "structure_gradient='structure'" in repr(loss)


@pytest.mark.parametrize(
    "name",
    [
        *("NPairsLoss", "ProxyAnchorLoss", "SoftTripleLoss"),
        *("SubCenterArcFaceLoss", "MultiSimilarityLoss"),
    ],
)
def test_any_loss_is_a_base(name):
    kind = getattr(losses, name)
    sizes = (CLASSES, D) if name.startswith(("Proxy", "Soft", "Sub")) else ()
    base = kind(*sizes).double()
    e, w = batch()
    loss = MultiClusterLoss(base)
    torch.testing.assert_close(loss.terms(e, LABELS, structure=w).base, base(e, LABELS))
    assert [n for n, _ in loss.named_parameters()] == [
        f"base.{n}" for n, _ in base.named_parameters()
    ]


def test_losses_of_pytorch_metric_learning_are_bases():
    theirs = pytest.importorskip("pytorch_metric_learning.losses").TripletMarginLoss(0.2)
    e, w = batch(torch.float32)
    terms = MultiClusterLoss(theirs).terms(e, LABELS, structure=w)
    torch.testing.assert_close(terms.base, losses.TripletMarginLoss(0.2)(e, LABELS))


def test_a_memory_is_a_base():
    e, w = batch(torch.float32)
    memory, same = (CrossBatchMemory(triplet(), D, 2 * N) for _ in range(2))
    loss = MultiClusterLoss(memory)
    for shift in range(3):
        terms = loss.terms(e + shift, LABELS, structure=w)
        assert terms.base == same(e + shift, LABELS)


def test_a_memory_refuses_the_sum():
    with pytest.raises(TypeError, match="loss: expected a loss module of dmlfast whose call takes"):
        CrossBatchMemory(MultiClusterLoss(triplet()), D)


def test_a_tuple_and_references_are_for_the_base_loss():
    (e, w), references = batch(), rows(9, D, torch.float64, seed=1)
    others = torch.arange(9) % CLASSES
    base = triplet()
    loss = MultiClusterLoss(base)
    terms = loss.terms(e, LABELS, None, references, others, structure=w)
    assert terms.base == base(e, LABELS, None, references, others)
    indices = (torch.tensor([0]), torch.tensor([4]), torch.tensor([2]))
    listed = loss.terms(e, LABELS, indices, structure=w)
    assert listed.base == base(e, LABELS, indices)
    assert listed.structure == terms.structure == loss.terms(e, LABELS, structure=w).structure


@pytest.mark.parametrize("size", [0, 1])
def test_without_pairs_the_loss_is_0_and_attached(size):
    e, w = rows(size, D), weights(size, D)
    value = MultiClusterLoss(triplet())(e, LABELS[:size], structure=w)
    assert value == 0
    assert not any(g.any() for g in torch.autograd.grad(value, (e, w)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_embeddings_have_a_float32_loss(dtype):
    value = MultiClusterLoss(triplet())(*batch(dtype)[:1], LABELS, structure=batch(dtype)[1])
    assert value.dtype == torch.float32
    assert value > 0


def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    head, loss = SampleStructureHead(9, D), MultiClusterLoss(triplet())
    features = torch.randn(N, 9) + 2 * nn.functional.one_hot(LABELS, 9)
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    found = []
    for _ in range(30):
        sample, structure = head(features)
        terms = loss.terms(sample, LABELS, structure=structure)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        found.append(terms)
    assert found[-1].total < 0.7 * found[0].total
    assert found[-1].structure < found[0].structure


def test_the_head_and_the_loss_compile_whole():
    head, loss = SampleStructureHead(9, D), MultiClusterLoss(triplet())
    features = torch.randn(N, 9, generator=torch.Generator().manual_seed(0))

    def step(features: Tensor) -> Tensor:
        sample, structure = head(features)
        return loss(sample, LABELS, structure=structure)

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        head.zero_grad()
        value = function(features)
        value.backward()
        results.append([value, *(parameter.grad for parameter in head.parameters())])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
    torch.compiler.reset()


# --- what it refuses ------------------------------------------------------------------------------

OPTIONS = {
    "weight": (-1.0, ValueError),
    "clusters": (0, ValueError),
    "spread": (-1.0, ValueError),
    "sharpness": (math.inf, ValueError),
    "floor": (1.1, ValueError),
    "include_self": (1, TypeError),
    "order_weight": (-0.1, ValueError),
    "order_margin": (math.nan, ValueError),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_option_is_refused_at_construction(name):
    value, error = OPTIONS[name]
    with pytest.raises(error, match=f"{name}: expected"):
        MultiClusterLoss(triplet(), **{name: value})


def test_what_is_no_loss_module_is_no_base():
    with pytest.raises(TypeError, match="base: expected a loss module, got type"):
        MultiClusterLoss(losses.TripletMarginLoss)


def test_a_base_loss_for_each_anchor_is_refused():
    e, w = batch()
    loss = MultiClusterLoss(losses.NTXentLoss(reduction="none"))
    with pytest.raises(ValueError, match="base: expected a scalar loss, got"):
        loss(e, LABELS, structure=w)


STRUCTURES = {
    "another length": (torch.ones(N, D + 1), ValueError, "structure: expected .12, 6., the shape"),
    "another dtype": (torch.ones(N, D).double(), TypeError, "structure: expected torch.float32 as"),
    "no tensor": (1.0, TypeError, "structure: expected"),
    "another device": (torch.ones(N, D, device="meta"), ValueError, "structure: expected the dev"),
}


@pytest.mark.parametrize("mistake", STRUCTURES)
def test_a_wrong_structure_is_named(mistake):
    structure, error, message = STRUCTURES[mistake]
    with pytest.raises(error, match=message):
        MultiClusterLoss(triplet())(batch(torch.float32)[0], LABELS, structure=structure)
