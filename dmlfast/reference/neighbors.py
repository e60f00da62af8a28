"""Selections under a label rule, in plain torch, a chunk of anchors at a time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.reference import distances


def select(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    beyond: Tensor | None,
    *,
    metric: str,
    same_class: bool,
    farthest: bool,
) -> tuple[Tensor, Tensor]:
    """The nearest (or farthest) reference of each anchor and threshold.

    Args:
        x: (N, d) anchors.
        labels: (N,) int64.
        references: (M, d).
        reference_labels: (M,) int64.
        self_index: (N,) int64 references never chosen, -1 for none; or None.
        beyond: (N, T) thresholds that the returned distance must exceed; or None.
        metric: see `dmlfast.functional`.
        same_class: candidates are the references of the anchor's class, else all others.
        farthest: choose the farthest candidate.

    Returns:
        distance (N, T) and index (N, T); T = 1 without `beyond`. O((N + M)·d) memory.
    """
    rows = distances.chunk_rows(references.shape[0])
    chosen = [
        _select_chunk(
            x[start : start + rows],
            labels[start : start + rows],
            references,
            reference_labels,
            None if self_index is None else self_index[start : start + rows],
            None if beyond is None else beyond[start : start + rows],
            metric=metric,
            same_class=same_class,
            farthest=farthest,
        )
        for start in range(0, max(1, x.shape[0]), rows)
    ]
    return torch.cat([d for d, _ in chosen]), torch.cat([i for _, i in chosen])


def _select_chunk(
    x: Tensor,
    labels: Tensor,
    references: Tensor,
    reference_labels: Tensor,
    self_index: Tensor | None,
    beyond: Tensor | None,
    *,
    metric: str,
    same_class: bool,
    farthest: bool,
) -> tuple[Tensor, Tensor]:
    value = distances.values(x[:, None], references[None], metric)
    returned = distances.distances(value, metric, x.dtype)
    position = torch.arange(references.shape[0], device=x.device)
    same = labels[:, None] == reference_labels[None]
    candidate = (same if same_class else ~same) & ~value.isnan()
    if self_index is not None:
        candidate = candidate & (position[None] != self_index[:, None])
    key = -value if farthest else value
    # An anchor that is not finite and finds nothing reports NaN: a loss must not lose it.
    zero = (x - x).double().sum(1)
    missing = torch.where(zero == 0, math.inf, math.nan).to(returned.dtype)

    chosen_distance, chosen_index = [], []
    for t in range(1 if beyond is None else beyond.shape[1]):
        eligible = candidate if beyond is None else candidate & (returned > beyond[:, t, None])
        # A column of padding, so that an empty reference set has something to reduce over.
        best = _pad(torch.where(eligible, key, math.inf), math.inf).amin(1)
        ties = eligible & (key == best[:, None])
        none = references.shape[0]
        index = _pad(torch.where(ties, position, none), none).amin(1)
        found = index < none
        last = max(0, none - 1)
        picked = returned.gather(1, index.clamp(max=last)[:, None])[:, 0] if none else missing
        chosen_distance.append(torch.where(found, picked, missing))
        chosen_index.append(torch.where(found, index, -1))
    if not chosen_index:
        return returned.new_empty(x.shape[0], 0), position.new_empty(x.shape[0], 0)
    return torch.stack(chosen_distance, 1), torch.stack(chosen_index, 1)


def _pad(values: Tensor, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((values.shape[0], 1), fill)], 1)


def select_backward(
    grad: Tensor, x: Tensor, references: Tensor, index: Tensor, *, metric: str
) -> tuple[Tensor, Tensor]:
    """Gradients of distance(x[i], references[index[i, t]]) for an upstream gradient (N, T).

    An index of -1 contributes nothing, except NaN to an anchor that is not finite; an upstream
    gradient of 0 contributes nothing.
    """
    flat = index.reshape(-1)
    anchor = torch.arange(x.shape[0], device=x.device).repeat_interleave(index.shape[1])
    weight = grad.double().reshape(-1, 1)
    counts = ((flat >= 0) & (weight[:, 0] != 0))[:, None]
    a = x[anchor]
    r = references[flat.clamp(min=0)] if references.shape[0] else a
    to_anchor = torch.where(counts, weight * distances.gradients(a, r, metric), 0.0)
    lost = (flat < 0) & (weight[:, 0] != 0) & ~a.isfinite().all(1)
    to_anchor = torch.where(lost[:, None], math.nan, to_anchor)
    to_reference = torch.where(counts, weight * distances.gradients(r, a, metric), 0.0)
    grad_x = _add_rows(to_anchor, anchor, x)
    grad_references = _add_rows(to_reference, flat.clamp(min=0), references)
    return grad_x, grad_references


def _add_rows(rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Sums rows by index in a fixed order, rounded to the dtype of `like`."""
    total = torch.zeros_like(like, dtype=torch.float64)
    if like.shape[0] == 0:
        return total.to(like.dtype)
    if like.device.type == "cpu":
        total.index_add_(0, index, rows)
    else:
        # index_add_ uses atomics there; index_put_ sorts.
        total.index_put_((index,), rows, accumulate=True)
    return total.to(like.dtype)
