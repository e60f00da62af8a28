"""How far the classes of an embedding have collapsed to points: four numbers.

With D the Euclidean distance and means over the ordered pairs i != j of the rows,

    class distance ratio     = mean D in a class / mean D between classes
    sub-class distance ratio = mean D in a sub-class / mean D between sub-classes of one class
    effective rank           = exp(-sum_k p_k log p_k),  p_k = s_k / sum_l s_l

for the singular values s of the (N, d) embedding as it is, its mean not subtracted; and the share
of active triplets, of each row of unit length with its nearest positive and the nearest negative
beyond it: of those with both, the share whose loss is above 0.

Sources: O. Roy, M. Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO
2007, and for embeddings Q. Garrido et al., "RankMe", ICML 2023; F. Schroff, D. Kalenichenko,
J. Philbin, "FaceNet", CVPR 2015, for the triplets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast._normalize import unit_rows
from dmlfast.evaluation._metrics import check_labelled, check_labels, check_rows
from dmlfast.evaluation._rows import chunk_rows
from dmlfast.ops._arguments import check_not_negative

__all__ = ["CollapseMetrics", "effective_rank", "evaluate_collapse"]


@dataclass(frozen=True)
class CollapseMetrics:
    """What `evaluate_collapse` returns; NaN where there is no such pair, triplet or row.

    Attributes:
        class_distance_ratio: 0 where every class is a point, near 1 where classes do not matter.
        subclass_distance_ratio: 1 where the sub-classes of a class are not told apart, below it the
            further they are; None without sub-classes.
        effective_rank: how many dimensions are in use, from 1, also where all rows are the same, to
            d. Classes that are points leave at most as many as there are classes.
        active_triplets: of the rows with a nearest positive and a negative beyond it, the share
            that the triplet loss still moves, in [0, 1].
        num_rows: how many rows there are.
    """

    class_distance_ratio: float
    subclass_distance_ratio: float | None
    effective_rank: float
    active_triplets: float
    num_rows: int

    def as_dict(self) -> dict[str, float]:
        """The values by name, those that there are."""
        values = {
            "class_distance_ratio": self.class_distance_ratio,
            "subclass_distance_ratio": self.subclass_distance_ratio,
            "effective_rank": self.effective_rank,
            "active_triplets": self.active_triplets,
        }
        return {name: value for name, value in values.items() if value is not None}


def evaluate_collapse(
    x: Tensor, labels: Tensor, subclasses: Tensor | None = None, *, margin: float = 0.2
) -> CollapseMetrics:
    """Distance ratios, effective rank and share of active triplets of an embedding.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64, any strides.
        labels: (N,) of an integer dtype, compared as int64, on any device.
        subclasses: (N,) likewise, a finer label within each class, such as the digit beside its
            parity; None (default) where there is none. Those of different classes are different.
        margin: of the triplets, at least 0: a distance between unit rows.

    Returns:
        The metrics. Not differentiable. The ratios have float32's precision, divided by the share
        of the pairs across among all that are compared, so that less of it is left where nearly all
        rows are of one class. Nothing here depends on the scale of `x`, and the ratios do not on a
        shift of it.

    Memory: O(N·d), three copies of the rows, and about 50 MB for a chunk of pairs. Time: O(N²·d).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, a row that is not finite in float32, or a margin below 0.
    """
    classes = check_labelled("x", x, "labels", labels)
    margin = check_not_negative("margin", margin)
    finer = None
    if subclasses is not None:
        finer = check_labels("subclasses", subclasses, len(x))
    rows = x.detach().to("cpu")
    class_ratio, subclass_ratio = _distance_ratios(rows, classes, finer)
    return CollapseMetrics(
        class_ratio,
        subclass_ratio,
        effective_rank(rows),
        _active_triplets(rows, classes, margin),
        len(rows),
    )


def effective_rank(x: Tensor) -> float:
    """The exponential of the entropy of the normalised singular values of an embedding.

    Args:
        x: (N, d) float16, bfloat16, float32 or float64, any strides, on any device; its mean is not
            subtracted.

    Returns:
        From 1, where all rows lie on one line through the origin, to min(N, d), where all singular
        values are equal; NaN without a row, or where all are 0. The scale of `x` does not matter.

    Memory: a float64 copy of the rows, and the workspace of a singular value decomposition.

    Raises:
        TypeError: no tensor of such a dtype.
        ValueError: a wrong shape, or a row that is not finite in float32.
    """
    check_rows("x", x)
    if not len(x):
        return math.nan
    values = torch.linalg.svdvals(x.detach().to(device="cpu", dtype=torch.float64))
    share = values / values.sum()
    return float(torch.special.entr(share).sum().exp())


def _distance_ratios(
    rows: Tensor, labels: Tensor, subclasses: Tensor | None
) -> tuple[float, float | None]:
    """The class and the sub-class distance ratio."""
    x = _centred(rows)
    overall = functional.distance_statistics(x)
    total, pairs = float(overall.mean) * int(overall.count), int(overall.count)
    finer = labels if subclasses is None else subclasses
    # In a class, and in a sub-class of it.
    sums, counts = [0.0, 0.0], [0, 0]
    for members in _groups(labels):
        for chunk in members.split(chunk_rows(len(members))):
            distance = functional.pairwise_distance(x[chunk], x[members])
            same = finer[chunk, None] == finer[members]
            for place, kept in enumerate((distance, torch.where(same, distance, 0.0))):
                # By rows first: in an order that no number of threads decides.
                sums[place] += float(kept.sum(1, dtype=torch.float64).sum())
            counts[0] += distance.numel() - len(chunk)  # a row with itself, at the distance 0
            counts[1] += int(same.sum()) - len(chunk)
    class_ratio = _ratio(sums[0], counts[0], total - sums[0], pairs - counts[0])
    if subclasses is None:
        return class_ratio, None
    return class_ratio, _ratio(sums[1], counts[1], sums[0] - sums[1], counts[0] - counts[1])


def _centred(rows: Tensor) -> Tensor:
    """float32 rows that have the same ratios of distances, and keep the digits of these.

    Without a common offset, and far from the limits of float32.
    """
    x = rows.double()
    x = x - x.mean(0)
    peak = float(x.abs().max()) if len(x) else 0.0
    return (x / (peak or 1.0)).float()


def _groups(labels: Tensor) -> tuple[Tensor, ...]:
    """The rows of each label."""
    ordered, order = labels.sort(stable=True)
    counts: list[int] = torch.unique_consecutive(ordered, return_counts=True)[1].tolist()
    groups: tuple[Tensor, ...] = order.split(counts)
    return groups


def _ratio(within: float, within_count: int, across: float, across_count: int) -> float:
    """The mean within over that across; NaN without a pair of either, or where the latter is 0."""
    if not within_count or not across_count or across <= 0:
        return math.nan
    return (within / within_count) / (across / across_count)


def _active_triplets(rows: Tensor, labels: Tensor, margin: float) -> float:
    unit = unit_rows(rows)
    positive = functional.nearest_positive(unit, labels)
    negative = functional.semihard_negative(unit, labels, beyond=positive.distance)
    found = (positive.index >= 0) & (negative.index >= 0)
    loss = positive.distance - negative.distance + margin
    return float((loss[found] > 0).double().mean())
