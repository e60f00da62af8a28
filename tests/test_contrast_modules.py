"""The contrast losses as modules: pytorch-metric-learning's call, defaults and index tuples."""

from __future__ import annotations

import math
from functools import partial
from itertools import product

import oracle
import pytest
import torch
from module_cases import assert_same, batch, proxy_pair
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import dmlfast.functional as F
from dmlfast import losses
from dmlfast.losses import _pair_lists

pml_losses = pytest.importorskip("pytorch_metric_learning.losses")
pml_miners = pytest.importorskip("pytorch_metric_learning.miners")

# Module, and the function with the same defaults.
PAIR_LOSSES = {
    "MultiSimilarityLoss": F.multi_similarity_loss,
    "NTXentLoss": F.info_nce_loss,
    "SupConLoss": F.supcon_loss,
    "ContrastiveLoss": F.contrastive_loss,
    "MarginLoss": partial(F.margin_loss, boundary=torch.tensor(1.2)),
    "NCALoss": F.nca_loss,
}
PROXY_LOSSES = ("ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "SubCenterArcFaceLoss")
MINERS = {
    "no miner": None,
    "triplets": pml_miners.TripletMarginMiner(margin=0.5),
    "one triplet an anchor": pml_miners.BatchHardMiner(),
    "pairs": pml_miners.MultiSimilarityMiner(epsilon=0.5),
    "pairs beyond margins": pml_miners.PairMarginMiner(pos_margin=0.1, neg_margin=1.2),
    "one pair each an anchor": pml_miners.BatchEasyHardMiner(),
}
each_pair_loss = pytest.mark.parametrize("name", PAIR_LOSSES)
# A tuple lists the pairs of these, and is a set of pairs for two of them; NCA has weights of it.
LISTED = [name for name in PAIR_LOSSES if name != "NCALoss"]
ONCE = ("MultiSimilarityLoss", "SupConLoss")
each_proxy_loss = pytest.mark.parametrize("name", PROXY_LOSSES)
each_miner = pytest.mark.parametrize("miner", MINERS)


def with_references(m: int = 50, **options: object) -> dict[str, Tensor]:
    references, others = batch(m, seed=1, **options)
    return {"ref_emb": references, "ref_labels": others}


# --- pytorch-metric-learning ----------------------------------------------------------------------


@each_pair_loss
@each_miner
@pytest.mark.parametrize("references", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_defaults_and_index_tuples_are_pytorch_metric_learnings(name, miner, references, dtype):
    # Few rows: pytorch-metric-learning's NT-Xent pairs all positive with all negative pairs.
    x, labels = batch(20, dtype=dtype)
    call = with_references(24, dtype=dtype) if references else {}
    indices = None if MINERS[miner] is None else MINERS[miner](x, labels, **call)
    leaves = (x, call["ref_emb"]) if references else (x,)
    ours, theirs = getattr(losses, name)(), getattr(pml_losses, name)()
    assert_same(ours(x, labels, indices, **call), theirs(x, labels, indices, **call), leaves)


@each_miner
def test_n_pairs_is_pytorch_metric_learnings(miner):
    x, labels = batch()
    labels[7] = 99  # alone in its class
    indices = None if MINERS[miner] is None else MINERS[miner](x, labels)
    ours, theirs = losses.NPairsLoss(), pml_losses.NPairsLoss()
    assert_same(ours(x, labels, indices), theirs(x, labels, indices), (x,))


@each_proxy_loss
@each_miner
def test_losses_with_proxies_are_pytorch_metric_learnings(name, miner):
    x, labels = batch()
    indices = None if MINERS[miner] is None else MINERS[miner](x, labels)
    ours, theirs = proxy_pair(name)
    assert_same(
        ours(x, labels, indices),
        theirs(x, labels, indices),
        (x, *ours.parameters()),
        (x, *theirs.parameters()),
    )


@each_proxy_loss
def test_state_dicts_of_proxies_load_from_pytorch_metric_learning(name):
    ours, theirs = proxy_pair(name)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x, labels = batch()
    assert ours(x, labels).item() == pytest.approx(theirs(x, labels).item(), rel=1e-4)


@each_miner
@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("references", [False, True])
def test_a_learnt_boundary_is_pytorch_metric_learnings(miner, num_classes, references):
    options = {"learn_beta": True, "num_classes": num_classes, "nu": 0.3, "beta": 1.1}
    x, labels = batch()
    call = with_references() if references else {}
    indices = None if MINERS[miner] is None else MINERS[miner](x, labels, **call)
    ours, theirs = losses.MarginLoss(**options), pml_losses.MarginLoss(**options)
    assert_same(
        ours(x, labels, indices, **call),
        theirs(x, labels, indices, **call),
        (x, ours.beta),
        (x, theirs.beta),
    )


def test_epsilon_mines_as_the_multi_similarity_miner_does():
    x, labels = batch()
    ours = losses.MultiSimilarityLoss(epsilon=0.2)(x, labels)
    indices = pml_miners.MultiSimilarityMiner(epsilon=0.2)(x, labels)
    assert_same(ours, pml_losses.MultiSimilarityLoss()(x, labels, indices), (x,))


@pytest.mark.parametrize("name", ["NTXentLoss", "SupConLoss", "ContrastiveLoss"])
@pytest.mark.parametrize(("positives", "strategy"), [("nearest", "easy"), ("farthest", "hard")])
def test_one_positive_is_that_of_its_miner_with_all_negatives(name, positives, strategy):
    x, labels = batch()
    indices = pml_miners.BatchEasyHardMiner(strategy, "all")(x, labels)
    ours, theirs = getattr(losses, name)(positives=positives), getattr(pml_losses, name)()
    assert_same(ours(x, labels), theirs(x, labels, indices), (x,))


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [("nearest", "hardest"), ("nearest", "semihard"), ("farthest", "semihard"), ("all", "hardest")],
)
def test_margin_chooses_as_its_miner_does(positives, negatives):
    strategies = {"nearest": "easy", "farthest": "hard", "hardest": "hard"}
    x, labels = batch()
    indices = pml_miners.BatchEasyHardMiner(
        strategies.get(positives, positives), strategies.get(negatives, negatives)
    )(x, labels)
    ours = losses.MarginLoss(positives=positives, negatives=negatives)
    assert_same(ours(x, labels), pml_losses.MarginLoss()(x, labels, indices), (x,))


# --- the module and the function ------------------------------------------------------------------


@each_pair_loss
@pytest.mark.parametrize("positives", oracle.POSITIVES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("metric", oracle.METRICS)
def test_is_the_function_of_normalised_embeddings(name, positives, reduction, metric):
    options = {"positives": positives, "reduction": reduction, "metric": metric}
    x, labels = batch(dtype=torch.float64)
    call = with_references(dtype=torch.float64)
    actual = getattr(losses, name)(**options)(3 * x, labels, **call)
    unit, others = (nn.functional.normalize(m, dim=1) for m in (x, call["ref_emb"]))
    expected = PAIR_LOSSES[name](unit, labels, others, call["ref_labels"], **options)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@each_pair_loss
def test_normalize_false_takes_the_embeddings_as_they_are(name):
    x, labels = batch(dtype=torch.float64)
    options = {"normalize": False, "metric": "sqeuclidean"}
    actual = getattr(losses, name)(**options)(0.3 * x, labels)
    assert torch.equal(actual, PAIR_LOSSES[name](0.3 * x, labels, metric="sqeuclidean"))
    indices = MINERS["pairs"](x, labels)
    listed, unit = (
        getattr(losses, name)(metric="sqeuclidean", normalize=normalize)(0.3 * x, labels, indices)
        for normalize in (False, True)
    )
    assert not torch.isclose(listed, unit)


@each_pair_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_embeddings_have_the_loss_of_their_values(name, dtype):
    x, labels = batch(dtype=dtype)
    loss = getattr(losses, name)()
    indices = MINERS["pairs"](x.detach().float(), labels)
    for given in (None, indices):
        actual = loss(x, labels, given)
        assert actual.dtype == torch.float32
        assert actual.item() == pytest.approx(loss(x.float(), labels, given).item(), rel=1e-5)


# --- index tuples ---------------------------------------------------------------------------------

TRIPLETS = (torch.tensor([0, 0, 3, 0]), torch.tensor([1, 2, 5, 1]), torch.tensor([7, 7, 8, 7]))
PAIRS = (*TRIPLETS[:2], torch.tensor([0, 4, 0, 3]), torch.tensor([7, 9, 7, 8]))


@pytest.mark.parametrize(("name", "twice"), [*product(LISTED, [False]), *product(ONCE, [True])])
def test_lists_of_all_pairs_give_the_loss_without_lists(name, twice):
    x, labels = batch(25, dtype=torch.float64)
    found = oracle.partners(labels)
    sides = [
        [(i, j) for i, partners in enumerate(found) for j in partners[side]] for side in (0, 1)
    ]
    indices = [torch.tensor(column) for side in sides for column in zip(*side, strict=True)]
    if twice:
        indices = [torch.cat([index, index[:9]]) for index in indices]
    loss = getattr(losses, name)(metric="euclidean")
    actual, expected = loss(x, labels, tuple(indices)), loss(x, labels)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(value, x)[0] for value in (actual, expected)]
    assert oracle.relative_error(*gradients) < 1e-11


@pytest.mark.parametrize("name", LISTED)
@pytest.mark.parametrize("indices", [TRIPLETS, PAIRS], ids=["triplets", "pairs"])
def test_none_gives_the_anchors_losses_for_a_tuple_too(name, indices):
    x, labels = batch()
    options = {"margin": 0.5} if name == "MarginLoss" else {}
    rows = getattr(losses, name)(reduction="none", **options)(x, labels, indices)
    total = getattr(losses, name)(reduction="sum", **options)(x, labels, indices)
    if isinstance(rows, F.ContrastSums):
        values = rows.positive + rows.negative
    else:
        values = rows.loss if isinstance(rows, F.AnchorSums) else rows
    assert values.shape == (40,)
    assert set(values.nonzero()[:, 0].tolist()) <= {0, 3, 4}
    assert values.sum().item() == pytest.approx(total.item(), rel=1e-6) != 0.0


@each_pair_loss
@pytest.mark.parametrize("length", [3, 4])
def test_an_empty_tuple_gives_a_finite_loss_and_gradient(name, length):
    x, labels = batch()
    empty = (torch.empty(0, dtype=torch.int64),) * length
    loss = getattr(losses, name)()(x, labels, empty)
    (gradient,) = torch.autograd.grad(loss, x)
    if name != "NCALoss":
        assert loss.item() == 0.0
        assert torch.equal(gradient, torch.zeros_like(x))
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LISTED)
def test_a_nan_of_a_tuple_reaches_the_loss(name):
    x, labels = batch()
    with torch.no_grad():
        x[1] = math.nan
    assert getattr(losses, name)()(x, labels, TRIPLETS).isnan()


