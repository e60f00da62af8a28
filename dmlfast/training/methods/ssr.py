"""Training with self-supervised ranking of views (SSR)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from dmlfast.data import rising_views
from dmlfast.losses import SelfSupervisedRankingLoss
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training.limits import number, positive, whole
from dmlfast.training.methods.base import Batch, StepLoss, Task, setting
from dmlfast.training.methods.views import (
    RankingMethod,
    RankingSettings,
    base_loss,
    rehearse_base,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSRSettings(RankingSettings):
    """Settings of `dmlfast.losses.SelfSupervisedRankingLoss`, with its names but for these.

    Attributes:
        sources: images of a batch that views are made of, or all if there are fewer.
        views: views of each, of the strengths tanh(0.2 n).
        task_probability: the share of the steps in which the ranking is trained.
        hidden: width of the second head, which the views are compared after.

    Raises:
        ValueError: if a setting is outside its limits.
    """

    name = "ssr"

    weight: float = setting(0.8, "What the ranking counts beside the base loss.")
    sources: int = setting(20, "Images of a batch that views are made of.")
    views: int = setting(4, "Views of each, by rising strength.")
    margin: float = setting(0.05, "By how much similarity shall fall from view to view.")
    bound: float = setting(0.5, "Similarity that every view shall have.")
    scale: float = setting(12.0, "Scale of the ranking.")
    positive_weight: float = setting(1.0, "Weight of the bound beside the order.")
    task_probability: float = setting(0.8, "Share of the steps with a ranking.")
    hidden: int = setting(512, "Width of the second head.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sources", "views", "hidden"):
            whole(name, getattr(self, name), 1)
        positive("weight", self.weight)
        positive("scale", self.scale)
        number("margin", self.margin)
        number("bound", self.bound)
        number("positive_weight", self.positive_weight, 0.0)
        number("task_probability", self.task_probability, 0.0, 1.0)


class SSR(RankingMethod):
    """The base loss of one head and the ranking of views by another.

    The active share is that of the steps with a ranking.
    """

    def __init__(self, settings: SSRSettings, task: Task) -> None:
        super().__init__(settings)
        self.settings = settings
        self._generator = task.generator
        self._dimensions = task.dimensions
        self._views = rising_views(settings.views)
        # First, so that the proxies start as those of other methods do.
        self.base = base_loss(settings, task)
        self.second_head = nn.Sequential(
            nn.Linear(task.feature_size, settings.hidden),
            nn.ReLU(),
            nn.Linear(settings.hidden, task.dimensions),
        )
        self.ranking = SelfSupervisedRankingLoss(
            settings.margin,
            settings.bound,
            settings.scale,
            positive_weight=settings.positive_weight,
        )

    def loss_of(self, model: ConvolutionalEmbedding, batch: Batch) -> StepLoss:
        """The base loss, and in some steps the ranking of the views of some images."""
        drawn = torch.rand((), generator=self._generator).item()
        if drawn >= self.settings.task_probability:
            return StepLoss(self.base(model(batch.images.to(batch.device)), batch.labels), 0.0)
        count = batch.images.shape[0]
        chosen = torch.randperm(count, generator=self._generator)[: self.settings.sources]
        sources = batch.images[chosen]
        views = [view(sources, self._generator) for view in self._views]
        # In one pass, so that batch norms see what they will be used on, and the views too.
        features = model.backbone(torch.cat([batch.images, *views]).to(batch.device))
        loss = self.base(model.head(features[:count]), batch.labels)
        ranked = self._ranking(features, chosen.to(batch.device), count)
        return StepLoss(loss + self.settings.weight * ranked, 1.0)

    def _ranking(self, features: Tensor, chosen: Tensor, count: int) -> Tensor:
        sources = self.second_head(features[chosen])
        views = self.second_head(features[count:]).view(len(self._views), *sources.shape)
        loss: Tensor = self.ranking(sources, views.transpose(0, 1))
        return loss

    def rehearse(self, device: torch.device) -> None:
        """The base loss of two rows, and the ranking of one view."""
        rehearse_base(self.base, self._dimensions, device)
        self.ranking(torch.zeros(1, 1, device=device), torch.zeros(1, 1, 1, device=device))

    def trained_steps(self, parameter: nn.Parameter, step: int) -> range:
        """The second head is trained in some steps only."""
        if any(parameter is own for own in self.second_head.parameters()):
            return range(step + 1)
        return super().trained_steps(parameter, step)
