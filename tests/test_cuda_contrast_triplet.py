"""Triplet losses on a GPU, beside those of the CPU's kernels."""

from __future__ import annotations

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


def losses_on(device, x, labels, references, others, **options):
    """Sums, numbers of triplets, and the gradients of both."""
    leaves = [rows.to(device).requires_grad_() for rows in (x, references)]
    sums = F.triplet_margin_loss(
        leaves[0], labels.to(device), leaves[1], others.to(device), reduction="none", **options
    )
    (sums.loss * torch.linspace(-1, 1, len(x), device=device)).sum().backward()
    return [t.detach().cpu() for t in (sums.loss, sums.active, *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("positives", ["all", "nearest", "farthest"])
# Classes of a few, and so large that several passes serve them.
@pytest.mark.parametrize("classes", [60, 1])
def test_float32_has_the_triplets_of_the_cpu(metric, positives, classes):
    x, labels = make("random", 300, 20, classes + 1)
    references, others = make("random", 2000, 20, classes + 1, seed=1)
    options = {"metric": metric, "positives": positives, "margin": 0.2}
    cpu, cuda = (losses_on(d, x, labels, references, others, **options) for d in ("cpu", "cuda"))
    assert torch.equal(cuda[1], cpu[1])
    for got, wanted in zip(cuda, cpu, strict=True):
        # Distances and sums in float32, of numbers of one size.
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_rows_have_the_loss_of_the_values_as_stored(dtype):
    x, labels = make("random", 500, 40, 30)
    x = x.to(dtype)
    cpu, cuda = (
        F.triplet_margin_loss(x.to(d), labels.to(d), margin=0.2).cpu() for d in ("cpu", "cuda")
    )
    torch.testing.assert_close(cuda, cpu, rtol=1e-5, atol=0)


def test_sums_are_the_same_on_every_run():
    x, labels = make("random", 1000, 64, 50)
    one, other = (losses_on("cuda", x, labels, x, labels, margin=0.2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("negatives", ["hardest", "semihard"])
def test_plain_torch_serves_other_negatives_without_a_warning(negatives, recwarn):
    x, labels = make("clustered", 60, 8, 6)
    found = F.triplet_margin_loss(x.cuda(), labels.cuda(), negatives=negatives)
    torch.testing.assert_close(found.cpu(), F.triplet_margin_loss(x, labels, negatives=negatives))
    assert not recwarn.list
