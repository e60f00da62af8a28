"""Distances of all pairs, one contestant at a time.

pytest benchmarks/bench_pairwise.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("pairwise"))
def test_pairwise(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