@each_pair_loss
def test_a_tuple_that_is_none_is_named(name):
    x, labels = batch()
    with pytest.raises(TypeError, match=r"indices_tuple: expected \(anchor, positive, negative\)"):
        getattr(losses, name)()(x, labels, TRIPLETS[:2])


@pytest.mark.parametrize("reduce", [_pair_lists.segment_sum, _pair_lists.segment_logsumexp])
def test_segments_are_reduced_in_any_order_and_differentiable(reduce):
    segments = torch.tensor([3, 0, 3, 1, 1, 5, 3])
    values = torch.linspace(-2, 700, 7, dtype=torch.float64).requires_grad_()
    rows = [values[segments == s] for s in range(7)]
    if reduce is _pair_lists.segment_sum:
        expected = torch.stack([row.sum() for row in rows])
    else:
        expected = torch.stack([row.logsumexp(0) for row in rows])
    torch.testing.assert_close(reduce(values, segments, 7), expected)
    assert torch.autograd.gradcheck(lambda v: reduce(v, segments, 7)[[0, 1, 3, 5]], values)


# The number of distinct pairs, and of classes with a pair, is known after the data alone.
@pytest.mark.parametrize(
    ("name", "length"),
    [
        *product(PAIR_LOSSES, [None]),
        *product([name for name in PAIR_LOSSES if name not in ONCE], [3, 4]),
    ],
)
def test_compiles_whole(name, length):
    x, labels = batch(dtype=torch.float64)
    indices = None if length is None else (TRIPLETS, PAIRS)[length - 3]
    loss = getattr(losses, name)()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    actual, expected = compiled(x, labels, indices), loss(x, labels, indices)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.compiler.reset()


