"""What the losses over positives and negatives share: their checks, and one partner an anchor."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dmlfast.ops._arguments import METRICS, Pairs, check_option, check_pairs
from dmlfast.ops._reduction import REDUCTIONS, nan_marks
from dmlfast.ops.contrast import POSITIVES
from dmlfast.ops.neighbors import Selection, farthest_positive, nearest_positive

_Result = TypeVar("_Result")


class OnePartner(NamedTuple):
    """The only positive, or the only negative, of each anchor.

    Attributes:
        distance: (N,) differentiable; 0 where there is none, NaN for an anchor that is not finite.
        exists: (N,) bool; True for an anchor that is not finite, so that its NaN is seen.
        selected: (N,) the distance as it was selected, detached: +inf where there is none.
    """

    distance: Tensor
    exists: Tensor
    selected: Tensor


def check_loss(
    x: object,
    labels: object,
    references: object,
    reference_labels: object,
    self_index: object,
    metric: str,
    positives: str,
    reduction: str,
) -> Pairs:
    """Checks what all losses over positives and negatives take; raises as `check_pairs`."""
    check_option("metric", metric, METRICS)
    check_option("positives", positives, POSITIVES)
    check_option("reduction", reduction, REDUCTIONS)
    return check_pairs(x, labels, references, reference_labels, self_index)


def call(function: Callable[..., _Result], pairs: Pairs, **options: object) -> _Result:
    """Calls a function of `dmlfast.functional` with checked arguments."""
    if pairs.within_batch:
        return function(pairs.x, pairs.labels, **options)
    return function(
        pairs.x,
        pairs.labels,
        pairs.references,
        pairs.reference_labels,
        self_index=pairs.self_index,
        **options,
    )


def one_positive(pairs: Pairs, metric: str, positives: str) -> OnePartner:
    """The nearest or the farthest positive of each anchor."""
    selection = nearest_positive if positives == "nearest" else farthest_positive
    return one_partner(pairs, call(selection, pairs, metric=metric))


def one_partner(pairs: Pairs, selection: Selection) -> OnePartner:
    """What was selected, in the form that losses use."""
    finite = pairs.x.isfinite().all(1)
    found = (selection.index >= 0) & finite
    distance = torch.where(found, selection.distance, 0.0) + nan_marks(pairs.x)
    return OnePartner(distance, found | ~finite, selection.distance.detach())


def partner_counts(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(N,) int64 numbers of each anchor's positives and of its negatives, from labels alone.

    References that are not finite, and each anchor's self, are not counted.
    """
    finite = pairs.references.isfinite().all(1)
    if finite.shape[0] == 0:
        none = torch.zeros_like(pairs.labels)
        return none, none
    order = pairs.reference_labels.argsort(stable=True)
    sorted_labels = pairs.reference_labels[order]
    before = torch.nn.functional.pad(finite[order].to(torch.int64).cumsum(0), (1, 0))
    begin = torch.searchsorted(sorted_labels, pairs.labels, right=False)
    end = torch.searchsorted(sorted_labels, pairs.labels, right=True)
    same = before[end] - before[begin]
    others = finite.sum() - same
    if pairs.self_index is None:
        return same, others
    known = (pairs.self_index >= 0) & (pairs.self_index < finite.shape[0])
    own = torch.where(known, pairs.self_index, 0)
    counted = known & finite[own]
    own_same = pairs.reference_labels[own] == pairs.labels
    return same - (counted & own_same).long(), others - (counted & ~own_same).long()
