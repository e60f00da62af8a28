"""The workloads by name. A module each for a family of tasks; a new workload is an entry there."""

from __future__ import annotations

from dmlfast.benchmarking.workload import Workload
from dmlfast.benchmarking.workloads import (
    classes,
    clusters,
    contrast,
    pairwise,
    ranking,
    selections,
    structure,
    triplet,
)

__all__ = ["WORKLOADS"]

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for module in (
        triplet,
        contrast,
        classes,
        ranking,
        structure,
        clusters,
        pairwise,
        selections,
    )
    for workload in module.WORKLOADS
}
