"""The inputs that the checks and the times are taken on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["KINDS", "make", "search_counts"]

KINDS = ("random", "clustered", "one point", "two points", "duplicated")
# How far collapsed rows are from their point.
RADIUS = 1e-3


def make(
    kind: str, rows: int, dimensions: int, per_class: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(N, d) float32 rows, of length 1 or near it, and (N,) int64 labels, on the CPU.

    Args:
        kind: "random": directions uniform on the sphere. "clustered": around the centre of their
            class, at half its length. "one point", "two points": collapsed, all on a point, or two
            classes each on its own. "duplicated": every row about three times, in any class.
        rows: N.
        dimensions: d.
        per_class: rows of a class, next to each other.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    normalize = torch.nn.functional.normalize
    labels = torch.arange(rows) // per_class
    noise = torch.randn(rows, dimensions, generator=generator)
    if kind == "random":
        return normalize(noise), labels
    if kind == "clustered":
        centres = normalize(torch.randn(int(labels[-1]) + 1, dimensions, generator=generator))
        return normalize(centres[labels] + 0.5 * noise / dimensions**0.5), labels
    if kind in ("one point", "two points"):
        points = normalize(torch.randn(2, dimensions, generator=generator))
        place = torch.arange(rows) % (1 if kind == "one point" else 2)
        fallen = points[place] + RADIUS * normalize(noise)
        return fallen, labels if kind == "one point" else place
    if kind == "duplicated":
        copies = torch.randint(max(1, rows // 3), (rows,), generator=generator)
        return normalize(noise)[copies], labels
    raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")


def search_counts() -> Any:
    """Rows that the last search looked at again at each of its levels, where the library counts."""
    counter = getattr(torch.ops.dmlfast, "neighbors_search_counts", None)
    if counter is None:
        return "not available"
    try:
        counts = counter()
    except Exception as error:  # a counter that cannot be asked must not cost the figures
        return f"not available: {error}".splitlines()[0]
    return counts.tolist() if isinstance(counts, Tensor) else counts
