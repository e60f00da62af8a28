"""The CUDA kernels on a GPU: `pytest -m cuda`."""

from __future__ import annotations

import pytest
import torch
from oracle import DATA, METRICS, make

import dmlfast.functional as F
from dmlfast import _library
from dmlfast.losses import TripletMarginLoss

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

SELECTIONS = ("nearest_positive", "farthest_positive", "hardest_negative", "semihard_negative")
# Gradients add the same float64 terms; the square roots and norms differ in the last bits.
TOLERANCE = {
    torch.float32: 1e-6,
    torch.float64: 1e-13,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}


def select(selection, x, labels, metric):
    """Distance, index and the gradient of the sum of the distances that were found."""
    leaf = x.clone().requires_grad_()
    extra = {}
    if selection == "semihard_negative":
        extra["beyond"] = F.nearest_positive(x, labels, metric=metric).distance
    found = getattr(F, selection)(leaf, labels, metric=metric, **extra)
    torch.where(found.index >= 0, found.distance, 0).sum().backward()
    return found.distance.detach().cpu(), found.index.cpu(), leaf.grad.cpu()


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", DATA)
# Few pairs, which are all compared, and more, among which candidates are searched.
@pytest.mark.parametrize("rows", [301, 1101])
def test_selections_are_those_of_the_cpu(selection, metric, kind, rows):
    x, labels = make(kind, rows, 17, 9)
    expected = select(selection, x, labels, metric)
    found = select(selection, x.cuda(), labels.cuda(), metric)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("metric", METRICS)
def test_every_dtype_gives_the_cpu_s_result(dtype, metric):
    x, labels = make("random", 130, 33, 5, dtype=dtype)
    expected = select("semihard_negative", x, labels, metric)
    found = select("semihard_negative", x.cuda(), labels.cuda(), metric)
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[0], expected[0])
    error = (found[2].double() - expected[2].double()).norm() / expected[2].double().norm()
    assert error <= TOLERANCE[dtype]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", DATA)
def test_neighbors_and_draws_are_those_of_the_cpu(metric, kind):
    x, labels = make(kind, 301, 17, 9)
    results = []
    for device in ("cpu", "cuda"):
        rows, classes = x.to(device), labels.to(device)
        generator = torch.Generator().manual_seed(3)
        found = [
            F.nearest_neighbors(rows, k=20, metric=metric),
            F.nearest_neighbors(
                rows, k=20, query_labels=classes, candidates="negatives", metric=metric
            ),
            F.sample_negative(rows, classes, metric=metric, generator=generator),
            F.sample_negative(rows, classes, distribution="uniform", generator=generator),
        ]
        results.append([part.cpu() for selection in found for part in selection])
    for actual, expected in zip(*results, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_tiny_batches_are_defined(rows):
    found = F.hardest_negative(torch.ones(rows, 3, device="cuda"), torch.arange(rows).cuda())
    assert found.index.shape == (rows,)


def test_a_step_of_the_eps_loss_has_the_same_bits_a_hundred_times():
    x, labels = make("clustered", 500, 32, 20)
    loss_of = TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")

    def step():
        leaf = x.cuda().requires_grad_()
        loss = loss_of(leaf, labels.cuda())
        loss.backward()
        return torch.cat([loss.detach().flatten(), leaf.grad.flatten()])

    first = step()
    assert all(torch.equal(step(), first) for _ in range(100))


def test_kernels_run_on_the_current_stream():
    x, labels = make("random", 2000, 64, 40)
    expected = F.hardest_negative(x, labels).index
    source, labels = x.cuda(), labels.cuda()
    late = torch.zeros_like(source)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # A kernel on another stream would not wait for the copy and would see zeros.
        torch.cuda._sleep(100_000_000)
        late.copy_(source)
        found = F.hardest_negative(late, labels).index
    stream.synchronize()
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("missing", ["drop", "hardest"])
def test_references_thresholds_and_strides_are_those_of_the_cpu(metric, missing):
    y, reference_labels = make("duplicated", 301, 20, 9)
    x, labels = y[::3, 1:18].clone(), reference_labels[::3]
    y = y[:, 1:18]
    beyond = torch.linspace(-1, 3, 2 * len(x)).reshape(-1, 2)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [t.to(device).requires_grad_() for t in (x, y)]
        # The transpose of a transpose: rows that are not contiguous.
        anchors, references = (t.t().contiguous().t() for t in leaves)
        found = F.semihard_negative(
            anchors,
            labels.to(device),
            references,
            reference_labels.to(device),
            beyond=beyond.to(device),
            self_index=torch.arange(0, 301, 3, device=device),
            metric=metric,
            missing=missing,
        )
        torch.where(found.index >= 0, found.distance, 0).sum().backward()
        results.append([t.detach().cpu() for t in (*found, leaves[0].grad, leaves[1].grad)])
    cpu, cuda = results
    assert torch.equal(cuda[0], cpu[0])
    assert torch.equal(cuda[1], cpu[1])
    torch.testing.assert_close(cuda[2:], cpu[2:], rtol=1e-5, atol=1e-6)


def test_more_anchors_than_a_grid_has_blocks():
    x, labels = make("random", 70_000, 2, 35_000)
    assert torch.equal(
        F.nearest_positive(x.cuda(), labels.cuda()).index.cpu(), F.nearest_positive(x, labels).index
    )


def test_an_anchor_that_is_not_finite_is_not_lost():
    x = torch.randn(6, 3, device="cuda")
    x[0, 0], x[3, 1] = torch.nan, torch.inf
    x.requires_grad_()
    loss = TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")(
        x, torch.arange(6, device="cuda") // 2
    )
    loss.backward()
    assert loss.isnan()
    assert x.grad[[0, 3]].isnan().any(1).all()


@pytest.mark.parametrize(
    "options", [{}, {"negatives": "hardest"}, {"negatives": "semihard"}], ids=str
)
def test_plain_torch_serves_losses_without_kernels(options):
    x, labels = make("clustered", 60, 8, 6, dtype=torch.float64)
    found = F.triplet_margin_loss(x.cuda(), labels.cuda(), **options)
    torch.testing.assert_close(found.cpu(), F.triplet_margin_loss(x, labels, **options))


def test_a_compiled_loss_is_the_eager_one():
    x, labels = make("random", 200, 16, 10)
    loss_of = TripletMarginLoss(margin=0.2, positives="nearest", negatives="semihard")
    compiled = torch.compile(loss_of, fullgraph=True)
    torch.testing.assert_close(compiled(x.cuda(), labels.cuda()), loss_of(x.cuda(), labels.cuda()))
