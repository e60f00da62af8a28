"""Means of clusters and k-means, in plain torch, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast.reference import distances, neighbors


def means(x: Tensor, index: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """The mean of the rows of each cluster: their float64 sum in ascending order, rounded once.

    Args:
        x: (N, d).
        index: (N,) int64 clusters, -1 for none.
        clusters: their number K.

    Returns:
        (K, d) means in the dtype of distances, 0 where there are no rows, and (K,) int64 numbers of
        rows.
    """
    assigned = index >= 0
    rows, own = x[assigned].double(), index[assigned]
    count = torch.bincount(own, minlength=clusters)
    total = x.new_zeros((clusters, x.shape[1]), dtype=torch.float64)
    if x.device.type == "cpu":
        total.index_add_(0, own, rows)
    else:
        # index_add_ uses atomics there; index_put_ sorts.
        total.index_put_((own,), rows, accumulate=True)
    mean = total / count.clamp(min=1)[:, None]
    return mean.to(distances.distance_dtype(x)), count


def means_backward(grad: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """The gradient of the rows, (N, d): that of their cluster's mean over its number of rows.

    Args:
        grad: (K, d) upstream gradient.
        index: (N,) int64 clusters; a row in none of them has gradient 0.
        count: (K,) int64 numbers of rows.
    """
    clusters = count.shape[0]
    # A row of zeros for those in no cluster.
    share = torch.nn.functional.pad(grad / count.clamp(min=1)[:, None], (0, 0, 0, 1))
    return share[torch.where((index < 0) | (index >= clusters), clusters, index)]


def seeds(x: Tensor, uniform: Tensor) -> Tensor:
    """Rows drawn as k-means++ does, by inversion of (K,) float64 numbers from [0, 1).

    Returns:
        (K,) int64; -1 where no row is finite.
    """
    finite = x.isfinite().all(1).nonzero()[:, 0]
    if finite.shape[0] == 0:
        return torch.full_like(uniform, -1, dtype=torch.int64)
    rows = x[finite]
    least = None
    drawn = []
    for number in uniform.tolist():
        position = min(int(number * rows.shape[0]), rows.shape[0] - 1)
        if least is not None:
            sums = distances.fixed_order_cumsum(least)
            if bool((sums[-1] > 0) & sums[-1].isfinite()):
                # Rounding may leave the number past the end: the last row with a weight.
                beyond = ((sums > number * sums[-1]) & (least > 0)).nonzero()
                position = int(beyond[0] if len(beyond) else least.nonzero()[-1])
        value = distances.values(rows, rows[position], "sqeuclidean")
        value = torch.where(value.isfinite(), value, 0.0)
        least = value if least is None else torch.minimum(least, value)
        drawn.append(position)
    return finite[torch.tensor(drawn, dtype=torch.int64, device=x.device)]


def kmeans(x: Tensor, initial: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lloyd's iterations.

    Args:
        x: (N, d) float32 or float64.
        initial: (K, d) centres.
        iterations: how often the centres move.

    Returns:
        centres (K, d), the nearest of each row (N,), -1 for one that is not finite, and the float64
        sums of squared distances before each iteration and at the end.
    """
    centers, finite = initial.clone(), x.isfinite().all(1)
    history, members = [], None
    for step in range(iterations + 1):
        index, value = _assign(x, centers, finite)
        history.append(distances.fixed_order_sum(value))
        if step == iterations:
            break
        moved = _fill_empty(index, value, initial.shape[0])
        if members is not None and torch.equal(moved, members):
            history += [history[-1]] * (iterations - step)
            break
        members = moved
        mean, count = means(x, members, initial.shape[0])
        centers = torch.where(count[:, None] > 0, mean, centers)
    return centers, index, torch.stack(history)


def _assign(x: Tensor, centers: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centre of each row, and the float64 square of its distance, 0 without one."""
    one_class = x.new_zeros(max(x.shape[0], centers.shape[0]), dtype=torch.int64)
    _, index = neighbors.select(
        x,
        one_class[: x.shape[0]],
        centers,
        one_class[: centers.shape[0]],
        None,
        None,
        metric="sqeuclidean",
        same_class=True,
        farthest=False,
    )
    index = torch.where(finite, index[:, 0], -1)
    value = distances.values(x, centers[index.clamp(min=0)], "sqeuclidean")
    return index, torch.where(index >= 0, value, 0.0)


def _fill_empty(index: Tensor, value: Tensor, clusters: int) -> Tensor:
    """Hands the rows that are farthest from their centres to the clusters without rows."""
    count = torch.bincount(index[index >= 0], minlength=clusters)
    empty = (count == 0).nonzero()[:, 0].tolist()
    if not empty:
        return index
    moved = index.clone()
    far = value.argsort(descending=True, stable=True)
    rows = iter(far[value[far] > 0].tolist())
    for cluster in empty:
        # A row that is alone in its cluster stays.
        row = next((row for row in rows if count[moved[row]] > 1), None)
        if row is None:
            break
        count[moved[row]] -= 1
        moved[row] = cluster
        count[cluster] = 1
    return moved
