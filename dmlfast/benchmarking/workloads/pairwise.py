"""The distances of all pairs, as a matrix and as their mean and deviation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Contestant, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import on_reference, product, training
from dmlfast.functional import distance_statistics, pairwise_distance

__all__ = ["WORKLOADS"]


def _kernel(x: Tensor) -> Tensor:
    return pairwise_distance(x)


def _cdist(x: Tensor) -> Tensor:
    return torch.cdist(x, x)


def _cdist_without_mm(x: Tensor) -> Tensor:
    """The distances of near rows keep their digits."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _forward(matrix: Callable[[Tensor], Tensor], inputs: Inputs) -> Step:
    return lambda: matrix(inputs.x)


def _sum(matrix: Callable[[Tensor], Tensor], x: Tensor, _: Tensor) -> Tensor:
    return matrix(x).sum()


def _contestants(task: Callable[[Callable[[Tensor], Tensor]], Contestant]) -> dict[str, Contestant]:
    return {
        "product": product,
        "kernel": task(_kernel),
        "reference": on_reference(task(_kernel)),
        "torch.cdist": task(_cdist),
        "torch.cdist without mm": task(_cdist_without_mm),
    }


def _statistics(inputs: Inputs) -> Step:
    return lambda: tuple(distance_statistics(inputs.x)[:2])


def _statistics_of_a_matrix(inputs: Inputs) -> Step:
    def step() -> tuple[Tensor, Tensor]:
        distance = torch.cdist(inputs.x, inputs.x)
        itself = torch.eye(len(distance), dtype=torch.bool, device=distance.device)
        others = distance[~itself]
        return others.mean(), others.std()

    return step


_FORWARD = Workload(
    name="pairwise_distance",
    family="pairwise",
    summary="matrix of Euclidean distances, without gradient",
    contestants=_contestants(lambda matrix: partial(_forward, matrix)),
    yardstick="product",
    cases=(Case(8192),),
    quick=Case(512),
)

WORKLOADS = (
    _FORWARD,
    replace(
        _FORWARD,
        name="pairwise_distance_backward",
        summary="matrix of Euclidean distances, forward and the backward of its sum",
        contestants=_contestants(lambda matrix: training(partial(_sum, matrix))),
    ),
    replace(
        _FORWARD,
        name="distance_statistics",
        summary="mean and deviation of the Euclidean distances of all pairs, without gradient",
        contestants={
            "product": product,
            "kernel": _statistics,
            "reference": on_reference(_statistics),
            "torch.cdist": _statistics_of_a_matrix,
        },
    ),
)
