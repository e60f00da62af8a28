"""Time and peak memory of the kernels beside the reference and what else computes the same."""

from __future__ import annotations

from dmlfast.benchmarking.compare import BenchmarkProgress, Settings, compare
from dmlfast.benchmarking.results import Results, read_results, write_results
from dmlfast.benchmarking.table import short_table, update_table
from dmlfast.benchmarking.workload import Case, Inputs, Workload
from dmlfast.benchmarking.workloads import WORKLOADS

__all__ = [
    "WORKLOADS",
    "BenchmarkProgress",
    "Case",
    "Inputs",
    "Results",
    "Settings",
    "Workload",
    "compare",
    "read_results",
    "short_table",
    "update_table",
    "write_results",
]
