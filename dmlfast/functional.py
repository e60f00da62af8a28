"""Functions over batches of embeddings, in the manner of `torch.nn.functional`.

Everywhere: `x` (N, d) anchors, `labels` (N,), `references` (M, d) with `reference_labels` (M,),
`metric` in "euclidean", "sqeuclidean", "cosine" (1 - cos), "dot" (-<x, y>), so that smaller is
always closer. Nothing here normalises embeddings.
"""

from __future__ import annotations

from dmlfast.ops.clusters import assign_clusters
from dmlfast.ops.clusters_kmeans import KMeans, kmeans
from dmlfast.ops.clusters_means import ClusterMeans, cluster_means
from dmlfast.ops.clusters_soft import SoftAssignment
from dmlfast.ops.contrast import AnchorSums, triplet_margin_loss
from dmlfast.ops.contrast_classes import soft_triple_loss, sub_center_arcface_loss
from dmlfast.ops.contrast_hinge import contrastive_loss, margin_loss
from dmlfast.ops.contrast_proxies import proxy_anchor_loss, proxy_nca_loss
from dmlfast.ops.contrast_softmax import (
    info_nce_loss,
    multi_similarity_loss,
    nca_loss,
    supcon_loss,
)
from dmlfast.ops.contrast_sums import ContrastSums
from dmlfast.ops.neighbors import (
    Selection,
    farthest_positive,
    hardest_negative,
    nearest_positive,
    semihard_negative,
)
from dmlfast.ops.neighbors_sample import sample_negative
from dmlfast.ops.neighbors_top import nearest_neighbors
from dmlfast.ops.pairwise import DistanceStatistics, distance_statistics, pairwise_distance
from dmlfast.ops.ranking import ranking_loss
from dmlfast.ops.ranking_synthesis import synthesis_similarity, synthetic_ranking_loss
from dmlfast.ops.structure import adaptive_distance
from dmlfast.ops.structure_clusters import multi_cluster_loss

__all__ = [
    "AnchorSums",
    "ClusterMeans",
    "ContrastSums",
    "DistanceStatistics",
    "KMeans",
    "Selection",
    "SoftAssignment",
    "adaptive_distance",
    "assign_clusters",
    "cluster_means",
    "contrastive_loss",
    "distance_statistics",
    "farthest_positive",
    "hardest_negative",
    "info_nce_loss",
    "kmeans",
    "margin_loss",
    "multi_cluster_loss",
    "multi_similarity_loss",
    "nca_loss",
    "nearest_neighbors",
    "nearest_positive",
    "pairwise_distance",
    "proxy_anchor_loss",
    "proxy_nca_loss",
    "ranking_loss",
    "sample_negative",
    "semihard_negative",
    "soft_triple_loss",
    "sub_center_arcface_loss",
    "supcon_loss",
    "synthesis_similarity",
    "synthetic_ranking_loss",
    "triplet_margin_loss",
]
