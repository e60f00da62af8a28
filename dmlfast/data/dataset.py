"""What a data set is: three splits of images with a class and a hidden sub-class each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# (N, 1, H, W) images and the source of all randomness -> images of the same shape and dtype.
Augmentation: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels.

    Attributes:
        images: (N, 1, H, W) float32 in [0, 1], ink 1 on ground 0.
        labels: (N,) int64, the class that training may see, an index into the class names.
        subclasses: (N,) int64, the finer class that only evaluation sees, likewise.

    Raises:
        ValueError: if a shape or dtype is another.
    """

    images: Tensor
    labels: Tensor
    subclasses: Tensor

    def __post_init__(self) -> None:
        images = self.images
        if images.ndim != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
            raise ValueError(
                f"images: expected (N, 1, H, W) float32, got {tuple(images.shape)} {images.dtype}"
            )
        for name in ("labels", "subclasses"):
            value: Tensor = getattr(self, name)
            if value.shape != (len(images),) or value.dtype != torch.int64:
                raise ValueError(
                    f"{name}: expected ({len(images)},) int64, one per image, "
                    f"got {tuple(value.shape)} {value.dtype}"
                )

    def __len__(self) -> int:
        """The number of images."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, ready to train on.

    Attributes:
        name: what `load` knows it by.
        train: images to train on, with `augment`.
        validation: images to select on, as they are.
        test: images to report on, as they are.
        class_names: one per label; the labels of all splits count in one sequence.
        subclass_names: one per sub-class, likewise.
        augment: distorts a batch of training images.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    subclass_names: tuple[str, ...]
    augment: Augmentation
