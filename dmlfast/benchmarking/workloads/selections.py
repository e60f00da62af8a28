"""Selections alone, without a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import on_reference, product
from dmlfast.functional import nearest_neighbors, nearest_positive

__all__ = ["WORKLOADS"]

# Neighbors of each sample, itself not among them.
NEIGHBORS = 16


def _clone(inputs: Inputs) -> Step:
    """The yardstick of a task whose least cost is to read the data."""
    return inputs.x.clone


def _nearest_positive(inputs: Inputs) -> Step:
    return lambda: nearest_positive(inputs.x, inputs.labels).distance


def _batched_distances(inputs: Inputs) -> Step:
    """Only where all classes have the same size and lie in order, as they do here."""
    size = int((inputs.labels == inputs.labels[0]).sum())
    classes = inputs.x.view(-1, size, inputs.x.shape[1])
    itself = torch.eye(size, dtype=torch.bool)

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


WORKLOADS = (
    Workload(
        name="nearest_positive",
        family="neighbors",
        summary="nearest sample of the same class, without gradient",
        contestants={
            "clone": _clone,
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
)
