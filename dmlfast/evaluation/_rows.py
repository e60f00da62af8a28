"""Rows a chunk at a time, and neighbours without the row itself: what the searches share."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

# Entries (rows x columns) of one chunk of work; the chunk's temporaries take about 50 bytes each.
CHUNK_ENTRIES = 2**20


def chunk_rows(columns: int) -> int:
    """Rows of a chunk."""
    return max(1, CHUNK_ENTRIES // max(1, columns))


def parts(x: Tensor) -> Iterator[Tensor]:
    """The rows of `x`, a bounded number of entries at a time."""
    step = chunk_rows(x.shape[1])
    for start in range(0, x.shape[0], step):
        yield x[start : start + step]


def drop_self(neighbours: Tensor, rows: Tensor) -> Tensor:
    """(n, k) of the (n, k + 1) `neighbours` of the references `rows`, without the row itself.

    A row with many duplicates may not be among its own k + 1 nearest; then the last one goes.
    """
    kept = is_kept(neighbours, rows)
    return neighbours[kept].view(neighbours.shape[0], neighbours.shape[1] - 1)


def is_kept(neighbours: Tensor, rows: Tensor) -> Tensor:
    """(n, k + 1) bool, False for the one neighbour of each row that `drop_self` leaves out.

    `rows` may be -1 for none, which a neighbour of -1 is not.
    """
    keep = (neighbours != rows.unsqueeze(1)) | (neighbours < 0)
    keep[:, -1] &= ~keep.all(dim=1)
    return keep
