"""An independent oracle in float64, one pair at a time, and the data the tests run on.

Nothing here knows how the library computes: values are sums over the dimensions in ascending
order in numpy, a selection is the first minimum of a masked row, and a triplet loss is a loop over
triplets whose gradient autograd takes from a plain distance matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

METRICS = ("euclidean", "sqeuclidean", "cosine", "dot")
POSITIVES = ("all", "nearest", "farthest")
NEGATIVES = ("all", "hardest", "semihard")

# Elements of a block of pairs: it stays in a processor's cache.
_BLOCK = 2**19


def returned_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that distances between rows of a dtype are returned in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def values(x: Tensor, y: Tensor, metric: str) -> np.ndarray:
    """(N, M) float64 values that selections compare: squared distance, 1 - cos or -<x, y>."""
    a, b = (m.detach().double().numpy() for m in (x, y))
    if metric in ("euclidean", "sqeuclidean"):
        return _sum_over_k(a, b, lambda p, q: (p - q) * (p - q))
    products = _sum_over_k(a, b, np.multiply)
    if metric == "dot":
        return -products
    norms_a, norms_b = (
        np.sqrt(np.array([_sum_over_k(r[None], r[None], np.multiply)[0, 0] for r in m]))
        for m in (a, b)
    )
    norms = norms_a.reshape(-1, 1) * norms_b.reshape(1, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms == 0, 1 + 0 * products, 1 - products / norms)


def _sum_over_k(
    a: np.ndarray, b: np.ndarray, term: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    total = np.zeros((len(a), len(b)))
    with np.errstate(invalid="ignore", over="ignore"):
        for k in range(a.shape[1]):
            total += term(a[:, k, None], b[None, :, k])
    return total


def distances(value: np.ndarray, metric: str, dtype: torch.dtype) -> np.ndarray:
    """Values as the distances returned for inputs of a dtype: rounded once, to float32 or not."""
    distance = np.sqrt(value) if metric == "euclidean" else value
    with np.errstate(over="ignore"):
        return distance if dtype == torch.float64 else distance.astype(np.float32)


def select(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    beyond: Tensor | None = None,
    metric: str = "euclidean",
    same_class: bool,
    farthest: bool = False,
) -> tuple[Tensor, Tensor]:
    """(N, T) distances and indices of the best reference of each anchor and threshold."""
    if references is None:
        references, reference_labels = x, labels
        self_index = torch.arange(len(x))
    thresholds = 1 if beyond is None else beyond.shape[1]
    distance = torch.full((len(x), thresholds), torch.inf, dtype=returned_dtype(x.dtype))
    index = torch.full((len(x), thresholds), -1)
    distance[~x.isfinite().all(1)] = torch.nan
    rows = max(1, _BLOCK // max(1, len(references)))
    other_labels = reference_labels.numpy()
    for start in range(0, len(x) if len(references) else 0, rows):
        stop = min(start + rows, len(x))
        value = values(x[start:stop], references, metric)
        returned = distances(value, metric, x.dtype)
        same = labels[start:stop, None].numpy() == other_labels
        candidate = (same if same_class else ~same) & ~np.isnan(value)
        if self_index is not None:
            own = self_index[start:stop].numpy()
            candidate[np.nonzero(own >= 0)[0], own[own >= 0]] = False
        key = -value if farthest else value
        for t in range(thresholds):
            eligible = candidate
            if beyond is not None:
                eligible = candidate & (returned > beyond[start:stop, t, None].double().numpy())
            found = np.nonzero(eligible.any(1))[0]
            if not len(found):
                continue
            # argmin returns the first of equal keys; among keys of +inf it must be an eligible one.
            masked = np.where(eligible, key, np.inf)[found]
            best = masked.argmin(1)
            infinite = masked[np.arange(len(found)), best] == np.inf
            best[infinite] = eligible[found][infinite].argmax(1)
            distance[start + found, t] = torch.from_numpy(returned[found, best]).to(distance.dtype)
            index[start + found, t] = torch.from_numpy(best)
    return distance, index


def nearest(
    x: Tensor,
    labels: Tensor | None = None,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    k: int,
    candidates: str = "all",
    metric: str = "euclidean",
) -> tuple[Tensor, Tensor]:
    """(N, k) distances and indices of the k best references of each anchor, one row at a time."""
    if references is None:
        references, reference_labels = x, labels
        self_index = torch.arange(len(x))
    value = values(x, references, metric)
    returned = torch.from_numpy(distances(value, metric, x.dtype))
    distance = torch.full((len(x), k), torch.inf, dtype=returned_dtype(x.dtype))
    index = torch.full((len(x), k), -1)
    distance[~x.isfinite().all(1)] = torch.nan
    for i, row in enumerate(value):
        candidate = ~np.isnan(row)
        if candidates != "all":
            same = (reference_labels == labels[i]).numpy()
            candidate &= same if candidates == "positives" else ~same
        if self_index is not None and self_index[i] >= 0:
            candidate[self_index[i]] = False
        (position,) = np.nonzero(candidate)
        # A stable sort: equal values stay in the order of their positions.
        best = torch.from_numpy(position[np.argsort(row[position], kind="stable")][:k])
        distance[i, : len(best)] = returned[i, best]
        index[i, : len(best)] = best
    return distance, index


def distance_matrix(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """(N, M) distances for autograd, with gradient 0 at distance 0 and for zero vectors."""
    if metric in ("euclidean", "sqeuclidean"):
        squares = (x[:, None] - y[None]).square().sum(-1)
        if metric == "sqeuclidean":
            return squares
        zero = squares == 0
        return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
    products = x @ y.T
    if metric == "dot":
        return -products
    squares = x.square().sum(1)[:, None] * y.square().sum(1)[None]
    zero = squares == 0
    return torch.where(zero, 1.0, 1 - products / torch.where(zero, 1.0, squares).sqrt())


class TripletSums(NamedTuple):
    """What a loop over all triplets finds.

    Attributes:
        loss: (N,) float64 sums over the active triplets of each anchor.
        active: (N,) int64 their number.
        weights: (N, M) float64 derivative of `loss` by each pair's distance.
    """

    loss: Tensor
    active: Tensor
    weights: Tensor


def triplet_sums(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    metric: str = "euclidean",
    positives: str = "all",
    negatives: str = "all",
    margin: float = 0.05,
) -> TripletSums:
    """Triplet losses of finite rows, triplet by triplet, from the distances as returned."""
    if references is None:
        references, reference_labels = x, labels
        self_index = torch.arange(len(x))
    value = values(x, references, metric)
    returned = distances(value, metric, x.dtype).astype(np.float64)
    classes, other_classes = labels.tolist(), reference_labels.tolist()
    loss, weights = np.zeros(len(x)), np.zeros(value.shape)
    active = np.zeros(len(x), dtype=np.int64)
    for i, v in enumerate(value):
        own = -1 if self_index is None else int(self_index[i])
        others = [j for j in range(len(v)) if j != own]
        positive = [j for j in others if other_classes[j] == classes[i]]
        negative = [j for j in others if other_classes[j] != classes[i]]
        if positives != "all" and positive:
            sign = 1 if positives == "nearest" else -1
            positive = [min(positive, key=lambda j: (sign * v[j], j))]
        for p in positive:
            chosen = negative
            if negatives == "semihard":
                chosen = [n for n in negative if returned[i, n] > returned[i, p]]
            if negatives != "all" and chosen:
                chosen = [min(chosen, key=lambda j: (v[j], j))]
            for n in chosen:
                hinge = returned[i, p] + margin - returned[i, n]
                if hinge > 0:
                    loss[i] += hinge
                    active[i] += 1
                    weights[i, p] += 1
                    weights[i, n] -= 1
    return TripletSums(*(torch.from_numpy(array) for array in (loss, active, weights)))


def partners(
    labels: Tensor,
    reference_labels: Tensor | None = None,
    self_index: Tensor | None = None,
    left_out: Collection[int] = (),
) -> list[tuple[list[int], list[int]]]:
    """Positives and negatives of each anchor; those of the batch without references."""
    if reference_labels is None:
        reference_labels, self_index = labels, torch.arange(len(labels))
    found = []
    for i, label in enumerate(labels.tolist()):
        own = -1 if self_index is None else int(self_index[i])
        others = [j for j in range(len(reference_labels)) if j != own and j not in left_out]
        positive = [j for j in others if reference_labels[j] == label]
        found.append((positive, [j for j in others if j not in positive]))
    return found


def contrast_side(
    distance: Tensor, chosen: list[int], form: str, scale: float, bound: Tensor | None, sign: int
) -> tuple[Tensor, int]:
    """The sum of a form over some of the (M,) distances of one anchor, and its terms' number."""
    d = [distance[j] for j in chosen]
    if form == "none":
        return 0 * distance.sum(), 0
    if form == "logsumexp":
        if bound is not None:
            d = [v for v in d if sign * v.item() > sign * bound.item()]
        exponents = torch.stack([scale * v for v in d]) if d else torch.full((1,), -torch.inf)
        return exponents.logsumexp(0) + 0 * distance.sum(), len(d)
    if form == "sum":
        terms = d
    elif form == "hinge":
        terms = [v for v in (sign * (v - bound) for v in d) if v.item() > 0]
    else:
        terms = [torch.logaddexp(scale * v + bound, 0 * v) for v in d]
    return sum(terms, 0 * distance.sum()), len(terms)


