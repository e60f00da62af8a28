"""Ranking of similarities by intensity, one contestant at a time.

pytest benchmarks/bench_ranking.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("ranking"))
def test_ranking(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
