"""Losses whose negatives are drawn by their distance, as functions and as modules, on CPU."""

from __future__ import annotations

import copy
import math
from functools import partial

import oracle
import pytest
import torch
from operator_cases import each_backend
from oracle import METRICS
from torch import Tensor

import dmlfast.functional as F
from dmlfast import losses, use_backend
from dmlfast.miners import DistanceWeightedMiner

pml_losses = pytest.importorskip("pytorch_metric_learning.losses")

FUNCTIONS = {
    "TripletMarginLoss": partial(F.triplet_margin_loss, margin=0.4),
    "MarginLoss": partial(F.margin_loss, boundary=1.1, margin=0.3),
}
each_loss = pytest.mark.parametrize("name", FUNCTIONS)
each_positives = pytest.mark.parametrize("positives", ["nearest", "farthest"])
DRAWN = {"negatives": "distance_weighted"}
N = 30


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on_sphere(seed: int = 1, rows: int = N) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    x = torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator))
    return x.requires_grad_(), torch.randint(4, (rows,), generator=generator)


def against(rows: int = 40) -> dict[str, Tensor]:
    """References, the first of which are taken for the anchors themselves."""
    references, labels = on_sphere(2, rows)
    own = torch.where(torch.arange(N) % 3 == 0, -1, torch.arange(N))
    return {"references": references, "reference_labels": labels, "self_index": own}


def rows_of(result: Tensor | F.AnchorSums) -> Tensor:
    return result.loss if isinstance(result, F.AnchorSums) else result


def loss_module(name: str, **options: object) -> torch.nn.Module:
    return getattr(losses, name)(**{"positives": "nearest", **DRAWN, **options})


# --- what is drawn --------------------------------------------------------------------------------


@each_loss
@each_positives
@pytest.mark.parametrize("metric", METRICS)
@each_backend
@pytest.mark.parametrize("references", [False, True])
def test_each_anchor_has_its_one_positive_and_one_draw(
    name, positives, metric, backend, references
):
    x, labels = on_sphere()
    given = against() if references else {}
    leaves = (x, given["references"]) if references else (x,)
    select = F.nearest_positive if positives == "nearest" else F.farthest_positive
    with use_backend(backend):
        positive = select(x, labels, **given, metric=metric).index
        negative = F.sample_negative(x, labels, **given, metric=metric, generator=seeded()).index
        actual = rows_of(
            FUNCTIONS[name](
                x,
                labels,
                **given,
                **DRAWN,
                positives=positives,
                metric=metric,
                generator=seeded(),
                reduction="none",
            )
        )
        up = torch.linspace(0.5, 1.5, N)
        gradients = torch.autograd.grad((actual * up).sum(), leaves)
    assert (positive >= 0).all()
    assert (negative >= 0).all()
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    distance = oracle.distance_matrix(exact[0], exact[-1], metric)
    near, far = distance[range(N), positive], distance[range(N), negative]
    if name == "TripletMarginLoss":
        expected = torch.relu(near - far + 0.4)
    else:
        expected = torch.relu(near - 1.1 + 0.3) + torch.relu(1.1 - far + 0.3)
    assert (expected > 0).sum() > 0
    # A few roundings of float32 in distances of at most 4.
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-5)
    right = torch.autograd.grad((expected * up).sum(), exact)
    for a, e in zip(gradients, right, strict=True):
        assert oracle.relative_error(a, e) < 1e-5


@each_loss
@pytest.mark.parametrize("metric", METRICS)
def test_a_module_draws_among_the_rows_that_it_compares(name, metric):
    x, labels = on_sphere()
    boundary = {"boundary": 1.2, "margin": 0.2} if name == "MarginLoss" else {"margin": 0.05}
    options = {"metric": metric, "reduction": "sum", **DRAWN, "positives": "nearest"}
    # Without the scaling all distances but the cosine would be beyond the cutoff of the weights.
    actual = getattr(losses, name)(**options, generator=seeded())(5 * x, labels)
    function = FUNCTIONS[name].func
    expected = function(x, labels, **options, **boundary, generator=seeded())
    assert actual > 0
    # Scaling changes last bits: of float32 distances, and rarely the boundary of a draw.
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@each_loss
@each_positives
def test_is_pytorch_metric_learnings_loss_of_the_drawn_triplets(name, positives):
    x, labels = on_sphere()
    select = F.nearest_positive if positives == "nearest" else F.farthest_positive
    positive = select(x, labels).index
    negative = F.sample_negative(x, labels, generator=seeded()).index
    triplets = torch.arange(N), positive, negative
    actual = loss_module(name, positives=positives, generator=seeded())(x, labels)
    expected = getattr(pml_losses, name)()(x, labels, triplets)
    assert actual > 0
    assert actual.item() == pytest.approx(expected.item(), rel=1e-4)


