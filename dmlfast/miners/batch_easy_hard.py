"""One positive and one negative per anchor, as index tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._keywords import MINER_KEYWORDS, refuse_keywords
from dmlfast._normalize import unit_rows
from dmlfast.ops._arguments import METRICS, check_flag, check_option, check_pairs

_POSITIVES = ("easy", "hard")
_NEGATIVES = ("hard", "semihard")

# What the arguments of `check_pairs` are called here.
_NAMES = ("embeddings", "labels", "ref_emb", "ref_labels", "self_index")


class BatchEasyHardMiner(nn.Module):
    """Picks a positive and a negative for each anchor, with pytorch-metric-learning's call.

    A triplet loss does not need it: `TripletMarginLoss(positives=..., negatives=...)` makes the
    same choice without a list of indices. It serves code that wants the indices.

    Args:
        pos_strategy: "easy" (default), the nearest positive, or "hard", the farthest.
        neg_strategy: "semihard" (default), the nearest negative strictly beyond the chosen
            positive, or "hard", the nearest negative.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.

    Raises:
        TypeError: a keyword that this miner does not take, or a wrong type.
        ValueError: an unknown option. The strategies "easy" (negatives), "semihard" (positives)
            and "all" of pytorch-metric-learning are not offered.

    Source: Xuan et al., "Improved embeddings with easy positive triplet mining", WACV 2020.
    """

    def __init__(
        self,
        pos_strategy: str = "easy",
        neg_strategy: str = "semihard",
        *,
        metric: str = "euclidean",
        normalize: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__()
        refuse_keywords("BatchEasyHardMiner", unknown, MINER_KEYWORDS)
        self.pos_strategy = check_option("pos_strategy", pos_strategy, _POSITIVES)
        self.neg_strategy = check_option("neg_strategy", neg_strategy, _NEGATIVES)
        self.metric = check_option("metric", metric, METRICS)
        self.normalize = check_flag("normalize", normalize)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Picks the pairs, without gradient.

        Args:
            embeddings: (N, d) float16, bfloat16, float32 or float64.
            labels: (N,) any integer dtype.
            ref_emb: (M, d) candidates, dtype and device of `embeddings`; the batch itself by
                default, where no anchor is its own positive. Every one of them is a candidate,
                also where it is the anchor's own copy, unless `self_index` says which that is.
            ref_labels: (M,) their labels; required with them.
            self_index: (N,) integers, the row of `ref_emb` that is the anchor itself, -1 for
                none. Only with `ref_emb`.

        Returns:
            (anchor, positive, anchor, negative): (K,) int64 each, K <= N, anchors ascending and
            each at most once. Anchors are rows of `embeddings`, the others of `ref_emb`. An
            anchor that lacks a positive or a negative, or that is not finite, is left out. The
            choice is exact and deterministic; ties go to the lowest index.

        Memory: O((N + M)·d). On CUDA, K makes the host wait for the device.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, `ref_emb` without `ref_labels`, or `self_index`
                without `ref_emb`.
        """
        # Checks come first: normalising would hide what was handed in.
        pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, self_index, names=_NAMES)
        with torch.no_grad():
            x = self._unit(pairs.x)
            references = None if ref_emb is None else self._unit(pairs.references)
            arguments = (x, pairs.labels, references, ref_labels)
            positive_of = (
                functional.nearest_positive
                if self.pos_strategy == "easy"
                else functional.farthest_positive
            )
            positive = positive_of(*arguments, self_index=self_index, metric=self.metric)
            if self.neg_strategy == "hard":
                negative = functional.hardest_negative(
                    *arguments, self_index=self_index, metric=self.metric
                )
            else:
                negative = functional.semihard_negative(
                    *arguments, beyond=positive.distance, self_index=self_index, metric=self.metric
                )
            complete = (positive.index >= 0) & (negative.index >= 0) & x.isfinite().all(1)
            anchor = complete.nonzero()[:, 0]
            return anchor, positive.index[anchor], anchor, negative.index[anchor]

    def _unit(self, x: Tensor) -> Tensor:
        return unit_rows(x) if self.normalize else x

    def extra_repr(self) -> str:
        """The parameters, for printing."""
        return (
            f"pos_strategy={self.pos_strategy!r}, neg_strategy={self.neg_strategy!r}, "
            f"metric={self.metric!r}, normalize={self.normalize}"
        )
