"""Every loss and every miner in a CrossBatchMemory: the own copy is left out, and it resumes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product

import oracle
import pytest
import torch
from oracle import make
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

import dmlfast.functional as F
from dmlfast import losses
from dmlfast.losses import CrossBatchMemory
from dmlfast.miners import BatchEasyHardMiner, DistanceWeightedMiner, MultiSimilarityMiner

# 5 batches of 10 in a queue of 24: it fills up, wraps around and breaks a batch in two.
ROWS, SIZE, D, CLASSES = 10, 24, 6, 4
BATCHES = [make("random", ROWS, D, CLASSES, seed=seed) for seed in range(5)]

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "TripletMarginLoss": partial(losses.TripletMarginLoss, 0.5),
    "MarginLoss": losses.MarginLoss,
    "learnt MarginLoss": partial(losses.MarginLoss, learn_beta=True, num_classes=CLASSES, nu=0.1),
    # With its default margin this loss does not see a positive at distance 0.
    "ContrastiveLoss": partial(losses.ContrastiveLoss, -1.0),
    "MultiSimilarityLoss": losses.MultiSimilarityLoss,
    "mined MultiSimilarityLoss": partial(losses.MultiSimilarityLoss, epsilon=0.1),
    "NTXentLoss": losses.NTXentLoss,
    "SupConLoss": losses.SupConLoss,
    "NCALoss": losses.NCALoss,
}
# Those with negatives of their own choice, one triplet an anchor.
CHOSEN = {
    f"{name} with {negatives} negatives": partial(
        LOSSES[name], positives="nearest", negatives=negatives
    )
    for name in ("TripletMarginLoss", "MarginLoss")
    for negatives in ("hardest", "semihard")
}
DRAWN = {
    f"{name} with drawn negatives": partial(
        LOSSES[name], positives="nearest", negatives="distance_weighted"
    )
    for name in ("TripletMarginLoss", "MarginLoss")
}
MINERS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "easy positives": BatchEasyHardMiner("easy", "semihard"),
    "hard pairs": BatchEasyHardMiner("hard", "hard"),
    "semi-hard positives": BatchEasyHardMiner("semihard", "easy"),
    "all pairs": BatchEasyHardMiner("all", "all"),
    "multi-similarity": MultiSimilarityMiner(),
    "distance-weighted": DistanceWeightedMiner(),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_miner = pytest.mark.parametrize("miner", MINERS)


class Spy(nn.Module):
    """Notes what it hands on to a loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, *given: object, self_index: Tensor | None = None, **named: object) -> Tensor:
        self.given, self.own = given, self_index
        return self.loss(*given, self_index=self_index, **named)


def rows_of(result: Tensor | F.AnchorSums | F.ContrastSums) -> Tensor:
    """The losses of the anchors, whatever reduction="none" gives."""
    if isinstance(result, F.AnchorSums):
        return result.loss
    return result.positive + result.negative if isinstance(result, F.ContrastSums) else result


def filled(memory: CrossBatchMemory, steps: int) -> CrossBatchMemory:
    for x, labels in BATCHES[:steps]:
        memory(x, labels)
    return memory


