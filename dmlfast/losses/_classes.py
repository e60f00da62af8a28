"""Sums over the classes of a batch without waiting for how many there are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.losses._pair_lists import segment_sum


class Classes(NamedTuple):
    """The rows of a batch in the order of their labels.

    Attributes:
        order: (N,) the stable permutation that sorts the labels.
        begin: (N,) where the class of each row begins in that order; a number of the class.
        end: (N,) where it ends.
    """

    order: Tensor
    begin: Tensor
    end: Tensor

    @classmethod
    def of(cls, labels: Tensor) -> Classes:
        """Those of (N,) int64 labels."""
        order = labels.argsort(stable=True)
        ordered = labels[order]
        begin = torch.searchsorted(ordered, labels)
        return cls(order, begin, torch.searchsorted(ordered, labels, right=True))

    def members(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Of (N,) chosen rows, how many share the class of each row, and which are the last ones.

        Returns:
            (N,) int64 and (N,) bool: whether a row is chosen and no later one of its class is.
        """
        before = torch.nn.functional.pad(chosen[self.order].cumsum(0), (1, 0))
        place = torch.empty_like(self.order)
        place[self.order] = torch.arange(place.shape[0], device=place.device)
        last = chosen & (before[place + 1] == before[self.end])
        return before[self.end] - before[self.begin], last

    def means_of_others(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of (N, d) rows without a gradient, the mean of the others of each row's class.

        Returns:
            (N, d), 0 where there is no other, and (N,) bool: whether there is one.
        """
        totals = segment_sum(x, self.begin, x.shape[0])[self.begin]
        others = self.end - self.begin - 1
        means = (totals - x) / others.clamp(min=1)[:, None]
        found = others > 0
        return torch.where(found[:, None], means, 0.0), found
