"""What the tests of the selections share."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from oracle import make
from torch import Tensor

import dmlfast.functional as F

SELECTIONS = {
    "nearest_positive": {"same_class": True},
    "farthest_positive": {"same_class": True, "farthest": True},
    "hardest_negative": {"same_class": False},
    "semihard_negative": {"same_class": False},
}
FORMS = ("batch", "references", "references and self_index")
INTEGERS = (
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)

each_selection = pytest.mark.parametrize("selection", SELECTIONS)


class Problem:
    """Points, labels and, in two of the forms, references: 137 anchors, 201 references."""

    def __init__(self, kind: str, form: str, dtype: torch.dtype = torch.float32, d: int = 5):
        generator = torch.Generator().manual_seed(7)
        points, classes = make(kind, 201, d, 6, dtype=dtype)
        rows = torch.randperm(201, generator=generator)[:137]
        self.x, self.labels = points[rows].clone(), classes[rows].clone()
        self.others: dict[str, Tensor] = {}
        if form != "batch":
            self.others = {"references": points, "reference_labels": classes}
        if form == "references and self_index":
            unknown = torch.rand(137, generator=generator) < 0.2
            self.others["self_index"] = torch.where(unknown, -1, rows)

    def beyond(self, metric: str) -> Tensor:
        """Distances of the nearest positives, as semi-hard mining hands them in."""
        found = oracle.select(self.x, self.labels, **self.others, metric=metric, same_class=True)
        return found[0][:, 0]

    def library(self, selection: str, metric: str) -> F.Selection:
        extra = {"beyond": self.beyond(metric)} if selection == "semihard_negative" else {}
        function = getattr(F, selection)
        return function(self.x, self.labels, **self.others, metric=metric, **extra)

    def oracle(self, selection: str, metric: str) -> tuple[Tensor, Tensor]:
        beyond = self.beyond(metric)[:, None] if selection == "semihard_negative" else None
        rule = SELECTIONS[selection]
        found = oracle.select(
            self.x, self.labels, **self.others, beyond=beyond, metric=metric, **rule
        )
        return found[0][:, 0], found[1][:, 0]


def distance_only(selection: str, **options: object) -> Callable[..., Tensor]:
    """The selection's distances, those of semi-hard negatives beyond the nearest positive."""

    def distance(x: Tensor, labels: Tensor, *others: Tensor) -> Tensor:
        if selection != "semihard_negative":
            return getattr(F, selection)(x, labels, *others, **options).distance
        beyond = F.nearest_positive(x, labels, *others, **options).distance
        return F.semihard_negative(x, labels, *others, beyond=beyond, **options).distance

    return distance
