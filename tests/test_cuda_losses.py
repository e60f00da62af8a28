"""Losses and distances by the CUDA kernels on a GPU: `pytest -m cuda`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from oracle import METRICS, make

import dmlfast.functional as F
from dmlfast import _library

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

LOSSES = {
    "triplet": F.triplet_margin_loss,
    "triplet_nearest": partial(F.triplet_margin_loss, positives="nearest"),
    "triplet_eps": partial(F.triplet_margin_loss, positives="nearest", negatives="semihard"),
    "contrastive": F.contrastive_loss,
    "margin": partial(F.margin_loss, boundary=1.0),
    "multi_similarity": F.multi_similarity_loss,
    "multi_similarity_mined": partial(F.multi_similarity_loss, epsilon=0.1),
    "info_nce": F.info_nce_loss,
    "supcon": F.supcon_loss,
    "nca": F.nca_loss,
    "distances": lambda x, labels: F.pairwise_distance(x).square().mean(),
    "statistics": lambda x, labels: sum(F.distance_statistics(x)[:2]),
}
# Of a loss, and of its gradient's length: products of unit rows are off by 2^-20 at float32's
# precision, by 2^-9 at half; exponents multiply that by at most 1 / 0.05.
TOLERANCE = {"highest": 5e-5, "high": 5e-2}


def step(loss_of, x, labels):
    """The loss and its gradient."""
    leaf = x.detach().clone().requires_grad_()
    loss = loss_of(leaf, labels).mean()
    loss.backward()
    return loss.detach(), leaf.grad


def unit_rows(rows, dimensions, classes):
    x, labels = make("random", rows, dimensions, classes)
    return torch.nn.functional.normalize(x), labels


@pytest.fixture(params=TOLERANCE)
def precision(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("loss", LOSSES)
# Within a tile, and several tiles with a rest.
@pytest.mark.parametrize("rows", [60, 700])
def test_losses_are_those_of_the_cpu(loss, rows, precision):
    x, labels = unit_rows(rows, 70, rows // 5)
    expected = step(LOSSES[loss], x, labels)
    actual = [part.cpu() for part in step(LOSSES[loss], x.cuda(), labels.cuda())]
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= TOLERANCE[precision] * e.norm()


@pytest.mark.parametrize("metric", METRICS)
def test_distances_of_16_bit_rows_are_those_of_the_cpu(metric):
    x, _ = unit_rows(300, 40, 9)
    for dtype in (torch.float16, torch.bfloat16):
        expected = F.pairwise_distance(x.to(dtype).double(), metric=metric)
        actual = F.pairwise_distance(x.to(dtype).cuda(), metric=metric).cpu()
        assert actual.dtype == torch.float32
        # Squares are off by 2^-19 at most; distances below 0.04 are computed from differences.
        assert (actual - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_has_the_same_bits_ten_times(loss):
    x, labels = (part.cuda() for part in unit_rows(400, 130, 40))
    first = step(LOSSES[loss], x, labels)
    for _ in range(10):
        assert all(map(torch.equal, step(LOSSES[loss], x, labels), first))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_is_captured_as_a_graph(loss):
    # Whatever waits for the host cannot be captured.
    first, labels = (part.cuda() for part in unit_rows(1100, 33, 200))
    x = first.clone().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        LOSSES[loss](x, labels).mean().backward()
    torch.cuda.current_stream().wait_stream(side)
    x.grad = None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = LOSSES[loss](x, labels).mean()
        captured.backward()
    with torch.no_grad():
        x.copy_(first.flip(1) * 0.5)
    graph.replay()
    expected = step(LOSSES[loss], x, labels)
    assert torch.equal(captured, expected[0])
    assert torch.equal(x.grad, expected[1])
