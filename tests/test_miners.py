"""Miners: index tuples, with pytorch-metric-learning's call."""

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
from dmlfast.miners import BatchEasyHardMiner, DistanceWeightedMiner, MultiSimilarityMiner
from dmlfast.miners import _base as miners_base

SELECTED = list(product(["easy", "hard"], ["hard", "semihard"]))
STRATEGIES = [
    pair
    for pair in product(["hard", "semihard", "easy", "all"], repeat=2)
    if pair not in {("semihard", "semihard"), ("semihard", "all"), ("all", "semihard")}
]
MINERS = {
    "BatchEasyHardMiner": BatchEasyHardMiner,
    "compared BatchEasyHardMiner": lambda **options: BatchEasyHardMiner(
        "semihard", "easy", **options
    ),
    "MultiSimilarityMiner": MultiSimilarityMiner,
}
each_miner = pytest.mark.parametrize("miner", MINERS)
DISTANCES = {
    "euclidean": pml_distances.LpDistance,
    # It normalises whatever it is told, and ours does not depend on it.
    "cosine": lambda normalize_embeddings: pml_distances.CosineSimilarity(),
    "dot": pml_distances.DotProductSimilarity,
}


def rows(indices):
    return list(zip(*(index.tolist() for index in indices), strict=True))


def halves(indices):
    """The positive and the negative pairs, which may differ in number."""
    indices = tuple(indices)
    return rows(indices[:2]), rows(indices[2:])


def in_their_unit(metric, allowed):
    """A range of distances, of similarities where pytorch-metric-learning has these."""
    if allowed is None or metric == "euclidean":
        return allowed
    return tuple((1 if metric == "cosine" else 0) - end for end in reversed(allowed))


@pytest.fixture(params=[2**22, 100], ids=["one chunk", "many chunks"])
def chunks(request, monkeypatch):
    monkeypatch.setattr(miners_base, "_CHUNK_ELEMENTS", request.param)


# --- BatchEasyHardMiner and pytorch-metric-learning -----------------------------------------------


@pytest.mark.parametrize(("positive", "negative"), STRATEGIES)
@pytest.mark.parametrize("metric", list(DISTANCES))
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("with_references", [False, True])
def test_picks_what_pytorch_metric_learning_picks(
    positive, negative, metric, normalize, with_references, chunks
):
    # In float64 the rounding of its distances decides nothing between random points.
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    references = make("random", 120, 6, 5, seed=1, dtype=torch.float64) if with_references else ()
    theirs = pml_miners.BatchEasyHardMiner(
        positive, negative, distance=DISTANCES[metric](normalize_embeddings=normalize)
    )
    ours = BatchEasyHardMiner(positive, negative, metric=metric, normalize=normalize)
    expected = halves(theirs(x, labels, *references))
    assert min(map(len, expected)) > 5
    assert halves(ours(x, labels, *references)) == expected


@pytest.mark.parametrize(("positive", "negative"), STRATEGIES)
@pytest.mark.parametrize("metric", list(DISTANCES))
def test_ranges_allow_what_they_allow_in_pytorch_metric_learning(positive, negative, metric):
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    middle = torch.quantile(
        F.pairwise_distance(torch.nn.functional.normalize(x), metric=metric),
        torch.tensor([0.2, 0.8], dtype=torch.float64),
    )
    allowed = tuple(middle.tolist())
    without = halves(BatchEasyHardMiner(positive, negative, metric=metric)(x, labels))
    for ranges in ((allowed, None), (None, allowed), (allowed, allowed)):
        theirs = pml_miners.BatchEasyHardMiner(
            positive,
            negative,
            *(in_their_unit(metric, one) for one in ranges),
            distance=DISTANCES[metric](normalize_embeddings=True),
        )
        ours = BatchEasyHardMiner(positive, negative, *ranges, metric=metric)
        expected = halves(theirs(x, labels))
        assert halves(ours(x, labels)) == expected
        picks = [
            strategy != "all" and one
            for strategy, one in zip((positive, negative), ranges, strict=True)
        ]
        assert not any(picks) or expected != without


