"""BatchEasyHardMiner: the selections as index tuples, with pytorch-metric-learning's call."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from oracle import METRICS, make
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import miners as pml_miners

import dmlfast.functional as F
from dmlfast.losses import TripletMarginLoss
from dmlfast.miners import BatchEasyHardMiner

STRATEGIES = list(product(["easy", "hard"], ["hard", "semihard"]))
DISTANCES = {
    "euclidean": pml_distances.LpDistance,
    # It normalises whatever it is told, and ours does not depend on it.
    "cosine": lambda normalize_embeddings: pml_distances.CosineSimilarity(),
    "dot": pml_distances.DotProductSimilarity,
}


def rows(indices):
    return list(zip(*(index.tolist() for index in indices), strict=True))


# --- pytorch-metric-learning ----------------------------------------------------------------------


@pytest.mark.parametrize(("positive", "negative"), STRATEGIES)
@pytest.mark.parametrize("metric", list(DISTANCES))
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_references", [False, True])
def test_picks_what_pytorch_metric_learning_picks(
    positive, negative, metric, normalize, with_references
):
    # In float64 the rounding of its distances decides nothing between random points.
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    references = make("random", 90, 6, 9, seed=1, dtype=torch.float64) if with_references else ()
    theirs = pml_miners.BatchEasyHardMiner(
        positive, negative, distance=DISTANCES[metric](normalize_embeddings=normalize)
    )
    ours = BatchEasyHardMiner(positive, negative, metric=metric, normalize=normalize)
    expected = rows(theirs(x, labels, *references))
    assert len(expected) > 20
    assert rows(ours(x, labels, *references)) == expected


def test_the_defaults_are_pytorch_metric_learnings():
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    expected = rows(pml_miners.BatchEasyHardMiner()(x, labels))
    assert rows(BatchEasyHardMiner()(x, labels)) == expected


@pytest.mark.parametrize(("positive", "negative"), STRATEGIES)
def test_the_tuple_serves_its_loss_and_ours(positive, negative):
    x, labels = make("random", 40, 6, 5)
    indices = BatchEasyHardMiner(positive, negative)(x, labels)
    names = {"easy": "nearest", "hard": "farthest"}, {"hard": "hardest", "semihard": "semihard"}
    direct = TripletMarginLoss(positives=names[0][positive], negatives=names[1][negative])
    given = TripletMarginLoss()(x, labels, indices)
    assert given > 0
    torch.testing.assert_close(given, direct(x, labels), rtol=1e-5, atol=1e-6)


# --- contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_rows_are_those_of_the_selections_with_both_partners(metric):
    x, labels = make("tied", 50, 3, 30)
    positive = F.nearest_positive(x, labels, metric=metric)
    negative = F.semihard_negative(x, labels, beyond=positive.distance, metric=metric)
    kept = [i for i in range(50) if positive.index[i] >= 0 and negative.index[i] >= 0]
    assert 0 < len(kept) < 50
    expected = [(i, positive.index[i].item(), i, negative.index[i].item()) for i in kept]
    assert rows(BatchEasyHardMiner(metric=metric, normalize=False)(x, labels)) == expected


def test_anchors_without_a_partner_are_dropped():
    x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    # The last is alone in its class; 2 has no negative beyond its hard positive.
    labels = torch.tensor([0, 0, 1, 2])
    hard = BatchEasyHardMiner("hard", "semihard", normalize=False)
    assert rows(hard(x, labels)) == [(0, 1, 0, 2), (1, 0, 1, 3)]
    assert rows(hard(x[:2], labels[:2])) == []
    assert rows(hard(x[:0], labels[:0])) == []


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_an_anchor_that_is_not_finite_is_dropped(value, normalize):
    x, labels = make("random", 12, 4, 2)
    x[3, 0] = value
    mined = BatchEasyHardMiner("hard", "hard", normalize=normalize)(x, labels)
    assert mined[0].tolist() == [i for i in range(12) if i != 3]


def test_a_reference_is_a_candidate_unless_it_is_the_anchor_by_index():
    x, labels = make("random", 20, 6, 3)
    miner = BatchEasyHardMiner()
    own = torch.arange(20)
    copies = miner(x, labels, x.clone(), labels.clone())
    assert torch.equal(copies[1], copies[0])
    others = miner(x, labels, x.clone(), labels.clone(), self_index=own)
    assert rows(others) == rows(miner(x, labels))
    assert not (others[1] == others[0]).any()
    # Relabelled copies are the nearest negatives.
    for strategy in ("hard", "semihard"):
        copies = BatchEasyHardMiner("easy", strategy, metric="dot", normalize=False)
        relabelled = copies(x, labels, x.clone(), (labels + 1) % 3, self_index=own)
        assert len(relabelled[0]) > 0
        assert not (relabelled[3] == relabelled[0]).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.uint8, torch.int32, torch.int64])
def test_indices_are_int64_without_gradient_in_every_dtype(dtype, label_dtype):
    x, labels = make("random", 20, 6, 3, dtype=dtype)
    indices = BatchEasyHardMiner()(x.requires_grad_(), labels.to(label_dtype))
    exact = BatchEasyHardMiner()(x.double(), labels)
    assert rows(indices) == rows(exact)
    assert all(index.dtype == torch.int64 and not index.requires_grad for index in indices)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pos_strategy": "semihard"}, ValueError, r"pos_strategy: .*'easy', 'hard'.*'semihard'"),
        ({"pos_strategy": "all"}, ValueError, r"pos_strategy: .*'easy', 'hard'.*'all'"),
        ({"neg_strategy": "easy"}, ValueError, r"neg_strategy: .*'hard', 'semihard'.*'easy'"),
        ({"neg_strategy": "all"}, ValueError, r"neg_strategy: .*'hard', 'semihard'.*'all'"),
        ({"metric": "l2"}, ValueError, "metric: expected one of .*got 'l2'"),
        ({"normalize": 1}, TypeError, "normalize: expected True or False"),
        ({"distance": None}, TypeError, "takes no keyword 'distance'; use metric="),
        ({"allowed_pos_range": None}, TypeError, "'allowed_pos_range'; use the distances"),
        ({"allowed_neg_range": None}, TypeError, "'allowed_neg_range'; use the distances"),
        ({"collect_stats": True}, TypeError, "'collect_stats'; use the distances"),
        ({"strategy": "easy"}, TypeError, "BatchEasyHardMiner takes no keyword 'strategy'$"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        BatchEasyHardMiner(**options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": torch.zeros(8, 6).long()}, TypeError, "embeddings: expected float16"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, ValueError, r"labels: expected shape \(8"),
        ({"labels": torch.zeros(8)}, TypeError, "labels: expected an integer dtype"),
        ({"ref_emb": torch.zeros(3, 6)}, ValueError, "ref_labels: expected labels of ref_emb"),
        ({"ref_labels": torch.zeros(8)}, ValueError, "ref_labels: expected None without ref_emb"),
        ({"self_index": torch.arange(8)}, ValueError, "self_index: expected None without ref_emb"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    x, labels = make("random", 8, 6, 3)
    with pytest.raises(error, match=message):
        BatchEasyHardMiner()(**{"embeddings": x, "labels": labels, **arguments})


def test_prints_its_parameters():
    assert repr(BatchEasyHardMiner("hard")) == (
        "BatchEasyHardMiner(pos_strategy='hard', neg_strategy='semihard', metric='euclidean', "
        "normalize=True)"
    )
