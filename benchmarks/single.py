"""One contestant alone under pytest-benchmark; `dmlfast bench` lets them take turns."""

from __future__ import annotations

from typing import Any

import pytest

from dmlfast.benchmarking import WORKLOADS, Inputs, Workload
from dmlfast.benchmarking.memory import peak_memory


def contestants_of(family: str) -> list[Any]:
    """Parameters (workload, contestant) of the workloads that exercise a family."""
    return [
        pytest.param(workload, name, id=f"{workload.name}, {name}")
        for workload in WORKLOADS.values()
        if workload.family == family
        for name in workload.contestants
    ]


def measure(benchmark: Any, workload: Workload, contestant: str) -> None:
    """Time a contestant at the workload's quick size; extra_info holds its peak memory in MiB."""
    benchmark.group = f"{workload.name}, {workload.quick}"
    try:
        step = workload.contestants[contestant](Inputs.of(workload.quick))
    except ImportError as error:
        pytest.skip(str(error))
    step()  # what only a first call allocates or compiles is not part of the figures
    benchmark.extra_info["peak_mib"] = peak_memory(step)
    benchmark.pedantic(step, rounds=5)
