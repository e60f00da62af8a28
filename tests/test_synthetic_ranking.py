"""The losses over synthesised samples against their formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from synthetic_ranking_cases import (
    CLASSES,
    D,
    N,
    Transcription,
    batch,
    each_variant,
    gradients,
    module,
    unit,
    with_order,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmlfast import losses, use_backend
from dmlfast.losses import (
    MetricTerm,
    RankingTerm,
    Synthesis,
    SyntheticRankingLoss,
    SyntheticWeights,
)


@each_variant
@pytest.mark.parametrize("seed", [0, 1])
def test_values_and_gradients_are_those_of_the_formulas(variant, seed):
    x, labels = batch(seed)
    loss = module(variant)
    formulas = Transcription(loss, with_order(loss, labels))
    value, expected = loss(x, labels), formulas(x, labels)
    # float64 on both sides; the exponents are at most 32 * 1.2, sums of a hundred terms.
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    actual, wanted = gradients(value, loss, x), gradients(expected, loss, x)
    assert {name for name, g in wanted.items() if g.any()} > {"projector.weight", "directions"}
    for name, gradient in wanted.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-9, atol=1e-11, msg=name)


@each_variant
@pytest.mark.parametrize("backend", ["kernel", "reference"])
def test_float32_is_right_to_its_rounding(variant, backend):
    x, labels = batch(2)
    loss = module(variant).float()
    order = with_order(loss, labels)
    value = None
    small = x.detach().float().requires_grad_()
    with use_backend(backend):
        value = loss(small, labels)
        actual = gradients(value, loss, small)
    # The same numbers, as float64.
    exact, wide = loss.double(), small.detach().double().requires_grad_()
    expected = Transcription(exact, order)(wide, labels)
    # A similarity is off by a few 1e-7, and scale 32 makes that 1e-5 in an exponential.
    torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=1e-6)
    for name, gradient in gradients(expected, exact, wide).items():
        bound = 1e-4 * gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(actual[name].double(), gradient, rtol=0, atol=bound, msg=name)


def test_some_samples_qualify_and_some_do_not():
    # Else the tests above would show nothing about the selection.
    x, labels = batch()
    for variant in ("published", "cosines qualify", "quirks", "no proxies"):
        terms = module(variant).terms(x, labels)
        assert 0.1 < terms.qualifying < 0.9, variant


# --- the parts ------------------------------------------------------------------------------------


def test_the_total_is_the_weighted_sum_of_the_terms():
    x, labels = batch()
    weights = SyntheticWeights(total=0.5, ranking=0.3, metric=0.7)
    terms = module(synthesis=Synthesis(shuffle="none"), weights=weights).terms(x, labels)
    expected = terms.base + 0.5 * (0.3 * terms.ranking + 0.7 * terms.metric)
    torch.testing.assert_close(terms.total, expected)
    assert min(terms.ranking, terms.metric) > 0


def test_the_published_defaults():
    loss = SyntheticRankingLoss(CLASSES, D)
    assert loss.synthesis == Synthesis(
        count=5, radius=1.0, select="raw", threshold=0.05, shuffle="batch", detach=False
    )
    assert loss.ranking == RankingTerm(margin=0.11, scale=32.0, pairs="all")
    assert loss.metric == MetricTerm(margin=0.1, scale=32.0)
    assert loss.weights == SyntheticWeights(total=0.23, ranking=0.9, metric=0.9, classes="sum")
    assert isinstance(loss.base, losses.ProxyAnchorLoss)
    assert (loss.base.margin, loss.base.alpha) == (0.1, 32.0)


def test_the_parameters_have_names_for_an_optimiser():
    shapes = {name: tuple(p.shape) for name, p in SyntheticRankingLoss(4, 6).named_parameters()}
    assert shapes == {
        "directions": (5, 6),
        "projector.weight": (6, 6),
        "projector.bias": (6,),
        "base.proxies": (4, 6),
    }


def test_the_projector_starts_orthogonal():
    loss = SyntheticRankingLoss(4, 6, synthesis=Synthesis(projection_size=9))
    weight = loss.projector.weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(6))
    assert not loss.projector.bias.any()


def test_a_state_dict_resumes_the_loss():
    one, other = module(), module()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(one.state_dict())
    values = []
    for loss in (one, other):
        loss.generator = torch.Generator().manual_seed(3)
        values.append(loss(*batch()))
    assert torch.equal(*values)


@pytest.mark.parametrize("base", ["ProxyNCALoss", "SoftTripleLoss", "MultiSimilarityLoss"])
def test_any_loss_is_a_base(base):
    kind = getattr(losses, base)
    given = kind() if base == "MultiSimilarityLoss" else kind(CLASSES, D)
    x, labels = batch()
    terms = SyntheticRankingLoss(None, D, base=given).double().terms(x, labels)
    torch.testing.assert_close(terms.base, given(x, labels))
    assert terms.qualifying > 0


def test_losses_of_pytorch_metric_learning_are_bases():
    theirs = pytest.importorskip("pytorch_metric_learning.losses").ProxyAnchorLoss(CLASSES, D)
    x, labels = batch(dtype=torch.float32)
    loss = SyntheticRankingLoss(None, D, base=theirs, synthesis=Synthesis(shuffle="none"))
    ours = SyntheticRankingLoss(CLASSES, D, synthesis=Synthesis(shuffle="none"))
    ours.load_state_dict(loss.state_dict())
    torch.testing.assert_close(loss(x, labels), ours(x, labels))


def test_a_tuple_and_references_are_for_the_base_loss():
    x, labels = batch()
    references, others = batch(1)
    base = losses.TripletMarginLoss(0.2)
    for base_on in ("latent", "projected"):
        loss = SyntheticRankingLoss(None, D, base=base, base_on=base_on).double()
        as_seen = partial(seen_projected, loss) if base_on == "projected" else Tensor.clone
        terms = loss.terms(x, labels, None, references, others)
        expected = base(as_seen(x), labels, None, as_seen(references), others)
        torch.testing.assert_close(terms.base, expected)
        indices = tuple(torch.tensor([0, 1]) for _ in range(3))
        assert loss.terms(x, labels, indices).base == base(as_seen(x), labels, indices)


def seen_projected(loss: SyntheticRankingLoss, x: Tensor) -> Tensor:
    return loss.project(nn.functional.normalize(x))


# --- draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", ["batch", "class"])
def test_a_seed_decides_the_draws_and_nothing_else(shuffle):
    x, labels = batch()
    values = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed + 17)
        before = torch.get_rng_state()
        loss = module(synthesis=Synthesis(shuffle=shuffle, select="all"))
        torch.set_rng_state(before)
        loss.generator = torch.Generator().manual_seed(seed)
        values.append([loss(x, labels).item() for _ in range(3)])
        assert torch.equal(torch.get_rng_state(), before)
    assert values[0] == values[1]
    assert len({*values[0], *values[2]}) == 6


def test_a_class_has_one_order_and_classes_have_their_own():
    loss = module(synthesis=Synthesis(shuffle="class", count=8))
    groups = torch.tensor([0, 3, 0, 3, 0])
    order = loss.draw(groups)
    assert torch.equal(order.sort(1).values, torch.arange(8).expand(5, 8))
    assert torch.equal(order[0], order[2])
    assert torch.equal(order[0], order[4])
    assert torch.equal(order[1], order[3])
    assert not torch.equal(order[0], order[1])


def test_without_a_shuffle_the_bank_keeps_its_order():
    loss = module(synthesis=Synthesis(shuffle="none"))
    assert loss.draw(torch.zeros(3, dtype=torch.int64)).tolist() == [0, 1, 2, 3, 4]


def test_the_similarities_of_the_bank_in_its_order():
    loss, x = module(), batch()[0]
    formulas = Transcription(loss, torch.arange(5))
    expected = [
        [formulas.q(r) @ formulas.q(unit(row)) for r in formulas.synthesised(unit(row), 0)]
        for row in x
    ]
    torch.testing.assert_close(
        loss.unit_similarities(x), torch.stack([torch.stack(row) for row in expected])
    )


# --- what may happen to a batch -------------------------------------------------------------------


def finite(value: Tensor, loss: nn.Module, x: Tensor) -> bool:
    found = torch.autograd.grad(value, [x, *loss.parameters()])
    return bool(value.isfinite()) and all(bool(g.isfinite().all()) for g in found)


@each_variant
def test_without_a_qualifying_sample_the_loss_is_the_base_loss(variant):
    loss = module(variant, synthesis=Synthesis(threshold=math.inf))
    x, labels = batch()
    terms = loss.terms(x, labels)
    assert terms.total == terms.base
    assert terms.qualifying == 0
    found = torch.autograd.grad(
        terms.ranking + terms.metric, [loss.directions, loss.projector.weight]
    )
    assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize("variant", ["published", "quirks", "no proxies", "classes draw"])
@pytest.mark.parametrize("labels", ["one class", "all different", "two rows", "one row"])
def test_unusual_classes_are_finite(variant, labels):
    x, _ = batch()
    rows = {"two rows": 2, "one row": 1}.get(labels, CLASSES)
    x = x[:rows].detach().requires_grad_()
    classes = torch.arange(rows) if labels == "all different" else torch.zeros(rows).long()
    loss = module(variant)
    assert finite(loss(x, classes), loss, x)


def test_a_class_of_one_has_no_mean_of_others():
    x, labels = batch()
    loss = module("no proxies, all qualify")
    # All but the only one of its class.
    assert loss.terms(x, labels).qualifying == pytest.approx((N - 1) / N)


@pytest.mark.parametrize("variant", ["published", "no proxies", "quirks"])
def test_zero_and_equal_rows_are_finite(variant):
    _, labels = batch()
    for x in (torch.zeros(N, D), torch.ones(N, D)):
        x = x.double().requires_grad_()
        loss = module(variant, synthesis=Synthesis(select="all"))
        assert finite(loss(x, labels), loss, x)


def test_an_empty_batch_has_the_base_loss():
    loss = module(base=losses.TripletMarginLoss())
    x = torch.zeros(0, D, dtype=torch.float64, requires_grad=True)
    terms = loss.terms(x, torch.zeros(0, dtype=torch.int64))
    assert terms.total == terms.base == 0


def test_one_intensity_has_nothing_to_rank():
    terms = module("one intensity").terms(*batch())
    assert terms.ranking == 0
    assert terms.metric > 0


class AnyLabel(nn.Module):
    """A base loss with proxies that refuses no label."""

    def __init__(self, proxies):
        super().__init__()
        self.proxies = proxies

    def forward(self, embeddings, labels, indices_tuple=None):
        return embeddings.sum()


def test_labels_without_a_proxy_do_not_qualify():
    x, labels = batch()
    loss = module("all qualify")
    loss.base = AnyLabel(loss.base.proxies)
    assert loss.terms(x, labels).qualifying == 1
    assert loss.terms(x, labels + CLASSES).qualifying == 0
    assert loss.terms(x, labels - CLASSES).qualifying == 0
    assert loss.terms(x, torch.full((N,), 2**62)).qualifying == 0


def test_detached_samples_move_nothing_but_the_parameters():
    x, labels = batch()
    loss = module("detached")
    terms = loss.terms(x, labels)
    synthetic = terms.total - terms.base
    found = torch.autograd.grad(synthetic, [x, loss.directions, loss.base.proxies])
    assert not found[0].any()
    assert found[1].any()
    assert found[2].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_embeddings_are_taken_as_stored(dtype):
    x, labels = batch(dtype=dtype)
    loss = module(synthesis=Synthesis(shuffle="none")).float()
    synthetic = [
        loss.terms(given, labels).ranking for given in (x, x.detach().float().requires_grad_())
    ]
    assert torch.equal(*synthetic)


def test_autocast_changes_no_synthetic_term():
    x, labels = batch(dtype=torch.float32)
    loss = module(synthesis=Synthesis(shuffle="none")).float()
    plain = loss.terms(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss.terms(x, labels)
    assert torch.equal(plain.ranking, cast.ranking)
    assert torch.equal(plain.metric, cast.metric)


def test_two_runs_have_the_same_bits(set_threads):
    set_threads(4)
    # Enough numbers for torch to share them among threads, and rows of a proxy in all of them.
    x = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4096) % 4
    results = []
    for _ in range(3):
        torch.manual_seed(0)
        loss = SyntheticRankingLoss(
            4,
            64,
            synthesis=Synthesis(select="all"),
            generator=torch.Generator().manual_seed(0),
        )
        given = x.clone().requires_grad_()
        value = loss(given, labels)
        results.append([value, *torch.autograd.grad(value, [given, *loss.parameters()])])
    for values in zip(*results, strict=True):
        assert all(torch.equal(values[0], other) for other in values[1:])


def test_a_row_that_does_not_qualify_gives_no_gradient_even_if_it_is_nan():
    x, labels = batch()
    x = x.detach().clone()
    x[2] = torch.nan
    loss = module()
    terms = loss.terms(x, labels)
    parameters = [loss.projector.weight]
    gradients = torch.autograd.grad(terms.ranking + terms.metric, parameters)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def test_it_compiles_to_one_graph():
    x, labels = batch(dtype=torch.float32)
    loss = module("classes draw").float()
    values = []
    for compiled in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)  # the draws of a loss without a generator
        value = compiled(x, labels)
        values.append((value, torch.autograd.grad(value, x)[0]))
    torch.testing.assert_close(*values)


class _Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("shuffle", ["batch", "class"])
@pytest.mark.parametrize("base", ["proxies", "means"])
def test_no_tensor_holds_the_synthesised_samples(shuffle, base):
    n, d, count = 64, 128, 5
    torch.manual_seed(0)
    given = None if base == "proxies" else losses.TripletMarginLoss(positives="nearest")
    loss = SyntheticRankingLoss(
        None if given else 4,
        d,
        base=given,
        synthesis=Synthesis(count=count, shuffle=shuffle, projection_size=64, select="all"),
    )
    x = torch.randn(n, d, requires_grad=True)
    with _Largest() as largest:
        loss(x, torch.arange(n) % 4).backward()
    assert largest.elements <= n * d


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": None}, ValueError, "num_classes: expected a number of classes without"),
        ({"num_classes": 4.0}, TypeError, "num_classes: expected an integer, got 4.0"),
        ({"base": nn.Identity()}, ValueError, "num_classes: expected None with base, got 4"),
        ({"base": "triplet"}, TypeError, "base: expected a loss module or None, got str"),
        ({"synthesis": 5}, TypeError, "synthesis: expected Synthesis or None, got int"),
        ({"ranking": MetricTerm()}, TypeError, "ranking: expected RankingTerm or None"),
        ({"base_on": "both"}, ValueError, "base_on: expected one of .*, got 'both'"),
        ({"reference_quirks": 1}, TypeError, "reference_quirks: expected True or False, got 1"),
        ({"generator": 3}, TypeError, "generator: expected a torch.Generator or None, got int"),
        (
            {"base_on": "projected", "synthesis": Synthesis(projection_size=9)},
            ValueError,
            "projection_size: expected 6, .* with base_on='projected', got 9",
        ),
        (
            {"reference_quirks": True, "synthesis": Synthesis(projection_size=9)},
            ValueError,
            "projection_size: expected 6, .* with reference_quirks, got 9",
        ),
        (
            {"num_classes": None, "base": losses.NCALoss(), "reference_quirks": True},
            ValueError,
            "reference_quirks: expected False for a base loss without proxies",
        ),
        (
            {"num_classes": None, "base": losses.ProxyNCALoss(4, 5)},
            ValueError,
            "base: expected proxies of 6 dimensions",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SyntheticRankingLoss(options.pop("num_classes", 4), 6, **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Synthesis, {"count": 0}, "count: expected at least 1, got 0"),
        (Synthesis, {"radius": 0.0}, "radius: expected a finite number greater than 0"),
        (Synthesis, {"select": "near"}, "select: expected one of"),
        (Synthesis, {"shuffle": "row"}, "shuffle: expected one of"),
        (Synthesis, {"threshold": math.nan}, "threshold: expected a number, got nan"),
        (RankingTerm, {"scale": 0.0}, "scale: expected a finite number greater than 0"),
        (RankingTerm, {"margin": math.inf}, "margin: expected a finite number, got inf"),
        (RankingTerm, {"pairs": "some"}, "pairs: expected one of"),
        (MetricTerm, {"scale": -1.0}, "scale: expected a finite number greater than 0"),
        (SyntheticWeights, {"total": -0.1}, "total: expected a finite number of at least 0"),
        (SyntheticWeights, {"classes": "max"}, "classes: expected one of"),
    ],
)
def test_an_option_outside_its_limits_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("x", "labels", "error", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), ValueError, "embeddings: expected a 2-D tensor"),
        (torch.zeros(3, 5), torch.zeros(3).long(), ValueError, "embeddings: expected 6 dimensions"),
        (torch.zeros(3, 6), torch.zeros(2).long(), ValueError, r"labels: expected shape \(3,\)"),
        (torch.zeros(3, 6), torch.zeros(3), TypeError, "labels: expected an integer dtype"),
    ],
)
def test_a_wrong_batch_is_refused(x, labels, error, message):
    with pytest.raises(error, match=message):
        SyntheticRankingLoss(4, 6)(x, labels)


def test_a_base_loss_that_is_not_a_scalar_is_refused():
    loss = SyntheticRankingLoss(None, 6, base=losses.NTXentLoss(reduction="none"))
    with pytest.raises(ValueError, match="base: expected a scalar loss"):
        loss(torch.ones(4, 6), torch.zeros(4).long())
