"""Selections alone, without a gradient."""

from __future__ import annotations

import torch

from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload
from dmlfast.functional import nearest_positive

__all__ = ["WORKLOADS"]


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

    def step() -> torch.Tensor:
        distance = torch.cdist(classes, classes)
        return distance.masked_fill_(itself, torch.inf).amin(2).flatten()

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
)
