"""read_images: files as grey squares."""

from __future__ import annotations

import zlib

import pytest
import torch

from dmlfast.data import read_images

pytest.importorskip("PIL")


def test_images_of_any_shape_and_mode_become_squares(tmp_path):
    image_of = pytest.importorskip("PIL.Image")
    image = image_of.new("RGBA", (20, 40), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (5, 10, 15, 30))
    image.save(tmp_path / "a.png")
    (read,) = read_images([tmp_path / "a.png"], 8)
    expected = torch.zeros(1, 8, 8)
    expected[:, 2:6, 3:5] = 1
    assert torch.equal(read, expected)


def grey_ramp() -> torch.Tensor:
    """Every grey of 8 bits, the darkest at the border."""
    ramp = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return torch.nn.functional.pad(ramp, (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("ending", "older"), [("png", False), ("png", True), ("tif", False), ("pgm", False)]
)
@pytest.mark.parametrize("offset", [-128, 0, 128])
def test_greys_of_16_bits_are_read_as_those_of_8(tmp_path, monkeypatch, ending, offset, older):
    image_of = pytest.importorskip("PIL.Image")
    if older:
        # As Pillow opened such a PNG before it had a mode of 16 bits for it.
        modes = pytest.importorskip("PIL.PngImagePlugin")._MODES
        monkeypatch.setitem(modes, (16, 0), ("I", "I;16B"))
    eight = grey_ramp()
    # What lies up to half a grey away is rounded to it.
    sixteen = (eight.int() * 257 + offset).clamp(0, 65535)
    image_of.fromarray(eight.numpy()).save(tmp_path / "8.png")
    image_of.fromarray(sixteen.to(torch.uint16).numpy()).save(tmp_path / f"16.{ending}")
    read, expected = read_images([tmp_path / f"16.{ending}", tmp_path / "8.png"], 18)
    assert torch.equal(read, expected)
    assert len(read.unique()) == 256


def test_what_is_transparent_is_white_in_16_bits_too(tmp_path):
    image_of = pytest.importorskip("PIL.Image")
    eight = grey_ramp()
    image_of.fromarray(eight.numpy()).save(tmp_path / "8.png", transparency=9)
    wide = (eight.int() * 257).to(torch.uint16).numpy()
    image_of.fromarray(wide).save(tmp_path / "16.png", transparency=9 * 257)
    read, expected = read_images([tmp_path / "16.png", tmp_path / "8.png"], 18)
    assert torch.equal(read, expected)
    assert expected[0, 1, 10] == 1


@pytest.mark.parametrize(("dtype", "mode"), [(torch.int32, "I"), (torch.float32, "F")])
def test_greys_without_a_white_are_refused(tmp_path, dtype, mode):
    image_of = pytest.importorskip("PIL.Image")
    file = tmp_path / "a.tif"
    image_of.fromarray(torch.ones(4, 4, dtype=dtype).numpy()).save(file)
    message = rf"files: expected images of 8 bits .*, got '{file}' of Pillow's mode {mode}$"
    with pytest.raises(ValueError, match=message):
        read_images([file], 8)


@pytest.mark.parametrize("damage", ["too many pixels", "too much text", "a chunk of no name"])
def test_an_image_that_pillow_refuses_is_named(tmp_path, monkeypatch, damage):
    image_of = pytest.importorskip("PIL.Image")
    file = tmp_path / "a.png"
    text = pytest.importorskip("PIL.PngImagePlugin").PngInfo()
    if damage == "too much text":
        text.add_text("comment", "a" * 2**21, zip=True)
    image_of.new("L", (8, 8)).save(file, pnginfo=text)
    if damage == "too many pixels":
        monkeypatch.setattr(image_of, "MAX_IMAGE_PIXELS", 31)
    elif damage == "a chunk of no name":
        content = file.read_bytes()
        start = content.index(b"IDAT")
        # The first chunk of pixels ends early, and nothing that is a chunk follows.
        part = b"IDAT" + content[start + 4 : start + 6]
        chunk = (2).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        file.write_bytes(content[: start - 4] + chunk + bytes(40))
    with pytest.raises(ValueError, match=rf"files: expected images, got '{file}': .*[^.]$"):
        read_images([file], 8)
