"""Images of files, in the form of those of the data sets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from dmlfast._optional import require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_images"]

# Formats whose greys are of 16 bits where Pillow has them in 32: PPM, and in older versions PNG.
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM")


def read_images(files: Sequence[str | os.PathLike[str]], size: int) -> Tensor:
    """Read image files as grey squares, ink 1 on ground 0.

    The median grey of the border is the ground: where it is light, as in print, the greys are
    turned round. What is transparent is white. An image that is not square is padded with that
    median, and all are scaled to `size`. Greys of 16 bits are divided by 257 and rounded, so that
    black stays black and white white.

    Args:
        files: images in a format that Pillow reads, of 8 bits a channel, or grey of 1 or 16.
        size: height and width of the result in pixels.

    Returns:
        (N, 1, size, size) float32 in [0, 1].

    Raises:
        ValueError: if a file cannot be read as an image, is too large for Pillow, or has greys of
            32 bits or floating-point ones, of which no file says what is white; or there is none.
        ImportError: Pillow is not installed.
    """
    if not files:
        raise ValueError("files: expected an image at least, got none")
    return torch.stack([_read(file, size) for file in files])


def _read(file: str | os.PathLike[str], size: int) -> Tensor:
    image_of = require("PIL.Image", "train")
    # Beside what cannot be read at all: a damaged part, and more pixels than Pillow takes.
    unreadable = (OSError, SyntaxError, ValueError, image_of.DecompressionBombError)
    try:
        with image_of.open(file) as opened:
            opened.load()
            kind = opened.format
    except unreadable as error:
        said = str(error).rstrip(".")
        raise ValueError(f"files: expected images, got {os.fspath(file)!r}: {said}") from error
    mode = opened.mode
    if mode.startswith("I;16") or (mode == "I" and kind in _SIXTEEN_BIT_FORMATS):
        opened = _of_eight_bits(opened)
    elif mode in ("I", "F"):
        raise ValueError(
            "files: expected images of 8 bits a channel or grey ones of 16, got "
            f"{os.fspath(file)!r} of Pillow's mode {mode}"
        )
    coloured = opened.convert("RGBA")
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


def _of_eight_bits(image: Image) -> Image:
    """A grey image of 16 bits, what is transparent white."""
    wide = image.convert("I")
    values = torch.frombuffer(bytearray(wide.tobytes()), dtype=torch.int32)
    greys = (values + 128) // 257
    if "transparency" in image.info:
        greys[values == image.info["transparency"]] = 255
    image_of = require("PIL.Image", "train")
    return cast("Image", image_of.frombytes("L", image.size, greys.byte().numpy().tobytes()))


def _greys(image: Image) -> Tensor:
    """(H, W) uint8."""
    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width)
