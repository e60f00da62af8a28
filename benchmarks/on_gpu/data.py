"""The inputs that the checks and the times are taken on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast._backend import uses_kernel
from dmlfast.functional import nearest_positive

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


def search_counts(x: Tensor, labels: Tensor) -> Any:
    """Rows that the searches for two selections looked at again, at each level.

    Of "hardest_negative" and "semihard_negative" beyond the nearest positive: how many half
    precision left undecided, and how many split precision. A sentence where the library does not
    count on this device.
    """
    if x.device.type != "cuda" or not uses_kernel("neighbors", x.device):
        return "not available"
    order = labels.argsort(stable=True)
    own = torch.arange(len(labels), device=x.device)
    positive = nearest_positive(x.detach(), labels).distance.double()[:, None]
    try:
        return {
            name: torch.ops.dmlfast.neighbors_search_counts(
                x.detach(), labels, order, x.detach(), labels, order, own, beyond, "euclidean"
            ).tolist()
            for name, beyond in (("hardest_negative", None), ("semihard_negative", positive))
        }
    except RuntimeError as error:  # a counter that cannot be asked must not cost the figures
        return f"not available: {error}".splitlines()[0]