def triplet_gradients(
    weights: Tensor, x: Tensor, references: Tensor | None, metric: str
) -> tuple[Tensor, Tensor | None]:
    """float64 gradients of sum(weights * distances) with respect to x and the references."""
    a = x.detach().double().requires_grad_()
    b = a if references is None else references.detach().double().requires_grad_()
    total = (weights * distance_matrix(a, b, metric)).sum()
    if references is None:
        return torch.autograd.grad(total, a)[0], None
    return torch.autograd.grad(total, (a, b))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected| as vectors; |actual| where nothing is expected."""
    actual, expected = actual.detach().double(), expected.detach().double()
    scale = expected.norm().item()
    return (actual - expected).norm().item() / (scale or 1.0)


def random(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points without structure."""
    return torch.randn(n, d, generator=generator), _labels(n, classes, generator)


def clustered(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A tight cluster a class."""
    labels = _labels(n, classes, generator)
    centres = torch.randn(classes, d, generator=generator)
    return centres[labels] + 0.05 * torch.randn(n, d, generator=generator), labels


def duplicated(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Every point about three times, in the same class and in others."""
    points = torch.randn(max(1, n // 3), d, generator=generator)
    copies = torch.randint(len(points), (n,), generator=generator)
    return points[copies], _labels(n, classes, generator)


def tied(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of a small integer grid: most distances occur many times."""
    grid = torch.randint(-2, 3, (n, d), generator=generator)
    return grid.float(), _labels(n, classes, generator)


def shifted(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points far from the origin, where |x|^2 + |y|^2 - 2<x, y> loses every digit in float32."""
    return torch.randn(n, d, generator=generator) + 1e3, _labels(n, classes, generator)


def collapsed(n: int, d: int, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All points within 1e-4 of one unit vector."""
    centre = torch.nn.functional.normalize(torch.randn(d, generator=generator), dim=0)
    return centre + 1e-4 * torch.randn(n, d, generator=generator), _labels(n, classes, generator)


def _labels(n: int, classes: int, generator: torch.Generator) -> Tensor:
    return torch.randint(classes, (n,), generator=generator)


DATA = {
    maker.__name__: maker for maker in (random, clustered, duplicated, tied, shifted, collapsed)
}


def make(
    kind: str, n: int, d: int, classes: int, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(n, d) points of a kind, in a dtype, and (n,) int64 labels."""
    x, labels = DATA[kind](n, d, classes, torch.Generator().manual_seed(seed))
    return x.to(dtype), labels
