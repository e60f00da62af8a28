"""Tests of dmlfast.models."""

from __future__ import annotations

import pytest
import torch

from dmlfast.models import ConvolutionalEmbedding


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("image_size", [1, 3, 8, 15, 28, 32])
def test_gives_one_embedding_per_image(image_size: int) -> None:
    model = ConvolutionalEmbedding(image_size=image_size, dimensions=5, width=4)
    embeddings = model(torch.rand(3, 1, image_size, image_size))
    assert embeddings.shape == (3, 5)
    assert embeddings.dtype == torch.float32


def test_takes_images_of_several_channels() -> None:
    model = ConvolutionalEmbedding(image_size=8, channels_in=3, dimensions=2, width=4)
    assert model(torch.rand(2, 3, 8, 8)).shape == (2, 2)


def test_takes_an_empty_batch_in_evaluation_mode() -> None:
    model = ConvolutionalEmbedding(image_size=8, dimensions=2, width=4).eval()
    assert model(torch.rand(0, 1, 8, 8)).shape == (0, 2)


def test_does_not_normalise_the_embedding() -> None:
    model = ConvolutionalEmbedding(image_size=8, width=4)
    with torch.no_grad():
        model.head.weight.mul_(100)
    lengths = model(torch.rand(4, 1, 8, 8)).norm(dim=1)
    assert (lengths > 2).all()


def test_every_weight_gets_a_gradient() -> None:
    model = ConvolutionalEmbedding(image_size=16, width=4)
    model(torch.rand(4, 1, 16, 16)).square().sum().backward()
    without = [
        name
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.any()
    ]
    assert without == []


def test_an_embedding_in_evaluation_mode_does_not_depend_on_the_rest_of_the_batch() -> None:
    model = ConvolutionalEmbedding(image_size=8, width=4).eval()
    images = torch.rand(6, 1, 8, 8)
    torch.testing.assert_close(model(images)[:2], model(images[:2]))


def test_keeps_where_in_the_image_something_is() -> None:
    model = ConvolutionalEmbedding(image_size=32, width=4).eval()
    images = torch.zeros(2, 1, 32, 32)
    images[0, :, 4:8, 4:8] = 1
    images[1, :, 20:24, 20:24] = 1
    embeddings = model(images)
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (2, 3, 8, 8), (2, 1, 8, 9), (2, 1, 16, 16)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = ConvolutionalEmbedding(image_size=8, width=4)
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\)"):
        model(torch.rand(shape))


@pytest.mark.parametrize("name", ["image_size", "channels_in", "dimensions", "width"])
def test_sizes_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        ConvolutionalEmbedding(**({"image_size": 8} | {name: 0}))
