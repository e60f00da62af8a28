"""Intra-class ranking over synthesised samples (GAR) as a module."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._normalize import unit_rows
from dmlfast.losses._base import base_loss
from dmlfast.losses._classes import Classes
from dmlfast.losses._synthesis import SHUFFLES, SynthesisHead
from dmlfast.losses.proxies import ProxyAnchorLoss
from dmlfast.ops._arguments import (
    MODULE_NAMES,
    Pairs,
    check_count,
    check_dimensions,
    check_finite,
    check_flag,
    check_not_negative,
    check_number,
    check_option,
    check_pairs,
    check_positive,
    describe,
)
from dmlfast.ops.ranking import PAIRS
from dmlfast.reference.distances import fixed_order_sum

SELECTIONS = ("raw", "cosine", "all")
BASE_ON = ("latent", "projected")
CLASS_REDUCTIONS = ("sum", "mean")

_Options = TypeVar("_Options")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synthesis:
    """From which samples others are synthesised, and how.

    Attributes:
        count: intensities, and directions in the bank.
        radius: distance of one intensity from the next; the samples have length 1.
        projection_size: dimensions of what is compared; None for those of the embeddings.
        select: a sample qualifies by its product with the proxy of its class as it is ("raw"), by
            their cosine, or always where there is a proxy ("all").
        threshold: the least product or cosine that qualifies.
        shuffle: "batch" draws anew at every call which direction is at which intensity, "class"
            draws it for each class, "none" keeps the order of the bank.
        detach: no gradient flows from the synthesised samples to the embeddings.

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, NaN, a size below 1, or `radius` not above 0.
    """

    count: int = 5
    radius: float = 1.0
    projection_size: int | None = None
    select: str = "raw"
    threshold: float = 0.05
    shuffle: str = "batch"
    detach: bool = False

    def __post_init__(self) -> None:
        check_count("count", self.count)
        check_positive("radius", self.radius)
        if self.projection_size is not None:
            check_count("projection_size", self.projection_size)
        check_option("select", self.select, SELECTIONS)
        check_number("threshold", self.threshold)
        check_option("shuffle", self.shuffle, SHUFFLES)
        check_flag("detach", self.detach)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankingTerm:
    """The demand that similarity falls with intensity, `dmlfast.functional.ranking_loss`.

    Attributes:
        margin: by how much it shall fall.
        scale: greater than 0.
        pairs: of intensities, "all", "adjacent" or "band".

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, `scale` not above 0, or a margin that is not finite.
    """

    margin: float = 0.11
    scale: float = 32.0
    pairs: str = "all"

    def __post_init__(self) -> None:
        check_finite("margin", self.margin)
        check_positive("scale", self.scale)
        check_option("pairs", self.pairs, PAIRS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricTerm:
    """The demand that synthesised samples are similar to the proxy of their class.

    Attributes:
        margin: how similar.
        scale: greater than 0.

    Raises:
        TypeError: a wrong type.
        ValueError: NaN, or `scale` not above 0.
    """

    margin: float = 0.1
    scale: float = 32.0

    def __post_init__(self) -> None:
        check_number("margin", self.margin)
        check_positive("scale", self.scale)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticWeights:
    """What the terms over synthesised samples count beside the base loss.

    Attributes:
        total: of both together.
        ranking: of the ranking term; with 0 it is not computed.
        metric: of the metric term; with 0 it is not computed.
        classes: "sum" or "mean" over the classes with a sample that qualifies.

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, or a weight that is below 0 or not finite.
    """

    total: float = 0.23
    ranking: float = 0.9
    metric: float = 0.9
    classes: str = "sum"

    def __post_init__(self) -> None:
        for name in ("total", "ranking", "metric"):
            check_not_negative(name, getattr(self, name))
        check_option("classes", self.classes, CLASS_REDUCTIONS)


class SyntheticRankingTerms(NamedTuple):
    """What `SyntheticRankingLoss` is the sum of, scalars all.

    Attributes:
        base: the base loss.
        ranking: the ranking term over the classes, without a weight.
        metric: the metric term, likewise.
        total: the loss.
        qualifying: the share of the samples that others were synthesised from, without a gradient;
            NaN for an empty batch.
    """

    base: Tensor
    ranking: Tensor
    metric: Tensor
    total: Tensor
    qualifying: Tensor


class _Anchors(NamedTuple):
    """What the samples of a class should be close to.

    Attributes:
        points: (N, d) for each row that of its class: the proxy, or the mean of the others.
        found: (N,) bool, whether there is one.
    """

    points: Tensor
    found: Tensor


class SyntheticRankingLoss(SynthesisHead):
    """A base loss, and the ranking of samples synthesised around its samples (GAR).

    Each embedding x_i of unit length that is close enough to the proxy p of its class is moved
    along learnt directions of unit length, r_ij = x_i + j radius u_j, by rising intensity j, and
    compared by a learnt projection q(v) = relu(unit(W v + b)):

        s_ij = <q(r_ij), q(x_i)>          R_i = 2 ranking_loss(s_i)
        t_ij = <q(r_ij), q(p)>            M_i = log(1 + sum_j exp(scale (margin - t_ij)))

    The loss is the base loss plus `weights.total` times the sum over the classes of
    `weights.ranking` times the mean of R_i and `weights.metric` times the mean of M_i over the
    samples that qualify. All that is retrieved by is the embedding. Where the base loss has no
    `proxies`, p is the mean of the other unit embeddings of the class in the batch, scaled to
    unit length and without a gradient; a class of one then has none.

    The state dict holds `directions` (count, embedding_size), by Kaiming's normal initialisation,
    `projector.weight`, orthogonal, and `projector.bias`, zero, and `base.*`. The published
    training has a learning rate for all of these that is 100 times that of the network.

    Args:
        num_classes: labels are in [0, num_classes), for the default base loss; None with `base`.
        embedding_size: dimensions of the embeddings.
        base: a loss module with pytorch-metric-learning's call and a scalar result; None (default)
            for `ProxyAnchorLoss(num_classes, embedding_size)`.
        synthesis: from which samples, and how; `Synthesis()` by default.
        ranking: `RankingTerm()` by default.
        metric: `MetricTerm()` by default.
        weights: `SyntheticWeights()` by default.
        base_on: the base loss is of the embeddings ("latent", default) or of their projections
            ("projected", as the authors' code has it).
        reference_quirks: as the authors' code computes it: every offset has length 1 whatever its
            intensity, an order of directions is drawn for each class, and M is that of the last
            sample of a class alone, of as many that qualify, with q applied as many times to p.
            This needs a base loss with proxies and a projection of the size of the embeddings,
            and waits for the device.
        generator: what decides the draws, torch's own by default. Its state is not in the state
            dict.

    Raises:
        TypeError: a wrong type.
        ValueError: an unknown option, a size below 1, neither or both of `num_classes` and
            `base`, or options that exclude each other.

    Source: GAR (intra-variance ranking with synthesised samples), Engineering Applications of
    Artificial Intelligence 2024, and the authors' code.
    """

    shown = (
        *("embedding_size", "synthesis", "ranking", "metric", "weights"),
        *("base_on", "reference_quirks"),
    )

    def __init__(
        self,
        num_classes: int | None,
        embedding_size: int,
        *,
        base: nn.Module | None = None,
        synthesis: Synthesis | None = None,
        ranking: RankingTerm | None = None,
        metric: MetricTerm | None = None,
        weights: SyntheticWeights | None = None,
        base_on: str = "latent",
        reference_quirks: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        given = _options("synthesis", synthesis, Synthesis)
        super().__init__(
            embedding_size,
            count=given.count,
            radius=given.radius,
            projection_size=given.projection_size,
            shuffle="class" if reference_quirks else given.shuffle,
            generator=generator,
        )
        self.synthesis = given
        self.ranking = _options("ranking", ranking, RankingTerm)
        self.metric = _options("metric", metric, MetricTerm)
        self.weights = _options("weights", weights, SyntheticWeights)
        self.base_on = check_option("base_on", base_on, BASE_ON)
        self.reference_quirks = check_flag("reference_quirks", reference_quirks)
        self.base = _base_of(base, num_classes, embedding_size)
        self._check_sizes()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss.

        Args:
            embeddings: (N, embedding_size) floating.
            labels: (N,) integers; the base loss may ask for more, as the default one does. Nothing
                is synthesised from a sample whose class has no proxy.
            indices_tuple: for the base loss.
            ref_emb: (M, embedding_size) for the base loss, projected where it is of projections.
            ref_labels: (M,) for the base loss.

        Returns:
            A scalar. Differentiable once, in the embeddings and the parameters; these have
            gradients of zero where no sample qualifies.

        Memory: that of the base loss, and O(N (embedding_size + projection_size + count)), with
        "class" draws O(N count^2) too; no (N, count, embedding_size) tensor.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, a label that the base loss refuses, or a base loss
                that is not a scalar.
        """
        return self.terms(embeddings, labels, indices_tuple, ref_emb, ref_labels).total

    def terms(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> SyntheticRankingTerms:
        """The parts of `forward`, which takes the same arguments."""
        pairs = check_pairs(embeddings, labels, names=MODULE_NAMES)
        check_dimensions("embeddings", pairs.x, self.embedding_size)
        base = self._base_loss(pairs.x, labels, indices_tuple, ref_emb, ref_labels)
        ranking, metric, qualifying = self._synthetic_terms(pairs)
        weights = self.weights
        synthetic = weights.ranking * ranking + weights.metric * metric
        total = base + (weights.total * synthetic).to(base.dtype)
        return SyntheticRankingTerms(base, ranking, metric, total, qualifying)

    def unit_similarities(self, x: Tensor) -> Tensor:
        """How similar the synthesised samples of embeddings are to these, in the bank's own order.

        Args:
            x: (N, embedding_size) floating; scaled to unit length here.

        Returns:
            (N, count) by rising intensity. Nothing is drawn: direction j is at intensity j.
        """
        order = torch.arange(self.directions.shape[0], device=self.directions.device)
        return self.similarities(unit_rows(x), order, level=self.reference_quirks)

    def _base_loss(
        self,
        x: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
    ) -> Tensor:
        if self.base_on == "projected":
            x = self.project(unit_rows(x))
            if ref_emb is not None:
                ref_emb = self.project(unit_rows(ref_emb))
        return base_loss(self.base, x, labels, indices_tuple, ref_emb, ref_labels)

    def _synthetic_terms(self, pairs: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        """The ranking term, the metric term and the share of samples that qualify."""
        x = unit_rows(pairs.x.detach() if self.synthesis.detach else pairs.x)
        classes = Classes.of(pairs.labels)
        anchors = self._anchors(x, pairs.labels, classes)
        qualifies = self._qualifies(x, anchors)
        count, last = classes.members(qualifies)
        share = torch.where(qualifies, 1 / count.clamp(min=1).to(x.dtype), 0.0)
        # 0 times NaN would reach the gradient of the projector.
        x = torch.where(qualifies[:, None], x, 0.0)
        order = self.draw(classes.begin)
        zero = share.new_zeros(())
        ranking = metric = zero
        if self.weights.ranking:
            similarities = self.similarities(x, order, level=self.reference_quirks)
            # The authors count every pair twice.
            rows = 2 * functional.ranking_loss(
                similarities, **dataclasses.asdict(self.ranking), reduction="none"
            )
            ranking = _weighted(rows, share)
        if self.weights.metric and self.reference_quirks:
            metric = self._last_metric(x, anchors.points, order, count, last)
        elif self.weights.metric:
            rows = self._metric_rows(x, order, self.project(anchors.points))
            metric = _weighted(rows, share)
        if self.weights.classes == "mean":
            found = last.sum().clamp(min=1)
            ranking, metric = ranking / found, metric / found
        return ranking, metric, qualifies.to(x.dtype).mean()

    def _anchors(self, x: Tensor, labels: Tensor, classes: Classes) -> _Anchors:
        proxies = _proxies(self.base)
        if proxies is None:
            means, found = classes.means_of_others(x.detach())
            return _Anchors(unit_rows(means), found)
        found = (labels >= 0) & (labels < proxies.shape[0])
        # Not proxies[...], whose gradient several threads add up in any order.
        return _Anchors(proxies.index_select(0, torch.where(found, labels, 0)), found)

    def _qualifies(self, x: Tensor, anchors: _Anchors) -> Tensor:
        if self.synthesis.select == "all":
            return anchors.found
        points = anchors.points.detach()
        points = unit_rows(points) if self.synthesis.select == "cosine" else points
        return anchors.found & ((x.detach() * points).sum(1) >= self.synthesis.threshold)

    def _metric_rows(self, x: Tensor, order: Tensor, targets: Tensor) -> Tensor:
        """M_i of each row, (N,)."""
        similarities = self.similarities(x, order, targets=targets, level=self.reference_quirks)
        exponents = self.metric.scale * (self.metric.margin - similarities)
        return torch.nn.functional.pad(exponents, (0, 1)).logsumexp(1)

    def _last_metric(
        self, x: Tensor, points: Tensor, order: Tensor, count: Tensor, last: Tensor
    ) -> Tensor:
        """The sum over the classes of M of the last row that qualifies.

        The proxy of its class is projected anew for each row of the class that qualifies.
        """
        rows = last.nonzero().flatten()
        targets, times = points[rows], count[rows]
        for done in range(int(times.max()) if rows.numel() else 0):
            targets = torch.where((times > done)[:, None], self.project(targets), targets)
        return fixed_order_sum(self._metric_rows(x[rows], order[rows], targets))

    def _check_sizes(self) -> None:
        proxies = _proxies(self.base)
        size = self.projector.weight.shape[0]
        if proxies is not None and proxies.shape[1] != self.embedding_size:
            raise ValueError(
                f"base: expected proxies of {self.embedding_size} dimensions, "
                f"got {describe(proxies)}"
            )
        if self.reference_quirks and proxies is None:
            raise ValueError("reference_quirks: expected False for a base loss without proxies")
        projected = self.base_on == "projected" and proxies is not None
        if (self.reference_quirks or projected) and size != self.embedding_size:
            cause = "reference_quirks" if self.reference_quirks else "base_on='projected'"
            raise ValueError(
                f"projection_size: expected {self.embedding_size}, the size of the proxies, with "
                f"{cause}, got {size}"
            )


def _weighted(rows: Tensor, share: Tensor) -> Tensor:
    """The sum of the rows by their shares; one of share 0 counts for nothing, even if it is NaN."""
    return fixed_order_sum(torch.where(share > 0, rows * share, 0.0))


def _proxies(base: nn.Module) -> Tensor | None:
    proxies = getattr(base, "proxies", None)
    return proxies if isinstance(proxies, Tensor) and proxies.dim() == 2 else None


def _base_of(base: object, num_classes: int | None, embedding_size: int) -> nn.Module:
    if base is None:
        if num_classes is None:
            raise ValueError("num_classes: expected a number of classes without base, got None")
        return ProxyAnchorLoss(check_count("num_classes", num_classes), embedding_size)
    if not isinstance(base, nn.Module):
        raise TypeError(f"base: expected a loss module or None, got {describe(base)}")
    if num_classes is not None:
        raise ValueError(f"num_classes: expected None with base, got {num_classes!r}")
    return base


def _options(name: str, value: _Options | None, kind: type[_Options]) -> _Options:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__} or None, got {describe(value)}")
    return value