# --- the own copy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *product(LOSSES, [{"positives": p} for p in oracle.POSITIVES]),
        *product(CHOSEN, [{}]),
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_each_anchor_meets_the_queue_without_its_own_copy(name, options, steps):
    loss = {**LOSSES, **CHOSEN}[name](reduction="none", **options)
    memory = filled(CrossBatchMemory(loss, D, SIZE), steps)
    x, labels = BATCHES[4]
    leaf = x.clone().requires_grad_()
    actual = rows_of(memory(leaf, labels))
    (gradient,) = torch.autograd.grad(actual.sum(), leaf)
    # Its copies are the rows that were written last; others it meets one anchor at a time.
    begin = steps * ROWS
    own = [(begin + row) % SIZE for row in range(ROWS)]
    used = range(min(begin + ROWS, SIZE))
    expected, other = [], x.clone().requires_grad_()
    for i in range(ROWS):
        others = [slot for slot in used if slot != own[i]]
        rows, classes = memory.embedding_memory[others], memory.label_memory[others]
        anchor = other[i : i + 1], labels[i : i + 1]
        expected.append(rows_of(loss(*anchor, ref_emb=rows, ref_labels=classes)))
    assert (actual > 0).sum() >= 3
    torch.testing.assert_close(actual, torch.cat(expected), rtol=1e-4, atol=1e-5)
    (right,) = torch.autograd.grad(torch.cat(expected).sum(), other)
    assert oracle.relative_error(gradient, right) < 1e-4
    if options.get("positives", "nearest") == "nearest":
        # The defect would show: the nearest positive of all is the own copy.
        queue = {"ref_emb": memory.embedding_memory[used], "ref_labels": memory.label_memory[used]}
        assert not torch.allclose(rows_of(loss(x, labels, **queue)), actual, rtol=1e-3)


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("steps", [0, 3])
def test_the_positive_of_a_draw_is_not_the_own_copy_and_no_draw_is_an_empty_row(name, steps):
    spy = Spy(DRAWN[name](reduction="none", generator=torch.Generator().manual_seed(0)))
    memory = filled(CrossBatchMemory(spy, D, SIZE), steps)
    spy.loss.generator.manual_seed(1)
    x, labels = BATCHES[4]
    leaf = x.clone().requires_grad_()
    actual = rows_of(memory(leaf, labels))
    assert torch.autograd.grad(actual.sum(), leaf)[0].isfinite().all()
    unit, queue = (nn.functional.normalize(m) for m in (x, memory.embedding_memory))
    used, classes = int(memory.queue_fill), memory.label_memory
    own = spy.own
    assert torch.equal(memory.embedding_memory[own], x)
    given = unit, labels, queue[:used], classes[:used]
    near = F.nearest_positive(*given, self_index=own)
    far = F.sample_negative(*given, generator=torch.Generator().manual_seed(1))
    assert (near.distance > 0).all()
    assert (classes[far.index] != labels).all()
    if name.startswith("Triplet"):
        expected = torch.relu(near.distance - far.distance + 0.5)
    else:
        expected = torch.relu(near.distance - 1.2 + 0.2) + torch.relu(1.2 - far.distance + 0.2)
    both = near.index >= 0
    torch.testing.assert_close(actual[both], expected[both], rtol=1e-5, atol=1e-5)


@each_miner
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_miner_picks_among_the_others(miner, steps):
    spy = Spy(losses.TripletMarginLoss(0.5))
    memory = filled(CrossBatchMemory(spy, D, SIZE, miner=MINERS[miner]), steps)
    x, labels = BATCHES[4]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        memory(x, labels)
        (_, _, received, references, classes), own = spy.given, spy.own
        torch.manual_seed(5)
        picked = MINERS[miner](x, labels, references, classes, self_index=own)
    assert torch.equal(references[own], x)
    # The memory had no pair to drop.
    assert [index.tolist() for index in received] == [index.tolist() for index in picked]
    a, p, n = received[0], received[1], received[-1]
    other_a = received[2] if len(received) == 4 else a
    assert min(len(a), len(n)) >= 5
    assert not (p == own[a]).any()
    assert not (n == own[other_a]).any()
    assert (classes[p] == labels[a]).all()
    assert (classes[n] != labels[other_a]).all()
    assert references[torch.cat([p, n])].isfinite().all()


@each_loss
@each_miner
def test_a_first_batch_has_the_loss_of_its_pairs_within_the_batch(name, miner):
    # 24 rows for 10: what is not in use yet must reach neither the loss nor the gradient.
    x, labels = BATCHES[0]
    leaf = x.clone().requires_grad_()
    loss = LOSSES[name]()
    memory = CrossBatchMemory(copy.deepcopy(loss), D, SIZE, miner=MINERS[miner])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        actual = memory(leaf, labels)
        torch.manual_seed(5)
        indices = MINERS[miner](x, labels)
    given = {}
    if name == "NCALoss":
        # Against references this loss takes weights from the anchors alone.
        given = {"ref_emb": x, "ref_labels": labels, "self_index": torch.arange(ROWS)}
    expected = loss(x, labels, indices, **given)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5) != 0.0
    (gradient,) = torch.autograd.grad(actual, leaf)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0


