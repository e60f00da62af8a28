"""Characters rendered from the DejaVu fonts that matplotlib ships, and which of them to keep."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmlfast._optional import require

FACES = (
    "DejaVuSans",
    "DejaVuSans-Oblique",
    "DejaVuSans-Bold",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "DejaVuSerif-Bold",
    "DejaVuSerif-BoldItalic",
)

# To be raised with any change to what this file renders or keeps: caches are named by it.
RULES = 2

# Pixels: side of an image, size of the type, longest side of the ink (larger ink is shrunk).
SIDE = 32
EM = 22
INK = 28
# Everything is drawn this many times larger and averaged, so that hinting hardly shows.
OVERSAMPLING = 4

# Letters, numbers, punctuation and symbols: what leaves ink of its own. Without the modifier
# letters, which are raised copies of others.
CATEGORIES = "LNPS"
EXCLUDED_CATEGORY = "Lm"

# The difference of two characters in a face: of their ink boxes stretched to one square, as a share
# of the squared ink; infinite when the aspect ratios of the boxes differ by more than this factor.
ASPECT = 1.35
# They look the same when they differ by at most this in some face.
SAME = 0.01
# The same for variants of one letter, which differ more: the stroke of "o" is thicker for its size
# than that of "O".
SAME_VARIANT = 0.1
# Two characters share a split when their images differ by at most this in some face, as a share of
# the squared ink. From 0.06 on, chains of such pairs join more letters than validation can hold.
CLOSE = 0.04
_SMALL_CAPITAL = "LATIN LETTER SMALL CAPITAL "


@dataclass(frozen=True, eq=False)
class Glyphs:
    """Rendered characters.

    Attributes:
        characters: C of them, in code-point order.
        groups: (C,) int64, equal for characters that must share a split.
        images: (C, 12, 32, 32) uint8, one for each of `FACES`, ink 255.
    """

    characters: str
    groups: Tensor
    images: Tensor


def rendering_key() -> str:
    """What the rendering depends on, as 16 hex digits.

    These are the rules of this file, Pillow and its FreeType, Python's Unicode tables and the font
    files.

    Raises:
        ImportError: if matplotlib or Pillow is not installed.
    """
    freetype = require("PIL.features", "train").version("freetype2")
    pillow = require("PIL", "train").__version__
    versions = (RULES, pillow, freetype, unicodedata.unidata_version)
    digest = hashlib.sha256(" ".join(map(str, versions)).encode())
    for path in _font_paths():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def render() -> Glyphs:
    """Render the characters that every face has, and keep those that can be told apart.

    Characters that have two equal images are left out. Of the others, in code-point order, one is
    kept unless it looks the same as one kept before (see `SAME`) or has an image equal to one of
    those: the lowest of several lookalikes stands for all. Takes seconds.

    Raises:
        ImportError: if matplotlib or Pillow is not installed.
    """
    paths = _font_paths()
    characters = _candidates(paths)
    drawn = [_draw_face(path, characters) for path in paths]
    images, shapes, boxes = (torch.stack(parts, dim=1) for parts in zip(*drawn, strict=True))
    bitmaps = [{face.tobytes() for face in faces} for faces in images.numpy()]
    rows = [row for row, faces in enumerate(bitmaps) if len(faces) == len(FACES)]
    characters = "".join(characters[row] for row in rows)
    images = images[rows]
    alike = _alike(characters, shapes[rows], boxes[rows])
    kept = _keep([bitmaps[row] for row in rows], alike)
    groups = _groups(characters, alike | _close(images))
    return Glyphs("".join(characters[i] for i in kept), groups[kept], images[kept])


def base_letter(character: str) -> str:
    """The letter under the marks, without its case: "a" for "a", "A" and "Ậ"."""
    return unicodedata.normalize("NFD", character)[0].casefold()


def _font_paths() -> list[Path]:
    folder = Path(require("matplotlib", "train").get_data_path(), "fonts", "ttf")
    return [folder / f"{face}.ttf" for face in FACES]


def _candidates(paths: list[Path]) -> str:
    """The characters of `CATEGORIES` that every font has, in code-point order."""
    font = require("matplotlib.ft2font", "train").FT2Font
    common = set.intersection(*(set(font(str(path)).get_charmap()) for path in paths))
    return "".join(filter(_is_candidate, map(chr, sorted(common))))


def _is_candidate(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in CATEGORIES and category != EXCLUDED_CATEGORY


def _draw_face(path: Path, characters: str) -> tuple[Tensor, Tensor, Tensor]:
    """Images (C, 32, 32) uint8, shapes (C, 1024) uint8, boxes (C, 2) int64 of one face.

    A shape is the ink box stretched to the whole square; a box is its width and height before
    that. Both are blank for a character without ink.
    """
    image_font = require("PIL.ImageFont", "train")
    # The basic layout engine is in every build of Pillow.
    font = image_font.truetype(str(path), EM * OVERSAMPLING, layout_engine=image_font.Layout.BASIC)
    resampling = require("PIL.Image", "train").Resampling
    images, shapes, boxes = bytearray(), bytearray(), []
    for character in characters:
        ink = _ink(font, character)
        boxes.append(ink.size)
        images += _centred(ink).tobytes()
        shapes += ink.resize((SIDE, SIDE), resampling.BOX).tobytes()
    return (
        torch.frombuffer(images, dtype=torch.uint8).view(-1, SIDE, SIDE),
        torch.frombuffer(shapes, dtype=torch.uint8).view(-1, SIDE * SIDE),
        torch.tensor(boxes),
    )


def _ink(font: Any, character: str) -> Any:
    """The character drawn large, cropped to its ink; one blank pixel when it has none."""
    left, top, right, bottom = font.getbbox(character)
    size = (max(1, right - left), max(1, bottom - top))
    canvas = require("PIL.Image", "train").new("L", size)
    pen = require("PIL.ImageDraw", "train").Draw(canvas)
    pen.text((-left, -top), character, fill=255, font=font)
    # Pixels less than half covered are edge, not ink: with them, the stretched shapes of two equal
    # bars would differ by where their edges fall between pixels.
    box = canvas.point([0] * 128 + [255] * 128).getbbox()
    return canvas.crop(box or (0, 0, 1, 1))


def _centred(ink: Any) -> Any:
    """The ink in the middle of an image of the final size."""
    image = require("PIL.Image", "train")
    shrink = INK * OVERSAMPLING / max(ink.size)
    if shrink < 1:
        size = [max(1, round(side * shrink)) for side in ink.size]
        ink = ink.resize(size, image.Resampling.BOX)
    side = SIDE * OVERSAMPLING
    canvas = image.new("L", (side, side))
    canvas.paste(ink, ((side - ink.width) // 2, (side - ink.height) // 2))
    return canvas.reduce(OVERSAMPLING)


def _alike(characters: str, shapes: Tensor, boxes: Tensor) -> Tensor:
    """Which pairs look the same in at least one face: (C, C) bool, symmetric."""
    least, greatest = _differences(shapes, boxes)
    # Of one family are the variants of a letter as Unicode knows them, and what differs from one
    # of them in no face, such as Latin "c" and the Greek sigma of that form.
    families = [_family(character) for character in characters]
    joined = _joined(families, greatest <= SAME)
    limits = torch.where(joined[:, None] == joined, SAME_VARIANT, SAME)
    return least <= limits


def _differences(shapes: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest difference (C, C) of all pairs over the faces; see `ASPECT`."""
    least = torch.full((len(shapes), len(shapes)), torch.inf)
    greatest = torch.zeros_like(least)
    for face in range(len(FACES)):
        difference = _difference(shapes[:, face])
        width, height = boxes[:, face].unbind(dim=1)
        cross = width[:, None] * height
        far = torch.maximum(cross, cross.T) > ASPECT * torch.minimum(cross, cross.T)
        difference.masked_fill_(far, torch.inf)
        least = torch.minimum(least, difference)
        greatest = torch.maximum(greatest, difference)
    return least, greatest


