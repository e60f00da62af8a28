"""Loss modules: thin, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.losses.contrastive import ContrastiveLoss
from dmlfast.losses.cross_batch_memory import CrossBatchMemory
from dmlfast.losses.margin import MarginLoss
from dmlfast.losses.multi_similarity import MultiSimilarityLoss
from dmlfast.losses.nca import NCALoss
from dmlfast.losses.proxies import ProxyAnchorLoss, ProxyNCALoss, SoftTripleLoss
from dmlfast.losses.softmax import NPairsLoss, NTXentLoss, SupConLoss
from dmlfast.losses.triplet import TripletMarginLoss

__all__ = [
    "ContrastiveLoss",
    "CrossBatchMemory",
    "MarginLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
