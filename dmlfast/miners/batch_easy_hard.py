"""One positive and one negative per anchor, or all of a kind, as index tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.miners._base import Miner, all_pairs, chunk_distances, pair_chunks
from dmlfast.ops._arguments import Pairs, check_number, check_option
from dmlfast.ops._partners import call

_STRATEGIES = ("hard", "semihard", "easy", "all")


class BatchEasyHardMiner(Miner):
    """Picks a positive and a negative for each anchor, with pytorch-metric-learning's call.

    A triplet loss does not need it: `TripletMarginLoss(positives=..., negatives=...)` makes the
    same choice without a list of indices. It serves code that wants the indices.

    | strategy | positives | negatives |
    |---|---|---|
    | "easy" | the nearest | the farthest |
    | "hard" | the farthest | the nearest |
    | "semihard" | the farthest strictly nearer than the negative | the nearest strictly beyond \
the positive |
    | "all" | every one | every one |

    Returns (anchor, positive, anchor, negative), int64, anchors ascending. With a strategy for
    each kind, both pairs of lists are of the same anchors, each at most once: an anchor that lacks
    either is left out. With "all", the two pairs of lists stand alone: one has all pairs of its
    kind, partners ascending, the other an anchor once where it has a partner. Rows that are not
    finite are in no pair. Ties go to the lowest index.

    "easy" and "hard" positives with "hard", "semihard" or "all" negatives, without ranges, are the
    exact selections of `dmlfast.functional`, and so are "hard" negatives with all positives. The
    other choices compare the distances of `dmlfast.functional.pairwise_distance`.

    Args:
        pos_strategy: "easy" (default), "hard", "semihard" or "all".
        neg_strategy: "semihard" (default), "hard", "easy" or "all".
        allowed_pos_range: (least, greatest) distance of a positive that may be picked, both
            included, in units of the metric; any by default. Not applied to "all".
        allowed_neg_range: as `allowed_pos_range`, of negatives.
        metric: "euclidean" (default), "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first (default), in float32 for 16-bit
            embeddings; a zero vector stays zero.

    Memory: O((N + M)·d), and the result: anchors go by chunks.

    Raises:
        TypeError: a keyword that this miner does not take, or a wrong type.
        ValueError: an unknown option, "semihard" twice or together with "all", or a range that is
            not two ascending numbers.

    Source: Xuan et al., "Improved embeddings with easy positive triplet mining", WACV 2020.
    """

    def __init__(
        self,
        pos_strategy: str = "easy",
        neg_strategy: str = "semihard",
        allowed_pos_range: Sequence[float] | None = None,
        allowed_neg_range: Sequence[float] | None = None,
        *,
        metric: str = "euclidean",
        normalize: bool = True,
        **unknown: Any,
    ) -> None:
        super().__init__(unknown, metric, normalize)
        self.pos_strategy = check_option("pos_strategy", pos_strategy, _STRATEGIES)
        self.neg_strategy = check_option("neg_strategy", neg_strategy, _STRATEGIES)
        strategies = {pos_strategy, neg_strategy}
        if "semihard" in strategies and strategies <= {"semihard", "all"}:
            raise ValueError(
                "pos_strategy, neg_strategy: expected 'easy' or 'hard' with 'semihard', which is "
                f"relative to one partner, got {pos_strategy!r} and {neg_strategy!r}"
            )
        self.allowed_pos_range = _check_range("allowed_pos_range", allowed_pos_range)
        self.allowed_neg_range = _check_range("allowed_neg_range", allowed_neg_range)

    def _mine(self, pairs: Pairs) -> tuple[Tensor, ...]:
        positive, negative = self._selected(pairs) if self._exact() else self._compared(pairs)
        if "all" not in (self.pos_strategy, self.neg_strategy):
            complete = ((positive >= 0) & (negative >= 0)).nonzero()[:, 0]
            return complete, positive[complete], complete, negative[complete]
        return (
            *self._side(pairs, "positive", self.pos_strategy, positive),
            *self._side(pairs, "negative", self.neg_strategy, negative),
        )

    @staticmethod
    def _side(pairs: Pairs, kind: str, strategy: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Anchors and partners of one kind, where the other does not matter."""
        if strategy == "all":
            return all_pairs(pairs, kind)
        anchor = (index >= 0).nonzero()[:, 0]
        return anchor, index[anchor]

    def _exact(self) -> bool:
        """Whether the selections make this choice."""
        ranges = self.allowed_pos_range or self.allowed_neg_range
        return not ranges and self.pos_strategy != "semihard" and self.neg_strategy != "easy"

    def _selected(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(N,) positives and negatives of exact selections, -1 for none or all."""
        none = torch.full_like(pairs.labels, -1)
        lost = ~pairs.x.isfinite().all(1)
        positive = negative = none
        if self.pos_strategy != "all":
            easy = self.pos_strategy == "easy"
            select = functional.nearest_positive if easy else functional.farthest_positive
            distance, positive = call(select, pairs, metric=self.metric)
        if self.neg_strategy == "hard":
            negative = call(functional.hardest_negative, pairs, metric=self.metric).index
        elif self.neg_strategy == "semihard":
            semihard = functional.semihard_negative
            negative = call(semihard, pairs, beyond=distance, metric=self.metric).index
        return torch.where(lost, -1, positive), torch.where(lost, -1, negative)

    def _compared(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(N,) positives and negatives from all distances, -1 for none or all."""
        positive, negative = (torch.full_like(pairs.labels, -1) for _ in range(2))
        for chunk in pair_chunks(pairs):
            distance = chunk_distances(pairs, chunk, self.metric)
            positives = _within(distance, chunk.positive, self.allowed_pos_range)
            negatives = _within(distance, chunk.negative, self.allowed_neg_range)
            near, far = self.pos_strategy == "easy", self.neg_strategy == "easy"
            # The one that "semihard" is relative to comes first.
            if self.pos_strategy == "semihard":
                limit, negative[chunk.part] = _pick(distance, negatives, farthest=far)
                positives = positives & (distance < limit[:, None])
                _, positive[chunk.part] = _pick(distance, positives, farthest=True)
                continue
            limit, positive[chunk.part] = _pick(distance, positives, farthest=not near)
            if self.neg_strategy == "semihard":
                negatives = negatives & (distance > limit[:, None])
            _, negative[chunk.part] = _pick(distance, negatives, farthest=far)
        return positive, negative

    def _parameters_to_print(self) -> list[tuple[str, object]]:
        ranges = (
            ("allowed_pos_range", self.allowed_pos_range),
            ("allowed_neg_range", self.allowed_neg_range),
        )
        return [
            ("pos_strategy", self.pos_strategy),
            ("neg_strategy", self.neg_strategy),
            *(given for given in ranges if given[1] is not None),
            *super()._parameters_to_print(),
        ]


def _check_range(name: str, value: object) -> tuple[float, float] | None:
    """Two ascending numbers, or None."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected (least, greatest) or None, got {value!r}")
    least, greatest = (check_number(name, number) for number in value)
    if least > greatest:
        raise ValueError(f"{name}: expected ascending numbers, got {value!r}")
    return least, greatest


def _within(distance: Tensor, candidates: Tensor, allowed: tuple[float, float] | None) -> Tensor:
    """The candidates at an allowed distance."""
    if allowed is None:
        return candidates
    return candidates & (distance >= allowed[0]) & (distance <= allowed[1])


def _pick(distance: Tensor, candidates: Tensor, *, farthest: bool) -> tuple[Tensor, Tensor]:
    """(C,) distances and indices of the best candidates, the first of ties; -1 for none."""
    fill = -torch.inf if farthest else torch.inf
    masked = torch.where(candidates, distance, fill)
    best, index = masked.max(1) if farthest else masked.min(1)
    found = candidates.gather(1, index[:, None])[:, 0]
    return best, torch.where(found, index, -1)
