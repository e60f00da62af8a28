"""Loss modules: thin, composed of `dmlfast.functional`."""

from __future__ import annotations

from dmlfast.losses.triplet import TripletMarginLoss

__all__ = ["TripletMarginLoss"]
