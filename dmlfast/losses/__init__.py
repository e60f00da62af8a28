"""Loss modules: thin, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.losses.contrastive import ContrastiveLoss
from dmlfast.losses.cross_batch_memory import CrossBatchMemory
from dmlfast.losses.local_variance import LocalVarianceLoss
from dmlfast.losses.margin import MarginLoss
from dmlfast.losses.multi_cluster import MultiClusterLoss, MultiClusterTerms
from dmlfast.losses.multi_similarity import MultiSimilarityLoss
from dmlfast.losses.nca import NCALoss
from dmlfast.losses.proxies import (
    ProxyAnchorLoss,
    ProxyNCALoss,
    SoftTripleLoss,
    SubCenterArcFaceLoss,
)
from dmlfast.losses.self_supervised_ranking import (
    SelfSupervisedRankingLoss,
    SelfSupervisedSynthesisRankingLoss,
)
from dmlfast.losses.softmax import NPairsLoss, NTXentLoss, SupConLoss
from dmlfast.losses.synthetic_ranking import (
    MetricTerm,
    RankingTerm,
    Synthesis,
    SyntheticRankingLoss,
    SyntheticRankingTerms,
    SyntheticWeights,
)
from dmlfast.losses.triplet import TripletMarginLoss

__all__ = [
    "ContrastiveLoss",
    "CrossBatchMemory",
    "LocalVarianceLoss",
    "MarginLoss",
    "MetricTerm",
    "MultiClusterLoss",
    "MultiClusterTerms",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "RankingTerm",
    "SelfSupervisedRankingLoss",
    "SelfSupervisedSynthesisRankingLoss",
    "SoftTripleLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "Synthesis",
    "SyntheticRankingLoss",
    "SyntheticRankingTerms",
    "SyntheticWeights",
    "TripletMarginLoss",
]
