"""Selections, and the losses made of them, one contestant at a time.

pytest benchmarks/bench_neighbors.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("neighbors"))
def test_neighbors(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
