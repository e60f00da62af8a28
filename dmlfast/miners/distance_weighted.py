"""A negative for every positive pair, drawn at all distances alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast import functional
from dmlfast.miners._base import Miner, all_pairs
from dmlfast.ops._arguments import Pairs, check_number

# Pairs of one draw at least; more where there are more anchors.
_PAIRS_PER_DRAW = 4096


class DistanceWeightedMiner(Miner):
    """Draws a negative for every positive pair, with pytorch-metric-learning's call.

    The embeddings are scaled to unit L2 norm; negatives are drawn in proportion to the inverse
    density of Euclidean distances on the sphere, as `dmlfast.functional.sample_negative` says.

    Returns (anchor, positive, negative), (K,) int64, anchors and then positives ascending: every
    positive pair once, where pytorch-metric-learning draws positives with replacement, for each
    anchor as many as its class has samples.
    As there, pairs of an anchor all of whose negatives are at `nonzero_loss_cutoff` or farther
    are left out; so are rows that are not finite.

    Args:
        cutoff: distances below it have its weight, 0.5 by default.
        nonzero_loss_cutoff: negatives at this distance or farther are not drawn, 1.4 by default.

    Memory: O((N + M)·d + K). Time: K·M distances.

    Raises:
        TypeError: a keyword that this miner does not take, or a wrong type.
        ValueError: a cutoff of NaN; in the call, one that `sample_negative` refuses.

    Source: Wu et al., "Sampling matters in deep embedding learning", ICCV 2017.
    """

    def __init__(
        self, cutoff: float = 0.5, nonzero_loss_cutoff: float = 1.4, **unknown: Any
    ) -> None:
        super().__init__(unknown, "euclidean", True)
        self.cutoff = check_number("cutoff", cutoff)
        self.nonzero_loss_cutoff = check_number("nonzero_loss_cutoff", nonzero_loss_cutoff)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        self_index: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, ...]:
        """Draws, without gradient.

        Args:
            embeddings: (N, d), as in the other miners, and so are the next four.
            labels: (N,).
            ref_emb: (M, d) candidates; the batch itself by default.
            ref_labels: (M,).
            self_index: (N,) the row of `ref_emb` that is the anchor itself, -1 for none.
            generator: what decides the draws; torch's own by default.

        Returns:
            (anchor, positive, negative), the same for the same state of the generator. On CUDA,
            their length makes the host wait for the device.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, `ref_emb` without `ref_labels`, or `self_index`
                without `ref_emb`.
        """
        pairs = self._checked(embeddings, labels, ref_emb, ref_labels, self_index)
        with torch.no_grad():
            anchor, positive = all_pairs(pairs, "positive")
            step = max(_PAIRS_PER_DRAW, pairs.x.shape[0])
            # One draw at least: also without pairs, it checks the cutoffs and the generator.
            negative = torch.cat(
                [
                    self._draw(pairs, anchor[start : start + step], generator)
                    for start in range(0, max(1, anchor.shape[0]), step)
                ]
            )
            drawn = negative >= 0
            return anchor[drawn], positive[drawn], negative[drawn]

    def _draw(self, pairs: Pairs, anchor: Tensor, generator: torch.Generator | None) -> Tensor:
        """(K,) a negative for each of (K,) anchors, -1 where none has a weight."""
        # Within a batch too self is of the anchor's class: never drawn.
        own = None if pairs.self_index is None else pairs.self_index[anchor]
        drawn = functional.sample_negative(
            pairs.x[anchor],
            pairs.labels[anchor],
            pairs.references,
            pairs.reference_labels,
            self_index=own,
            cutoff=self.cutoff,
            nonzero_loss_cutoff=self.nonzero_loss_cutoff,
            generator=generator,
        )
        # Where all weights are 0, the draw was from all negatives.
        weightless = drawn.distance.double() >= self.nonzero_loss_cutoff
        return torch.where(weightless, -1, drawn.index)

    def _parameters_to_print(self) -> list[tuple[str, object]]:
        return [("cutoff", self.cutoff), ("nonzero_loss_cutoff", self.nonzero_loss_cutoff)]
