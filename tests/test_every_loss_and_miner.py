"""What every loss, miner and draw does alike: labels, random numbers, masks, dtypes, exponents."""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from operator_cases import each_backend
from oracle import METRICS, make
from torch import Tensor, nn

import dmlfast.functional as F
from dmlfast import losses, use_backend
from dmlfast.miners import BatchEasyHardMiner, DistanceWeightedMiner, MultiSimilarityMiner

N, D, CLASSES = 24, 6, 4

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "TripletMarginLoss": losses.TripletMarginLoss,
    "EPS": partial(losses.TripletMarginLoss, positives="nearest", negatives="semihard"),
    "MarginLoss": losses.MarginLoss,
    "ContrastiveLoss": losses.ContrastiveLoss,
    "MultiSimilarityLoss": losses.MultiSimilarityLoss,
    "mined MultiSimilarityLoss": partial(losses.MultiSimilarityLoss, epsilon=0.1),
    "NTXentLoss": losses.NTXentLoss,
    "SupConLoss": losses.SupConLoss,
    "NCALoss": losses.NCALoss,
    "NPairsLoss": losses.NPairsLoss,
}
PROXY_LOSSES: dict[str, Callable[..., nn.Module]] = {
    name: partial(getattr(losses, name), CLASSES, D)
    for name in ("ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "SubCenterArcFaceLoss")
}
DRAWN = {
    name: partial(getattr(losses, name), positives="nearest", negatives="distance_weighted")
    for name in ("TripletMarginLoss", "MarginLoss")
}
MINERS: dict[str, Callable[..., nn.Module]] = {
    "easy positives": BatchEasyHardMiner,
    "hard pairs": partial(BatchEasyHardMiner, "hard", "hard"),
    "semi-hard positives": partial(BatchEasyHardMiner, "semihard", "easy"),
    "all pairs": partial(BatchEasyHardMiner, "all", "all"),
    "multi-similarity": MultiSimilarityMiner,
    "distance-weighted": DistanceWeightedMiner,
}
each_miner = pytest.mark.parametrize("miner", MINERS)


def batch(kind: str = "random", seed: int = 0, **options: object) -> tuple[Tensor, Tensor]:
    return make(kind, N, D, CLASSES, seed=seed, **options)


def mine(miner: nn.Module, *given: Tensor) -> list[list[int]]:
    """What a miner picks, the same on every call."""
    seed = {}
    if isinstance(miner, DistanceWeightedMiner):
        seed = {"generator": torch.Generator().manual_seed(0)}
    return [index.tolist() for index in miner(*given, **seed)]


# --- options --------------------------------------------------------------------------------------

MADE = {
    **{
        name: getattr(losses, name)
        for name in losses.__all__
        if not issubclass(getattr(losses, name), tuple)
    },
    "MultiClusterLoss": partial(losses.MultiClusterLoss, nn.Identity()),
    "CrossBatchMemory": partial(losses.CrossBatchMemory, losses.NCALoss(), D),
    "SyntheticRankingLoss": partial(losses.SyntheticRankingLoss, CLASSES, D),
    "SelfSupervisedSynthesisRankingLoss": partial(losses.SelfSupervisedSynthesisRankingLoss, D),
    **PROXY_LOSSES,
}
# What no option of a kind may be.
REFUSED: dict[type, tuple[tuple[object, type[Exception]], ...]] = {
    float: ((math.nan, ValueError), ("1", TypeError), (True, TypeError)),
    int: ((0, ValueError), (1.5, TypeError), ("1", TypeError)),
    bool: ((1, TypeError), (None, TypeError)),
    str: (("none such", ValueError), (None, ValueError)),
}


@pytest.mark.parametrize("name", MADE)
def test_an_option_of_a_wrong_value_or_type_is_refused(name):
    for option, parameter in inspect.signature(MADE[name]).parameters.items():
        for value, error in REFUSED.get(type(parameter.default), ()):
            with pytest.raises(error, match=rf"^{option}: expected "):
                MADE[name](**{option: value})


# --- labels ---------------------------------------------------------------------------------------

# Neither float32 nor float64 tells these classes apart.
OFFSETS = [2**24, 2**53, -(2**62)]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("offset", OFFSETS)
@each_backend
def test_a_loss_compares_labels_as_int64(name, offset, backend):
    x, labels = batch()
    references, others = batch(seed=1)
    loss = LOSSES[name]()
    with use_backend(backend):
        expected = loss(x, labels)
        assert expected > 0
        assert torch.equal(loss(x, labels + offset), expected)
        if name != "NPairsLoss":
            given = {"ref_emb": references, "ref_labels": others + offset}
            expected = loss(x, labels, ref_emb=references, ref_labels=others)
            assert torch.equal(loss(x, labels + offset, **given), expected)


@each_miner
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_miner_compares_labels_as_int64(miner, offset):
    x, labels = batch()
    references, others = batch(seed=1)
    picked = mine(MINERS[miner](), x, labels)
    assert min(map(len, picked)) > 5
    assert mine(MINERS[miner](), x, labels + offset) == picked
    picked = mine(MINERS[miner](), x, labels, references, others)
    assert mine(MINERS[miner](), x, labels + offset, references, others + offset) == picked


# --- random numbers -------------------------------------------------------------------------------


def global_states() -> tuple[object, ...]:
    kind, keys, *place = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), place, torch.get_rng_state().tolist()


