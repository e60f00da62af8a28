"""The k nearest references under a label rule, in plain torch, a chunk of anchors at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.reference import distances


def top(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    k: int,
    candidates: str,
    metric: str,
) -> tuple[Tensor, Tensor]:
    """The k nearest references of each anchor, ascending; equal values by ascending index.

    Args:
        x: (N, d) anchors.
        labels: (N,) int64; without meaning where all references are candidates.
        references: (M, d).
        reference_labels: (M,) int64.
        self_index: (N,) int64 references never chosen, -1 for none; or None.
        k: how many.
        candidates: "all", "positives" (of the anchor's class) or "negatives" (of another).
        metric: see `dmlfast.functional`.

    Returns:
        distance (N, k) and index (N, k). O((N + M)·d + N·k) memory.
    """
    rows = distances.chunk_rows(references.shape[0])
    chosen = [
        _top_chunk(
            x[start : start + rows],
            labels[start : start + rows],
            references,
            reference_labels,
            None if self_index is None else self_index[start : start + rows],
            k=k,
            candidates=candidates,
            metric=metric,
        )
        for start in range(0, max(1, x.shape[0]), rows)
    ]
    return torch.cat([d for d, _ in chosen]), torch.cat([i for _, i in chosen])


def _top_chunk(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    *,
    k: int,
    candidates: str,
    metric: str,
) -> tuple[Tensor, Tensor]:
    value = distances.values(x[:, None], references[None], metric)
    if candidates != "all":
        same = labels[:, None] == reference_labels[None]
        value = torch.where(same if candidates == "positives" else ~same, value, math.nan)
    if self_index is not None:
        position = torch.arange(references.shape[0], device=x.device)
        value = torch.where(position[None] == self_index[:, None], math.nan, value)
    # NaN, what is no candidate, comes last. Adding 0 makes -0 equal to 0 for every way of sorting.
    value, index = (value + 0.0).sort(dim=1, stable=True)
    padding = (x.shape[0], max(0, k - references.shape[0]))
    value = torch.cat([value[:, :k], value.new_full(padding, math.nan)], 1)
    index = torch.cat([index[:, :k], index.new_full(padding, -1)], 1)
    found = ~value.isnan()
    # An anchor that is not finite and finds too few reports NaN: a loss must not lose it.
    zero = (x - x).double().sum(1)
    returned = distances.distances(value, metric, x.dtype)
    missing = torch.where(zero == 0, math.inf, math.nan).to(returned.dtype)[:, None]
    return torch.where(found, returned, missing), torch.where(found, index, -1)
