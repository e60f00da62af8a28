"""Loss modules: thin, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.losses.cross_batch_memory import CrossBatchMemory
from dmlfast.losses.triplet import TripletMarginLoss

__all__ = ["CrossBatchMemory", "TripletMarginLoss"]
