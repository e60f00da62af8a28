"""Tests of dmlfast.data."""

from __future__ import annotations

import math
import os
import random
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dmlfast import data
from dmlfast.data import (
    DataSet,
    MPerClassSampler,
    RandomAffine,
    RandomView,
    Split,
    glyphs,
    rendering,
    rising_views,
    transforms,
)
from dmlfast.data.rendering import Glyphs, base_letter

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    glyphs.bitmaps(folder)
    return folder


@pytest.fixture(scope="module")
def clean(cache: Path) -> Glyphs:
    return glyphs.bitmaps(cache)


@pytest.fixture(scope="module")
def sets(cache: Path) -> dict[str, DataSet]:
    return {name: data.load(name, cache=cache) for name in data.names()}


def splits(data_set: DataSet) -> list[Split]:
    return [data_set.train, data_set.validation, data_set.test]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestLoad:
    def test_names_are_the_documented_ones(self) -> None:
        assert data.names() == ("digits", "digits-unseen", "glyphs")

    def test_an_unknown_name_is_refused_with_the_options(self) -> None:
        with pytest.raises(ValueError, match=r"name: expected .*'digits-unseen', .*got 'mnist'"):
            data.load("mnist")

    @pytest.mark.parametrize("name", data.names())
    def test_a_data_set_has_its_own_name(self, sets: dict[str, DataSet], name: str) -> None:
        assert sets[name].name == name

    @pytest.mark.parametrize("name", data.names())
    def test_images_are_in_the_unit_range_and_use_all_of_it(
        self, sets: dict[str, DataSet], name: str
    ) -> None:
        for split in splits(sets[name]):
            assert split.images.min() == 0
            assert split.images.max() == 1

    @pytest.mark.parametrize("name", data.names())
    def test_every_class_and_subclass_has_a_name_and_an_image(
        self, sets: dict[str, DataSet], name: str
    ) -> None:
        found = splits(sets[name])
        labels = torch.cat([split.labels for split in found]).unique()
        subclasses = torch.cat([split.subclasses for split in found]).unique()
        assert labels.tolist() == list(range(len(sets[name].class_names)))
        assert subclasses.tolist() == list(range(len(sets[name].subclass_names)))

    @pytest.mark.parametrize("name", data.names())
    def test_two_loads_are_equal(self, sets: dict[str, DataSet], name: str, cache: Path) -> None:
        again = data.load(name, cache=cache)
        for one, other in zip(splits(sets[name]), splits(again), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)
            assert torch.equal(one.subclasses, other.subclasses)

    @pytest.mark.parametrize("name", data.names())
    def test_loading_leaves_the_global_random_state(self, name: str, cache: Path) -> None:
        before = torch.get_rng_state(), random.getstate()
        data.load(name, cache=cache)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == random.getstate()

    @pytest.mark.parametrize("name", data.names())
    def test_augmentation_changes_a_batch_and_keeps_its_kind(
        self, sets: dict[str, DataSet], name: str
    ) -> None:
        images = sets[name].train.images[:16]
        augmented = sets[name].augment(images, generator())
        assert augmented.shape == images.shape
        assert augmented.dtype == images.dtype
        assert (augmented != images).flatten(1).any(dim=1).all()

    @pytest.mark.parametrize(
        ("name", "module"),
        [
            ("digits", "sklearn.datasets"),
            ("glyphs", "matplotlib"),
            ("glyphs", "PIL.features"),
        ],
    )
    def test_a_missing_package_says_how_to_install_it(
        self, name: str, module: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=r"pip install 'dmlfast\[train\]'"):
            data.load(name)


