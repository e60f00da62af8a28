"""Miners: modules that return index tuples, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.miners.batch_easy_hard import BatchEasyHardMiner
from dmlfast.miners.distance_weighted import DistanceWeightedMiner
from dmlfast.miners.multi_similarity import MultiSimilarityMiner

__all__ = ["BatchEasyHardMiner", "DistanceWeightedMiner", "MultiSimilarityMiner"]
