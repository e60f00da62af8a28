"""Images of files, in the form of those of the data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dmlfast._optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_images"]


def read_images(files: Sequence[str | os.PathLike[str]], size: int) -> Tensor:
    """Read image files as grey squares, ink 1 on ground 0.

    The median grey of the border is the ground: where it is light, as in print, the greys are
    turned round. What is transparent is white. An image that is not square is padded with that
    median, and all are scaled to `size`.

    Args:
        files: images in a format that Pillow reads.
        size: height and width of the result in pixels.

    Returns:
        (N, 1, size, size) float32 in [0, 1].

    Raises:
        ValueError: if a file cannot be read as an image, or there is none.
        ImportError: Pillow is not installed.
    """
    if not files:
        raise ValueError("files: expected an image at least, got none")
    return torch.stack([_read(file, size) for file in files])


def _read(file: str | os.PathLike[str], size: int) -> Tensor:
    image_of = require("PIL.Image", "train")
    try:
        with image_of.open(file) as opened:
            coloured = opened.convert("RGBA")
    except OSError as error:
        raise ValueError(f"files: expected images, got {os.fspath(file)!r}: {error}") from error
    white = image_of.new("RGBA", coloured.size, "white")
    grey = image_of.alpha_composite(white, coloured).convert("L")
    width, height = grey.size
    values = _greys(grey)
    border = torch.cat([values[0], values[-1], values[:, 0], values[:, -1]]).median()
    side = max(width, height)
    square = image_of.new("L", (side, side), int(border))
    square.paste(grey, ((side - width) // 2, (side - height) // 2))
    filters = image_of.Resampling
    scaled = square.resize((size, size), filters.BOX if side > size else filters.BICUBIC)
    share = _greys(scaled)[None].float() / 255
    return 1 - share if border > 127 else share


def _greys(image: Image) -> Tensor:
    """(H, W) uint8."""
    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width)
