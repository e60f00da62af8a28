"""Losses over given lists of pairs or triplets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast._normalize import unit_rows
from dmlfast.ops._arguments import INTEGER_DTYPES, describe


class Triplets(NamedTuple):
    """(T,) int64 rows: anchors of the embeddings, positives and negatives of the references."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


def index_lists(indices_tuple: object, device: torch.device) -> list[Tensor]:
    """The tensors of an (a, p, n) or (a1, p, a2, n) tuple, checked, as int64.

    Raises:
        TypeError: not a tuple of 3 or 4 integer tensors.
        ValueError: tensors that are not 1-D, not on the device of the embeddings, or whose
            lengths do not match. An index out of range is torch's own IndexError.
    """
    if not isinstance(indices_tuple, (tuple, list)) or len(indices_tuple) not in (3, 4):
        raise TypeError(
            "indices_tuple: expected (anchor, positive, negative) or (anchor, positive, anchor, "
            f"negative), got {type(indices_tuple).__name__}"
            + (f" of {len(indices_tuple)}" if isinstance(indices_tuple, (tuple, list)) else "")
        )
    for place, index in enumerate(indices_tuple):
        if not isinstance(index, Tensor) or index.dtype not in INTEGER_DTYPES:
            raise TypeError(
                f"indices_tuple[{place}]: expected an integer tensor, got {describe(index)}"
            )
        if index.dim() != 1:
            raise ValueError(f"indices_tuple[{place}]: expected 1-D, got {describe(index)}")
        if index.device != device:
            raise ValueError(
                f"indices_tuple[{place}]: expected the device of the embeddings, {device}, got "
                f"{describe(index)}"
            )
    lists = [index.to(torch.int64) for index in indices_tuple]
    if len(lists) == 3:
        _check_lengths(lists, (0, 1, 2))
    else:
        _check_lengths(lists, (0, 1))
        _check_lengths(lists, (2, 3))
    return lists


def triplets_of(indices_tuple: object, device: torch.device) -> Triplets:
    """Triplets of an (a, p, n) or (a1, p, a2, n) tuple; pairs of one anchor are all combined.

    The combination sorts the negative pairs by anchor, so that memory is O(pairs + triplets).
    Raises as `index_lists`.
    """
    lists = index_lists(indices_tuple, device)
    if len(lists) == 3:
        return Triplets(*lists)
    anchor, positive, negative_anchor, negative = lists
    by_anchor = negative_anchor.argsort(stable=True)
    sorted_anchor = negative_anchor[by_anchor]
    begin = torch.searchsorted(sorted_anchor, anchor.contiguous(), right=False)
    count = torch.searchsorted(sorted_anchor, anchor.contiguous(), right=True) - begin
    pair = torch.arange(anchor.shape[0], device=anchor.device).repeat_interleave(count)
    before = (count.cumsum(0) - count)[pair]
    within = torch.arange(pair.shape[0], device=anchor.device) - before
    return Triplets(anchor[pair], positive[pair], negative[by_anchor[begin[pair] + within]])


def _check_lengths(lists: list[Tensor], places: tuple[int, ...]) -> None:
    lengths = [lists[place].shape[0] for place in places]
    if len(set(lengths)) != 1:
        named = ", ".join(f"indices_tuple[{place}]" for place in places)
        raise ValueError(f"{named}: expected equal lengths, got {lengths}")


def triplet_distances(
    x: Tensor, references: Tensor, triplets: Triplets, metric: str
) -> tuple[Tensor, Tensor]:
    """(T,) distances of the anchors to their positives and to their negatives."""
    anchors = x[triplets.anchor]
    return (
        _row_distance(anchors, references[triplets.positive], metric),
        _row_distance(anchors, references[triplets.negative], metric),
    )


def _row_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Distances between corresponding rows, accumulated in float32 or better."""
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    if metric == "dot":
        return -(x * y).sum(1)
    if metric == "cosine":
        return 1 - (unit_rows(x) * unit_rows(y)).sum(1)
    squares = (x - y).square().sum(1)
    if metric == "sqeuclidean":
        return squares
    # The gradient of the root is 0 at 0, not infinite.
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
