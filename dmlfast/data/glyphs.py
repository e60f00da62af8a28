"""Characters in 12 font faces: many classes, a hidden sub-class, test classes never seen."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dmlfast.data.dataset import DataSet, Split
from dmlfast.data.rendering import FACES, Glyphs, render, rendering_key
from dmlfast.data.transforms import RandomAffine

# Shares of the classes in train, validation and test.
SHARES = (3 / 8, 1 / 8, 1 / 2)
# At random in training, fixed in validation and test.
DISTORTION = RandomAffine(rotation=20, scale=0.2, shear=0.25, shift=2, noise=0.1)
VALIDATION_SEED = 1
TEST_SEED = 2

_DIGEST_BYTES = hashlib.sha256().digest_size


def load(*, cache: str | os.PathLike[str] | None = None) -> DataSet:
    """About 1,250 characters in 12 faces, (N, 1, 32, 32).

    The class is the character, the sub-class the face. Every class is in one split only, together
    with all other cases and accents of its letter and with the letters that look like it: clean
    images of two splits differ by more than `rendering.CLOSE` of the squared ink in every face. A
    stroke through a letter is no accent in Unicode but makes another letter: the two share a split
    where they differ that little, as D and Đ do, and else may not, as b and ƀ or Z and Ƶ.

    Training images are clean, for `augment` to distort; validation and test images carry
    distortions of the same kind, the same at every load. Images are in the order of classes, then
    faces.

    Args:
        cache: see `bitmaps`.

    Raises:
        ImportError: if matplotlib or Pillow is not installed.
    """
    glyphs = bitmaps(cache)
    part = assign(glyphs.groups)
    train, validation, test = (_split(glyphs, part == number) for number in range(3))
    return DataSet(
        name="glyphs",
        train=train,
        validation=_distorted(validation, VALIDATION_SEED),
        test=_distorted(test, TEST_SEED),
        class_names=tuple(glyphs.characters),
        subclass_names=FACES,
        augment=DISTORTION,
    )


def bitmaps(cache: str | os.PathLike[str] | None = None) -> Glyphs:
    """The clean images of all characters, rendered at the first call and read from then on.

    The file's name says what it was rendered from and its first bytes are a digest of the rest: a
    stale file is not looked at, a damaged one is replaced. A folder that cannot be written to
    costs a warning and a rendering at every call.

    Args:
        cache: folder of the file; by default `$DMLFAST_CACHE`, else `~/.cache/dmlfast`.

    Raises:
        ImportError: if matplotlib or Pillow is not installed.
    """
    folder = cache or os.environ.get("DMLFAST_CACHE") or Path.home() / ".cache" / "dmlfast"
    path = Path(folder) / f"glyphs-{rendering_key()}.bin"
    glyphs = _read(path)
    if glyphs is None:
        glyphs = render()
        try:
            _write(path, glyphs)
        except OSError as error:
            warnings.warn(f"the glyphs are rendered but not cached: {error}", stacklevel=2)
    return glyphs


def assign(groups: Tensor) -> Tensor:
    """The split (C,) int64 of every class: 0 train, 1 validation, 2 test.

    The classes of a group, equal in `groups` (C,) int64, share a split. Largest group first, each
    goes where it leaves the split least full for its share, so that the small ones even out the
    large.
    """
    sizes = torch.bincount(groups)
    filled = [0] * len(SHARES)
    part = torch.empty_like(sizes)
    for group in sizes.argsort(descending=True, stable=True).tolist():
        size = int(sizes[group])
        split = min(range(len(SHARES)), key=lambda s: (filled[s] + size) / SHARES[s])
        filled[split] += size
        part[group] = split
    return part[groups]


def _split(glyphs: Glyphs, chosen: Tensor) -> Split:
    images = glyphs.images[chosen].flatten(0, 1)[:, None].float() / 255
    classes = chosen.nonzero().flatten()
    faces = torch.arange(len(FACES))
    return Split(images, classes.repeat_interleave(len(FACES)), faces.repeat(len(classes)))


def _distorted(split: Split, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    return Split(DISTORTION(split.images, generator), split.labels, split.subclasses)


def _read(path: Path) -> Glyphs | None:
    """The glyphs of a cache file; None when there is none or it is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, payload = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    return Glyphs(**torch.load(io.BytesIO(payload), weights_only=True))


def _write(path: Path, glyphs: Glyphs) -> None:
    """Write a cache file at once: another process sees the whole of it or nothing."""
    buffer = io.BytesIO()
    torch.save(asdict(glyphs), buffer)
    payload = buffer.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(payload).digest())
            file.write(payload)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