@pytest.mark.parametrize("name", PAIR_LOSSES)
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("index", [40, -1])
def test_an_index_out_of_range_is_refused(name, place, index):
    x, labels = batch()
    indices = [tensor.clone() for tensor in TRIPLETS]
    indices[place][2] = index
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        getattr(losses, name)()(x, labels, tuple(indices))


WITH_CLASSES = {
    **{name: getattr(losses, name)(5, 6) for name in PROXY_LOSSES},
    "MarginLoss": losses.MarginLoss(num_classes=5),
    "SyntheticRankingLoss": losses.SyntheticRankingLoss(5, 6),
}
each_loss_with_classes = pytest.mark.parametrize("name", WITH_CLASSES)


@each_loss_with_classes
@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_is_refused(name, label):
    x, labels = batch()
    labels[7] = label
    with pytest.raises(ValueError, match=rf"labels: expected classes in \[0, 5\), got {label}$"):
        WITH_CLASSES[name](x, labels)


def test_a_label_that_is_no_class_is_refused_with_an_index_tuple():
    x, labels = batch()
    with pytest.raises(ValueError, match=r"labels: expected classes in \[0, 5\), got 6"):
        WITH_CLASSES["MarginLoss"](x, labels + 2, TRIPLETS)


@each_loss_with_classes
def test_the_classes_of_an_empty_batch_are_not_looked_for(name):
    assert WITH_CLASSES[name](torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64)) == 0


