"""Random distortion of a batch of images, and views of rising strength."""

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
        _check_images(images)
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


@dataclass(frozen=True)
class RandomView:
    """A random crop, distortion of perspective, brightness and contrast, all of one strength.

    With the strength t, each image on its own: a part of the area 1 - t at a random place, whose
    four corners each move by up to t/4 of its side either way along each axis, is stretched to the
    whole image; then all values are multiplied by 1 - t/2 to 1 + t/2, and their differences from
    the image's mean likewise. Beyond the border there is 0. A strength of 0 changes nothing.

    Attributes:
        strength: in [0, 1).

    Raises:
        ValueError: for another strength.
    """

    strength: float

    def __post_init__(self) -> None:
        if not 0 <= self.strength < 1:
            raise ValueError(f"strength: expected a number in [0, 1), got {self.strength}")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Make a view of every image of a batch: bilinear, clamped to [0, 1].

        As many random numbers are drawn whatever the strength.

        Args:
            images: (N, C, H, W) float32 or float64 in [0, 1].
            generator: source of all randomness; may be on another device than the images.

        Returns:
            Like `images`.

        Raises:
            ValueError: if the images have another shape.
            TypeError: if they have another dtype.
        """
        _check_images(images)
        count, _, height, width = images.shape
        draws = torch.rand((count, 12), generator=generator, device=generator.device)
        if images.numel() == 0 or self.strength == 0:
            return images.clone()
        draws = draws.to(images)
        grid = _perspective_grid(self._corners(draws[:, :10]), height, width)
        factors = 1 + self.strength * (draws[:, 10:, None, None, None] - 0.5)
        brightness, contrast = factors.unbind(1)
        view = brightness * functional.grid_sample(images, grid, align_corners=False)
        mean = view.mean((1, 2, 3), keepdim=True)
        return (mean + contrast * (view - mean)).clamp(0, 1)

    def _corners(self, draws: Tensor) -> Tensor:
        """(N, 4, 2) places (x, y) in [-1, 1] of the view's corners, row by row, in the image."""
        side = math.sqrt(1 - self.strength)
        middle = (1 - side) * (2 * draws[:, None, :2] - 1)
        signs = draws.new_tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]])
        moved = self.strength / 2 * (2 * draws[:, 2:].view(-1, 4, 2) - 1)
        return middle + side * (signs + moved)


def rising_views(count: int) -> tuple[RandomView, ...]:
    """Views of the strengths tanh(0.2 n), n = 1, ..., `count`."""
    return tuple(RandomView(math.tanh(0.2 * number)) for number in range(1, count + 1))


def _perspective_grid(corners: Tensor, height: int, width: int) -> Tensor:
    """Where a view whose corners lie at (N, 4, 2) in the image shows what, (N, H, W, 2).

    In the units of `grid_sample`. The map is the projective one of the square onto the corners, by
    P. Heckbert, "Fundamentals of texture mapping and image warping", 1989, section 2.2.3.
    """
    top_left, top_right, bottom_left, bottom_right = corners[:, None, None].unbind(3)
    skew = top_left - top_right - bottom_left + bottom_right
    right, down = top_right - bottom_right, bottom_left - bottom_right
    area = right[..., :1] * down[..., 1:] - right[..., 1:] * down[..., :1]
    along = (skew[..., :1] * down[..., 1:] - skew[..., 1:] * down[..., :1]) / area
    across = (right[..., :1] * skew[..., 1:] - right[..., 1:] * skew[..., :1]) / area
    u = (torch.arange(width).to(corners) + 0.5)[:, None] / width
    v = (torch.arange(height).to(corners) + 0.5)[:, None, None] / height
    to_right = top_right - top_left + along * top_right
    to_bottom = bottom_left - top_left + across * bottom_left
    return (to_right * u + to_bottom * v + top_left) / (along * u + across * v + 1)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise ValueError(f"images: expected (N, C, H, W), got {tuple(images.shape)}")
    if images.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"images: expected float32 or float64, got {images.dtype}")
