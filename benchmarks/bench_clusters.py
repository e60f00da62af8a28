"""k-means and soft assignment to centres, one contestant at a time.

pytest benchmarks/bench_clusters.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("clusters"))
def test_clusters(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
