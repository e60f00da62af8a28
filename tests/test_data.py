"""Tests of dmlfast.data."""

from __future__ import annotations

import os
import random
import sys
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from data_cases import generator
from torch import Tensor

from dmlfast import data
from dmlfast.data import DataSet, Split, glyphs, rendering
from dmlfast.data.rendering import Glyphs, base_letter

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def sets(cache: Path) -> dict[str, DataSet]:
    return {name: data.load(name, cache=cache) for name in data.names()}


def splits(data_set: DataSet) -> list[Split]:
    return [data_set.train, data_set.validation, data_set.test]


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