def _close(images: Tensor) -> Tensor:
    """Which pairs have images that are `CLOSE` in at least one face: (C, C) bool, symmetric."""
    faces = images.flatten(2).unbind(dim=1)
    return torch.stack([_difference(face) <= CLOSE for face in faces]).any(dim=0)


def _difference(bitmaps: Tensor) -> Tensor:
    """The squared difference (C, C) of all pairs of `bitmaps` (C, P) uint8, P at most 2**10.

    As a share of the squared ink of the one with more of it.
    """
    # Six bits a pixel keep every sum of products below 2**24: exact in float32, so that the choice
    # of characters does not depend on the machine.
    pixels = (bitmaps >> 2).float()
    ink = pixels.square().sum(dim=1)
    return (ink[:, None] + ink - 2 * (pixels @ pixels.T)) / torch.maximum(ink[:, None], ink)


def _family(character: str) -> str:
    """Equal for the variants of one letter: "o" for "o", "O" and the superscript and subscript."""
    name = unicodedata.name(character, "")
    if len(name) == len(_SMALL_CAPITAL) + 1 and name.startswith(_SMALL_CAPITAL):
        return name[-1].casefold()
    return unicodedata.normalize("NFKC", character).casefold()


def _keep(bitmaps: list[set[bytes]], alike: Tensor) -> list[int]:
    """Indices of the characters to keep; see `render`."""
    # A blank image shows no character.
    seen = {bytes(SIDE * SIDE)}
    kept = torch.zeros(len(bitmaps), dtype=torch.bool)
    for index, faces in enumerate(bitmaps):
        if seen.isdisjoint(faces) and not bool((alike[index] & kept).any()):
            kept[index] = True
            seen |= faces
    return [int(index) for index in kept.nonzero()]


def _groups(characters: str, linked: Tensor) -> Tensor:
    """Numbers (C,) int64, equal for characters that must share a split.

    These are the ones with the same base letter, or with base letters of which some characters are
    `linked`: Cyrillic "ѓ" goes with Latin "ŕ" if their own letters do.
    """
    return _joined([base_letter(character) for character in characters], linked)


def _joined(keys: list[str], linked: Tensor) -> Tensor:
    """Numbers (N,) int64, equal for equal keys and for keys that a chain of links joins.

    `linked` (N, N) bool, symmetric, links the keys of its rows and columns.
    """
    parents = {key: key for key in keys}

    def root(key: str) -> str:
        while parents[key] != key:
            key = parents[key]
        return key

    for first, second in linked.triu(diagonal=1).nonzero().tolist():
        parents[root(keys[first])] = root(keys[second])
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(root(key), len(numbers)) for key in keys])
