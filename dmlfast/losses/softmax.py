"""Losses of cross-entropies of positives as modules: NT-Xent, supervised contrastive, N-pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.losses._base import EmbeddingLoss, Given, PairLoss, no_references
from dmlfast.losses._pair_lists import (
    list_distances,
    pairs_of,
    segment_logsumexp,
    segment_sum,
)
from dmlfast.ops._arguments import MODULE_NAMES, Pairs, check_pairs, check_positive
from dmlfast.ops._partners import call
from dmlfast.ops._reduction import is_active, nan_marks, reduce, reduce_over_rows, softplus
from dmlfast.ops.contrast import AnchorSums
from dmlfast.ops.contrast_softmax import supcon_rows


class _TemperatureLoss(PairLoss):
    """A pair loss with a temperature."""

    shown = ("temperature", "positives", "metric", "normalize", "reduction")

    def __init__(
        self,
        temperature: float,
        positives: str,
        metric: str,
        normalize: bool,
        reduction: str,
        unknown: dict[str, Any],
    ) -> None:
        super().__init__(
            positives=positives,
            metric=metric,
            normalize=normalize,
            reduction=reduction,
            unknown=unknown,
        )
        self.temperature = check_positive("temperature", temperature)


class NTXentLoss(_TemperatureLoss):
    """NT-Xent, InfoNCE with labels, with pytorch-metric-learning's call and defaults.

    A pair that an `indices_tuple` holds several times counts as often; with reduction "none" one
    gives `AnchorSums`.

    Args:
        temperature: greater than 0, 0.07 by default.
        positives: "all" (default), "nearest" or "farthest"; see
            `dmlfast.functional.info_nce_loss`.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default); the cosine is the same.
        reduction: "mean" over the positive pairs (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, or a temperature not above 0.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        positives: str = "all",
        metric: str = "cosine",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(temperature, positives, metric, normalize, reduction, unknown)

    def _of_pairs(self, pairs: Pairs) -> Tensor | AnchorSums:
        return call(
            functional.info_nce_loss,
            pairs,
            temperature=self.temperature,
            metric=self.metric,
            positives=self.positives,
            reduction=self.reduction,
        )

    def _of_indices(self, given: Given) -> Tensor | AnchorSums:
        x, references = given.x, given.references
        anchor, positive, other_anchor, negative = pairs_of(given.indices_tuple, x.device)
        near = list_distances(x, references, anchor, positive, self.metric) / self.temperature
        far = list_distances(x, references, other_anchor, negative, self.metric) / self.temperature
        loss = softplus(near + segment_logsumexp(-far, other_anchor, x.shape[0])[anchor])
        active = torch.ones_like(anchor)
        if self.reduction == "none":
            sums = (segment_sum(terms, anchor, x.shape[0]) for terms in (loss, active.double()))
            return AnchorSums(next(sums), next(sums).long())
        return reduce(loss, active, self.reduction)


class SupConLoss(_TemperatureLoss):
    """Supervised contrastive loss, with pytorch-metric-learning's call and defaults.

    A pair that an `indices_tuple` holds several times counts once.

    Args:
        temperature: greater than 0, 0.1 by default.
        positives: "all" (default), "nearest" or "farthest"; see `dmlfast.functional.supcon_loss`.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default); the cosine is the same.
        reduction: "mean" over the anchors with a loss greater than 0 (default), "sum", or "none".

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option, or a temperature not above 0.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        positives: str = "all",
        metric: str = "cosine",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(temperature, positives, metric, normalize, reduction, unknown)

    def _of_pairs(self, pairs: Pairs) -> Tensor:
        return call(
            functional.supcon_loss,
            pairs,
            temperature=self.temperature,
            metric=self.metric,
            positives=self.positives,
            reduction=self.reduction,
        )

    def _of_indices(self, given: Given) -> Tensor:
        x, references = given.x, given.references
        rows = x.shape[0]
        lists = pairs_of(given.indices_tuple, x.device).distinct()
        anchor, positive, other_anchor, negative = lists
        near = list_distances(x, references, anchor, positive, self.metric) / self.temperature
        far = list_distances(x, references, other_anchor, negative, self.metric) / self.temperature
        loss = supcon_rows(
            segment_sum(near, anchor, rows),
            segment_logsumexp(-near, anchor, rows),
            segment_logsumexp(-far, other_anchor, rows),
            torch.bincount(anchor, minlength=rows),
            torch.bincount(other_anchor, minlength=rows),
        )
        if self.reduction == "none":
            return loss
        return reduce(loss, is_active(loss), self.reduction)


class NPairsLoss(EmbeddingLoss):
    """N-pairs loss: one pair a class, each positive against those of the other classes.

    It has pytorch-metric-learning's call and defaults. The pair of a class is its first two
    embeddings or, with an `indices_tuple`, the first positive pair of its list whose anchor is of
    that class. A class of one embedding has none.

    Args:
        metric: "dot" (default), "euclidean", "sqeuclidean" or "cosine".
        normalize: scale the embeddings to unit L2 norm first (default).
        reduction: "mean" over the pairs (default; 0 without any), "sum", or "none": (C,) losses
            of the classes that have a pair, in ascending order.

    Raises:
        TypeError: a keyword that this loss does not take, or a wrong type.
        ValueError: an unknown option.

    Source: Sohn, "Improved deep metric learning with multi-class N-pair loss objective", NeurIPS
    2016, equation 12 without its regulariser.
    """

    shown = ("metric", "normalize", "reduction")

    def __init__(
        self,
        *,
        metric: str = "dot",
        normalize: bool = True,
        reduction: str = "mean",
        **unknown: Any,
    ) -> None:
        super().__init__(metric=metric, normalize=normalize, reduction=reduction, unknown=unknown)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: None = None,
        ref_labels: None = None,
    ) -> Tensor:
        """Computes the loss.

        Args:
            embeddings: (N, d) floating.
            labels: (N,) integers.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors, whose negatives are not looked at.
            ref_emb: None.
            ref_labels: None.

        Returns:
            A scalar, or (C,) losses; NaN if an embedding of a pair is not finite. Memory: O(N·d).
            The number of pairs makes the host wait for the device.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, or references.
            IndexError: an index of `indices_tuple` that is no row.
        """
        no_references("NPairsLoss", ref_emb, ref_labels)
        pairs = check_pairs(embeddings, labels, names=MODULE_NAMES)
        if indices_tuple is None:
            anchor, positive = _first_pairs(pairs.labels)
        else:
            lists = pairs_of(indices_tuple, pairs.x.device)
            first = _first_of_each(pairs.labels[lists.positive_anchor])
            anchor, positive = lists.positive_anchor[first], lists.positive[first]
        x = self._unit(pairs.x)
        anchors, positives = x[anchor], x[positive]
        classes = torch.arange(anchor.shape[0], device=x.device)
        sums = functional.info_nce_loss(
            anchors,
            classes,
            positives,
            classes,
            temperature=1.0,
            metric=self.metric,
            reduction="none",
        )
        # A positive that is not finite is left out; here it must not go unseen.
        loss = sums.loss + nan_marks(positives)  # type: ignore[union-attr]
        return reduce_over_rows(loss, self.reduction)


def _first_of_each(labels: Tensor) -> Tensor:
    """The place of the first of each label, in ascending order of the labels."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def _first_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The places of the first two of each label that has two."""
    order = labels.argsort(stable=True)
    ordered = labels[order]
    same = ordered[1:] == ordered[:-1]
    begins = same.clone()
    begins[1:] &= ~same[:-1]
    place = begins.nonzero()[:, 0]
    return order[place], order[place + 1]
