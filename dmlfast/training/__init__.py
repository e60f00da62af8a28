"""Training runs: what they are made of, the loop, and the folder that they write."""

from __future__ import annotations

from dmlfast.training.config import TrainConfig
from dmlfast.training.errors import RunFolderError, TrainingError
from dmlfast.training.interruption import interruption
from dmlfast.training.loop import Progress, TrainResult, train
from dmlfast.training.run_folder import RunFolder
from dmlfast.training.summary import summarize

__all__ = [
    "Progress",
    "RunFolder",
    "RunFolderError",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "interruption",
    "summarize",
    "train",
]
