"""Selections alone, without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import clone, on_reference, product
from dmlfast.functional import nearest_neighbors, nearest_positive, sample_negative

__all__ = ["WORKLOADS"]

# Neighbors of each sample, itself not among them.
NEIGHBORS = 16

# The defaults of `sample_negative`.
CUTOFF, NONZERO_LOSS_CUTOFF = 0.5, 1.4


def _nearest_positive(inputs: Inputs) -> Step:
    return lambda: nearest_positive(inputs.x, inputs.labels).distance


def _batched_distances(inputs: Inputs) -> Step:
    """Only where all classes have the same size and lie in order, as they do here."""
    size = int((inputs.labels == inputs.labels[0]).sum())
    classes = inputs.x.view(-1, size, inputs.x.shape[1])
    itself = torch.eye(size, dtype=torch.bool, device=inputs.x.device)

    def step() -> Tensor:
        distance = torch.cdist(classes, classes)
        return distance.masked_fill_(itself, torch.inf).amin(2).flatten()

    return step


def _nearest_neighbors(inputs: Inputs) -> Step:
    return lambda: nearest_neighbors(inputs.x, k=NEIGHBORS).distance


def _distances_and_topk(inputs: Inputs) -> Step:
    def step() -> Tensor:
        distance = torch.cdist(inputs.x, inputs.x).fill_diagonal_(torch.inf)
        return distance.topk(NEIGHBORS, largest=False).values

    return step


def _faiss(inputs: Inputs) -> Step:
    from faiss import IndexFlatL2

    x = inputs.x.numpy()
    index = IndexFlatL2(x.shape[1])
    index.add(x)
    # The nearest is the sample itself.
    return lambda: torch.from_numpy(index.search(x, NEIGHBORS + 1)[0])[:, 1:].sqrt()


def _scikit_learn(inputs: Inputs) -> Step:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=NEIGHBORS, algorithm="brute").fit(inputs.x.numpy())
    return lambda: torch.from_numpy(search.kneighbors()[0]).float()


def _keops(inputs: Inputs) -> Step:
    from pykeops.torch import LazyTensor

    x = inputs.x
    squares = ((LazyTensor(x[:, None]) - LazyTensor(x[None])) ** 2).sum(-1)

    def step() -> Tensor:
        smallest: Tensor = squares.Kmin(NEIGHBORS + 1, dim=1)
        return smallest[:, 1:].sqrt()

    return step


def _sample_negative(inputs: Inputs) -> Step:
    return lambda: sample_negative(inputs.x, inputs.labels).distance


def _weights_and_multinomial(inputs: Inputs) -> Step:
    x, labels = inputs.x, inputs.labels
    dimensions = x.shape[1]

    def step() -> Tensor:
        distance = torch.cdist(x, x)
        bounded = distance.clamp(min=CUTOFF)
        cosines = (1 - bounded.square() / 4).clamp(min=1e-8)
        weight = (2 - dimensions) * bounded.log() - (dimensions - 3) / 2 * cosines.log()
        negative = labels[:, None] != labels
        near = negative & (distance < NONZERO_LOSS_CUTOFF)
        weight = torch.where(near.any(1, keepdim=True), weight, 0)
        candidate = torch.where(near.any(1, keepdim=True), near, negative)
        weight = weight.masked_fill(~candidate, -torch.inf).softmax(1)
        return distance.gather(1, weight.multinomial(1))[:, 0]

    return step


def _peer_sample(inputs: Inputs) -> Step:
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    x = inputs.x
    # It insists on scaling the rows.
    miner = DistanceWeightedMiner(CUTOFF, NONZERO_LOSS_CUTOFF, distance=LpDistance())

    def step() -> Tensor:
        # It draws for triplets: for each sample as often as its class has samples.
        anchor, _, negative = miner(x, inputs.labels)
        distance: Tensor = (x[anchor] - x[negative]).norm(dim=1)
        return distance

    return step


WORKLOADS = (
    Workload(
        name="nearest_positive",
        family="neighbors",
        summary="nearest sample of the same class, without gradient",
        contestants={
            "clone": clone,
            "kernel": _nearest_positive,
            "batched torch.cdist": _batched_distances,
        },
        yardstick="clone",
        cases=(Case(131072),),
        quick=Case(4096),
        operations=None,
    ),
    Workload(
        name="nearest_neighbors",
        family="neighbors",
        summary=f"nearest {NEIGHBORS} samples of the batch, without gradient",
        contestants={
            "product": product,
            "kernel": _nearest_neighbors,
            "reference": on_reference(_nearest_neighbors),
            "torch.cdist and topk": _distances_and_topk,
            "faiss": _faiss,
            "scikit-learn": _scikit_learn,
            "KeOps": _keops,
        },
        yardstick="product",
        cases=(Case(16384),),
        quick=Case(1024),
    ),
    Workload(
        name="sample_negative",
        family="neighbors",
        summary="a distance-weighted negative for each sample, without gradient",
        contestants={
            "product": product,
            "kernel": _sample_negative,
            "reference": on_reference(_sample_negative),
            "weights and multinomial": _weights_and_multinomial,
            "pytorch-metric-learning": _peer_sample,
        },
        yardstick="product",
        cases=(Case(1024), Case(16384)),
        quick=Case(512),
    ),
)
