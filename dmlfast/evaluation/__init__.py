"""Metrics of an embedding, and the pass over a data set that computes the embedding."""

from __future__ import annotations

from dmlfast.evaluation.adaptive import (
    adaptive_search,
    evaluate_adaptive_retrieval,
    oracle_structure,
)
from dmlfast.evaluation.clustering import (
    ClusteringMetrics,
    adjusted_mutual_information,
    evaluate_clustering,
    normalized_mutual_information,
    purity,
)
from dmlfast.evaluation.collapse import CollapseMetrics, effective_rank, evaluate_collapse
from dmlfast.evaluation.index import INDEX_SETTINGS, build_index, index_settings, search_index
from dmlfast.evaluation.intensity import (
    IntensityRanking,
    evaluate_intensity_ranking,
    view_similarities,
)
from dmlfast.evaluation.retrieval import (
    RetrievalMetrics,
    embed,
    evaluate_neighbors,
    evaluate_retrieval,
)

__all__ = [
    "INDEX_SETTINGS",
    "ClusteringMetrics",
    "CollapseMetrics",
    "IntensityRanking",
    "RetrievalMetrics",
    "adaptive_search",
    "adjusted_mutual_information",
    "build_index",
    "effective_rank",
    "embed",
    "evaluate_adaptive_retrieval",
    "evaluate_clustering",
    "evaluate_collapse",
    "evaluate_intensity_ranking",
    "evaluate_neighbors",
    "evaluate_retrieval",
    "index_settings",
    "normalized_mutual_information",
    "oracle_structure",
    "purity",
    "search_index",
    "view_similarities",
]
