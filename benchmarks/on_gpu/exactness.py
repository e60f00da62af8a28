"""Every selection beside float64 over whole rows: `python -m on_gpu.exactness`.

The value of a pair is the float64 sum over the dimensions in ascending order, each product rounded
before it is added; a selection is the first of the least values. Nothing here knows how the library
computes.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dmlfast.functional as F
from on_gpu.data import KINDS, make, search_counts

__all__ = ["survey"]

METRICS = ("euclidean", "cosine", "dot")
NEIGHBORS = 16
_ROWS = 1024  # of a chunk


class Chosen(NamedTuple):
    """(N, k) distances as returned, and indices; -1 at +inf where nothing was found."""

    distance: Tensor
    index: Tensor  # type: ignore[assignment]  # shadows tuple.index on purpose


def values(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """(N, M) float64 values; smaller is closer."""
    a, b = x.double(), y.double()
    total = torch.zeros(len(a), len(b), dtype=torch.float64, device=x.device)
    for k in range(a.shape[1]):
        if metric == "euclidean":
            difference = a[:, k, None] - b[None, :, k]
            total += difference * difference
        else:
            total += a[:, k, None] * b[None, :, k]
    if metric == "cosine":
        norms = _norms(a)[:, None] * _norms(b)[None]
        return torch.where(norms == 0, 1.0, 1 - total / norms)
    return -total if metric == "dot" else total


def _norms(a: Tensor) -> Tensor:
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    for k in range(a.shape[1]):
        total += a[:, k] * a[:, k]
    # Rounded once; torch's root may be off in the last bit on a CPU.
    return total.new_tensor([math.sqrt(square) for square in total.tolist()])


def best(key: Tensor, eligible: Tensor, returned: Tensor, k: int = 1) -> Chosen:
    """The k least keys of each row among what is eligible, the first of equal ones first."""
    masked = torch.where(eligible, key, torch.inf)
    order = masked.sort(dim=1, stable=True).indices[:, :k]
    found = eligible.gather(1, order)
    distance = torch.where(found, returned.gather(1, order), torch.inf)
    return Chosen(distance, torch.where(found, order, -1))


def _centres(rows: int) -> int:
    """How many of the rows, the first ones, stand for centres."""
    return rows // 4


def oracle(x: Tensor, labels: Tensor, metric: str) -> dict[str, Chosen]:
    """What every selection should find, a chunk of anchors after the other."""
    chunks: dict[str, list[Chosen]] = {}
    position = torch.arange(len(x), device=x.device)
    for rows in position.split(_ROWS):
        key = values(x[rows], x, metric)
        returned = (key.sqrt() if metric == "euclidean" else key).float()
        same = labels[rows, None] == labels[None]
        others = rows[:, None] != position[None]
        found = {
            "nearest_positive": best(key, same & others, returned),
            "farthest_positive": best(-key, same & others, returned),
            "hardest_negative": best(key, ~same, returned),
            "nearest_neighbors": best(key, others, returned, NEIGHBORS),
        }
        beyond = returned > found["nearest_positive"].distance
        to_centres = key[:, : _centres(len(x))]
        found["assign_clusters"] = best(
            to_centres, torch.ones_like(to_centres, dtype=torch.bool), returned
        )
        found["semihard_negative"] = best(key, ~same & beyond, returned)
        for name, chosen in found.items():
            chunks.setdefault(name, []).append(chosen)
    return {
        name: Chosen(torch.cat([c.distance for c in parts]), torch.cat([c.index for c in parts]))
        for name, parts in chunks.items()
    }


def selected(x: Tensor, labels: Tensor, metric: str) -> dict[str, Any]:
    """What dmlfast's selections find."""
    positive = F.nearest_positive(x, labels, metric=metric)
    return {
        "nearest_positive": positive,
        "farthest_positive": F.farthest_positive(x, labels, metric=metric),
        "hardest_negative": F.hardest_negative(x, labels, metric=metric),
        "semihard_negative": F.semihard_negative(
            x, labels, beyond=positive.distance, metric=metric
        ),
        "nearest_neighbors": F.nearest_neighbors(x, k=NEIGHBORS, metric=metric),
        "assign_clusters": F.assign_clusters(x, x[: _centres(len(x))], metric=metric),
    }


def _equal_rows(actual: Tensor, expected: Tensor) -> int:
    return int((actual.reshape(expected.shape) == expected).all(1).sum())


def survey(device: str, rows: int = 4096, dimensions: int = 128) -> dict[str, Any]:
    """The rows of every selection whose index and whose distance are those of the oracle."""
    checks: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for kind in KINDS:
            x, labels = (t.to(device) for t in make(kind, rows, dimensions))
            counts[kind] = search_counts(x, labels)
            for metric in METRICS:
                expected = oracle(x, labels, metric)
                found = selected(x, labels, metric)
                checks += [
                    {
                        "kind": kind,
                        "metric": metric,
                        "selection": name,
                        "rows": rows,
                        "equal_indices": _equal_rows(found[name].index, chosen.index),
                        "equal_distances": _equal_rows(found[name].distance, chosen.distance),
                    }
                    for name, chosen in expected.items()
                ]
    total = rows * len(checks)
    equal = sum(check["equal_indices"] for check in checks)
    distances = sum(check["equal_distances"] for check in checks)
    return {
        "summary": f"{equal} of {total} rows choose as float64 does, "
        f"{distances} of them at its distance",
        "share": equal / total,
        "share_of_distances": distances / total,
        "search_counts": counts,
        "checks": checks,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    print(json.dumps(survey(options.device, *((256, 16) if options.quick else ()))))


if __name__ == "__main__":
    main()
