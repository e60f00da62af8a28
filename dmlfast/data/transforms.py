"""Random distortion of a batch of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class RandomAffine:
    """Distort every image of a batch by its own random affine map about its centre, then noise.

    Rotation, size, shear and shift are uniform within their strengths; a strength of 0 leaves
    that distortion out.

    Attributes:
        rotation: up to this many degrees either way.
        scale: size times 1 - scale to 1 + scale, the same along both axes.
        shear: x moves by up to this many times y either way.
        shift: up to this many pixels either way along each axis.
        noise: standard deviation of the Gaussian noise added to every pixel.

    Raises:
        ValueError: for a negative or non-finite strength, or a scale of 1 or more.
    """

    rotation: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            strength = getattr(self, field.name)
            limit = 1.0 if field.name == "scale" else math.inf
            if not 0 <= strength < limit:
                raise ValueError(f"{field.name}: expected a number in [0, {limit}), got {strength}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Distort a batch: bilinear, with 0 beyond the border, clamped to [0, 1].

        Args:
            images: (N, C, H, W) float32 or float64 in [0, 1].
            generator: source of all randomness; may be on another device than the images.

        Returns:
            Like `images`.

        Raises:
            ValueError: if the images have another shape.
            TypeError: if they have another dtype.
        """
        if images.ndim != 4:
            raise ValueError(f"images: expected (N, C, H, W), got {tuple(images.shape)}")
        if images.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"images: expected float32 or float64, got {images.dtype}")
        if images.numel() == 0:
            return images.clone()
        maps = self._draw(images, generator)
        grid = functional.affine_grid(maps, list(images.shape), align_corners=False)
        result = functional.grid_sample(images, grid, align_corners=False)
        if self.noise:
            noise = torch.randn(images.shape, generator=generator, device=generator.device)
            result = result + self.noise * noise.to(images)
        return result.clamp(0, 1)

    def _draw(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Maps (N, 2, 3) from output to input places, in the units of `affine_grid`."""
        count, _, height, width = images.shape
        draws = torch.rand((count, 5), generator=generator, device=generator.device)
        turn, size, slant, right, down = (draws.to(images) * 2 - 1).unbind(1)
        angle = turn * math.radians(self.rotation)
        # An output pixel p shows input A^-1 (p - t), for A = size * turn * shear.
        zoom = 1 / (1 + self.scale * size)
        cos, sin, shear = zoom * angle.cos(), zoom * angle.sin(), self.shear * slant
        xx, xy = cos + shear * sin, sin - shear * cos
        yx, yy = -sin, cos
        right, down = self.shift * right, self.shift * down
        # affine_grid counts each axis from -1 to 1, so pixels along x and y are scaled apart.
        row_x = [xx, xy * (height / width), -(xx * right + xy * down) * (2 / width)]
        row_y = [yx * (width / height), yy, -(yx * right + yy * down) * (2 / height)]
        return torch.stack([torch.stack(row_x, dim=1), torch.stack(row_y, dim=1)], dim=1)
