"""Problems and parameters of the tests of triplet_margin_loss."""

from __future__ import annotations

import oracle
import pytest
import torch
from oracle import NEGATIVES, POSITIVES, make
from torch import Tensor

import dmlfast.functional as F

each_positives = pytest.mark.parametrize("positives", POSITIVES)
each_negatives = pytest.mark.parametrize("negatives", NEGATIVES)
# A combination with one triplet an anchor is composed of selections, the others are operators.
each_path = pytest.mark.parametrize(
    ("positives", "negatives"), [("all", "all"), ("nearest", "all"), ("nearest", "semihard")]
)


class Problem:
    """37 anchors and, in two of the forms, 45 references of which 37 are the anchors."""

    def __init__(self, kind: str, form: str = "batch", dtype: torch.dtype = torch.float32) -> None:
        points, classes = make(kind, 45, 4, 5, dtype=dtype)
        rows = torch.randperm(45, generator=torch.Generator().manual_seed(2))[:37]
        self.x, self.labels = points[rows].clone().requires_grad_(), classes[rows].clone()
        self.others: dict[str, Tensor] = {}
        self.leaves = [self.x]
        if form != "batch":
            self.others = {"references": points.requires_grad_(), "reference_labels": classes}
            self.leaves.append(points)
        if form == "references and self_index":
            self.others["self_index"] = torch.where(torch.arange(37) % 5 == 0, -1, rows)

    def anchors(self, **options: object) -> tuple[Tensor, Tensor | None]:
        """Losses of the anchors, and the numbers of their active triplets where they are given."""
        result = F.triplet_margin_loss(
            self.x, self.labels, **self.others, reduction="none", **options
        )
        return result if isinstance(result, F.AnchorSums) else (result, None)

    def oracle(self, **options: object) -> oracle.TripletSums:
        return oracle.triplet_sums(self.x, self.labels, **self.others, **options)


def margin_of(kind: str, metric: str) -> float:
    """A margin for which some triplets are active and some are not."""
    if kind == "tied":
        return 2.0  # differences of distances are often integers: hinges of exactly 0
    if kind == "shifted" and metric == "dot":
        return 500.0
    return 0.3 if metric == "cosine" else 1.0