@each_loss_with_classes
def test_labels_are_not_looked_at_where_there_is_no_data(name):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, labels = (mode.from_tensor(tensor.detach()) for tensor in batch())
        assert WITH_CLASSES[name](x, labels).shape == ()


@pytest.mark.parametrize("name", ["ProxyNCALoss", "ProxyAnchorLoss", "SyntheticRankingLoss"])
def test_a_compiled_loss_is_whole_and_does_not_look_at_labels(name):
    x, labels = batch()
    loss = WITH_CLASSES[name]
    torch.compiler.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert compiled(x, labels + 1).isfinite()
    torch.manual_seed(0)
    expected = loss(x, labels)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x, labels), expected)
    torch.compiler.reset()


@pytest.mark.parametrize("name", [*PAIR_LOSSES, "NPairsLoss", *PROXY_LOSSES])
def test_autocast_leaves_the_dtype_it_receives(name):
    x, labels = batch()
    loss = proxy_pair(name)[0] if name in PROXY_LOSSES else getattr(losses, name)()
    expected = loss(x, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(x, labels), expected)


# --- state and construction -----------------------------------------------------------------------


@pytest.mark.parametrize("learn_beta", [False, True])
@pytest.mark.parametrize("num_classes", [None, 5])
def test_the_boundary_is_in_the_state_dict_learnt_or_not(learn_beta, num_classes):
    options = {"learn_beta": learn_beta, "num_classes": num_classes}
    saved = losses.MarginLoss(beta=0.7, **options).state_dict()
    assert saved["beta"].shape == (num_classes or 1,)
    loss = losses.MarginLoss(**options)
    loss.load_state_dict(saved)
    x, labels = batch()
    assert torch.equal(loss(x, labels), losses.MarginLoss(beta=0.7, **options)(x, labels))
    assert len(list(loss.parameters())) == int(learn_beta)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_boundary_has_no_weight_where_no_triplet_is(reduction):
    loss = losses.MarginLoss(learn_beta=True, nu=0.5, reduction=reduction)
    x, _ = batch()
    assert loss(x, torch.zeros(40, dtype=torch.int64)).item() == 0.0


