"""Losses that take a log-sum-exp over the positives or negatives of an anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import (
    compiled,
    on_reference,
    product,
    training,
    training_step,
)
from dmlfast.functional import (
    contrastive_loss,
    info_nce_loss,
    multi_similarity_loss,
    supcon_loss,
)

__all__ = ["WORKLOADS"]

# The defaults of the functions above.
ALPHA, BETA, BASE = 2.0, 50.0, 0.5
INFO_NCE_TEMPERATURE, SUPCON_TEMPERATURE = 0.07, 0.1
NEGATIVE_MARGIN = 1.0


def _masks(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) where the pair is positive, and where it is negative."""
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return same & ~itself, ~same


def _multi_similarity_written_out(x: Tensor, labels: Tensor) -> Tensor:
    similarity = x @ x.T - BASE
    positive, negative = _masks(labels)
    below = (-ALPHA * similarity).masked_fill(~positive, -torch.inf).logsumexp(1)
    above = (BETA * similarity).masked_fill(~negative, -torch.inf).logsumexp(1)
    softplus = torch.nn.functional.softplus
    return (softplus(below) / ALPHA + softplus(above) / BETA).mean()


def _info_nce_written_out(x: Tensor, labels: Tensor) -> Tensor:
    similarity = x @ x.T / INFO_NCE_TEMPERATURE
    positive, negative = _masks(labels)
    others = similarity.masked_fill(~negative, -torch.inf).logsumexp(1, keepdim=True)
    losses = torch.nn.functional.softplus(others - similarity)
    return (losses * positive).sum() / positive.sum()


def _supcon_written_out(x: Tensor, labels: Tensor) -> Tensor:
    similarity = x @ x.T / SUPCON_TEMPERATURE
    positive, negative = _masks(labels)
    others = similarity.masked_fill(~(positive | negative), -torch.inf).logsumexp(1, keepdim=True)
    losses = (others - similarity) * positive
    return (losses.sum(1) / positive.sum(1)).mean()


def _contrastive_written_out(x: Tensor, labels: Tensor) -> Tensor:
    distance = torch.cdist(x, x)
    positive, negative = _masks(labels)
    near = torch.relu(NEGATIVE_MARGIN - distance) * negative
    far = distance * positive
    counts = (far > 0).sum().clamp(min=1), (near > 0).sum().clamp(min=1)
    return far.sum() / counts[0] + near.sum() / counts[1]


def _cosine() -> Any:
    from pytorch_metric_learning.distances import DotProductSimilarity

    # The rows have length 1 already: nobody scales them again.
    return DotProductSimilarity(normalize_embeddings=False)


def _peer_multi_similarity(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import MultiSimilarityLoss

    loss = MultiSimilarityLoss(alpha=ALPHA, beta=BETA, base=BASE, distance=_cosine())
    return training_step(loss, inputs)


def _peer_info_nce(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import NTXentLoss

    return training_step(NTXentLoss(INFO_NCE_TEMPERATURE, distance=_cosine()), inputs)


def _peer_supcon(inputs: Inputs) -> Step:
    from pytorch_metric_learning.losses import SupConLoss

    return training_step(SupConLoss(SUPCON_TEMPERATURE, distance=_cosine()), inputs)


def _peer_contrastive(inputs: Inputs) -> Step:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import ContrastiveLoss

    distance = LpDistance(normalize_embeddings=False)
    return training_step(ContrastiveLoss(0.0, NEGATIVE_MARGIN, distance=distance), inputs)


def _workload(
    name: str,
    title: str,
    loss: Callable[..., Any],
    written_out: Callable[[Tensor, Tensor], Tensor],
    peer: Contestant,
    sizes: tuple[int, ...],
) -> Workload:
    """The workload of a loss at these numbers of rows."""
    return Workload(
        name=name,
        family="contrast",
        summary=f"{title} loss, forward and backward",
        contestants={
            "product": product,
            "kernel": training(loss),
            "reference": on_reference(training(loss)),
            "written out": training(written_out),
            "written out, compiled": compiled(written_out),
            "pytorch-metric-learning": peer,
        },
        yardstick="product",
        cases=tuple(Case(rows) for rows in sizes),
        quick=Case(256),
    )


WORKLOADS = (
    _workload(
        "multi_similarity",
        "multi-similarity",
        multi_similarity_loss,
        _multi_similarity_written_out,
        _peer_multi_similarity,
        (2048, 8192),
    ),
    _workload("supcon", "SupCon", supcon_loss, _supcon_written_out, _peer_supcon, (1024, 4096)),
    _workload(
        "info_nce", "InfoNCE", info_nce_loss, _info_nce_written_out, _peer_info_nce, (1024, 4096)
    ),
    _workload(
        "contrastive",
        "contrastive",
        contrastive_loss,
        _contrastive_written_out,
        _peer_contrastive,
        (4096,),
    ),
)
