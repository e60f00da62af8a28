"""Draws: for each anchor a reference of another class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_generator,
    check_number,
    check_option,
    check_pairs,
)
from dmlfast.ops._operators import operators, register
from dmlfast.ops.neighbors import Selection, save_selection, selection_backward
from dmlfast.reference import neighbors_sample as reference
from dmlfast.reference.distances import distance_dtype

DISTRIBUTIONS = ("distance_weighted", "uniform")

# Squares of smaller numbers leave the range in which weights are computed.
_LEAST_CUTOFF = 1e-100

# SplitMix64, as signed integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def sample_negative(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    distribution: str = "distance_weighted",
    cutoff: float = 0.5,
    nonzero_loss_cutoff: float = 1.4,
    metric: str = "euclidean",
    generator: torch.Generator | None = None,
) -> Selection:
    """A random reference of another class for each anchor.

    "distance_weighted" draws in proportion to the inverse density of distances D between points
    on the unit sphere of d dimensions,

        log w = (2 - d) log D - (d - 3)/2 log(1 - D^2/4),

    with D not below `cutoff` and 1 - D^2/4 not below 1e-8; w is 0 where D >= `nonzero_loss_cutoff`.
    An anchor all of whose weights are 0 draws uniformly. D is the Euclidean distance of the rows;
    under "cosine" and "dot" it is sqrt(2 - 2 cos) and sqrt(2 - 2 <x, y>), the same for rows of
    norm 1, as the formula assumes.

    "uniform" draws every reference of another class that is finite alike, without a look at
    any pair.

    Each anchor inverts its cumulative weights, over the references by label and then index, at a
    number that is a function of its row and of one integer drawn from `generator`: a draw does
    not depend on the device or the number of threads, save where rounding moves a boundary.

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64, any strides.
        labels: (N,) classes of the anchors, any integer dtype.
        references: (M, d) candidates, dtype and device of `x`; the batch itself by default.
        reference_labels: (M,) classes of the references; required with them.
        self_index: (N,) the row of `references` that is the anchor itself and is not a candidate,
            even where its label is another; -1 for none. It must not be given within a batch.
        distribution: "distance_weighted" or "uniform".
        cutoff: least distance D in a weight, 1e-100 or more.
        nonzero_loss_cutoff: distance D from which on weights are 0, greater than 0; may be +inf.
        metric: "euclidean", "sqeuclidean", "cosine" or "dot": that of the returned distance.
        generator: of any device; torch's own of the CPU by default, and alone under
            torch.compile(fullgraph=True).

    Returns:
        Selection with (N,) distance, differentiable once in `x` and `references`, and (N,) index:
        -1, at distance +inf, without a finite reference of another class. An anchor that is not
        finite has index -1 and distance NaN.

    Memory: O((N + M)·d), with 1 KiB an anchor for sums of weights.

    Raises:
        TypeError: something is not a tensor, a number or a generator, or has a wrong dtype.
        ValueError: a wrong shape, device, option or cutoff.

    Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017. The numbers are
    those of SplitMix64: Steele et al., "Fast splittable pseudorandom number generators", 2014.
    """
    pairs = check_pairs(x, labels, references, reference_labels, self_index)
    check_option("distribution", distribution, DISTRIBUTIONS)
    check_option("metric", metric, METRICS)
    least = check_number("cutoff", cutoff)
    if not _LEAST_CUTOFF <= least < float("inf"):
        raise ValueError(f"cutoff: expected a finite number, {_LEAST_CUTOFF} or more, got {cutoff}")
    end = check_number("nonzero_loss_cutoff", nonzero_loss_cutoff)
    if not end > 0:
        raise ValueError(
            f"nonzero_loss_cutoff: expected a number greater than 0, got {nonzero_loss_cutoff}"
        )
    check_generator(generator)
    uniform = _uniform(pairs.x.shape[0], pairs.x.device, generator)
    order, reference_order = pairs.orders()
    distance, index = operators("neighbors_sample", pairs.x.device).neighbors_sample(
        pairs.x,
        pairs.labels,
        order,
        pairs.references,
        pairs.reference_labels,
        reference_order,
        pairs.self_index,
        uniform,
        _uniform_negatives(pairs, reference_order, uniform),
        distribution == "distance_weighted",
        least,
        end,
        metric,
    )
    return Selection(distance[:, 0], index[:, 0])


def _uniform(rows: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(rows,) float64 in [0, 1), a function of the row and one integer of the generator."""
    # In integers, so that every device has the same numbers.
    limit = 2**63 - 1
    source = torch.device("cpu") if generator is None else generator.device
    seed = torch.randint(-limit, limit, (), generator=generator, device=source).to(device)
    mixed = seed + (torch.arange(rows, device=device) + 1) * _GOLDEN
    mixed = (mixed ^ _shifted(mixed, 30)) * _FIRST
    mixed = (mixed ^ _shifted(mixed, 27)) * _SECOND
    mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() * 2.0**-53


