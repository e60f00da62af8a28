"""Training with a structure embedding beside the sample embedding (NASA and NAMR)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast.data import DataSet
from dmlfast.evaluation import embed, evaluate_adaptive_retrieval, oracle_structure
from dmlfast.losses import LocalVarianceLoss, MultiClusterLoss, TripletMarginLoss
from dmlfast.models import ConvolutionalEmbedding, SampleStructure, SampleStructureHead
from dmlfast.ops.neighbors_top import GREATEST_K
from dmlfast.training.limits import flag, number, one_of, positive, whole
from dmlfast.training.methods.base import Batch, Method, MethodSettings, StepLoss, Task, setting
from dmlfast.training.summary import METRICS, RECALL_AT, SPLITS

StructureGradient = Literal["both", "structure"]

# What is ranked again of the nearest by Euclidean distance, as published.
_SHORTLIST = 32
_GROUPS = {
    **dict.fromkeys(("structure", "shortlist", "oracle"), METRICS),
    "weights": ("deviation", "variance_share"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StructureSettings(MethodSettings):
    """Settings of `dmlfast.losses.MultiClusterLoss`, with its names, and of what is beside it.

    Attributes:
        margin: of the triplet loss that is the base: a part of the mean distance.
        fixed_structure: all weights are 1, in training and retrieval: a control.
        structure_gradient: what is trained by all but the base loss: everything, or the structure
            embedding alone. Then the network and the sample embedding are those of the base loss,
            to the bit.
        local_weight: of `dmlfast.losses.LocalVarianceLoss`, which is not NASA's; 0 (default) leaves
            it out.
        local_neighbors: its `neighbors`; 0 for the own class.
        least: of `dmlfast.models.SampleStructureHead`.

    Raises:
        ValueError: if a setting is outside its limits, or two exclude each other.
    """

    margin: float = setting(0.2, "Margin of the triplet loss.")
    weight: float = setting(2.0, "What the structure loss counts beside the triplet loss.")
    clusters: int = setting(2, "Anchor distances of the structure loss.")
    spread: float = setting(3.0, "Deviations from the mean to the least anchor distance.")
    sharpness: float = setting(10.0, "Sharpness of the assignment to anchor distances.")
    floor: float = setting(0.2, "Least anchor distance, as a part of the mean.")
    include_self: bool = setting(True, "Mean and deviation include distances to oneself.")
    order_weight: float = setting(0.0, "Weight of the order of the clusters.")
    order_margin: float = setting(0.0, "Margin of the order of the clusters.")
    fixed_structure: bool = setting(False, "All weights of the structure are 1.")
    structure_gradient: StructureGradient = setting("both", "What all but the base loss trains.")
    local_weight: float = setting(0.0, "Weight of the local variance beside the triplet loss.")
    local_neighbors: int = setting(0, "Nearest whose variance is local; 0 for the own class.")
    least: float = setting(0.5, "Least weight of a dimension.")

    def __post_init__(self) -> None:
        whole("clusters", self.clusters, 1)
        whole("local_neighbors", self.local_neighbors, 0, GREATEST_K)
        for name in ("margin", "weight", "spread", "sharpness", "order_weight"):
            number(name, getattr(self, name), 0.0)
        number("floor", self.floor, 0.0, 1.0)
        number("local_weight", self.local_weight, 0.0)
        positive("least", self.least)
        number("least", self.least, most=1.0)
        number("order_margin", self.order_margin)
        flag("include_self", self.include_self)
        flag("fixed_structure", self.fixed_structure)
        one_of("structure_gradient", self.structure_gradient, get_args(StructureGradient))
        if self.fixed_structure and self.structure_gradient == "structure":
            raise ValueError(
                "structure_gradient: expected both with a fixed structure, got 'structure'"
            )
        if self.fixed_structure and self.local_weight > 0:
            raise ValueError(
                f"local_weight: expected 0 with a fixed structure, got {self.local_weight}"
            )

    def has_structure(self) -> bool:
        """Whether the structure embedding is trained, and retrieved by."""
        return not self.fixed_structure and self.weight + self.local_weight > 0

    def title(self) -> str:
        """The method, or the base loss alone."""
        return self.name if self.weight + self.local_weight > 0 else "triplet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NASASettings(StructureSettings):
    """As published."""

    name = "nasa"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NAMRSettings(StructureSettings):
    """More clusters than NASA's two."""

    name = "namr"

    clusters: int = setting(4, "Anchor distances of the structure loss.")


