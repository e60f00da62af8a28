"""The triplet loss: nearest positive with semi-hard negative (EPS), and over all pairs."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import (
    compiled,
    in_threads,
    on_reference,
    product,
    product_in_blocks,
    training,
    training_step,
)
from dmlfast.functional import triplet_margin_loss

__all__ = ["WORKLOADS"]

MARGIN = 0.2
# How near the rows of a collapsed batch are to the point that they share.
RADIUS = 1e-3

_eps_loss = partial(
    triplet_margin_loss, margin=MARGIN, positives="nearest", negatives="semihard", reduction="mean"
)
_all_loss = partial(triplet_margin_loss, margin=MARGIN)
_eps = training(_eps_loss)
_all = training(_all_loss)


def _mean_of_active(hinge: Tensor) -> Tensor:
    return hinge.sum() / (hinge > 0).sum().clamp(min=1)


def _eps_written_out(x: Tensor, labels: Tensor) -> Tensor:
    """As it is usually written: N x N matrices and masks."""
    distance = torch.cdist(x, x)
    same = labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = distance.masked_fill(~same | itself, torch.inf).amin(1)
    semihard = same | (distance <= positive[:, None])
    negative = distance.masked_fill(semihard, torch.inf).amin(1)
    exists = positive.isfinite() & negative.isfinite()
    return _mean_of_active(torch.where(exists, torch.relu(positive - negative + MARGIN), 0.0))


def _all_written_out(x: Tensor, labels: Tensor) -> Tensor:
    """As it is usually written: an N x N x N tensor and a mask."""
    distance = torch.cdist(x, x)
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    hinge = torch.relu(distance[:, :, None] - distance[:, None, :] + MARGIN)
    return _mean_of_active(hinge * (positive[:, :, None] & ~same[:, None, :]))


def _peer_eps(inputs: Inputs) -> Step:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import BatchEasyHardMiner

    # The rows have length 1 already: nobody scales them again.
    distance = LpDistance(normalize_embeddings=False)
    miner = BatchEasyHardMiner(pos_strategy="easy", neg_strategy="semihard", distance=distance)
    loss = TripletMarginLoss(margin=MARGIN, distance=distance)
    return training_step(lambda x, labels: loss(x, labels, miner(x, labels)), inputs)


def _peer_all(inputs: Inputs) -> Step:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.losses import TripletMarginLoss

    distance = LpDistance(normalize_embeddings=False)
    return training_step(TripletMarginLoss(margin=MARGIN, distance=distance), inputs)


def _collapsed(points: int, inputs: Inputs) -> Step:
    """EPS where the rows have fallen on `points` points, each the place of a class of its own.

    With one point the classes are as given.
    """
    x, labels = inputs.x, inputs.labels
    place = torch.arange(len(x), device=x.device) % points
    fallen = Inputs(x[:points][place] + RADIUS * x.roll(1, 0), labels if points == 1 else place)
    return _eps(fallen)


_EPS = Workload(
    name="eps_triplet",
    family="neighbors",
    summary="EPS triplet loss, forward and backward",
    contestants={
        "product": product,
        "kernel": _eps,
        "reference": on_reference(_eps),
        "written out": training(_eps_written_out),
        "written out, compiled": compiled(_eps_written_out),
        "pytorch-metric-learning": _peer_eps,
    },
    yardstick="product",
    cases=(Case(8192),),
    quick=Case(512),
)

WORKLOADS = (
    _EPS,
    replace(
        _EPS,
        name="scaling",
        summary="EPS triplet loss, forward and backward, as N grows",
        contestants={
            "product in blocks": product_in_blocks,
            **{name: make for name, make in _EPS.contestants.items() if name != "reference"},
        },
        yardstick="product in blocks",
        cases=(Case(2048), Case(8192), Case(32768), Case(131072)),
    ),
    replace(
        _EPS,
        name="eps_triplet_collapsed",
        summary="EPS triplet loss of an ordinary and of collapsed batches, forward and backward",
        contestants={
            "ordinary": _eps,
            "one point": partial(_collapsed, 1),
            "two points": partial(_collapsed, 2),
        },
        yardstick="ordinary",
        kernel="ordinary",
    ),
    replace(
        _EPS,
        name="dimensions",
        summary="EPS triplet loss, forward and backward, as d grows",
        contestants={"product": product, "kernel": _eps},
        cases=tuple(Case(8192, dimensions) for dimensions in (64, 128, 512)),
    ),
    replace(
        _EPS,
        name="threads",
        summary="EPS triplet loss, forward and backward, with one thread and with two",
        contestants={
            "kernel, 1 thread": in_threads(1, _eps),
            "kernel, 2 threads": in_threads(2, _eps),
            "product, 1 thread": in_threads(1, product),
            "product, 2 threads": in_threads(2, product),
        },
        yardstick="kernel, 1 thread",
        kernel="kernel, 2 threads",
    ),
    Workload(
        name="all_triplet",
        family="contrast",
        summary="triplet loss over all positives and negatives, forward and backward",
        contestants={
            "product": product,
            "kernel": _all,
            "reference": on_reference(_all),
            "written out": training(_all_written_out),
            "written out, compiled": compiled(_all_written_out),
            "pytorch-metric-learning": _peer_all,
        },
        yardstick="product",
        cases=(Case(512), Case(2048)),
        quick=Case(256),
    ),
)