def test_the_defaults_are_pytorch_metric_learnings():
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    expected = rows(pml_miners.BatchEasyHardMiner()(x, labels))
    assert rows(BatchEasyHardMiner()(x, labels)) == expected


@pytest.mark.parametrize(("positive", "negative"), SELECTED)
def test_the_tuple_serves_its_loss_and_ours(positive, negative):
    x, labels = make("random", 40, 6, 5)
    indices = BatchEasyHardMiner(positive, negative)(x, labels)
    names = {"easy": "nearest", "hard": "farthest"}, {"hard": "hardest", "semihard": "semihard"}
    direct = TripletMarginLoss(positives=names[0][positive], negatives=names[1][negative])
    given = TripletMarginLoss()(x, labels, indices)
    assert given > 0
    torch.testing.assert_close(given, direct(x, labels), rtol=1e-5, atol=1e-6)


# --- contract of BatchEasyHardMiner ---------------------------------------------------------------


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


def test_with_all_of_one_kind_an_anchor_needs_no_partner_of_the_other():
    x = torch.tensor([[0.0], [1.0], [1.5], [9.0]])
    labels = torch.tensor([0, 0, 1, 2])
    positives, negatives = halves(BatchEasyHardMiner("all", "easy", normalize=False)(x, labels))
    assert positives == [(0, 1), (1, 0)]
    assert negatives == [(0, 3), (1, 3), (2, 3), (3, 0)]
    positives, negatives = halves(BatchEasyHardMiner("hard", "all", normalize=False)(x, labels))
    assert positives == [(0, 1), (1, 0)]
    assert len(negatives) == 10