class Structure(Method):
    """The triplet loss of the sample embeddings, and the structure loss of both.

    The triplets are those of NASA: all pairs of one class, with one negative each, drawn by the
    distances of the normalised rows; the mean is over all of them. The active share is that of the
    triplets with a loss. Both embeddings have a head of their own, so that the network's is not
    trained. The first metrics of a run are by the Euclidean distance of sample embeddings; the
    groups of its own are, by the class alone,

    * structure: by the adaptive distance to all, with the query's weights,
    * shortlist: by the adaptive distance to the 32 nearest by Euclidean distance,
    * oracle: by the adaptive distance to all, with the weights of `oracle_structure`,
    * weights: `deviation`, of a weight over the images, a mean over the dimensions, and
      `variance_share`, the part of the variance of all weights that is not one between dimensions.

    With weights of 0 it is the base loss alone, from the same start, on the same batches and with
    draws of the same numbers; then, as with a fixed structure, all weights are 1.

    Unlike the authors, who start from a trained network with Adam at 5e-5 and a weight decay of
    1e-5, one learning rate of the run serves the network and both heads, without decay.

    Source: NASA (Li et al., "Neighborhood-adaptive structure augmented metric learning", AAAI
    2022). More than two clusters are this library's reading of its successor, NAMR.
    """

    evaluated = tuple(
        f"{split}/{group}/{metric}"
        for split in SPLITS
        for group, metrics in _GROUPS.items()
        for metric in metrics
    )
    normalized = False

    def __init__(self, settings: StructureSettings, task: Task) -> None:
        super().__init__()
        self.settings = settings
        self.head = SampleStructureHead(task.feature_size, task.dimensions, least=settings.least)
        self.base = _DrawnTriplets(settings.margin, task.generator)
        self.loss = MultiClusterLoss(
            self.base,
            weight=settings.weight,
            clusters=settings.clusters,
            spread=settings.spread,
            sharpness=settings.sharpness,
            floor=settings.floor,
            include_self=settings.include_self,
            order_weight=settings.order_weight,
            order_margin=settings.order_margin,
            structure_gradient=settings.structure_gradient,
        )
        self.local = LocalVarianceLoss(settings.local_neighbors or None)

    def parameter_groups(
        self, model: ConvolutionalEmbedding, learning_rate: float
    ) -> list[dict[str, Any]]:
        """The network's blocks and the heads; the structure's only if it is trained."""
        trained = self.head if self.settings.has_structure() else self.head.sample
        parameters = [*model.features.parameters(), *trained.parameters()]
        return [{"params": parameters, "lr": learning_rate}]

    def loss_of(self, model: ConvolutionalEmbedding, batch: Batch) -> StepLoss:
        """The base loss, and the structure losses that have a weight."""
        settings, labels = self.settings, batch.labels
        features = model.backbone(batch.images.to(batch.device))
        sample, structure = self.head(features)
        if settings.fixed_structure:
            structure = torch.ones_like(sample)
        elif settings.structure_gradient == "structure":
            structure = self.head.weights(features.detach())
        if settings.weight > 0:
            loss = self.loss(sample, labels, structure=structure)
        else:
            loss = self.base(sample, labels)
        if settings.local_weight > 0:
            loss = loss + settings.local_weight * self.local(sample, labels, structure=structure)
        return StepLoss(loss, self.base.active)

    def rehearse(self, device: torch.device) -> None:
        """The losses of two rows, with a draw of its own."""
        rows = torch.zeros(2, self.head.dimensions, device=device)
        labels = torch.tensor([0, 1], device=device)
        functional.sample_negative(rows, labels, generator=torch.Generator())
        functional.multi_cluster_loss(rows, rows)
        functional.nearest_neighbors(rows.cpu())

    def embed(self, model: ConvolutionalEmbedding, images: Tensor) -> Tensor:
        """(N, d) float32 on the CPU: sample embeddings, as they are."""
        return self.embed_both(model, images).sample

    def embed_both(self, model: ConvolutionalEmbedding, images: Tensor) -> SampleStructure:
        """(N, d) float32 each on the CPU: sample embeddings, and the weights around them."""
        sample, structure = embed(_Both(model, self.head), images).chunk(2, dim=1)
        if not self.settings.has_structure():
            structure = torch.ones_like(sample)
        return SampleStructure(sample, structure)

    def evaluate(self, model: ConvolutionalEmbedding, data: DataSet) -> dict[str, float]:
        """Retrieval by the structure, learnt and known, and how much the weights differ."""
        found: dict[str, float] = {}
        for name in SPLITS:
            split = getattr(data, name)
            sample, structure = self.embed_both(model, split.images)
            searches = {
                "structure": (structure, None),
                "shortlist": (structure, _SHORTLIST),
                "oracle": (oracle_structure(sample, split.labels), None),
            }
            for group, (weights, shortlist) in searches.items():
                metrics = evaluate_adaptive_retrieval(
                    sample, weights, split.labels, shortlist=shortlist, recall_at=RECALL_AT
                )
                found |= {f"{name}/{group}/{k}": v for k, v in metrics.as_dict().items()}
            found |= {f"{name}/weights/{k}": v for k, v in _spread(structure).items()}
        return found


class _DrawnTriplets(nn.Module):
    """The triplet loss as NASA has it.

    Attributes:
        active: the share of the triplets of the last call that have a loss.
    """

    def __init__(self, margin: float, generator: torch.Generator) -> None:
        super().__init__()
        self.active = 0.0
        self._generator = generator
        self._loss = TripletMarginLoss(margin, normalize=False, reduction="none")

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: None = None) -> Tensor:
        """The mean over all triplets, 0 without any."""
        del indices_tuple
        same = (labels[:, None] == labels).fill_diagonal_(False)
        anchor, positive = same.nonzero(as_tuple=True)
        rows = nn.functional.normalize(embeddings.detach())
        drawn = functional.sample_negative(
            rows[anchor], labels[anchor], rows, labels, generator=self._generator
        )
        # The distances of an anchor that is not finite are NaN, whatever to.
        kept = (drawn.index >= 0) | ~rows[anchor].isfinite().all(1)
        triplets = anchor[kept], positive[kept], drawn.index.clamp(min=0)[kept]
        losses: Tensor = self._loss(embeddings, labels, triplets)
        count = max(1, len(losses))
        self.active = float((losses > 0).sum()) / count
        return losses.sum() / count


class _Both(nn.Module):
    """Images to sample and structure embeddings, side by side."""

    def __init__(self, model: ConvolutionalEmbedding, head: SampleStructureHead) -> None:
        super().__init__()
        self._model, self._head = model, head

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat(self._head(self._model.backbone(images)), 1)


def _spread(structure: Tensor) -> dict[str, float]:
    """How much weights differ from row to row, and as a share of how much they differ at all."""
    rows = structure.double()
    variance, total = rows.var(0, correction=0), float(rows.var(correction=0))
    return {
        "deviation": float(variance.sqrt().mean()),
        "variance_share": float(variance.mean()) / total if total else 0.0,
    }
