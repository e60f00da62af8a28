"""CrossBatchMemory: a queue that resumes exactly, where no anchor meets its own copy."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import make
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn

import dmlfast.functional as F
from dmlfast.losses import CrossBatchMemory, TripletMarginLoss
from dmlfast.miners import BatchEasyHardMiner

# 7 batches of 10 in a queue of 24: it fills up, wraps around and breaks a batch in two.
ROWS, SIZE, STEPS, D = 10, 24, 7, 6


def batches(steps: int = STEPS, **options: object) -> list[tuple[Tensor, Tensor]]:
    return [make("random", ROWS, D, 4, seed=seed, **options) for seed in range(steps)]


def eps(**options: object) -> TripletMarginLoss:
    return TripletMarginLoss(0.2, positives="nearest", negatives="semihard", **options)


class Spy(nn.Module):
    """Notes the arguments that it hands on to a loss."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        embeddings,
        labels,
        indices_tuple=None,
        ref_emb=None,
        ref_labels=None,
        *,
        self_index=None,
    ):
        self.call = (embeddings, labels, indices_tuple, ref_emb, ref_labels, self_index)
        return self.loss(
            embeddings, labels, indices_tuple, ref_emb, ref_labels, self_index=self_index
        )


def history(seen: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows a queue should hold, oldest first, and which of them are the last batch."""
    x = torch.cat([x for x, _ in seen])[-SIZE:]
    labels = torch.cat([labels for _, labels in seen])[-SIZE:]
    return x, labels, torch.arange(len(x) - len(seen[-1][0]), len(x))


# --- the queue ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "negatives"), [("nearest", "semihard"), ("all", "all")])
def test_is_the_loss_against_the_last_rows_without_the_own_copy(positives, negatives):
    loss = TripletMarginLoss(0.2, positives=positives, negatives=negatives)
    memory = CrossBatchMemory(loss, D, SIZE)
    seen = []
    for x, labels in batches():
        seen.append((x, labels))
        past, past_labels, own = history(seen)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected = loss(other, labels, None, past, past_labels, self_index=own)
        actual = memory(leaf, labels)
        assert actual > 0
        # The order of the queue differs, and with it that of the sums.
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)
        actual.backward()
        expected.backward()
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-5, atol=1e-7)


def test_writes_in_turn_and_around_the_end():
    memory = CrossBatchMemory(eps(), D, SIZE)
    expected, labels = torch.zeros(SIZE, D), torch.zeros(SIZE, dtype=torch.int64)
    for step, (x, classes) in enumerate(batches()):
        for row in range(ROWS):
            expected[(step * ROWS + row) % SIZE] = x[row]
            labels[(step * ROWS + row) % SIZE] = classes[row]
        memory(x, classes)
        assert torch.equal(memory.embedding_memory, expected)
        assert torch.equal(memory.label_memory, labels)
        assert memory.queue_idx == (step + 1) * ROWS % SIZE
        assert memory.queue_fill == min((step + 1) * ROWS, SIZE)


def test_a_batch_may_fill_the_queue_but_not_exceed_it():
    x, labels = make("random", SIZE, D, 4)
    memory = CrossBatchMemory(eps(), D, SIZE)
    torch.testing.assert_close(memory(x, labels), eps()(x, labels))
    torch.testing.assert_close(memory(x, labels), eps()(x, labels))
    before = copy.deepcopy(memory.state_dict())
    with pytest.raises(ValueError, match=r"embeddings: expected at most 24 rows .*got 25"):
        memory(torch.zeros(25, D), torch.zeros(25, dtype=torch.int64))
    assert all(torch.equal(before[name], value) for name, value in memory.state_dict().items())


def test_an_empty_batch_changes_nothing():
    memory = CrossBatchMemory(eps(), D, SIZE)
    x, labels = batches(1)[0]
    memory(x, labels)
    loss = memory(x[:0].requires_grad_(), labels[:0])
    loss.backward()
    assert loss == 0
    assert memory.queue_idx == memory.queue_fill == ROWS


@pytest.mark.parametrize("value", [2**24, -(2**60)])
def test_labels_stay_int64(value):
    x, labels = batches(1)[0]
    memory = CrossBatchMemory(eps(), D, SIZE)
    memory(x, labels + value)
    assert torch.equal(memory.label_memory[:ROWS], labels + value)
    small = CrossBatchMemory(eps(), D, SIZE)
    assert torch.equal(small(x, labels.to(torch.uint8)), eps()(x, labels))


def test_reset_queue_empties_it():
    memory = CrossBatchMemory(eps(), D, SIZE)
    first = [memory(x, labels).item() for x, labels in batches()]
    memory.reset_queue()
    assert memory.queue_idx == memory.queue_fill == 0
    assert [memory(x, labels).item() for x, labels in batches()] == first


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_state_dict_resumes_exactly(steps):
    memory = CrossBatchMemory(eps(), D, SIZE)
    for x, labels in batches()[:steps]:
        memory(x, labels)
    state = copy.deepcopy(memory.state_dict())
    resumed = CrossBatchMemory(eps(), D, SIZE)
    resumed.load_state_dict(state)
    rest = batches()[steps:]
    expected = [memory(x, labels).item() for x, labels in rest]
    assert [resumed(x, labels).item() for x, labels in rest] == expected
    # Without its position, as pytorch-metric-learning saves it, the queue would go on elsewhere.
    forgotten = CrossBatchMemory(eps(), D, SIZE)
    forgotten.load_state_dict({**state, "queue_idx": torch.tensor(0)})
    assert [forgotten(x, labels).item() for x, labels in rest] != expected


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("positives", ["nearest", "all"])
def test_gradients_of_several_batches_flow_to_each_alone(normalize, positives):
    loss = TripletMarginLoss(0.5, positives=positives, normalize=normalize)
    apart, together = CrossBatchMemory(loss, D, SIZE), CrossBatchMemory(loss, D, SIZE)
    expected, leaves, losses = [], [], []
    for x, labels in batches(4):
        leaf = x.clone().requires_grad_()
        apart(leaf, labels).backward()
        expected.append(leaf.grad)
        leaves.append(x.clone().requires_grad_())
        losses.append(together(leaves[-1], labels))
    sum(losses).backward()
    for leaf, gradient in zip(leaves, expected, strict=True):
        assert gradient.abs().sum() > 0
        assert torch.equal(leaf.grad, gradient)
    assert not together.embedding_memory.requires_grad
    assert together.embedding_memory.grad_fn is None


# --- the own copy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_nearest_positive_is_never_the_own_copy_but_may_be_its_twin(steps):
    spy = Spy(eps())
    memory = CrossBatchMemory(spy, D, SIZE)
    for x, labels in batches()[:steps]:
        x[1], labels[1] = x[0], labels[0]
        loss = memory(x, labels)
    x, labels, _, references, reference_labels, own = spy.call
    assert torch.equal(references[own], x)
    positive = F.nearest_positive(x, labels, references, reference_labels, self_index=own)
    assert not (positive.index == own).any()
    assert positive.index[:2].tolist() == own[:2].flip(0).tolist()
    # The defect: the own copy, at distance 0, would be the nearest positive of all.
    naive = F.nearest_positive(x, labels, references, reference_labels)
    assert (naive.distance == 0).all()
    assert loss > 0
    assert loss != spy.loss(x, labels, None, references, reference_labels)


@pytest.mark.parametrize(("positives", "strategy"), [("nearest", "easy"), ("farthest", "hard")])
def test_a_miner_is_told_of_the_own_copy(positives, strategy):
    direct = TripletMarginLoss(0.2, positives=positives, negatives="semihard")
    mined = CrossBatchMemory(
        TripletMarginLoss(0.2), D, SIZE, miner=BatchEasyHardMiner(strategy, "semihard")
    )
    unmined = CrossBatchMemory(direct, D, SIZE)
    for x, labels in batches():
        expected = unmined(x, labels)
        assert expected > 0
        torch.testing.assert_close(mined(x, labels), expected, rtol=1e-5, atol=0)


# --- pytorch-metric-learning ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "miner",
    [
        None,
        pml_miners.MultiSimilarityMiner(epsilon=0.5),
        pml_miners.TripletMarginMiner(margin=0.5),
        pml_miners.BatchEasyHardMiner("hard", "hard"),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_is_pytorch_metric_learnings_loss(miner):
    ours = CrossBatchMemory(TripletMarginLoss(), D, SIZE, miner=miner).double()
    theirs = pml_losses.CrossBatchMemory(pml_losses.TripletMarginLoss(), D, SIZE, miner=miner)
    for x, labels in batches(dtype=torch.float64):
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        actual, expected = ours(leaf, labels), theirs(other, labels)
        assert actual > 0
        torch.testing.assert_close(actual, expected)
        actual.backward()
        expected.backward()
        assert oracle.relative_error(leaf.grad, other.grad) < 1e-9


@pytest.mark.parametrize("miner", [None, BatchEasyHardMiner()])
def test_an_enqueue_mask_is_that_of_pytorch_metric_learning(miner):
    ours = CrossBatchMemory(TripletMarginLoss(), D, SIZE, miner=miner).double()
    miner = miner and pml_miners.BatchEasyHardMiner()
    theirs = pml_losses.CrossBatchMemory(pml_losses.TripletMarginLoss(), D, SIZE, miner=miner)
    for step, (x, labels) in enumerate(batches(20, dtype=torch.float64)):
        mask = torch.arange(ROWS) % 3 == step % 3
        actual, expected = ours(x, labels, enqueue_mask=mask), theirs(x, labels, enqueue_mask=mask)
        torch.testing.assert_close(actual, expected)
    assert actual > 0
    assert torch.equal(ours.embedding_memory, theirs.embedding_memory)
    assert ours.queue_idx == theirs.queue_idx


# --- indices_tuple --------------------------------------------------------------------------------


def test_a_tuple_indexes_the_queue_and_loses_pairs_with_the_own_copy():
    memory = CrossBatchMemory(TripletMarginLoss(2.0, reduction="none"), D, SIZE)
    for x, labels in batches(3):
        memory(x, labels)
    (x, labels), slots = batches(4)[3], [(30 + row) % SIZE for row in range(ROWS)]
    a, p, n = [0, 1, 2, 3], [slots[0], slots[0], 20, 21], [5, 5, slots[2], 7]
    indices = tuple(torch.tensor(index, dtype=torch.int32) for index in (a, p, n))
    actual = memory(x, labels, indices)
    kept = tuple(index[[1, 3]] for index in indices)
    loss = TripletMarginLoss(2.0, reduction="none")
    expected = loss(x, labels, kept, memory.embedding_memory)
    assert (expected > 0).all()
    assert torch.equal(actual, expected)


def test_a_tuple_of_4_loses_pairs_with_the_own_copy():
    memory = CrossBatchMemory(TripletMarginLoss(2.0, reduction="none"), D, SIZE)
    x, labels = batches(1)[0]
    indices = [[0, 0, 1], [0, 3, 4], [0, 0, 1, 1], [5, 6, 1, 7]]
    actual = memory(x, labels, tuple(map(torch.tensor, indices)))
    kept = tuple(map(torch.tensor, ([0, 0, 1], [3, 3, 4], [5, 6, 7])))
    expected = TripletMarginLoss(2.0, reduction="none")(x, labels, kept)
    assert sorted(actual.tolist()) == sorted(expected.tolist())


def test_a_row_that_is_not_in_use_makes_the_loss_nan():
    x, labels = batches(1)[0]
    triplet = tuple(map(torch.tensor, ([0], [ROWS], [1])))
    assert CrossBatchMemory(TripletMarginLoss(), D, SIZE)(x, labels, triplet).isnan()


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_float32_queue_holds_16_bits_exactly(dtype):
    narrow, wide = CrossBatchMemory(eps(), D, SIZE), CrossBatchMemory(eps(), D, SIZE)
    for x, labels in batches(dtype=dtype):
        leaf = x.requires_grad_()
        loss = narrow(leaf, labels)
        assert loss == wide(x.float(), labels)
        loss.backward()
        assert leaf.grad.dtype == dtype


def test_a_queue_refuses_what_it_cannot_hold():
    x, labels = batches(1, dtype=torch.float64)[0]
    memory = CrossBatchMemory(eps(), D, SIZE)
    with pytest.raises(TypeError, match=r"embeddings: .*queue of torch.float32.*cast the module"):
        memory(x, labels)
    assert memory.double()(x, labels).dtype == torch.float64
    with pytest.raises(TypeError, match=r"embeddings: .*queue of torch.bfloat16.*torch.float16"):
        CrossBatchMemory(eps(), D, SIZE).bfloat16()(x.half(), labels)


# --- compilation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_whole(reduction):
    memory = CrossBatchMemory(eps(reduction=reduction), D, SIZE)
    expected = [memory(x, labels) for x, labels in batches()]
    again = CrossBatchMemory(eps(reduction=reduction), D, SIZE)
    compiled = torch.compile(again, backend="aot_eager", fullgraph=True)
    for (x, labels), loss in zip(batches(), expected, strict=True):
        torch.testing.assert_close(compiled(x, labels), loss)
    assert torch.equal(again.embedding_memory, memory.embedding_memory)
    assert again.queue_idx == memory.queue_idx
    torch.compiler.reset()


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"loss": pml_losses.TripletMarginLoss()}, TypeError, "loss: .*self_index, got pytorch_m"),
        ({"loss": F.triplet_margin_loss}, TypeError, "loss: expected a loss module"),
        ({"embedding_size": 0}, ValueError, "embedding_size: expected at least 1, got 0"),
        ({"embedding_size": 6.0}, TypeError, "embedding_size: expected an integer, got 6.0"),
        ({"memory_size": -1}, ValueError, "memory_size: expected at least 1, got -1"),
        ({"memory_size": True}, TypeError, "memory_size: expected an integer, got True"),
        ({"miner": "easy"}, TypeError, "miner: expected a callable or None, got str"),
    ],
)
def test_a_wrong_option_is_refused_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        CrossBatchMemory(**{"loss": eps(), "embedding_size": D, **arguments})


MASK = torch.ones(ROWS, dtype=torch.bool)
TRIPLET = (torch.tensor([0]),) * 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embeddings": torch.zeros(ROWS, 5)}, ValueError, "embeddings: expected 6 dimensions"),
        ({"embeddings": torch.zeros(6)}, ValueError, "embeddings: expected a 2-D"),
        ({"embeddings": torch.zeros(ROWS, D, device="meta")}, ValueError, "device of the queue"),
        ({"labels": torch.zeros(ROWS)}, TypeError, "labels: expected an integer dtype"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels: .*shape \(10,\)"),
        ({"indices_tuple": TRIPLET[:2]}, TypeError, "indices_tuple: expected .*of 2"),
        (
            {"indices_tuple": TRIPLET, "enqueue_mask": MASK},
            ValueError,
            "indices_tuple: expected None with enqueue_mask",
        ),
        ({"enqueue_mask": MASK.long()}, TypeError, "enqueue_mask: expected torch.bool"),
        ({"enqueue_mask": MASK[1:]}, ValueError, r"enqueue_mask: expected shape \(10,\)"),
        ({"enqueue_mask": MASK.to("meta")}, ValueError, "enqueue_mask: expected device cpu"),
    ],
)
def test_a_wrong_argument_is_named_and_leaves_the_queue(arguments, error, message):
    x, labels = batches(1)[0]
    memory = CrossBatchMemory(eps(), D, SIZE)
    with pytest.raises(error, match=message):
        memory(**{"embeddings": x, "labels": labels, **arguments})
    assert memory.queue_fill == 0
    assert not memory.embedding_memory.any()


def test_a_tuple_and_a_miner_exclude_each_other():
    x, labels = batches(1)[0]
    memory = CrossBatchMemory(eps(), D, SIZE, miner=BatchEasyHardMiner())
    with pytest.raises(ValueError, match="indices_tuple: expected None with a miner, got tuple"):
        memory(x, labels, TRIPLET)


def test_self_index_of_the_loss_is_checked():
    x, labels = batches(1)[0]
    with pytest.raises(ValueError, match="self_index: expected None without ref_emb"):
        eps()(x, labels, self_index=torch.arange(ROWS))
    with pytest.raises(TypeError, match="self_index: expected an integer dtype"):
        eps()(x, labels, ref_emb=x, ref_labels=labels, self_index=torch.zeros(ROWS))


def test_prints_its_parameters():
    assert "embedding_size=6, memory_size=24" in repr(CrossBatchMemory(eps(), D, SIZE))