@pytest.mark.parametrize(("positive", "negative"), STRATEGIES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_row_that_is_not_finite_is_in_no_pair(positive, negative, value, normalize):
    x, labels = make("clustered", 12, 4, 2)
    x[3, 0] = value
    keep = torch.arange(12) != 3
    miner = BatchEasyHardMiner(positive, negative, normalize=normalize)
    expected = halves(torch.where(keep)[0][index] for index in miner(x[keep], labels[keep]))
    assert halves(miner(x, labels)) == expected


def test_ties_go_to_the_lowest_index():
    # Anchor 0: positives 1 and 2 at 1, negatives 3 and 4 at 2.
    x = torch.tensor([[0.0], [1.0], [-1.0], [2.0], [-2.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    for positive, negative in STRATEGIES:
        miner = BatchEasyHardMiner(positive, negative, normalize=False)
        mined = miner(x[:1], labels[:1], x, labels, self_index=torch.tensor([0]))
        assert positive == "all" or mined[1].tolist() == [1]
        assert negative == "all" or mined[3].tolist() == [3]


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


@pytest.mark.parametrize("allowed", [None, (0.0, math.inf)], ids=["selected", "compared"])
def test_a_partner_as_far_as_the_other_is_not_semihard(allowed):
    # Anchor 0: a positive and a negative at 1, others at 0.5 and 2.
    x = torch.tensor([[0.0], [1.0], [0.5], [-1.0], [-2.0]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    own = torch.tensor([0])
    negative = BatchEasyHardMiner("hard", "semihard", allowed, allowed, normalize=False)
    assert rows(negative(x[:1], labels[:1], x, labels, self_index=own)) == [(0, 1, 0, 4)]
    positive = BatchEasyHardMiner("semihard", "hard", allowed, allowed, normalize=False)
    assert rows(positive(x[:1], labels[:1], x, labels, self_index=own)) == [(0, 2, 0, 3)]


# --- MultiSimilarityMiner -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", list(DISTANCES))
@pytest.mark.parametrize("epsilon", [0.1, 0.0, -0.2, 10.0])
@pytest.mark.parametrize("with_references", [False, True])
def test_keeps_the_pairs_that_pytorch_metric_learning_keeps(
    metric, epsilon, with_references, chunks
):
    x, labels = make("clustered", 60, 6, 7, dtype=torch.float64)
    x = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    references = make("random", 90, 6, 9, seed=1, dtype=torch.float64) if with_references else ()
    distance = DISTANCES[metric](normalize_embeddings=True)
    theirs = pml_miners.MultiSimilarityMiner(epsilon, distance=distance)(x, labels, *references)
    ours = MultiSimilarityMiner(epsilon, metric=metric)(x, labels, *references)
    # Also in their order.
    assert halves(ours) == halves(theirs)
    assert min(map(len, halves(ours))) > 20


def test_the_defaults_of_multi_similarity_are_pytorch_metric_learnings():
    x, labels = make("random", 60, 6, 7, dtype=torch.float64)
    assert halves(MultiSimilarityMiner()(x, labels)) == halves(
        pml_miners.MultiSimilarityMiner()(x, labels)
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["random", "collapsed", "tied"])
def test_the_hardest_pairs_are_kept_with_an_epsilon_that_reaches_them(metric, kind):
    # The threshold and the pair it comes from are one number, in float32 too: a negative as far
    # as the farthest positive is not kept without epsilon, one within epsilon of it is.
    x, labels = make(kind, 40, 6, 4)
    positives, negatives = halves(MultiSimilarityMiner(1e30, metric=metric)(x, labels))
    assert len(positives) + len(negatives) == 40 * 39
    distance = F.pairwise_distance(x, metric=metric)
    positives, negatives = halves(
        MultiSimilarityMiner(0.0, metric=metric, normalize=False)(x, labels)
    )
    same = labels[:, None] == labels[None]
    nearest = torch.where(same, torch.inf, distance).amin(1)
    farthest = torch.where(same & ~torch.eye(40, dtype=torch.bool), distance, -torch.inf).amax(1)
    confused = (farthest > nearest).nonzero()[:, 0].tolist()
    # The farthest positive and the nearest negative of just those anchors.
    assert sorted({anchor for anchor, _ in positives}) == confused
    assert sorted({anchor for anchor, _ in negatives}) == confused


@pytest.mark.parametrize(("epsilon", "kept"), [(0.0, 0), (0.5, 1)])
def test_pairs_at_the_same_distance_need_an_epsilon(epsilon, kept):
    x, labels = torch.tensor([[0.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1])
    miner = MultiSimilarityMiner(epsilon, metric="euclidean", normalize=False)
    mined = miner(x[:1], labels[:1], x, labels, self_index=torch.tensor([0]))
    assert [len(index) for index in mined] == [kept] * 4


def test_ties_are_in_the_order_of_their_index():
    x = torch.tensor([[0.0], [1.0], [-1.0], [0.5], [-0.5]])
    labels = torch.tensor([0, 0, 0, 1, 1])
    for metric in ("euclidean", "sqeuclidean"):
        miner = MultiSimilarityMiner(metric=metric, normalize=False)
        mined = miner(x[:1], labels[:1], x, labels, self_index=torch.tensor([0]))
        assert halves(mined) == ([(0, 1), (0, 2)], [(0, 3), (0, 4)])


# --- DistanceWeightedMiner ------------------------------------------------------------------------


def unit_distances(x, y):
    return torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(y))


@pytest.mark.parametrize("with_references", [False, True])
def test_every_pair_of_an_anchor_that_pytorch_metric_learning_uses_gets_a_negative(with_references):
    x, labels = make("clustered", 60, 4, 7, dtype=torch.float64)
    y, others = make("clustered", 90, 4, 9, seed=1, dtype=torch.float64)
    references = (y, others) if with_references else ()
    theirs = pml_miners.DistanceWeightedMiner(0.2, 0.65)(x, labels, *references)
    generator = torch.Generator().manual_seed(0)
    miner = DistanceWeightedMiner(0.2, 0.65)
    anchor, positive, negative = miner(x, labels, *references, generator=generator)
    y, others = references or (x, labels)
    pairs = labels[:, None] == others[None]
    if not with_references:
        pairs.fill_diagonal_(False)
    anchors = sorted(set(theirs[0].tolist()))
    assert 10 < len(anchors) < 60
    assert sorted(set(anchor.tolist())) == anchors
    kept = pairs & torch.isin(torch.arange(60), theirs[0])[:, None]
    assert rows((anchor, positive)) == [tuple(pair) for pair in kept.nonzero().tolist()]
    assert set(rows(theirs[:2])) <= set(rows((anchor, positive)))
    assert (labels[anchor] != others[negative]).all()
    assert (unit_distances(x, y)[anchor, negative] < 0.65).all()


def test_negatives_are_drawn_by_their_weights():
    # 2000 positives: as many draws of the one anchor's negative, among 5.
    generator = torch.Generator().manual_seed(0)
    points = torch.nn.functional.normalize(torch.randn(6, 3, generator=generator) + 1.5)
    x, references = points[:1], torch.cat([points[1:], points[:1].expand(2000, 3)])
    labels = torch.tensor([5] * 5 + [0] * 2000)
    distance = unit_distances(x, points[1:])[0].clamp(min=0.5)
    weights = torch.where(distance < 1.4, distance ** (2 - 3), 0)  # log(...)^0 in 3 dimensions
    expected = 2000 * weights / weights.sum()
    drawn = DistanceWeightedMiner()(x, torch.tensor([0]), references, labels, generator=generator)[
        2
    ]
    counts = drawn.bincount(minlength=5)
    # Chi-square of 4 degrees of freedom: 18.5 at a probability of 0.001.
    assert ((counts - expected).square() / expected.clamp(min=1e-9)).sum() < 18.5


def test_draws_repeat_with_the_generator_and_differ_without():
    x, labels = make("random", 60, 6, 3)
    miner = DistanceWeightedMiner()
    one, two, three = (
        miner(x, labels, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert rows(one) == rows(two)
    assert rows(one[:2]) == rows(three[:2])
    assert rows(one) != rows(three)


def test_draws_of_many_pairs_are_those_of_all_anchors(monkeypatch):
    # More pairs than one draw takes: each is there once, with a negative of its own.
    monkeypatch.setattr("dmlfast.miners.distance_weighted._PAIRS_PER_DRAW", 1)
    x, labels = make("random", 40, 6, 2)
    anchor, positive, negative = DistanceWeightedMiner(nonzero_loss_cutoff=2.0)(x, labels)
    same = (labels[:, None] == labels[None]).fill_diagonal_(False)
    assert rows((anchor, positive)) == [tuple(pair) for pair in same.nonzero().tolist()]
    assert (labels[anchor] != labels[negative]).all()


def test_an_anchors_own_copy_is_not_drawn_under_another_label():
    x, labels = make("random", 12, 4, 3)
    references, others = torch.cat([x, x]), torch.cat([labels, labels + 1])
    own = torch.arange(12) + 12
    miner = DistanceWeightedMiner(nonzero_loss_cutoff=2.5)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        anchor, _, negative = miner(
            x, labels, references, others, self_index=own, generator=generator
        )
        assert len(anchor) > 50
        assert not (negative == own[anchor]).any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_triplet_has_a_row_that_is_not_finite(value):
    x, labels = make("random", 30, 4, 2)
    x[3, 0] = value
    triplets = rows(DistanceWeightedMiner()(x, labels))
    assert len(triplets) > 100
    assert not any(3 in triplet for triplet in triplets)


def test_a_batch_without_triplets_gives_none():
    x = make("random", 6, 4, 2)[0]
    for labels in ([0] * 6, range(6)):
        assert rows(DistanceWeightedMiner()(x, torch.tensor(labels))) == []
    assert rows(DistanceWeightedMiner()(x[:0], torch.tensor([], dtype=torch.int64))) == []


# --- all miners -----------------------------------------------------------------------------------


@each_miner
def test_no_rows_and_no_references_give_no_pairs(miner):
    x, labels = make("random", 5, 3, 2)
    none = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    for arguments in ((*none,), (x, labels, *none), (*none, x, labels)):
        indices = MINERS[miner]()(*arguments)
        assert [index.tolist() for index in indices] == [[]] * 4
        assert all(index.dtype == torch.int64 for index in indices)


@each_miner
@pytest.mark.parametrize("metric", METRICS)
def test_self_index_makes_a_copy_of_the_batch_the_batch(miner, metric):
    x, labels = make("random", 40, 6, 5)
    mine = MINERS[miner](metric=metric)
    within = mine(x, labels)
    against = mine(x, labels, x.clone(), labels.clone(), self_index=torch.arange(40))
    assert len(within[0]) > 10
    assert halves(against) == halves(within)


@each_miner
def test_a_chunk_of_anchors_is_all_that_is_in_memory(miner, monkeypatch):
    sizes = []
    distance = F.pairwise_distance
    monkeypatch.setattr(
        F, "pairwise_distance", lambda *a, **k: sizes.append(len(a[0])) or distance(*a, **k)
    )
    monkeypatch.setattr(miners_base, "_CHUNK_ELEMENTS", 400)
    x, labels = make("random", 100, 4, 5)
    MINERS[miner]()(x, labels)
    assert sizes == ([] if miner == "BatchEasyHardMiner" else [4] * 25)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pos_strategy": "nearest"}, ValueError, r"pos_strategy: .*'semihard'.*got 'nearest'"),
        ({"neg_strategy": None}, ValueError, r"neg_strategy: .*'all'.*got None"),
        ({"pos_strategy": "semihard"}, ValueError, "expected 'easy' or 'hard' with 'semihard'"),
        ({"pos_strategy": "all"}, ValueError, "expected 'easy' or 'hard' with 'semihard'"),
        (
            {"pos_strategy": "semihard", "neg_strategy": "all"},
            ValueError,
            "pos_strategy, neg_strategy: .*got 'semihard' and 'all'",
        ),
        ({"allowed_pos_range": 1.0}, TypeError, "allowed_pos_range: expected .least, greatest"),
        ({"allowed_neg_range": (1, "2")}, TypeError, "allowed_neg_range: expected a number"),
        ({"allowed_neg_range": (2, 1)}, ValueError, "allowed_neg_range: expected ascending"),
        ({"metric": "l2"}, ValueError, "metric: expected one of .*got 'l2'"),
        ({"normalize": 1}, TypeError, "normalize: expected True or False"),
        ({"distance": None}, TypeError, "takes no keyword 'distance'; use metric="),
        ({"collect_stats": True}, TypeError, "'collect_stats'; use the distances"),
        ({"strategy": "easy"}, TypeError, "BatchEasyHardMiner takes no keyword 'strategy'$"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(options, error, message):
    with pytest.raises(error, match=message):
        BatchEasyHardMiner(**options)


@pytest.mark.parametrize(
    ("miner", "options", "error", "message"),
    [
        (MultiSimilarityMiner, {"epsilon": "0"}, TypeError, "epsilon: expected a number"),
        (MultiSimilarityMiner, {"epsilon": math.nan}, ValueError, "epsilon: expected a number"),
        (MultiSimilarityMiner, {"metric": "l2"}, ValueError, "metric: expected one of"),
        (MultiSimilarityMiner, {"margin": 1}, TypeError, "Miner takes no keyword 'margin'"),
        (DistanceWeightedMiner, {"cutoff": None}, TypeError, "cutoff: expected a number"),
        (DistanceWeightedMiner, {"distance": 1}, TypeError, "Miner takes no keyword 'distance'"),
        (DistanceWeightedMiner, {"metric": "dot"}, TypeError, "Miner takes no keyword 'metric'"),
    ],
)
def test_a_wrong_option_of_another_miner_is_refused(miner, options, error, message):
    with pytest.raises(error, match=message):
        miner(**options)


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
@pytest.mark.parametrize("miner", [BatchEasyHardMiner, MultiSimilarityMiner, DistanceWeightedMiner])
def test_a_wrong_argument_is_named(miner, arguments, error, message):
    x, labels = make("random", 8, 6, 3)
    with pytest.raises(error, match=message):
        miner()(**{"embeddings": x, "labels": labels, **arguments})


def test_prints_its_parameters():
    assert repr(DistanceWeightedMiner()) == (
        "DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4)"
    )
    assert repr(MultiSimilarityMiner()) == (
        "MultiSimilarityMiner(epsilon=0.1, metric='cosine', normalize=True)"
    )
    assert "allowed_neg_range=(0.0, 1.0)" in repr(BatchEasyHardMiner(allowed_neg_range=(0, 1)))
    assert repr(BatchEasyHardMiner("hard")) == (
        "BatchEasyHardMiner(pos_strategy='hard', neg_strategy='semihard', metric='euclidean', "
        "normalize=True)"
    )
