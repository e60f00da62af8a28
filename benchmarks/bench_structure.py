"""Adaptive distances and their assignment to clusters, one contestant at a time.

pytest benchmarks/bench_structure.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("structure"))
def test_structure(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
