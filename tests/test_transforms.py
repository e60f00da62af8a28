"""Tests of the transforms of dmlfast.data."""

from __future__ import annotations

import math

import pytest
import torch
from data_cases import generator
from torch import Tensor

from dmlfast.data import RandomAffine, RandomView, rising_views, transforms
from dmlfast.data.rendering import Glyphs

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Centre (x, y) in pixels from the middle, and the matrix of second moments about it."""
    height, width = image.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x - (width - 1) / 2, y - (height - 1) / 2]).flatten(1).to(image)
    weights = image.flatten() / image.sum()
    centre = places @ weights
    offsets = places - centre[:, None]
    return centre, (offsets * weights) @ offsets.T


def blobs(count: int, deviations: tuple[float, float], size: tuple[int, int] = (65, 65)) -> Tensor:
    """Equal Gaussian blobs in the middle, deviations along x and y in pixels."""
    y = torch.arange(size[0], dtype=torch.float64) - (size[0] - 1) / 2
    x = torch.arange(size[1], dtype=torch.float64) - (size[1] - 1) / 2
    image = torch.exp(-((x / deviations[0]) ** 2 + (y[:, None] / deviations[1]) ** 2) / 2)
    return image.expand(count, 1, *size).contiguous()


class TestRandomAffine:
    def test_without_strength_nothing_changes(self) -> None:
        images = torch.rand(3, 1, 8, 6, dtype=torch.float64)
        assert torch.allclose(RandomAffine()(images, generator()), images, atol=1e-12)

    def test_the_same_state_gives_the_same_result(self) -> None:
        distort = RandomAffine(rotation=20, scale=0.2, shear=0.2, shift=2, noise=0.1)
        images = torch.rand(5, 1, 9, 9)
        assert torch.equal(distort(images, generator(3)), distort(images, generator(3)))
        assert not torch.equal(distort(images, generator(3)), distort(images, generator(4)))

    def test_all_randomness_comes_from_the_generator(self) -> None:
        before = torch.get_rng_state()
        RandomAffine(rotation=20, noise=0.1)(
            torch.rand(5, 1, 9, 9, generator=generator()), generator()
        )
        assert torch.equal(before, torch.get_rng_state())

    def test_every_image_has_its_own_distortion(self) -> None:
        result = RandomAffine(rotation=20)(blobs(8, (8, 3)), generator())
        assert len(result.unique(dim=0)) == 8

    def test_shift_moves_both_axes_by_up_to_its_strength(self) -> None:
        result = RandomAffine(shift=3)(blobs(200, (4, 4), (45, 65)), generator())
        centres = torch.stack([moments(image[0])[0] for image in result])
        assert (centres.abs() < 3.01).all()
        assert (centres.amax(dim=0) > 2.7).all()
        assert (centres.amin(dim=0) < -2.7).all()

    def test_rotation_turns_by_up_to_its_strength_either_way(self) -> None:
        result = RandomAffine(rotation=30)(blobs(200, (8, 3), (65, 75)), generator())
        spreads = torch.stack([moments(image[0])[1] for image in result])
        angles = torch.atan2(2 * spreads[:, 0, 1], spreads[:, 0, 0] - spreads[:, 1, 1]) / 2
        degrees = angles * 180 / math.pi
        assert degrees.abs().max() < 30.2
        assert degrees.max() > 27
        assert degrees.min() < -27

    def test_rotation_keeps_a_disc_round_in_an_oblong_image(self) -> None:
        result = RandomAffine(rotation=45)(blobs(20, (5, 5), (45, 85)), generator())
        for image in result:
            spread = moments(image[0])[1]
            assert torch.allclose(spread, 25 * torch.eye(2, dtype=spread.dtype), atol=0.5)

    def test_scale_changes_the_size_by_up_to_its_strength(self) -> None:
        result = RandomAffine(scale=0.2)(blobs(200, (6, 4)), generator())
        sizes = torch.stack([moments(image[0])[1].diagonal().sqrt() for image in result])
        factors = sizes / torch.tensor([6.0, 4.0])
        assert (factors[:, 0] - factors[:, 1]).abs().max() < 0.02
        assert 0.79 < factors.min() < 0.83
        assert 1.17 < factors.max() < 1.21

    def test_shear_moves_x_in_proportion_to_y(self) -> None:
        result = RandomAffine(shear=0.5)(blobs(200, (4, 6)), generator())
        spreads = torch.stack([moments(image[0])[1] for image in result])
        slants = spreads[:, 0, 1] / spreads[:, 1, 1]
        assert torch.allclose(spreads[:, 1, 1], torch.tensor(36.0).double(), atol=0.5)
        assert slants.abs().max() < 0.51
        assert slants.max() > 0.45
        assert slants.min() < -0.45

    def test_rotation_and_shear_together_keep_the_area(self) -> None:
        result = RandomAffine(rotation=80, shear=0.5)(blobs(100, (6, 4)), generator())
        areas = torch.stack([moments(image[0])[1].det().sqrt() for image in result])
        assert torch.allclose(areas, torch.tensor(24.0).double(), atol=0.5)

    def test_shift_is_in_pixels_of_the_result_at_any_scale_and_rotation(self) -> None:
        strengths = RandomAffine(rotation=90, scale=0.3, shear=0.3, shift=5)
        result = strengths(blobs(200, (4, 4)), generator())
        centres = torch.stack([moments(image[0])[0] for image in result])
        assert (centres.abs() < 5.05).all()
        assert (centres.abs().amax(dim=0) > 4.7).all()

    def test_noise_has_its_strength_as_deviation(self) -> None:
        result = RandomAffine(noise=0.05)(torch.full((20, 1, 32, 32), 0.5), generator())
        inside = result[:, :, 2:-2, 2:-2]
        assert abs(inside.std() - 0.05) < 0.002
        assert abs(inside.mean() - 0.5) < 0.002

    def test_the_result_is_clamped(self) -> None:
        result = RandomAffine(noise=0.5)(torch.rand(4, 1, 16, 16), generator())
        assert result.min() == 0
        assert result.max() == 1

    def test_beyond_the_border_is_ground(self) -> None:
        result = RandomAffine(shift=4)(torch.ones(50, 1, 16, 16), generator())
        assert (result.flatten(1).amin(dim=1) == 0).sum() > 40

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_dtype_is_kept(self, dtype: torch.dtype) -> None:
        images = torch.rand(2, 3, 8, 8, dtype=dtype)
        assert RandomAffine(rotation=5, noise=0.1)(images, generator()).dtype == dtype

    def test_an_empty_batch_stays_empty(self) -> None:
        assert RandomAffine(rotation=5)(torch.zeros(0, 1, 8, 8), generator()).shape == (0, 1, 8, 8)

    def test_images_of_another_shape_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"images: expected .*got \(8, 8\)"):
            RandomAffine()(torch.zeros(8, 8), generator())

    def test_images_of_another_dtype_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"images: expected .*uint8"):
            RandomAffine()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), generator())

    @pytest.mark.parametrize(
        ("field", "strength"),
        [("rotation", -1), ("shift", math.inf), ("noise", math.nan), ("scale", 1), ("shear", -0.1)],
    )
    def test_impossible_strengths_are_refused(self, field: str, strength: float) -> None:
        with pytest.raises(ValueError, match=f"{field}: expected"):
            RandomAffine(**{field: strength})


class TestRandomView:
    def test_a_strength_of_nothing_changes_nothing(self) -> None:
        images = torch.rand(4, 1, 9, 12, generator=generator())
        assert torch.equal(RandomView(0.0)(images, generator()), images)

    def test_a_seed_decides_everything(self) -> None:
        images = torch.rand(4, 1, 16, 16, generator=generator(5))
        one, same, other = (RandomView(0.4)(images, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_the_stream_goes_on_alike_whatever_the_strength(self) -> None:
        images, states = torch.rand(4, 1, 8, 8), []
        for strength in (0.0, 0.3, 0.9):
            source = generator()
            RandomView(strength)(images, source)
            states.append(source.get_state())
        assert torch.equal(states[0], states[1])
        assert torch.equal(states[0], states[2])

    def test_the_images_of_a_batch_have_views_of_their_own(self) -> None:
        views = RandomView(0.4)(torch.rand(1, 1, 16, 16).expand(3, 1, 16, 16), generator())
        assert not torch.equal(views[0], views[1])
        assert not torch.equal(views[1], views[2])

    @pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
    def test_corners_lie_where_the_crop_and_its_distortion_put_them(self, strength: float) -> None:
        corners = RandomView(strength)._corners(
            torch.rand(2000, 10, generator=generator()).double()
        )
        side = math.sqrt(1 - strength)
        upright = torch.tensor([[-1.0, -1], [1, -1], [-1, 1], [1, 1]]).double()
        # The mean of the corners is the middle of the crop, but for their own moves.
        away = (corners - side * upright).abs()
        assert away.max() <= 1 - side + side * strength / 2
        assert away.max() > 0.9 * (1 - side + side * strength / 2)
        # Half the products of the diagonals: the area, on average that of the crop.
        one, other = corners[:, 3] - corners[:, 0], corners[:, 2] - corners[:, 1]
        area = (one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]) / 2
        assert area.min() > 0
        assert area.mean() / 4 == pytest.approx(1 - strength, rel=0.05)

    def test_the_map_takes_the_corners_and_lines_of_the_view_to_the_image(self) -> None:
        corners = torch.tensor([[[-0.9, -0.8], [0.7, -0.5], [-0.6, 0.9], [0.8, 0.6]]]).double()
        size = 4001
        grid = transforms._perspective_grid(corners, size, size)[0]
        ends = torch.stack([grid[0, 0], grid[0, -1], grid[-1, 0], grid[-1, -1]])
        # Half a pixel of 4001 lies between the corner and the middle of the last pixel.
        torch.testing.assert_close(ends, corners[0], rtol=0, atol=1e-3)
        # Straight lines stay straight: so do the diagonals, which meet in the middle.
        middle = grid[size // 2, size // 2]
        for one, other in ((0, 3), (1, 2)):
            along, to = corners[0, other] - corners[0, one], middle - corners[0, one]
            assert abs(along[0] * to[1] - along[1] * to[0]) < 1e-12

    def test_of_a_flat_image_brightness_and_contrast_are_left(self) -> None:
        # Contrast has nothing to spread, and the crop stays inside for this strength.
        views = RandomView(0.4)(torch.full((500, 1, 33, 33), 0.5), generator())
        middle = views[:, 0, 16, 16]
        assert middle.min() > 0.5 * 0.8 - 0.1
        assert middle.max() < 0.5 * 1.2 + 0.1
        assert middle.std() > 0.03

    def test_values_stay_between_ground_and_ink(self) -> None:
        views = RandomView(0.9)(torch.rand(50, 1, 16, 16, generator=generator()), generator())
        assert views.min() >= 0
        assert views.max() <= 1

    def test_stronger_views_differ_more_from_the_image(self, clean: Glyphs) -> None:
        images = clean.images[:100, 0][:, None].float() / 255
        away = [
            (view(images, generator()) - images).square().mean().item() for view in rising_views(4)
        ]
        assert away == sorted(away)
        assert away[0] > 0

    def test_strengths_rise_as_published(self) -> None:
        strengths = [view.strength for view in rising_views(4)]
        assert strengths == pytest.approx([0.1974, 0.3799, 0.5370, 0.6640], abs=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_shape_and_dtype(self, dtype: torch.dtype) -> None:
        views = RandomView(0.5)(torch.rand(3, 2, 8, 12, dtype=dtype), generator())
        assert (views.shape, views.dtype) == ((3, 2, 8, 12), dtype)
        assert RandomView(0.5)(torch.zeros(0, 1, 8, 8), generator()).shape == (0, 1, 8, 8)

    @pytest.mark.parametrize("strength", [-0.1, 1.0, math.nan])
    def test_a_strength_outside_its_limits_is_refused(self, strength: float) -> None:
        with pytest.raises(ValueError, match="strength: expected a number in"):
            RandomView(strength)

    def test_what_are_no_images_is_refused(self) -> None:
        with pytest.raises(ValueError, match="images: expected"):
            RandomView(0.5)(torch.zeros(8, 8), generator())
        with pytest.raises(TypeError, match="images: expected float32 or float64"):
            RandomView(0.5)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), generator())
