"""The pairs of the multi-similarity loss: harder than the hardest pair of the other kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.miners._base import Miner, PairMasks, chunk_distances, indices, join, pair_chunks
from dmlfast.ops._arguments import Pairs, check_number

# Metrics of which pytorch-metric-learning has the similarity, and so the opposite order.
_SIMILARITIES = ("cosine", "dot")


class MultiSimilarityMiner(Miner):
    """Keeps the informative pairs of each anchor, with pytorch-metric-learning's call.

    A positive is kept whose distance + epsilon is greater than that of the anchor's nearest
    negative, a negative whose distance - epsilon is less than that of its farthest positive. An
    anchor without positives or without negatives keeps nothing, nor does one that is not finite,
    and a reference that is not finite is in no pair.

    Returns (anchor, positive, anchor, negative), (P,) and (Q,) int64, pairs of the two kinds:
    anchors ascending, and within an anchor the distances as pytorch-metric-learning has them,
    descending under "cosine" and "dot" and else ascending; ties go to the lowest index.

    The distances, also those of the nearest negative and the farthest positive, are
    `dmlfast.functional.pairwise_distance`'s.

    Args:
        epsilon: margin in units of the metric, 0.1 by default; negative keeps harder pairs alone.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.

    Memory: O((N + M)·d + P + Q): anchors go by chunks.

    Raises:
        TypeError: a keyword that this miner does not take, or a wrong type.
        ValueError: an unknown metric, or an epsilon of NaN.

    Source: Wang et al., "Multi-similarity loss with general pair weighting for deep metric
    learning", CVPR 2019, equations 8 and 9.
    """

    def __init__(
        self,
        epsilon: float = 0.1,
        *,
        metric: str = "cosine",
        normalize: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown, metric, normalize)
        self.epsilon = check_number("epsilon", epsilon)

    def _mine(self, pairs: Pairs) -> tuple[Tensor, ...]:
        positive, negative = [], []
        for chunk in pair_chunks(pairs):
            distance = chunk_distances(pairs, chunk, self.metric)
            nearest = torch.where(chunk.negative, distance, torch.inf).amin(1, keepdim=True)
            farthest = torch.where(chunk.positive, distance, -torch.inf).amax(1, keepdim=True)
            hard_positive = chunk.positive & (distance + self.epsilon > nearest)
            hard_negative = chunk.negative & (distance - self.epsilon < farthest)
            positive.append(self._ordered(chunk, distance, hard_positive))
            negative.append(self._ordered(chunk, distance, hard_negative))
        device = pairs.x.device
        return *join(positive, device), *join(negative, device)

    def _ordered(self, chunk: PairMasks, distance: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and partners of the pairs kept, by anchor and then distance."""
        anchor, partner = indices(chunk.part, kept)
        count = kept.sum(1, keepdim=True)
        # Sorted by rows no longer than the longest: few pairs are kept of many.
        filled = torch.arange(int(count.max()), device=kept.device) < count
        descending = self.metric in _SIMILARITIES
        rows = distance.new_full(filled.shape, -torch.inf if descending else torch.inf)
        rows[filled] = distance[kept]
        partners = torch.zeros_like(filled, dtype=torch.int64)
        partners[filled] = partner
        order = rows.argsort(dim=1, stable=True, descending=descending)
        return anchor, partners.gather(1, order)[filled]

    def _parameters_to_print(self) -> list[tuple[str, object]]:
        return [("epsilon", self.epsilon), *super()._parameters_to_print()]
