"""A small convolutional network for small grey images."""

from __future__ import annotations

import math

import torch
from torch import nn

from dmlfast.ops._arguments import check_count

# The convolutions halve the image until a side is at most this long: what is left still says
# where in the image something was, which global pooling would throw away.
_LARGEST_FINAL_SIDE = 4
_FEWEST_BLOCKS = 2


class ConvolutionalEmbedding(nn.Module):
    """Convolution, batch norm and ReLU blocks, then one linear map to the embedding.

    Every block halves the image, until a side is at most 4 pixels. There are at least two: for a
    small image the first ones keep its size. The channels double from block to block, up to four
    times `width`.

    The blocks are `features`, the linear map is `head`, which gets `feature_size` numbers. The
    embedding is returned as it is, not normalised: the loss and the evaluation do that.

    Args:
        image_size: height and width of the square images, in pixels.
        channels_in: channels of the images.
        dimensions: length of the embedding.
        width: channels after the first block.

    Raises:
        TypeError: if any of the numbers is not an integer.
        ValueError: if any of them is below 1.
    """

    def __init__(
        self, *, image_size: int, channels_in: int = 1, dimensions: int = 16, width: int = 32
    ) -> None:
        super().__init__()
        sizes = {
            "image_size": image_size,
            "channels_in": channels_in,
            "dimensions": dimensions,
            "width": width,
        }
        for name, size in sizes.items():
            check_count(name, size)
        self.image_size = image_size
        self.channels_in = channels_in
        self.dimensions = dimensions
        halvings = math.ceil(math.log2(max(image_size / _LARGEST_FINAL_SIDE, 1)))
        strides = [1] * (_FEWEST_BLOCKS - halvings) + [2] * halvings
        blocks: list[nn.Module] = []
        channels, side = channels_in, image_size
        for number, stride in enumerate(strides):
            wider = width * min(2**number, 4)
            blocks.append(_block(channels, wider, stride=stride))
            channels, side = wider, math.ceil(side / stride)
        self.feature_size = channels * side * side
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(self.feature_size, dimensions)

    def backbone(self, images: torch.Tensor) -> torch.Tensor:
        """What the head maps to the embedding.

        Args:
            images: (N, channels_in, image_size, image_size), floating point.

        Returns:
            (N, feature_size), the dtype of the weights, differentiable in `images` and weights.

        Raises:
            ValueError: if the images have another shape.
        """
        expected = (self.channels_in, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            shape = ", ".join(str(size) for size in expected)
            raise ValueError(f"images must be (N, {shape}), got {tuple(images.shape)}")
        features: torch.Tensor = self.features(images).flatten(1)
        return features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images.

        Args:
            images: (N, channels_in, image_size, image_size), floating point.

        Returns:
            (N, dimensions), the dtype of the weights, differentiable in `images` and weights.

        Raises:
            ValueError: if the images have another shape.
        """
        embeddings: torch.Tensor = self.head(self.backbone(images))
        return embeddings


def _block(channels_in: int, channels_out: int, *, stride: int) -> nn.Sequential:
    # Strided convolutions instead of max pooling, whose backward pass adds atomically on CUDA and
    # so would not repeat bit for bit.
    return nn.Sequential(
        # The batch norm that follows has the bias.
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )
