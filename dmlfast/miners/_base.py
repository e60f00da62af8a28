"""What miners share: the call, its checks, and the pairs of a chunk of anchors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmlfast import functional
from dmlfast._keywords import MINER_KEYWORDS, refuse_keywords
from dmlfast._normalize import unit_rows
from dmlfast.ops._arguments import (
    METRICS,
    MODULE_NAMES,
    Pairs,
    check_flag,
    check_option,
    check_pairs,
)

# Elements of a chunk of a matrix of pairs: 16 MiB of float32.
_CHUNK_ELEMENTS = 2**22


class PairMasks(NamedTuple):
    """The pairs of some anchors, one after the other, with all references.

    Attributes:
        part: which anchors.
        positive: (C, M) bool, references of the anchor's class without itself.
        negative: (C, M) bool, all others. Rows that are not finite are in no pair.
    """

    part: slice
    positive: Tensor
    negative: Tensor


class Miner(nn.Module):
    """A module that picks pairs or triplets, with pytorch-metric-learning's call.

    Args:
        unknown: keywords that are none of the miner's.
        metric: "euclidean", "sqeuclidean", "cosine" or "dot".
        normalize: scale the embeddings to unit L2 norm first, in float32 for 16-bit embeddings; a
            zero vector stays zero.

    Raises:
        TypeError: an unknown keyword, or a wrong type.
        ValueError: an unknown metric.
    """

    def __init__(self, unknown: dict[str, Any], metric: str, normalize: bool) -> None:
        super().__init__()
        refuse_keywords(type(self).__name__, unknown, MINER_KEYWORDS)
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
    ) -> tuple[Tensor, ...]:
        """Picks, without gradient.

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
            int64 tensors, anchors being rows of `embeddings` and the others of `ref_emb`; which,
            the miner's own documentation says. Deterministic. On CUDA, their lengths make the
            host wait for the device.

        Raises:
            TypeError: something is not a tensor or has a wrong dtype.
            ValueError: a wrong shape or device, `ref_emb` without `ref_labels`, or `self_index`
                without `ref_emb`.
        """
        pairs = self._checked(embeddings, labels, ref_emb, ref_labels, self_index)
        with torch.no_grad():
            return self._mine(pairs)

    def _mine(self, pairs: Pairs) -> tuple[Tensor, ...]:
        """The indices of checked rows, scaled where wanted."""
        raise NotImplementedError

    def _checked(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        self_index: Tensor | None,
    ) -> Pairs:
        """Detached rows, scaled where wanted, all NaN where not finite; raises as `forward`."""
        # Checks come first: normalising would hide what was handed in.
        pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, self_index, names=MODULE_NAMES)
        x = self._rows(pairs.x)
        references = x if pairs.within_batch else self._rows(pairs.references)
        return pairs._replace(x=x, references=references)

    def _rows(self, x: Tensor) -> Tensor:
        x = x.detach()
        # A selection never chooses NaN, but infinity is a distance like others.
        x = torch.where(x.isfinite().all(1, keepdim=True), x, torch.nan)
        return unit_rows(x) if self.normalize else x

    def extra_repr(self) -> str:
        """The parameters, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self._parameters_to_print())

    def _parameters_to_print(self) -> list[tuple[str, object]]:
        return [("metric", self.metric), ("normalize", self.normalize)]


def pair_chunks(pairs: Pairs) -> Iterator[PairMasks]:
    """All pairs, by chunks of anchors that do not grow with N·M; none without references."""
    columns = pairs.references.shape[0]
    if columns == 0:
        return
    finite = pairs.x.isfinite().all(1)
    finite_references = pairs.references.isfinite().all(1)
    position = torch.arange(columns, device=pairs.x.device)
    rows = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, pairs.x.shape[0], rows):
        part = slice(start, start + rows)
        same = pairs.labels[part, None] == pairs.reference_labels[None]
        candidate = finite[part, None] & finite_references[None]
        if pairs.self_index is not None:
            candidate = candidate & (position[None] != pairs.self_index[part, None])
        yield PairMasks(part, same & candidate, ~same & candidate)


def chunk_distances(pairs: Pairs, chunk: PairMasks, metric: str) -> Tensor:
    """(C, M) distances of a chunk."""
    return functional.pairwise_distance(pairs.x[chunk.part], pairs.references, metric=metric)


def all_pairs(pairs: Pairs, kind: str) -> tuple[Tensor, Tensor]:
    """Anchors and partners of all "positive" or "negative" pairs, ascending."""
    found = [indices(chunk.part, getattr(chunk, kind)) for chunk in pair_chunks(pairs)]
    return join(found, pairs.x.device)


def indices(part: slice, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Anchors and partners where the (C, M) mask of a chunk is True, ascending."""
    row, column = mask.nonzero(as_tuple=True)
    return row + part.start, column


def join(found: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    """The pairs of all chunks."""
    none = torch.empty(0, dtype=torch.int64, device=device)
    anchors, partners = ([none, *(pair[i] for pair in found)] for i in (0, 1))
    return torch.cat(anchors), torch.cat(partners)