@each_loss
def test_an_anchor_far_from_all_negatives_keeps_its_positive(name):
    # Two classes at opposite poles: all weights are 0, and the draw is uniform.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    function = FUNCTIONS[name].func
    width = {"boundary": 1.0} if name == "MarginLoss" else {}
    with_margin = partial(function, x, labels, margin=2.0, reduction="none", **width)
    loss = rows_of(with_margin(positives="nearest", **DRAWN, generator=seeded()))
    # Drawn at sqrt(2) or 2 as it may be; left out, the loss would be 0.
    assert (loss > 1.4).all()


@each_loss
def test_anchors_without_a_partner_are_left_out(name):
    x, _ = on_sphere()
    alone = torch.arange(N)
    for labels in (alone, torch.zeros_like(alone)):
        loss = loss_module(name)(x, labels)
        assert loss.item() == 0.0
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))
    mixed = torch.where(alone == 3, 99, alone % 2)
    rows = rows_of(loss_module(name, margin=1.0, reduction="none")(x, mixed))
    assert rows[3] == 0
    assert (rows > 0).sum() > N // 2


@each_loss
@each_backend
def test_a_nan_row_makes_its_own_loss_nan_and_is_never_drawn(name, backend):
    x, labels = on_sphere()
    with torch.no_grad():
        x[3] = math.nan
    with use_backend(backend):
        for seed in range(5):
            rows = rows_of(
                FUNCTIONS[name](
                    x,
                    labels,
                    positives="nearest",
                    **DRAWN,
                    reduction="none",
                    generator=seeded(seed),
                )
            )
            assert rows.isnan().nonzero().tolist() == [[3]]


# --- the generator --------------------------------------------------------------------------------


@each_loss
def test_draws_are_those_of_the_generator_and_differ_from_call_to_call(name):
    x, labels = on_sphere()
    loss = loss_module(name, generator=seeded())
    first, second = (loss(x, labels).item() for _ in range(2))
    again = loss_module(name, generator=seeded())
    assert [again(x, labels).item() for _ in range(2)] == [first, second]
    assert first != second
    # A copy draws on from the state of its own.
    copied = copy.deepcopy(loss)
    assert copied.generator is not loss.generator
    assert copied(x, labels) == loss(x, labels)


@each_loss
def test_without_a_generator_torchs_own_decides(name):
    x, labels = on_sphere()
    loss = loss_module(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, second = loss(x, labels).item(), loss(x, labels).item()
        torch.manual_seed(3)
        assert loss(x, labels).item() == first != second


@each_loss
@pytest.mark.parametrize("negatives", ["all", "hardest", "semihard"])
def test_other_negatives_take_nothing_from_the_generator(name, negatives):
    generator = seeded()
    x, labels = on_sphere()
    loss_module(name, negatives=negatives, generator=generator)(x, labels)
    assert torch.equal(generator.get_state(), seeded().get_state())


@each_loss
def test_compiles_whole(name):
    x, labels = on_sphere()
    loss = loss_module(name)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    results = []
    with torch.random.fork_rng(devices=[]):
        for call in (loss, compiled):
            torch.manual_seed(1)
            value = call(x, labels)
            results.append((value, torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(results[1], results[0])
    torch.compiler.reset()


# --- errors ---------------------------------------------------------------------------------------


@each_loss
def test_draws_for_all_positives_are_refused_with_the_way_to_do_it(name):
    x, labels = on_sphere()
    message = r"negatives: .*positives=\"all\", got 'distance_weighted'.*DistanceWeightedMiner"
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](x, labels, **DRAWN)
    with pytest.raises(ValueError, match=message):
        loss_module(name, positives="all")
    mined = DistanceWeightedMiner()(x, labels)
    assert getattr(losses, name)()(x, labels, indices_tuple=mined) > 0


@each_loss
@pytest.mark.parametrize("negatives", ["all", "semihard", "distance_weighted"])
def test_a_generator_that_is_none_is_named(name, negatives):
    options = {"positives": "nearest", "negatives": negatives, "generator": 3}
    message = r"generator: expected a torch.Generator or None, got int"
    with pytest.raises(TypeError, match=message):
        FUNCTIONS[name](*on_sphere(), **options)
    with pytest.raises(TypeError, match=message):
        getattr(losses, name)(**options)