class TestSplit:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"images": torch.zeros(3, 8, 8)}, "images: expected"),
            ({"images": torch.zeros(3, 3, 8, 8)}, "images: expected"),
            ({"images": torch.zeros(3, 1, 8, 8, dtype=torch.float64)}, "images: expected"),
            ({"labels": torch.zeros(2, dtype=torch.int64)}, r"labels: expected \(3,\) int64"),
            ({"subclasses": torch.zeros(3)}, r"subclasses: expected \(3,\) int64"),
        ],
    )
    def test_refuses_what_does_not_fit(self, change: dict[str, Tensor], message: str) -> None:
        zeros = torch.zeros(3, dtype=torch.int64)
        fields = {"images": torch.zeros(3, 1, 8, 8), "labels": zeros, "subclasses": zeros}
        with pytest.raises(ValueError, match=message):
            Split(**{**fields, **change})

    def test_its_length_is_the_number_of_images(self) -> None:
        zeros = torch.zeros(3, dtype=torch.int64)
        assert len(Split(torch.zeros(3, 1, 8, 8), zeros, zeros)) == 3


@pytest.mark.parametrize("name", ["digits", "digits-unseen"])
class TestDigits:
    def test_the_class_is_the_parity(self, sets: dict[str, DataSet], name: str) -> None:
        for split in splits(sets[name]):
            assert torch.equal(split.labels, split.subclasses % 2)

    def test_every_scan_is_in_exactly_one_split(self, sets: dict[str, DataSet], name: str) -> None:
        images = torch.cat([split.images for split in splits(sets[name])])
        assert len(images) == 1797
        assert len(images.unique(dim=0)) == 1797


class TestDigitSplits:
    def test_every_digit_is_split_in_the_same_shares(self, sets: dict[str, DataSet]) -> None:
        counts = torch.stack(
            [split.subclasses.bincount(minlength=10) for split in splits(sets["digits"])]
        )
        shares = counts / counts.sum(dim=0)
        expected = torch.tensor([1 / 2, 1 / 8, 3 / 8])[:, None].expand(3, 10)
        assert torch.allclose(shares, expected, atol=0.01)

    def test_unseen_test_digits_are_in_no_other_split(self, sets: dict[str, DataSet]) -> None:
        train, validation, test = (s.subclasses for s in splits(sets["digits-unseen"]))
        assert train.unique().tolist() == [0, 1, 2, 3, 4, 5]
        assert validation.unique().tolist() == [0, 1, 2, 3, 4, 5]
        assert test.unique().tolist() == [6, 7, 8, 9]

    def test_a_split_is_spread_over_the_whole_source(self, sets: dict[str, DataSet]) -> None:
        # Consecutive scans are of one writer: a contiguous split would hold few of them.
        source = sys.modules["sklearn.datasets"].load_digits().images
        places = {image.tobytes(): place for place, image in enumerate(source)}
        images = (sets["digits"].test.images[:, 0] * 16).double().numpy()
        found = torch.tensor([places[image.tobytes()] for image in images], dtype=torch.float32)
        assert (found.histc(10, 0, 1797) > 40).all()


