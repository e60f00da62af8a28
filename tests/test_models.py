"""Tests of dmlfast.models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dmlfast.models import ConvolutionalEmbedding, SampleStructureHead


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


# --- the head of two embeddings -------------------------------------------------------------------


FEATURES, DIMENSIONS = 7, 5


def head() -> SampleStructureHead:
    """A head whose batch norms are in general position."""
    made = SampleStructureHead(FEATURES, DIMENSIONS)
    with torch.no_grad():
        for norm in (made.structure[1], made.structure[3]):
            for values in (norm.weight, norm.bias, norm.running_mean):
                values.normal_()
            norm.running_var.uniform_(0.5, 2)
    return made


def weights_written_out(made: SampleStructureHead, features: torch.Tensor) -> torch.Tensor:
    z = features.double()
    for linear, norm in (made.structure[0:2], made.structure[2:4]):
        z = z @ linear.weight.double().T + linear.bias.double()
        z = (z - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
        z = z * norm.weight.double() + norm.bias.double()
    return 1 + 0.5 * (2 / (1 + torch.exp(-z)) - 1)


def mean_distance(x: torch.Tensor) -> torch.Tensor:
    rows = x.shape[0]
    return (x[:, None] - x[None]).norm(dim=2).sum() / (rows * (rows - 1))


@pytest.mark.parametrize("training", [True, False])
def test_the_structure_embedding_is_that_of_its_formula(training: bool) -> None:
    made = head().train(training)
    features = torch.randn(9, FEATURES)
    expected = weights_written_out(made, features)
    # Two products of at most 7 terms in float32.
    torch.testing.assert_close(made(features).structure.double(), expected, rtol=1e-5, atol=1e-6)


def test_structure_lies_between_a_half_and_one_and_a_half() -> None:
    structure = head()(10 * torch.randn(50, FEATURES)).structure
    assert structure.shape == (50, DIMENSIONS)
    assert structure.min() >= 0.5
    assert structure.max() <= 1.5
    assert structure.min() < 0.6
    assert structure.max() > 1.4


@pytest.mark.parametrize("least", [0.02, 1.0])
def test_structure_lies_between_the_least_weight_and_its_opposite(least: float) -> None:
    made = SampleStructureHead(FEATURES, DIMENSIONS, least=least)
    structure = made(1000 * torch.randn(50, FEATURES)).structure
    assert structure.min().item() == pytest.approx(least)
    assert structure.max().item() == pytest.approx(2 - least)


@pytest.mark.parametrize("least", [0.0, -0.5, 1.1])
def test_a_least_weight_out_of_its_range_is_refused(least: float) -> None:
    with pytest.raises(ValueError, match="least: expected"):
        SampleStructureHead(FEATURES, DIMENSIONS, least=least)


def test_a_new_head_weights_all_dimensions_about_alike() -> None:
    structure = SampleStructureHead(64, 32)(torch.randn(100, 64)).structure
    assert abs(structure.mean() - 1) < 0.1
    assert structure.std() < 0.2


def test_in_training_the_sample_embeddings_have_mean_distance_one() -> None:
    made = head()
    features = torch.randn(9, FEATURES)
    raw = made.sample(features)
    assert abs(mean_distance(raw) - 1) > 0.1
    torch.testing.assert_close(made(features).sample, raw / mean_distance(raw))


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 3e19), (torch.float16, 2e3)], ids=["float32", "float16"]
)
def test_embeddings_may_be_so_large_that_sums_of_squares_leave_the_dtype(
    dtype: torch.dtype, size: float
) -> None:
    made = SampleStructureHead(64, 64).to(dtype)
    with torch.no_grad():
        made.sample.weight.copy_(torch.eye(64))
        made.sample.bias.zero_()
    features = size * torch.randn(9, 64)
    sample = made(features.to(dtype)).sample
    # Of 64 dimensions, each rounded to the dtype.
    torch.testing.assert_close(mean_distance(sample.float()).item(), 1.0, rtol=2e-3, atol=0)


def test_a_batch_with_more_extent_than_rounding_is_scaled() -> None:
    made = head()
    features = torch.ones(9, FEATURES) + 1e-4 * torch.randn(9, FEATURES)
    # The extent of a row of size 1 is known to a part of 1e-3.
    assert abs(mean_distance(made(features).sample) - 1) < 1e-2


def test_in_evaluation_the_sample_embeddings_are_not_scaled() -> None:
    made = head().eval()
    features = torch.randn(9, FEATURES)
    assert torch.equal(made(features).sample, made.sample(features))


def test_the_gradient_takes_the_mean_distance_into_account() -> None:
    made = head().double()
    features = torch.randn(6, FEATURES, dtype=torch.float64, requires_grad=True)
    # A function of the scaled embeddings that is not linear in them.
    (actual,) = torch.autograd.grad(made(features).sample.square().sum(), features)
    raw = made.sample(features)
    (expected,) = torch.autograd.grad((raw / distinct_mean(raw)).square().sum(), features)
    torch.testing.assert_close(actual, expected)


def distinct_mean(x: torch.Tensor) -> torch.Tensor:
    """`mean_distance` without the roots of zero that a row has with itself."""
    first, second = torch.triu_indices(x.shape[0], x.shape[0], 1)
    return (x[first] - x[second]).norm(dim=1).mean()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_without_two_different_rows_the_sample_embeddings_are_not_scaled(rows: int) -> None:
    made = head()
    features = torch.ones(rows, FEATURES)
    sample, structure = made(features)
    assert torch.equal(sample, made.sample(features))
    (sample.sum() + structure.sum()).backward()
    assert all(weight.grad.isfinite().all() for weight in made.parameters())


def test_a_row_that_is_not_finite_is_seen_in_every_sample_embedding_of_a_training_batch() -> None:
    features = torch.randn(4, FEATURES)
    features[1, 2] = float("nan")
    assert head()(features).sample.isnan().all()


def test_training_changes_no_running_statistics() -> None:
    made = nn.Sequential(SampleStructureHead(FEATURES, DIMENSIONS)).eval().train()
    before = {name: value.clone() for name, value in made.state_dict().items()}
    made(torch.randn(9, FEATURES))
    assert made[0].training
    for name, value in made.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_every_weight_of_the_head_gets_a_gradient() -> None:
    made = head()
    sample, structure = made(torch.randn(9, FEATURES))
    (sample.square().sum() + structure.square().sum()).backward()
    # The mean distance does not see the bias, but the lengths do.
    assert [name for name, weight in made.named_parameters() if not weight.grad.any()] == []


def test_a_head_continues_from_a_state_dict() -> None:
    made, other = head(), SampleStructureHead(FEATURES, DIMENSIONS)
    names = {name.split(".")[0] for name in made.state_dict()}
    assert names == {"sample", "structure"}
    other.load_state_dict(made.state_dict())
    features = torch.randn(4, FEATURES)
    for one, same in zip(made(features), other(features), strict=True):
        assert torch.equal(one, same)


def test_both_embeddings_have_one_dtype_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        sample, structure = head()(torch.randn(9, FEATURES))
    assert sample.dtype == structure.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("features", "error", "message"),
    [
        ([[0.0] * 7], TypeError, "expected a torch.Tensor, got list"),
        (torch.zeros(2, 7).long(), TypeError, "expected float16, .* got .*int64"),
        (torch.zeros(2, 7).double(), TypeError, "expected torch.float32 as the weights"),
        (torch.zeros(7), ValueError, r"expected a 2-D tensor .* got \(7,\)"),
        (torch.zeros(2, 6), ValueError, r"expected 7 dimensions, got \(2, 6\)"),
        (torch.zeros(2, 7, 1), ValueError, r"expected a 2-D tensor .* got \(2, 7, 1\)"),
        (torch.zeros(2, 7, device="meta"), ValueError, "expected the device of the weights, cpu"),
    ],
)
def test_features_that_are_none_are_refused(
    features: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"features: {message}"):
        head()(features)


def test_under_autocast_features_may_have_another_dtype_than_the_weights() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        sample, _ = head()(torch.randn(9, FEATURES).bfloat16())
    assert sample.isfinite().all()


@pytest.mark.parametrize("name", ["feature_size", "dimensions"])
def test_sizes_of_the_head_below_one_are_refused(name: str) -> None:
    sizes = {"feature_size": 3, "dimensions": 2} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        SampleStructureHead(**sizes)