@pytest.mark.parametrize("name", {**LOSSES, **PROXY_LOSSES})
def test_a_loss_draws_from_no_global_generator(name):
    loss = {**LOSSES, **PROXY_LOSSES}[name]()
    x, labels = batch()
    before = global_states()
    loss(x.requires_grad_(), labels).backward()
    assert global_states() == before


@pytest.mark.parametrize("name", DRAWN)
def test_a_loss_that_draws_takes_its_own_generator_alone(name):
    loss = DRAWN[name](generator=torch.Generator().manual_seed(0))
    before = global_states()
    loss(*batch())
    assert global_states() == before


@each_miner
def test_a_miner_draws_from_no_global_generator(miner):
    before = global_states()
    mine(MINERS[miner](), *batch())
    assert global_states() == before


# --- masks ----------------------------------------------------------------------------------------


@each_miner
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["zero", "equal", "negative", "huge"])
def test_pairs_have_the_right_classes_whatever_the_distances(miner, metric, kind):
    # A selection among distances times a mask takes the zeros of the mask for distances, and
    # among distances plus a constant takes what is beyond the constant.
    x, labels = batch()
    x = {"zero": 0 * x, "equal": 0 * x + 1, "negative": x.abs() + 3, "huge": 1e6 * x}[kind]
    options = {}
    if miner != "distance-weighted":
        options = {"metric": metric, "normalize": False}
    lists = mine(MINERS[miner](**options), x, labels)
    picked = [torch.tensor(index, dtype=torch.int64) for index in lists]
    a, p, n = picked[0], picked[1], picked[-1]
    other_a = picked[2] if len(picked) == 4 else a
    if kind == "negative":
        assert min(len(a), len(n)) > 0
    assert (labels[p] == labels[a]).all()
    assert (p != a).all()
    assert (labels[n] != labels[other_a]).all()


# --- dtypes ---------------------------------------------------------------------------------------


@each_miner
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_backend
def test_autocast_changes_nothing_that_a_miner_picks(miner, dtype, backend):
    x, labels = batch(dtype=dtype)
    with use_backend(backend):
        expected = mine(MINERS[miner](), x, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert mine(MINERS[miner](), x, labels) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@each_backend
def test_autocast_changes_no_draw_and_no_neighbor(dtype, backend):
    x, labels = batch(dtype=dtype)
    functions = (
        lambda: F.sample_negative(x, labels, generator=torch.Generator().manual_seed(0)),
        lambda: F.nearest_neighbors(x, k=5),
    )
    for function in functions:
        with use_backend(backend):
            expected = function()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                actual = function()
        assert torch.equal(actual.index, expected.index)
        assert torch.equal(actual.distance, expected.distance)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "NPairsLoss"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_cross_batch_memory_of_16_bit_embeddings_is_the_same_under_autocast(name, dtype):
    values = []
    for enabled in (False, True):
        memory = losses.CrossBatchMemory(LOSSES[name](), D, 40)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append([memory(*batch(seed=seed, dtype=dtype)).item() for seed in range(3)])
    assert values[0] == values[1]
    assert min(values[0]) > 0


# --- exponents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "NTXentLoss", "SupConLoss", "NCALoss"])
@pytest.mark.parametrize("listed", [False, True])
def test_exponents_beyond_the_range_of_float32_give_finite_losses(name, listed):
    # Differences of 1e3 and more, divided by temperatures of less than 1.
    x, labels = batch()
    x = (30 * x).requires_grad_()
    indices = BatchEasyHardMiner("all", "all")(x, labels) if listed else None
    loss = getattr(losses, name)(metric="dot", normalize=False)(x, labels, indices)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss > 100
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PROXY_LOSSES)
def test_exponents_of_proxies_beyond_the_range_of_float32_give_finite_losses(name):
    x, labels = batch()
    x = (1e3 * x).requires_grad_()
    torch.manual_seed(0)
    # Cosines are what they are: there the factor is large.
    cosines = name == "SubCenterArcFaceLoss"
    options = {"scale": 1e4} if cosines else {"metric": "dot", "normalize": False}
    loss = PROXY_LOSSES[name](**options)
    value = loss(x, labels)
    gradients = torch.autograd.grad(value, (x, *loss.parameters()))
    assert value > 100
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_n_pairs_of_large_products_is_finite():
    x, labels = batch()
    x = (100 * x).requires_grad_()
    loss = losses.NPairsLoss(normalize=False)(x, labels)
    assert loss.isfinite()
    assert torch.autograd.grad(loss, x)[0].isfinite().all()
