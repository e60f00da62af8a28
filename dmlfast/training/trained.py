"""A run to embed images by, as validation selected its weights."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast import data as data_sets
from dmlfast.data import DataSet, Split
from dmlfast.training.config import TrainConfig
from dmlfast.training.limits import one_of
from dmlfast.training.methods.namr import Structure
from dmlfast.training.run_folder import RunFolder
from dmlfast.training.state import TrainingState

__all__ = ["SPLIT_NAMES", "Embedded", "TrainedRun"]

SPLIT_NAMES = ("train", "validation", "test")


class Embedded(NamedTuple):
    """What a run makes of images.

    Attributes:
        sample: (N, d) float32 on the CPU, what the run compares by Euclidean distance.
        structure: (N, d) weights of the dimensions around each; None where the run learns none.
    """

    sample: Tensor
    structure: Tensor | None


class TrainedRun:
    """What `dmlfast train` has left in a folder, finished or interrupted, on the CPU.

    `TrainedRun.open` reads it.

    Attributes:
        path: the run folder.
        config: the settings of the run.
        data: its data set.
        step: the step that validation selected; without an evaluation, the last one.
        digest: SHA-256 of the checkpoint, by which the run is known again.
    """

    def __init__(
        self, path: Path, config: TrainConfig, data: DataSet, state: TrainingState, digest: str
    ) -> None:
        self.path, self.config, self.data, self.digest = path, config, data, digest
        self.step = state.selected_step()
        self._state = state

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TrainedRun:
        """Read a run folder and load its data set.

        Raises:
            RunFolderError: if the folder holds no run, or no checkpoint that can be read.
            ImportError: if a package that the data set needs is not installed.
        """
        folder, config = RunFolder.open(path)
        checkpoint = folder.read_checkpoint(config, resume=False)
        data = data_sets.load(config.data)
        channels, height, width = data.test.images.shape[1:]
        classes = len(torch.unique(data.train.labels))
        state = TrainingState(config, (channels, height, width), torch.device("cpu"), classes)
        state.restore(checkpoint)
        digest = hashlib.sha256((folder.path / RunFolder.CHECKPOINT).read_bytes()).hexdigest()
        return cls(folder.path, config, data, state, digest)

    @property
    def normalized(self) -> bool:
        """Whether embeddings are of unit length."""
        return self._state.method.normalized

    @property
    def has_structure(self) -> bool:
        """Whether the run has learnt a structure embedding."""
        method = self._state.method
        return isinstance(method, Structure) and method.settings.has_structure()

    def split(self, name: str) -> Split:
        """A split of the data set, its images as they are.

        Raises:
            ValueError: if there is none of that name.
        """
        one_of("split", name, SPLIT_NAMES)
        split: Split = getattr(self.data, name)
        return split

    def embed(self, images: Tensor) -> Embedded:
        """Embed (N, C, H, W) images by the selected weights."""
        state = self._state
        with state.selected():
            if isinstance(state.method, Structure):
                sample, structure = state.method.embed_both(state.model, images)
                return Embedded(sample, structure if self.has_structure else None)
            return Embedded(state.method.embed(state.model, images), None)
