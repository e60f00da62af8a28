"""What the ranking methods share: their base loss, and the order of views of held-out images."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dmlfast.data import Augmentation, DataSet, rising_views
from dmlfast.evaluation import evaluate_intensity_ranking, view_similarities
from dmlfast.losses import ProxyAnchorLoss, TripletMarginLoss
from dmlfast.models import ConvolutionalEmbedding
from dmlfast.training.limits import one_of, positive, whole
from dmlfast.training.methods.base import Method, MethodSettings, Replacing, Task, setting

Base = Literal["proxy-anchor", "triplet"]
ORDER_METRICS = ("order_accuracy", "kendall_tau")
SPLITS = ("train", "validation", "test")
PICTURE = "intensity.png"

# Images of a split whose views are compared, and the seed of the views, the same in every run.
_IMAGES = 256
_SEED = 0
_VIEWS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingSettings(MethodSettings):
    """Settings of a base loss with a ranking beside it.

    Attributes:
        base: "proxy-anchor", or "triplet" for EPS with the margin 0.2.
        proxy_scale: the scale of Proxy-Anchor, 32 as published. Embeddings of an untrained small
            network all point the same way, and with a large scale they do for long.
        weight: what the ranking counts beside the base loss; with 0 there is none.
        parameter_rate: learning rate of the parameters beside the network's, over that of these;
            100 as published, for a network that is trained before. From scratch on glyphs the
            proxies did best at about 0.003, which is the network's.
        warmup_steps: steps at the start that train the head and those parameters alone.
        gradient_clip: every gradient's numbers are cut to at most this much either way.

    Raises:
        ValueError: if a setting is outside its limits.
    """

    base: Base = setting("proxy-anchor", "Loss that the ranking is added to.")
    proxy_scale: float = setting(8.0, "Scale of Proxy-Anchor, 32 as published.")
    weight: float = setting(0.0, "What the ranking counts beside the base loss.")
    parameter_rate: float = setting(
        1.0, "Learning rate of proxies, directions and the like, over that of the network."
    )
    warmup_steps: int = setting(0, "First steps, which train no block of the network.")
    gradient_clip: float = setting(10.0, "What every number of a gradient is cut to.")

    def __post_init__(self) -> None:
        one_of("base", self.base, get_args(Base))
        positive("proxy_scale", self.proxy_scale)
        positive("weight", self.weight, zero=True)
        positive("parameter_rate", self.parameter_rate)
        whole("warmup_steps", self.warmup_steps, 0)
        positive("gradient_clip", self.gradient_clip)


class RankingMethod(Method):
    """A base loss, its options of training, and the order of views.

    A subclass creates `base_loss` first: then the proxies of all methods start alike.
    """

    evaluated = tuple(f"{split}/views/{name}" for split in SPLITS for name in ORDER_METRICS)

    def __init__(self, settings: RankingSettings) -> None:
        super().__init__()
        self.parameter_rate = settings.parameter_rate
        self.warmup_steps = settings.warmup_steps
        self.gradient_clip = settings.gradient_clip

    def parameter_groups(
        self, model: ConvolutionalEmbedding, learning_rate: float
    ) -> list[dict[str, Any]]:
        """The network's parameters, and the method's at a rate of their own."""
        groups = super().parameter_groups(model, learning_rate)
        own = list(self.parameters())
        if own:
            groups.append({"params": own, "lr": learning_rate * self.parameter_rate})
        return groups

    def similarities(
        self, model: ConvolutionalEmbedding, data: DataSet
    ) -> dict[str, dict[str, Tensor]]:
        """By group, then split: (N, J) similarities of images to variants of rising intensity."""
        return {
            "views": {
                split: view_similarities(
                    model, images, rising_views(_VIEWS), torch.Generator().manual_seed(_SEED)
                )
                for split, images in shown_images(data).items()
            }
        }

    def evaluate(self, model: ConvolutionalEmbedding, data: DataSet) -> dict[str, float]:
        """How well similarity falls with intensity."""
        return {
            f"{split}/{group}/{name}": value
            for group, splits in self.similarities(model, data).items()
            for split, similarities in splits.items()
            for name, value in evaluate_intensity_ranking(similarities).as_dict().items()
        }

    def draw(self, model: ConvolutionalEmbedding, data: DataSet, replacing: Replacing) -> None:
        """The fall of similarity with intensity, for trained and for unseen classes."""
        from dmlfast.plots import plot_intensity  # matplotlib takes a second to import

        with replacing(PICTURE) as path:
            plot_intensity(self.similarities(model, data), path)


def base_loss(settings: RankingSettings, task: Task) -> nn.Module:
    """The loss that a ranking is added to."""
    if settings.base == "triplet":
        return TripletMarginLoss(0.2, positives="nearest", negatives="semihard")
    return ProxyAnchorLoss(task.classes, task.dimensions, alpha=settings.proxy_scale)


def rehearse_base(loss: nn.Module, dimensions: int, device: torch.device) -> None:
    """Call a base loss on two rows."""
    loss(torch.zeros(2, dimensions, device=device), torch.tensor([0, 1], device=device))


def shown_images(data: DataSet) -> dict[str, Tensor]:
    """Some images of each split, evenly spaced; those of training distorted as the others are."""
    shown = {}
    for split in SPLITS:
        images = getattr(data, split).images
        count = min(_IMAGES, len(images))
        images = images[torch.arange(count) * len(images) // max(1, count)]
        shown[split] = images
    augment: Augmentation = data.augment
    shown["train"] = augment(shown["train"], torch.Generator().manual_seed(_SEED))
    return shown
