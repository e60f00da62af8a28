"""Training with intra-class ranking over synthesised samples (GAR)."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import torch
from torch import Tensor

from dmlfast.data import DataSet
from dmlfast.losses import (
    MetricTerm,
    RankingTerm,
    Synthesis,
    SyntheticRankingLoss,
    SyntheticWeights,
)
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training.limits import flag, number, one_of, positive, whole
from dmlfast.training.methods.base import Batch, StepLoss, Task, setting
from dmlfast.training.methods.views import (
    ORDER_METRICS,
    SPLITS,
    RankingMethod,
    RankingSettings,
    base_loss,
    rehearse_base,
    shown_images,
)

Select = Literal["raw", "cosine", "all"]
Shuffle = Literal["batch", "class", "none"]
Pairs = Literal["all", "adjacent", "band"]
BaseOn = Literal["latent", "projected"]
ClassReduction = Literal["sum", "mean"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GARSettings(RankingSettings):
    """Settings of `dmlfast.losses.SyntheticRankingLoss`, with its names but for these.

    Attributes:
        weight: its `weights.total`.
        ranking_ratio: its `weights.ranking`; 0 leaves the term out.
        metric_ratio: its `weights.metric`; 0 leaves the term out.
        class_reduction: its `weights.classes`.
        intensities: its `synthesis.count`.

    Raises:
        ValueError: if a setting is outside its limits, or two exclude each other.
    """

    name = "gar"

    weight: float = setting(0.23, "What the ranking counts beside the base loss.")
    intensities: int = setting(5, "Samples synthesised around each.")
    radius: float = setting(1.0, "Distance from one intensity to the next.")
    select: Select = setting("raw", "How a sample's closeness to its proxy is measured.")
    threshold: float = setting(0.05, "The least closeness to be synthesised from.")
    shuffle: Shuffle = setting("batch", "For what the order of directions is drawn.")
    detach: bool = setting(False, "No gradient from synthesised samples to the network.")
    ranking_margin: float = setting(0.11, "Margin of the ranking term.")
    ranking_scale: float = setting(32.0, "Scale of the ranking term.")
    ranking_ratio: float = setting(0.9, "Weight of the ranking term within the ranking.")
    pairs: Pairs = setting("all", "Pairs of intensities that are ranked.")
    metric_margin: float = setting(0.1, "Margin of the metric term.")
    metric_scale: float = setting(32.0, "Scale of the metric term.")
    metric_ratio: float = setting(0.9, "Weight of the metric term within the ranking.")
    class_reduction: ClassReduction = setting("sum", "What is taken over the classes.")
    base_on: BaseOn = setting("latent", "What the base loss is computed on.")
    reference_quirks: bool = setting(False, "Compute as the authors' code does.")

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("intensities", self.intensities, 1)
        for name, choices in (
            ("select", Select),
            ("shuffle", Shuffle),
            ("pairs", Pairs),
            ("class_reduction", ClassReduction),
            ("base_on", BaseOn),
        ):
            one_of(name, getattr(self, name), get_args(choices))
        for name in ("radius", "ranking_scale", "metric_scale"):
            positive(name, getattr(self, name))
        for name in ("threshold", "ranking_margin", "metric_margin"):
            number(name, getattr(self, name))
        for name in ("ranking_ratio", "metric_ratio"):
            number(name, getattr(self, name), 0.0)
        for name in ("detach", "reference_quirks"):
            flag(name, getattr(self, name))
        if self.base_on == "projected" and not self.has_ranking():
            raise ValueError("base_on: expected latent without a ranking, got 'projected'")
        if self.reference_quirks and self.base != "proxy-anchor":
            raise ValueError(f"base: expected proxy-anchor with quirks, got {self.base!r}")

    def has_ranking(self) -> bool:
        """Whether anything is synthesised."""
        return self.weight > 0 and self.ranking_ratio + self.metric_ratio > 0

    def title(self) -> str:
        """The method, or the base loss without a ranking."""
        return self.name if self.has_ranking() else self.base


class GAR(RankingMethod):
    """The base loss and the synthetic ranking; the active share is of the samples that qualify.

    Without a ranking it is the base loss alone, from the same start and on the same batches.
    """

    def __init__(self, settings: GARSettings, task: Task) -> None:
        super().__init__(settings)
        self._dimensions = task.dimensions
        # First, so that proxies start alike with and without a ranking.
        self.loss = base_loss(settings, task)
        if settings.has_ranking():
            self.loss = _loss(settings, task, self.loss)
            self.evaluated = (
                *super().evaluated,
                *(f"{split}/synthetic/{name}" for split in SPLITS for name in ORDER_METRICS),
            )

    def loss_of(self, model: ConvolutionalEmbedding, batch: Batch) -> StepLoss:
        """The base loss and the ranking of the embeddings."""
        embeddings = model(batch.images.to(batch.device))
        if not isinstance(self.loss, SyntheticRankingLoss):
            return StepLoss(self.loss(embeddings, batch.labels), 0.0)
        terms = self.loss.terms(embeddings, batch.labels)
        return StepLoss(terms.total, float(terms.qualifying))

    def rehearse(self, device: torch.device) -> None:
        """The base loss of two rows, and the similarities of two."""
        if not isinstance(self.loss, SyntheticRankingLoss):
            return rehearse_base(self.loss, self._dimensions, device)
        rehearse_base(self.loss.base, self._dimensions, device)
        self.loss.unit_similarities(torch.zeros(2, self._dimensions, device=device))
        return None

    def similarities(
        self, model: ConvolutionalEmbedding, data: DataSet
    ) -> dict[str, dict[str, Tensor]]:
        """Those of views, and those of synthesised samples after the projection."""
        found = super().similarities(model, data)
        if isinstance(self.loss, SyntheticRankingLoss):
            device = self.loss.directions.device
            with torch.no_grad():
                found["synthetic"] = {
                    split: self.loss.unit_similarities(self.embed(model, images).to(device)).cpu()
                    for split, images in shown_images(data).items()
                }
        return found


def _loss(settings: GARSettings, task: Task, base: torch.nn.Module) -> SyntheticRankingLoss:
    return SyntheticRankingLoss(
        None,
        task.dimensions,
        base=base,
        synthesis=Synthesis(
            count=settings.intensities,
            radius=settings.radius,
            select=settings.select,
            threshold=settings.threshold,
            shuffle=settings.shuffle,
            detach=settings.detach,
        ),
        ranking=RankingTerm(
            margin=settings.ranking_margin, scale=settings.ranking_scale, pairs=settings.pairs
        ),
        metric=MetricTerm(margin=settings.metric_margin, scale=settings.metric_scale),
        weights=SyntheticWeights(
            total=settings.weight,
            ranking=settings.ranking_ratio,
            metric=settings.metric_ratio,
            classes=settings.class_reduction,
        ),
        base_on=settings.base_on,
        reference_quirks=settings.reference_quirks,
        generator=task.generator,
    )