def _shifted(integers: Tensor, bits: int) -> Tensor:
    """Right shift of the 64 bits without a sign."""
    return (integers >> bits) & ((1 << (64 - bits)) - 1)


def _uniform_negatives(pairs: Pairs, reference_order: Tensor, uniform: Tensor) -> Tensor:
    """(N,) a finite reference of another class, each alike; -1 for none or a non-finite anchor.

    The references in the order of their labels, without the anchor's class and its self, are
    numbered; the part `uniform` of their number is the one drawn.
    """
    references = pairs.references.detach()
    finite = references.isfinite().all(1)[reference_order]
    # Positions among the finite ones, and how many are finite before each label or position.
    before = torch.cat([finite.new_zeros(1, dtype=torch.int64), finite.cumsum(0)])
    labels = pairs.reference_labels[reference_order]
    own_labels = pairs.labels
    begin = before[torch.searchsorted(labels, own_labels)]
    end = before[torch.searchsorted(labels, own_labels, right=True)]
    count = before[-1] - (end - begin)
    rows = references.shape[0]
    # Where self is among the finite references of other classes, else past all of them.
    skipped = torch.full_like(begin, rows)
    if pairs.self_index is not None and rows:
        position = torch.empty_like(reference_order)
        position[reference_order] = torch.arange(rows, device=references.device)
        known = (pairs.self_index >= 0) & (pairs.self_index < rows)
        self_index = torch.where(known, pairs.self_index, 0)
        known &= finite[position[self_index]] & (pairs.reference_labels[self_index] != own_labels)
        skipped = torch.where(known, before[position[self_index]], skipped)
        count = count - known.long()
    rank = torch.minimum((uniform * count).long(), count - 1)
    # Two gaps in the numbers: the class, and self before or after it.
    self_first = skipped < begin
    rank = rank + (self_first & (rank >= skipped)).long()
    rank = torch.where(rank >= begin, rank + (end - begin), rank)
    rank = rank + (~self_first & (rank >= skipped)).long()
    exists = (count > 0) & pairs.x.detach().isfinite().all(1)
    # The rank-th finite position: the first at which `before`, one later, exceeds the rank.
    chosen = torch.searchsorted(before[1:], rank, right=True)
    if not rows:
        return torch.full_like(begin, -1)
    return torch.where(exists, reference_order[chosen.clamp(max=rows - 1)], -1)


def _reference_sample(
    x: Tensor,
    labels: Tensor,
    order: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    reference_order: Tensor,
    self_index: Tensor | None,
    uniform: Tensor,
    fallback: Tensor,
    weighted: bool,
    cutoff: float,
    nonzero_loss_cutoff: float,
    metric: str,
) -> tuple[Tensor, Tensor]:
    return reference.sample(
        x,
        labels,
        references,
        reference_labels,
        reference_order,
        self_index,
        uniform,
        fallback,
        weighted=weighted,
        cutoff=cutoff,
        nonzero_loss_cutoff=nonzero_loss_cutoff,
        metric=metric,
    )


def _fake_sample(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], 1)
    return x.new_empty(shape, dtype=distance_dtype(x)), x.new_empty(shape, dtype=torch.int64)


register(
    "neighbors_sample",
    reference=_reference_sample,
    fake=_fake_sample,
    save_for_backward=save_selection,
    backward=selection_backward,
)