@pytest.mark.parametrize("name", [n for n in PAIR_LOSSES if n != "MarginLoss"] + ["NPairsLoss"])
def test_has_no_state(name):
    assert getattr(losses, name)().state_dict() == {}


@pytest.mark.parametrize("name", [*PAIR_LOSSES, "NPairsLoss", *PROXY_LOSSES])
@pytest.mark.parametrize("keyword", ["distance", "reducer", "embedding_regularizer"])
def test_a_keyword_of_pytorch_metric_learning_is_refused_with_the_way_to_do_it(name, keyword):
    sizes = (7, 6) if name in PROXY_LOSSES else ()
    with pytest.raises(TypeError, match=rf"{name} takes no keyword '{keyword}'; use "):
        getattr(losses, name)(*sizes, **{keyword: None})


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("MultiSimilarityLoss", {"alpha": 0}, ValueError, "alpha: expected a finite number"),
        ("MultiSimilarityLoss", {"epsilon": "1"}, TypeError, "epsilon: expected a number"),
        ("NTXentLoss", {"temperature": 0}, ValueError, "temperature: expected a finite number"),
        ("SupConLoss", {"positives": "easy"}, ValueError, "positives: expected one of"),
        ("ContrastiveLoss", {"metric": "l2"}, ValueError, "metric: expected one of"),
        ("ContrastiveLoss", {"neg_margin": None}, TypeError, "neg_margin: expected a number"),
        ("MarginLoss", {"negatives": "semihard"}, ValueError, "negatives: expected .*positives="),
        ("MarginLoss", {"learn_beta": 1}, TypeError, "learn_beta: expected True or False"),
        ("MarginLoss", {"num_classes": 0}, ValueError, "num_classes: expected at least 1"),
        ("NCALoss", {"softmax_scale": -1}, ValueError, "softmax_scale: expected a finite number"),
        ("NCALoss", {"reduction": "avg"}, ValueError, "reduction: expected one of"),
        ("NPairsLoss", {"normalize": "no"}, TypeError, "normalize: expected True or False"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(name, options, error, message):
    with pytest.raises(error, match=message):
        getattr(losses, name)(**options)


@each_proxy_loss
@pytest.mark.parametrize(
    ("sizes", "error"), [((0, 6), ValueError), ((7, 0), ValueError), ((7.0, 6), TypeError)]
)
def test_a_wrong_size_of_the_proxies_is_refused(name, sizes, error):
    with pytest.raises(error, match=r"(num_classes|embedding_size): expected a"):
        getattr(losses, name)(*sizes)


@each_pair_loss
def test_a_wrong_argument_is_named(name):
    x, labels = batch()
    loss = getattr(losses, name)()
    with pytest.raises(ValueError, match=r"labels: expected shape \(40,\)"):
        loss(x, labels[:3])
    with pytest.raises(ValueError, match="ref_labels: expected labels of ref_emb"):
        loss(x, labels, ref_emb=x)


def test_prints_its_parameters():
    assert repr(losses.NTXentLoss(0.1, positives="nearest")) == (
        "NTXentLoss(temperature=0.1, positives='nearest', metric='cosine', normalize=True, "
        "reduction='mean')"
    )
    assert repr(losses.ProxyAnchorLoss(7, 6)).startswith("ProxyAnchorLoss(num_classes=7, embedding")
