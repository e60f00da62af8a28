"""Losses over all positives and negatives, one contestant at a time.

pytest benchmarks/bench_contrast.py
"""

from __future__ import annotations

import pytest
from single import contestants_of, measure


@pytest.mark.parametrize(("workload", "contestant"), contestants_of("contrast"))
def test_contrast(benchmark, workload, contestant):
    measure(benchmark, workload, contestant)