class TestGlyphs:
    def test_no_two_images_are_equal(self, clean: Glyphs) -> None:
        images = {image.tobytes() for faces in clean.images.numpy() for image in faces}
        assert len(images) == len(clean.characters) * 12

    def test_no_image_is_blank(self, clean: Glyphs) -> None:
        assert (clean.images.flatten(2).amax(dim=2) > 128).all()

    def test_ink_is_in_the_middle(self, clean: Glyphs) -> None:
        for axis in (2, 3):
            ink = (clean.images > 128).any(dim=axis)
            before = ink.int().argmax(dim=2)
            after = ink.flip(2).int().argmax(dim=2)
            assert (before - after).abs().max() <= 2
            assert torch.minimum(before, after).min() >= 1

    def test_about_1250_characters_remain(self, clean: Glyphs) -> None:
        assert 1150 <= len(clean.characters) <= 1350

    def test_characters_are_letters_numbers_punctuation_and_symbols(self, clean: Glyphs) -> None:
        kinds = {unicodedata.category(character) for character in clean.characters}
        assert {kind[0] for kind in kinds} == {"L", "N", "P", "S"}
        assert "Lm" not in kinds

    @pytest.mark.parametrize(
        "lookalikes",
        ["AΑА", "oОοO", "cCϲС", "sS", "vV", "Il", "0⁰", "nո", "Kк", "ÄӒ", "ʜH", "jј"],  # noqa: RUF001
    )
    def test_lookalikes_are_one_class(self, clean: Glyphs, lookalikes: str) -> None:
        assert sum(character in clean.characters for character in lookalikes) == 1

    @pytest.mark.parametrize("pair", ["aA", "mT", "éè", "nh", "O0", "Éé", "25"])
    def test_characters_that_differ_are_two_classes(self, clean: Glyphs, pair: str) -> None:
        assert all(character in clean.characters for character in pair)

    def test_classes_of_a_split_are_in_no_other(self, sets: dict[str, DataSet]) -> None:
        train, validation, test = (set(s.labels.tolist()) for s in splits(sets["glyphs"]))
        assert not train & validation
        assert not train & test
        assert not validation & test

    def test_classes_are_shared_out_3_to_1_to_4(self, sets: dict[str, DataSet]) -> None:
        counts = [len(split.labels.unique()) for split in splits(sets["glyphs"])]
        total = sum(counts)
        for count, share in zip(counts, (3 / 8, 1 / 8, 1 / 2), strict=True):
            assert abs(count / total - share) < 0.01

    def test_a_base_letter_is_in_one_split_only(self, sets: dict[str, DataSet]) -> None:
        names = sets["glyphs"].class_names
        train, validation, test = (
            {base_letter(names[label]) for label in split.labels.unique().tolist()}
            for split in splits(sets["glyphs"])
        )
        assert not train & validation
        assert not train & test
        assert not validation & test

    # Each pair differs by 0.4 % to 2.3 % of the ink in one face.
    @pytest.mark.parametrize("pair", ["ФՓ", "ѳⱺ", "ƚɫ", "qգ"])  # noqa: RUF001
    def test_characters_that_hardly_differ_share_a_split(self, clean: Glyphs, pair: str) -> None:
        one, other = (clean.groups[clean.characters.index(character)] for character in pair)
        assert one == other

    def test_no_image_is_nearly_that_of_a_character_in_another_split(self, clean: Glyphs) -> None:
        part = glyphs.assign(clean.groups)
        apart = part[:, None] != part
        for face in clean.images.flatten(2).double().unbind(dim=1):
            ink = face.square().sum(dim=1)
            difference = ink[:, None] + ink - 2 * face @ face.T
            share = difference / torch.maximum(ink[:, None], ink)
            assert share[apart].min() > 0.038

    def test_a_letter_with_a_stroke_is_another_letter(self, clean: Glyphs) -> None:
        one, other = (clean.groups[clean.characters.index(character)] for character in "bƀ")
        assert one != other

    @pytest.mark.parametrize("pair", ["ÁΆ", "ÝЎ", "Iľ", "ŕR", "Mť"])
    def test_variants_of_lookalike_letters_share_a_split(self, clean: Glyphs, pair: str) -> None:
        one, other = (clean.groups[clean.characters.index(character)] for character in pair)
        assert one == other

    def test_no_group_is_larger_than_the_smallest_split(self, clean: Glyphs) -> None:
        assert clean.groups.bincount().max() < len(clean.characters) / 8

    def test_every_class_has_one_image_of_each_face(self, sets: dict[str, DataSet]) -> None:
        for split in splits(sets["glyphs"]):
            assert torch.equal(split.subclasses, torch.arange(12).repeat(len(split) // 12))
            assert (split.labels.view(-1, 12) == split.labels[::12, None]).all()

    def test_training_images_are_clean(self, sets: dict[str, DataSet], clean: Glyphs) -> None:
        train = sets["glyphs"].train
        expected = clean.images[train.labels, train.subclasses] / 255
        assert torch.equal(train.images[:, 0], expected)

    @pytest.mark.parametrize("part", ["validation", "test"])
    def test_every_evaluation_image_is_distorted_and_still_its_own(
        self, sets: dict[str, DataSet], clean: Glyphs, part: str
    ) -> None:
        split = getattr(sets["glyphs"], part)
        original = clean.images[split.labels, split.subclasses].flatten(1) / 255
        images = split.images.flatten(1)
        noise = (images - original).abs().mean(dim=1)
        assert noise.min() > 0.01
        # A distorted image has more in common with its clean one than with that of another.
        own = torch.cosine_similarity(images, original).mean()
        assert own > torch.cosine_similarity(images, original.roll(600, 0)).mean() + 0.1


class TestGlyphCache:
    """With a stub in place of the rendering, which takes seconds."""

    @pytest.fixture(autouse=True)
    def _stub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rendered = 0
        self.glyphs = Glyphs("AB", torch.tensor([0, 1]), torch.full((2, 12, 32, 32), 7).byte())
        monkeypatch.setattr(glyphs, "render", self.render)

    def render(self) -> Glyphs:
        self.rendered += 1
        return self.glyphs

    def assert_is_stub(self, found: Glyphs) -> None:
        assert found.characters == self.glyphs.characters
        assert torch.equal(found.groups, self.glyphs.groups)
        assert torch.equal(found.images, self.glyphs.images)

    def test_the_second_call_reads_what_the_first_wrote(self, tmp_path: Path) -> None:
        glyphs.bitmaps(tmp_path)
        self.assert_is_stub(glyphs.bitmaps(tmp_path))
        assert self.rendered == 1

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda content: b"", id="empty"),
            pytest.param(lambda content: b"x" * 100, id="foreign"),
            pytest.param(lambda content: content[:-1], id="cut"),
            pytest.param(lambda content: content[:500] + b"?" + content[501:], id="changed"),
        ],
    )
    def test_a_damaged_file_is_replaced(
        self, tmp_path: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        glyphs.bitmaps(tmp_path)
        (path,) = tmp_path.iterdir()
        content = path.read_bytes()
        path.write_bytes(damage(content))
        self.assert_is_stub(glyphs.bitmaps(tmp_path))
        assert self.rendered == 2
        assert path.read_bytes() == content

    def test_other_rules_or_fonts_render_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        glyphs.bitmaps(tmp_path)
        monkeypatch.setattr(glyphs, "rendering_key", lambda: "another")
        glyphs.bitmaps(tmp_path)
        assert self.rendered == 2

    def test_a_folder_that_cannot_be_made_costs_one_warning(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.warns(UserWarning, match="not cached") as caught:
            self.assert_is_stub(glyphs.bitmaps(tmp_path / "file" / "folder"))
        assert len(caught) == 1

    def test_a_failed_write_leaves_nothing_behind(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.warns(UserWarning, match="disk full"):
            self.assert_is_stub(glyphs.bitmaps(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_a_good_write_warns_of_nothing_and_leaves_one_file(self, tmp_path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            glyphs.bitmaps(tmp_path / "new" / "folder")
        assert len(list((tmp_path / "new" / "folder").iterdir())) == 1

    def test_the_folder_defaults_to_the_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DMLFAST_CACHE", str(tmp_path))
        glyphs.bitmaps()
        assert len(list(tmp_path.iterdir())) == 1

    def test_the_folder_defaults_to_the_home_without_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("DMLFAST_CACHE", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        glyphs.bitmaps()
        assert len(list((tmp_path / ".cache" / "dmlfast").iterdir())) == 1


class TestRenderingKey:
    @pytest.fixture(autouse=True)
    def _font(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.font = tmp_path / "font.ttf"
        self.font.write_bytes(b"one")
        monkeypatch.setattr(rendering, "_font_paths", lambda: [self.font])
        self.before = rendering.rendering_key()

    def test_stays_when_nothing_changes(self) -> None:
        assert rendering.rendering_key() == self.before

    def test_changes_with_the_rules(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rendering, "RULES", rendering.RULES + 1)
        assert rendering.rendering_key() != self.before

    @pytest.mark.parametrize(
        ("module", "name"), [("PIL", "__version__"), ("unicodedata", "unidata_version")]
    )
    def test_changes_with_what_draws_and_names_the_characters(
        self, module: str, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.modules[module], name, "0.0")
        assert rendering.rendering_key() != self.before

    def test_changes_with_freetype(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys.modules["PIL.features"], "version", lambda _: "0.0")
        assert rendering.rendering_key() != self.before

    def test_changes_with_the_fonts(self) -> None:
        self.font.write_bytes(b"other")
        assert rendering.rendering_key() != self.before


@pytest.mark.parametrize(
    ("character", "letter"),
    [("a", "a"), ("A", "a"), ("Ậ", "a"), ("Ώ", "ω"), ("ﬁ", "fi"), ("5", "5"), ("Ӂ", "ж")],
)
def test_base_letter_drops_marks_and_case(character: str, letter: str) -> None:
    assert base_letter(character) == letter


class TestKeep:
    NOTHING_ALIKE = torch.eye(3, dtype=torch.bool)

    def test_of_characters_that_share_an_image_the_first_is_kept(self) -> None:
        bitmaps = [{b"a", b"b"}, {b"b", b"c"}, {b"c", b"d"}]
        assert rendering._keep(bitmaps, self.NOTHING_ALIKE) == [0, 2]

    def test_of_lookalikes_the_first_is_kept(self) -> None:
        alike = self.NOTHING_ALIKE.clone()
        alike[0, 1] = alike[1, 0] = alike[1, 2] = alike[2, 1] = True
        assert rendering._keep([{b"a"}, {b"b"}, {b"c"}], alike) == [0, 2]

    def test_a_blank_image_is_not_kept(self) -> None:
        blank = bytes(rendering.SIDE**2)
        assert rendering._keep([{b"a"}, {b"b", blank}, {b"c"}], self.NOTHING_ALIKE) == [0, 2]


class TestAssign:
    def test_a_group_is_never_split(self) -> None:
        groups = torch.randint(60, (500,), generator=generator())
        part = glyphs.assign(groups)
        for group in groups.unique():
            assert len(part[groups == group].unique()) == 1

    def test_single_classes_meet_the_shares_exactly(self) -> None:
        assert glyphs.assign(torch.arange(800)).bincount().tolist() == [300, 100, 400]

    def test_a_large_group_is_evened_out_by_small_ones(self) -> None:
        groups = torch.cat([torch.zeros(300, dtype=torch.int64), torch.arange(1, 501)])
        assert glyphs.assign(groups).bincount().tolist() == [300, 100, 400]


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


def sampler(labels: Tensor, **settings: Any) -> MPerClassSampler:
    defaults = {"batch_size": 6, "samples_per_class": 2, "batches": 5, "generator": generator()}
    return MPerClassSampler(labels, **{**defaults, **settings})


# 7 classes of 1 to 7 samples, shuffled, with labels at both ends of the range.
VALUES = torch.tensor([-(2**63), -5, 0, 1, 2, 10**12, 2**63 - 1])
LABELS = VALUES.repeat_interleave(torch.arange(1, 8))[torch.randperm(28, generator=generator(9))]


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


class TestMPerClassSampler:
    @pytest.mark.parametrize(
        ("batch_size", "samples_per_class"), [(6, 2), (7, 1), (28, 4), (1, 1), (63, 9)]
    )
    def test_a_batch_has_the_asked_samples_of_distinct_classes(
        self, batch_size: int, samples_per_class: int
    ) -> None:
        drawn = sampler(LABELS, batch_size=batch_size, samples_per_class=samples_per_class)
        for _ in range(20):
            batch = drawn.sample()
            assert batch.dtype == torch.int64
            counts = LABELS[batch].unique(return_counts=True)[1]
            assert counts.tolist() == [samples_per_class] * (batch_size // samples_per_class)

    def test_only_a_class_with_too_few_samples_repeats_one(self) -> None:
        drawn = sampler(LABELS, batch_size=28, samples_per_class=4)
        for _ in range(50):
            batch = drawn.sample()
            for label in LABELS[batch].unique():
                members = batch[LABELS[batch] == label]
                if (label == LABELS).sum() >= 4:
                    assert len(members.unique()) == 4

    def test_a_short_class_gives_all_its_samples_in_time(self) -> None:
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
        drawn = sampler(labels, batch_size=8, samples_per_class=4)
        seen = torch.cat([drawn.sample() for _ in range(50)])
        counts = seen.bincount(minlength=8)
        assert (counts[:3] > 40).all()

    def test_every_class_is_drawn_equally_often(self) -> None:
        drawn = sampler(LABELS, batch_size=3, samples_per_class=1)
        labels = torch.cat([LABELS[drawn.sample()] for _ in range(1400)])
        counts = labels.unique(return_counts=True)[1]
        # Binomial with mean 600 and deviation 18.5.
        assert (counts - 600).abs().max() < 5 * 18.5

    def test_every_sample_of_a_class_is_drawn_equally_often(self) -> None:
        labels = torch.tensor([0] * 5 + [1] * 9)
        drawn = sampler(labels, batch_size=4, samples_per_class=2)
        counts = torch.cat([drawn.sample() for _ in range(1800)]).bincount()
        assert (counts[:5] - 720).abs().max() < 5 * 20.8
        assert (counts[5:] - 400).abs().max() < 5 * 17.7

    def test_a_restored_generator_gives_the_same_batches(self) -> None:
        source = generator()
        drawn = sampler(LABELS, generator=source)
        drawn.sample()
        state = source.get_state()
        expected = [drawn.sample().tolist() for _ in range(3)]
        resumed = sampler(LABELS, generator=generator(123))
        resumed.generator.set_state(state)
        assert [resumed.sample().tolist() for _ in range(3)] == expected

    def test_iterating_draws_the_batches_of_sample_one_at_a_time(self) -> None:
        source = generator()
        batches = iter(sampler(LABELS, generator=source))
        other = sampler(LABELS)
        for batch in batches:
            assert batch == other.sample().tolist()
            assert torch.equal(source.get_state(), other.generator.get_state())

    def test_one_pass_gives_the_asked_number_of_batches(self) -> None:
        drawn = sampler(LABELS, batches=4)
        assert len(drawn) == 4
        assert len(list(drawn)) == 4

    def test_two_passes_differ(self) -> None:
        drawn = sampler(LABELS)
        assert list(drawn) != list(drawn)

    def test_serves_as_batch_sampler_of_a_data_loader(self) -> None:
        loader = DataLoader(TensorDataset(torch.arange(28)), batch_sampler=sampler(LABELS))
        assert [batch.tolist() for (batch,) in loader] == list(sampler(LABELS))

    def test_all_randomness_comes_from_the_generator(self) -> None:
        before = torch.get_rng_state()
        sampler(LABELS, batch_size=28, samples_per_class=4).sample()
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
    def test_labels_may_be_any_integers(self, dtype: torch.dtype) -> None:
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        assert list(sampler(labels.to(dtype))) == list(sampler(labels))

    @pytest.mark.parametrize("offset", [2**24, 2**53, -(2**62)])
    def test_labels_that_no_float_tells_apart_are_different_classes(self, offset: int) -> None:
        labels = torch.arange(12) % 4
        assert list(sampler(labels + offset)) == list(sampler(labels))

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"batch_size": 7}, ValueError, "batch_size: expected a multiple of .* got 7"),
            ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
            ({"samples_per_class": -1}, ValueError, "samples_per_class: expected at least 1"),
            ({"batches": 0}, ValueError, "batches: expected at least 1"),
            ({"batches": 1.5}, TypeError, "batches: expected an integer, got 1.5"),
            ({"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
            ({"batch_size": 16}, ValueError, "labels: expected at least 8 classes .* got 7"),
            ({"labels": LABELS[:, None]}, ValueError, r"labels: expected \(N,\), got \(28, 1\)"),
            ({"labels": LABELS[:0]}, ValueError, "labels: expected at least 3 classes .* got 0"),
            (
                {"labels": LABELS.double()},
                TypeError,
                "labels: expected an .* torch.float64",
            ),
            ({"labels": LABELS > 0}, TypeError, "labels: expected an .* torch.bool"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(
        self, settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            sampler(**{"labels": LABELS, **settings})
