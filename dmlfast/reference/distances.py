"""What a distance is, in plain torch: the arithmetic that kernels reproduce bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of one temporary of a chunked all-pairs computation: 32 MiB of float64.
CHUNK_ELEMENTS = 2**22

# Long enough that the second sum is short, short enough that one thread adds up each row.
_ROW = 1024


def fixed_order_sum(values: Tensor) -> Tensor:
    """The sum of a 1-D tensor in an order that its length alone decides."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[0] % _ROW))
    return padded.view(-1, _ROW).sum(1).sum()


def fixed_order_cumsum(values: Tensor) -> Tensor:
    """The sums of a 1-D tensor up to each element, in an order that its length alone decides."""
    step = 1  # how many elements each sum has
    while step < values.shape[0]:
        values = torch.cat([values[:step], values[step:] + values[:-step]])
        step *= 2
    return values


def chunk_rows(columns: int) -> int:
    """Rows of an all-pairs chunk, so that memory does not grow with the product of the sizes."""
    return max(1, CHUNK_ELEMENTS // max(1, columns))


def row_parts(rows: int, columns: int) -> Iterator[slice]:
    """The rows of such a computation, a chunk at a time."""
    step = chunk_rows(columns)
    return (slice(start, start + step) for start in range(0, rows, step))


def distance_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which distances between rows of `x` are returned."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sum_of_products(x: Tensor, y: Tensor) -> Tensor:
    """float64 sum of x_k * y_k over the last dimension in ascending order; x and y broadcast."""
    total = torch.zeros(
        torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]), dtype=torch.float64, device=x.device
    )
    for x_k, y_k in zip(x.double().unbind(-1), y.double().unbind(-1), strict=True):
        total += x_k * y_k
    return total


def _sum_of_squared_differences(x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(
        torch.broadcast_shapes(x.shape[:-1], y.shape[:-1]), dtype=torch.float64, device=x.device
    )
    for x_k, y_k in zip(x.double().unbind(-1), y.double().unbind(-1), strict=True):
        difference = x_k - y_k
        total += difference * difference
    return total


def square_root(value: Tensor) -> Tensor:
    """The correctly rounded float64 square root; torch's own may be off in the last bit on CPU."""
    root = value.sqrt()
    # Newton's step with the residual value - root^2 exact, by Dekker's splitting of the root.
    scaled = 134217729.0 * root  # 2^27 + 1
    high = scaled - (scaled - root)
    low = root - high
    square = root * root
    error = ((high * high - square) + 2 * high * low) + low * low
    step = ((value - square) - error) / (2 * root)
    # Outside this range the splitting overflows or underflows.
    return torch.where((value > 1e-280) & (value < 1e300), root + step, root)


def values(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """The float64 values that selections compare, over the last dimension; x and y broadcast.

    Squared distance under both Euclidean metrics, 1 - cos, or -<x, y>; smaller is closer.
    """
    if metric in ("euclidean", "sqeuclidean"):
        return _sum_of_squared_differences(x, y)
    products = sum_of_products(x, y)
    if metric == "dot":
        return -products
    norms = square_root(sum_of_products(x, x)) * square_root(sum_of_products(y, y))
    # A zero vector has distance 1; 0 * product keeps the NaN of a vector that is not finite.
    return torch.where(norms == 0, 1 + 0 * products, 1 - products / norms)


def distances(value: Tensor, metric: str, dtype: torch.dtype) -> Tensor:
    """Values as the distances that are returned: float64 for float64 inputs, else float32."""
    distance = square_root(value) if metric == "euclidean" else value
    return distance if dtype == torch.float64 else distance.float()


def gradients(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """float64 gradient of distance(x, y) with respect to x, over the last dimension.

    0 where the distance is 0 (Euclidean) or a vector is zero (cosine). All metrics are
    symmetric: the gradient with respect to y is `gradients(y, x, metric)`.
    """
    x, y = x.double(), y.double()
    if metric == "dot":
        return -y.expand(torch.broadcast_shapes(x.shape, y.shape))
    if metric == "cosine":
        norm_x = (x * x).sum(-1, keepdim=True).sqrt()
        norms = norm_x * (y * y).sum(-1, keepdim=True).sqrt()
        cosine = (x * y).sum(-1, keepdim=True) / norms
        gradient = cosine * (x / norm_x) / norm_x - y / norms
        return torch.where(norms == 0, 0.0, gradient)
    difference = x - y
    if metric == "sqeuclidean":
        return 2 * difference
    squares = (difference * difference).sum(-1, keepdim=True)
    return torch.where(squares == 0, 0.0, difference / squares.sqrt())
