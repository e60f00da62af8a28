"""Metrics of an embedding, and the pass over a data set that computes the embedding."""

from __future__ import annotations

from dmlfast.evaluation.adaptive import adaptive_search
from dmlfast.evaluation.intensity import (
    IntensityRanking,
    evaluate_intensity_ranking,
    view_similarities,
)
from dmlfast.evaluation.retrieval import RetrievalMetrics, embed, evaluate_retrieval

__all__ = [
    "IntensityRanking",
    "RetrievalMetrics",
    "adaptive_search",
    "embed",
    "evaluate_intensity_ranking",
    "evaluate_retrieval",
    "view_similarities",
]
