"""Losses over given lists of pairs or triplets."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import INTEGER_DTYPES, can_read, describe


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
            lengths do not match.
        IndexError: a negative index. One too large is torch's own IndexError where it is used.
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
    for place, index in enumerate(lists):
        # Torch would count these from the end.
        if can_read(index) and (index < 0).any():
            raise IndexError(f"indices_tuple[{place}]: index {int(index.min())} is out of range")
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


class PairLists(NamedTuple):
    """(P,) and (Q,) int64 rows: anchors of the embeddings with partners of the references."""

    positive_anchor: Tensor
    positive: Tensor
    negative_anchor: Tensor
    negative: Tensor

    def distinct(self) -> PairLists:
        """The same pairs, each once."""
        positives = _distinct(self.positive_anchor, self.positive)
        return PairLists(*positives, *_distinct(self.negative_anchor, self.negative))


def pairs_of(indices_tuple: object, device: torch.device) -> PairLists:
    """Pairs of a tuple; triplets (a, p, n) are the pairs (a, p) and (a, n), as often as they come.

    Raises as `index_lists`.
    """
    lists = index_lists(indices_tuple, device)
    if len(lists) == 3:
        return PairLists(lists[0], lists[1], lists[0], lists[2])
    return PairLists(*lists)


def _distinct(anchor: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
    if anchor.shape[0] == 0:
        return anchor, partner
    # Of the partners there are, not of the references: one out of range must stay what it is.
    lowest = partner.min()
    width = partner.max() - lowest + 1
    pairs = torch.unique(anchor * width + (partner - lowest))
    return pairs // width, pairs % width + lowest


def anchors_of(indices: list[Tensor]) -> list[Tensor]:
    """The lists of a tuple that hold anchors."""
    return indices[:1] if len(indices) == 3 else [indices[0], indices[2]]


def row_weights(indices: list[Tensor], rows: int) -> Tensor:
    """(rows,) float64: how often each row occurs in the lists, over the most; 1 if none does."""
    places = torch.cat(indices)
    # Integers: the order in which they are added does not matter.
    counts = places.new_zeros(rows).index_add(0, places, torch.ones_like(places))
    most = counts.max() if rows else counts.sum()
    return torch.where(most == 0, 1.0, counts.double() / most.clamp(min=1))


def segment_sum(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """(count,) sums of the values of each segment, in their order, the same on every run."""
    order, begins = _segment_order(segments, count)
    return _segment_reduce(values[order], "sum", begins, 0.0)


def segment_logsumexp(values: Tensor, segments: Tensor, count: int) -> Tensor:
    """(count,) log-sum-exp of the values of each segment, -inf for an empty one."""
    order, begins = _segment_order(segments, count)
    with torch.no_grad():
        peak = _segment_reduce(values[order], "max", begins, -math.inf)
        peak = torch.where(peak == -math.inf, 0.0, peak)
    total = _segment_reduce((values - peak[segments]).exp()[order], "sum", begins, 0.0)
    return total.log() + peak


def _segment_order(segments: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The stable permutation that sorts the segments, and (count + 1,) where each begins."""
    order = segments.argsort(stable=True)
    edges = torch.arange(count + 1, device=segments.device)
    return order, torch.searchsorted(segments[order], edges)


def _segment_reduce(values: Tensor, reduction: str, begins: Tensor, empty: float) -> Tensor:
    return torch.segment_reduce(values, reduction, offsets=begins, unsafe=True, initial=empty)


def list_distances(
    x: Tensor, references: Tensor, anchor: Tensor, partner: Tensor, metric: str
) -> Tensor:
    """(P,) distances of rows of x to rows of the references, all of unit length for "cosine"."""
    return _row_distance(x[anchor], references[partner], metric)


def triplet_distances(
    x: Tensor, references: Tensor, triplets: Triplets, metric: str
) -> tuple[Tensor, Tensor]:
    """(T,) distances of the anchors to their positives and to their negatives."""
    return (
        list_distances(x, references, triplets.anchor, triplets.positive, metric),
        list_distances(x, references, triplets.anchor, triplets.negative, metric),
    )


def _row_distance(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Distances between corresponding rows, of unit length under "cosine"; float32 or better."""
    if x.dtype != torch.float64:
        x, y = x.float(), y.float()
    if metric == "dot":
        return -(x * y).sum(1)
    if metric == "cosine":
        return 1 - (x * y).sum(1)
    squares = (x - y).square().sum(1)
    if metric == "sqeuclidean":
        return squares
    # The gradient of the root is 0 at 0, not infinite.
    zero = squares == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, squares).sqrt())
