"""Data sets that need no download, their augmentation, and the sampler of training batches."""

from __future__ import annotations

import os
from collections.abc import Callable

from dmlfast.data import digits, glyphs
from dmlfast.data.dataset import Augmentation, DataSet, Split
from dmlfast.data.images import read_images
from dmlfast.data.sampler import MPerClassSampler
from dmlfast.data.transforms import RandomAffine, RandomView, rising_views

__all__ = [
    "Augmentation",
    "DataSet",
    "MPerClassSampler",
    "RandomAffine",
    "RandomView",
    "Split",
    "load",
    "names",
    "read_images",
    "rising_views",
]

_LOADERS: dict[str, Callable[[str | os.PathLike[str] | None], DataSet]] = {
    "digits": lambda _: digits.load(unseen=False),
    "digits-unseen": lambda _: digits.load(unseen=True),
    "glyphs": lambda cache: glyphs.load(cache=cache),
}


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_LOADERS)


def load(name: str, *, cache: str | os.PathLike[str] | None = None) -> DataSet:
    """Load a data set by name; the same name gives the same tensors every time.

    * "digits": 8x8 scans of digits; the class is the parity, the sub-class the digit; every digit
      is in every split.
    * "digits-unseen": the same, with digits 0-5 in train and validation, 6-9 in test.
    * "glyphs": 32x32 characters in 12 font faces; the class is the character, the sub-class the
      face; classes of one split are in no other. Validation and test images are distorted.

    Args:
        name: one of `names()`.
        cache: folder for what is rendered once (only "glyphs" has any); by default
            `$DMLFAST_CACHE`, else `~/.cache/dmlfast`.

    Raises:
        ValueError: for another name.
        ImportError: if a package that the data set needs is not installed.
    """
    if name not in _LOADERS:
        options = ", ".join(repr(option) for option in _LOADERS)
        raise ValueError(f"name: expected one of {options}, got {name!r}")
    return _LOADERS[name](cache)
