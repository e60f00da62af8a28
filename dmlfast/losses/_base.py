"""What the loss modules share: their options, their call and the choice of its path."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dmlfast._keywords import LOSS_KEYWORDS, refuse_keywords
from dmlfast._normalize import unit_rows
from dmlfast.ops._arguments import (
    METRICS,
    MODULE_NAMES,
    Pairs,
    check_embeddings,
    check_flag,
    check_option,
    check_pairs,
    check_references,
    describe,
)
from dmlfast.ops._reduction import REDUCTIONS
from dmlfast.ops.contrast import POSITIVES, AnchorSums
from dmlfast.ops.contrast_sums import ContrastSums


class Given(NamedTuple):
    """A loss over a given index tuple.

    Attributes:
        x: (N, d) anchors, checked and normalised.
        references: (M, d) alike.
        labels: those of the anchors, as they were handed in.
        indices_tuple: as it was handed in.
    """

    x: Tensor
    references: Tensor
    labels: Tensor | None
    indices_tuple: tuple[Tensor, ...]


class ShownModule(nn.Module):
    """A module that prints its options.

    Attributes:
        shown: their names, in the order in which they are printed.
    """

    shown: ClassVar[tuple[str, ...]] = ()

    def extra_repr(self) -> str:
        """The parameters, for printing."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)


class EmbeddingLoss(ShownModule):
    """A loss of embeddings: the options of all of them."""

    def __init__(
        self,
        *,
        metric: str,
        normalize: bool,
        reduction: str,
        unknown: dict[str, Any],
        metrics: tuple[str, ...] = METRICS,
    ) -> None:
        super().__init__()
        refuse_keywords(type(self).__name__, unknown, LOSS_KEYWORDS)
        self.metric = check_option("metric", metric, metrics)
        self.normalize = check_flag("normalize", normalize)
        self.reduction = check_option("reduction", reduction, REDUCTIONS)

    def _unit(self, x: Tensor) -> Tensor:
        # The cosine does not depend on the lengths.
        return unit_rows(x) if self.normalize and self.metric != "cosine" else x


class PairLoss(EmbeddingLoss):
    """A loss over the positives and negatives of each anchor, with pytorch-metric-learning's call.

    A subclass computes it in `_of_pairs`, and in `_of_indices` for a given index tuple.
    """

    def __init__(
        self,
        *,
        positives: str,
        metric: str,
        normalize: bool,
        reduction: str,
        unknown: dict[str, Any],
    ) -> None:
        super().__init__(metric=metric, normalize=normalize, reduction=reduction, unknown=unknown)
        self.positives = check_option("positives", positives, POSITIVES)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
    ) -> Tensor | AnchorSums | ContrastSums:
        """Computes the loss.

        Args:
            embeddings: (N, d) floating.
            labels: (N,) integers; most losses do not need them with `indices_tuple`.
            indices_tuple: (anchor, positive, negative) or (anchor, positive, anchor, negative)
                index tensors, as miners return; then exactly these triplets or pairs count and
                `positives` and `negatives` are not looked at. Costs O(pairs·d) memory, or
                O(triplets·d), and plain torch arithmetic. Anchors are rows of `embeddings`, the
                others of `ref_emb`. Losses that take weights from it say so.
            ref_emb: (M, d) references, the batch itself by default. Every one of them is compared
                with every anchor, also where it is the anchor's own copy, unless `self_index`
                says which that is.
            ref_labels: (M,) their labels.
            self_index: (N,) integers, the row of `ref_emb` that is the anchor itself and is
                neither its positive nor its negative, -1 for none. Only with `ref_emb`; not
                looked at where `indices_tuple` lists the pairs.

        Returns:
            A scalar; with reduction "none" what the loss's function in `dmlfast.functional`
            returns, or what the class says when `indices_tuple` is given.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device; without `indices_tuple` also `ref_emb` without
                `ref_labels`, or `self_index` without `ref_emb`.
            IndexError: an index of `indices_tuple` that is no row; on CUDA torch's own failed
                assertion.
        """
        if indices_tuple is not None:
            x, references = self._rows(embeddings, ref_emb)
            return self._of_indices(Given(x, references, labels, indices_tuple))
        return self._of_pairs(self._pairs(embeddings, labels, ref_emb, ref_labels, self_index))

    def _of_pairs(self, pairs: Pairs) -> Tensor | AnchorSums | ContrastSums:
        """The loss over all pairs of a label rule."""
        raise NotImplementedError

    def _of_indices(self, given: Given) -> Tensor | AnchorSums | ContrastSums:
        """The loss over the pairs that a tuple lists."""
        raise NotImplementedError

    def _pairs(
        self,
        embeddings: object,
        labels: object,
        ref_emb: object,
        ref_labels: object,
        self_index: object,
    ) -> Pairs:
        """Checked arguments, normalised."""
        # Checks come first: normalising would hide what was handed in.
        pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, self_index, names=MODULE_NAMES)
        x = self._unit(pairs.x)
        return pairs._replace(
            x=x, references=x if ref_emb is None else self._unit(pairs.references)
        )

    def _rows(self, embeddings: object, ref_emb: object) -> tuple[Tensor, Tensor]:
        """Checked anchors and references for lists of indices, normalised."""
        anchors = check_embeddings("embeddings", embeddings)
        x = self._unit_listed(anchors)
        if ref_emb is None:
            return x, x
        return x, self._unit_listed(check_references("ref_emb", ref_emb, "embeddings", anchors))

    def _unit_listed(self, x: Tensor) -> Tensor:
        # Under the cosine too: once for a row, not once for every pair that names it.
        return unit_rows(x) if self.normalize or self.metric == "cosine" else x


def no_references(owner: str, ref_emb: object, ref_labels: object) -> None:
    """Raises ValueError unless both are None, for a loss that compares with nothing else."""
    for name, value in (("ref_emb", ref_emb), ("ref_labels", ref_labels)):
        if value is not None:
            raise ValueError(
                f"{name}: expected None, as {owner} takes no references, got {describe(value)}"
            )


def base_loss(
    base: nn.Module,
    embeddings: Tensor,
    labels: Tensor,
    indices_tuple: tuple[Tensor, ...] | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> Tensor:
    """The scalar of a base loss; raises ValueError for anything else."""
    # One that takes no references need not have arguments for them.
    references = () if ref_emb is None and ref_labels is None else (ref_emb, ref_labels)
    loss = base(embeddings, labels, indices_tuple, *references)
    if not isinstance(loss, Tensor) or loss.dim():
        raise ValueError(f"base: expected a scalar loss, got {describe(loss)}")
    return loss


def promoted(x: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and a parameter in the dtype that holds both."""
    dtype = torch.promote_types(x.dtype, parameter.dtype)
    return x.to(dtype), parameter.to(dtype)