@pytest.mark.parametrize("name", [n for n in LOSSES if "learnt" not in n])
def test_pairs_of_another_miner_leave_out_the_own_copy(name):
    # The nearest positive of every anchor is its own copy: without it other losses keep nothing,
    # and NCA must not compare with it either.
    miner = pml_miners.BatchEasyHardMiner("easy", "all")
    memory = CrossBatchMemory(LOSSES[name](), D, SIZE, miner=miner)
    x, labels = BATCHES[0]
    actual = memory(x, labels)
    left = [(i, j) for i, (_, negative) in enumerate(oracle.partners(labels)) for j in negative]
    none = torch.empty(0, dtype=torch.int64)
    indices = (none, none, *(torch.tensor(column) for column in zip(*left, strict=True)))
    given = {"ref_emb": x, "ref_labels": labels}
    if name == "NCALoss":
        given["self_index"] = torch.arange(ROWS)
    expected = LOSSES[name]()(x, labels, indices, **given)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


# --- resuming -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "miner"),
    [*product({**LOSSES, **CHOSEN, **DRAWN}, [None]), *product(LOSSES, MINERS)],
)
def test_a_state_dict_resumes_exactly(name, miner):
    def new() -> CrossBatchMemory:
        loss = {**LOSSES, **CHOSEN, **DRAWN}[name]()
        return CrossBatchMemory(loss, D, SIZE, miner=MINERS.get(miner))

    def run(memory: CrossBatchMemory, steps: slice) -> list[float]:
        optimizer = torch.optim.SGD([*memory.parameters(), torch.zeros(1).requires_grad_()], 0.1)
        values = []
        for x, labels in BATCHES[steps]:
            loss = memory(x.clone().requires_grad_(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        memory = new()
        run(memory, slice(3))
        saved = copy.deepcopy(memory.state_dict()), torch.get_rng_state()
        expected = run(memory, slice(3, 5))
        resumed = new()
        resumed.load_state_dict(saved[0])
        torch.set_rng_state(saved[1])
        assert run(resumed, slice(3, 5)) == expected
        assert expected[0] != expected[1]
        assert all(
            torch.equal(value, memory.state_dict()[key])
            for key, value in resumed.state_dict().items()
        )
        # Without the queue the run would go on otherwise.
        torch.set_rng_state(saved[1])
        assert run(new(), slice(3, 5)) != expected


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("NPairsLoss", ()),
        ("ProxyNCALoss", (7, D)),
        ("ProxyAnchorLoss", (7, D)),
        ("SoftTripleLoss", (7, D)),
        ("SubCenterArcFaceLoss", (7, D)),
    ],
)
def test_a_loss_without_references_is_refused_by_the_memory_and_refuses_them(name, sizes):
    loss = getattr(losses, name)(*sizes)
    with pytest.raises(TypeError, match="loss: expected a loss module of dmlfast whose call takes"):
        CrossBatchMemory(loss, D)
    x, labels = BATCHES[0]
    with pytest.raises(ValueError, match=f"ref_emb: expected None, as {name} takes no references"):
        loss(x, labels, ref_emb=x)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("SyntheticRankingLoss", (7, D)),
        ("SelfSupervisedRankingLoss", ()),
        ("SelfSupervisedSynthesisRankingLoss", (D,)),
    ],
)
def test_a_ranking_loss_is_refused_by_the_memory(name, sizes):
    loss = getattr(losses, name)(*sizes)
    with pytest.raises(TypeError, match="loss: expected a loss module of dmlfast whose call takes"):
        CrossBatchMemory(loss, D)


def test_every_loss_is_tried_here():
    tried = {name.split()[-1] for name in LOSSES}
    proxies = {"ProxyNCALoss", "ProxyAnchorLoss", "SoftTripleLoss", "SubCenterArcFaceLoss"}
    refused = {"NPairsLoss"} | proxies
    ranking = {name for name in losses.__all__ if name.endswith("RankingLoss")}
    options = {"Synthesis", "RankingTerm", "MetricTerm", "SyntheticWeights"}
    structure = {"MultiClusterLoss", "MultiClusterTerms", "LocalVarianceLoss"}
    others = {"CrossBatchMemory", "SyntheticRankingTerms"}
    assert tried | refused | ranking | structure | options | others == set(losses.__all__)
