"""Training with the triplet loss, EPS among it."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from dmlfast.functional import AnchorSums
from dmlfast.losses import TripletMarginLoss
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training.limits import number, one_of
from dmlfast.training.methods.base import Batch, Method, MethodSettings, StepLoss, Task, setting

Positives = Literal["all", "nearest", "farthest"]
Negatives = Literal["all", "hardest", "semihard"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TripletSettings(MethodSettings):
    """Settings of the triplet loss.

    Attributes:
        positives: which same-class samples of the batch an anchor is compared with.
        negatives: which samples of other classes an anchor is compared with.
        margin: a distance between unit vectors.

    Raises:
        ValueError: if a setting is outside its limits.
    """

    name = "triplet"

    positives: Positives = setting("nearest", "Same-class samples that an anchor is compared with.")
    negatives: Negatives = setting(
        "semihard", "Samples of other classes that an anchor is compared with."
    )
    margin: float = setting(0.2, "Margin of the triplet loss.")

    def __post_init__(self) -> None:
        one_of("positives", self.positives, get_args(Positives))
        one_of("negatives", self.negatives, get_args(Negatives))
        number("margin", self.margin, 0.0)

    def title(self) -> str:
        """The positives: what the runs of this method are compared by."""
        return self.positives


class Triplet(Method):
    """The triplet loss of a batch; the active share is that of the anchors with a loss."""

    active_share_is_of_anchors = True

    def __init__(self, settings: TripletSettings, task: Task) -> None:
        super().__init__()
        del task
        self.margin = settings.margin
        self.loss = TripletMarginLoss(
            settings.margin,
            positives=settings.positives,
            negatives=settings.negatives,
            metric="euclidean",
            normalize=True,
            reduction="none",
        )

    def loss_of(self, model: ConvolutionalEmbedding, batch: Batch) -> StepLoss:
        """The mean over the active triplets."""
        embeddings = model(batch.images.to(batch.device))
        return StepLoss(*mean_of_active(self.loss(embeddings, batch.labels)))

    def rehearse(self, device: torch.device) -> None:
        """Two anchors."""
        self.loss(torch.zeros(2, 2, device=device), torch.tensor([0, 1], device=device))


def mean_of_active(losses: Tensor | AnchorSums) -> tuple[Tensor, float]:
    """The mean over the active triplets, and the share of the anchors that have one.

    By the rule of the loss itself, under which a triplet whose loss is NaN is active.

    Args:
        losses: what the triplet loss returns with the reduction "none".
    """
    if isinstance(losses, Tensor):
        losses = AnchorSums(losses, (~(losses <= 0)).long())
    mean = losses.loss.sum() / losses.active.sum().clamp(min=1)
    return mean, float((losses.active > 0).double().mean())
