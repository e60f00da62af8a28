"""Similarities between projected rows and rows synthesised from them, which are never made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_embeddings,
    check_references,
    check_tensor,
    describe,
)
from dmlfast.ops._operators import register
from dmlfast.ops.ranking import ranking_loss, ranking_operators
from dmlfast.reference import ranking as reference
from dmlfast.reference.distances import distance_dtype


def synthesis_similarity(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    targets: Tensor | None = None,
) -> Tensor:
    """Similarities of the synthesised rows x_i + offsets_j, projected, to the projected x_i.

    With the projection q(v) = relu(W v + b scaled to length 1), of 0 for W v + b = 0, they are
    <q(x_i + offsets_j), q(x_i)>, or <q(x_i + offsets_j), targets_i>. No synthesised row is ever
    made: as W (x + o) + b = (W x + b) + W o, two thin products serve them all.

    Args:
        x: (B, d) embeddings; float16, bfloat16, float32 or float64, any strides. Not normalised
            here, nor are the offsets.
        offsets: (J, d) of the dtype and device of `x`, one for each intensity, ready to be added.
        weight: (p, d) likewise, the W of the projection, as in `torch.nn.functional.linear`.
        bias: (p,) likewise, b; none by default.
        targets: (B, p) of the dtype of `x` or of the result, compared as they are: neither
            projected nor scaled. q(x) by default.

    Returns:
        (B, J) float64 for float64 embeddings, else float32. Differentiable once in all tensors,
        through both roles of `x`. The gradient of a relu at 0, and of the length of a projection
        of 0, is 0. A row or an offset that is not finite has similarities of NaN; a similarity
        whose upstream gradient is 0 gives none to `x`, `offsets` and `targets`.

    Memory: O(B·(J + p)), and in backward as much again; no temporary of (B·J, d) or (B·J, p).
    16-bit rows are multiplied as float32, of which there is a copy. Deterministic as torch's
    products are. float64 rows are served by plain torch everywhere.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device.

    Source: the projector and the similarities of GAR (intra-variance ranking, EAAI 2024), as the
    authors' code has them.
    """
    rows = check_embeddings("x", x)
    steps = check_references("offsets", offsets, "x", rows)
    projection = check_references("weight", weight, "x", rows)
    shift = None if bias is None else _check_bias(bias, projection)
    compared = None if targets is None else _check_targets(targets, rows, projection)
    dtype = distance_dtype(rows)
    # Under autocast, too, in the dtype that comes.
    with torch.autocast(rows.device.type, enabled=False):
        projection = projection.to(dtype)
        shift = None if shift is None else shift.to(dtype)
        projected = torch.nn.functional.linear(rows.to(dtype), projection, shift)
        shifts = torch.nn.functional.linear(steps.to(dtype), projection)
    result: Tensor = ranking_operators(rows).synthesis_similarity(
        projected, shifts, None if compared is None else compared.to(dtype)
    )
    return result


def synthetic_ranking_loss(
    x: Tensor,
    offsets: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    margin: float = 0.11,
    scale: float = 32.0,
    pairs: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """`ranking_loss` of `synthesis_similarity`: similarity to a row must fall with intensity.

    Args:
        x: (B, d) embeddings; see `synthesis_similarity`, also for the next three.
        offsets: (J, d), of the weakest intensity first.
        weight: (p, d) of the projection.
        bias: (p,) of the projection.
        margin: see `ranking_loss`, also for the next three.
        scale: greater than 0.
        pairs: "all" (default), "adjacent" or "band".
        reduction: "mean" over the B rows (default), "sum" or "none".

    Returns:
        A scalar, or (B,) losses with reduction "none"; float64 for float64 embeddings, else
        float32. Differentiable once in all tensors.

    Memory: O(B·(J + p)).

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: as `ranking_loss`.
    """
    similarities = synthesis_similarity(x, offsets, weight, bias)
    return ranking_loss(similarities, margin=margin, scale=scale, pairs=pairs, reduction=reduction)


def _check_bias(value: object, weight: Tensor) -> Tensor:
    bias = check_tensor("bias", value)
    if bias.dtype != weight.dtype:
        raise TypeError(f"bias: expected {weight.dtype} as weight, got {describe(bias)}")
    if bias.shape != weight.shape[:1] or bias.device != weight.device:
        raise ValueError(
            f"bias: expected shape ({weight.shape[0]},) on {weight.device}, got {describe(bias)}"
        )
    return bias


def _check_targets(value: object, x: Tensor, weight: Tensor) -> Tensor:
    targets = check_embeddings("targets", value)
    if targets.dtype not in (x.dtype, distance_dtype(x)):
        raise TypeError(
            f"targets: expected {x.dtype} as x or {distance_dtype(x)}, got {describe(targets)}"
        )
    if targets.shape != (x.shape[0], weight.shape[0]) or targets.device != x.device:
        raise ValueError(
            f"targets: expected shape ({x.shape[0]}, {weight.shape[0]}) on {x.device}, got "
            f"{describe(targets)}"
        )
    return targets


def _fake(projected: Tensor, shifts: Tensor, targets: Tensor | None) -> Tensor:
    shape = (projected.shape[0], shifts.shape[0])
    return projected.new_empty(shape, dtype=distance_dtype(projected))


def _fake_backward(
    grad: Tensor, projected: Tensor, shifts: Tensor, targets: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    rows = 0 if targets is None else projected.shape[0]
    return (
        projected.new_empty(projected.shape),
        shifts.new_empty(shifts.shape),
        projected.new_empty((rows, projected.shape[1])),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    projected, shifts, targets = ctx.saved_tensors
    to_projected, to_shifts, to_targets = operators.synthesis_similarity_backward(
        grad, projected, shifts, targets
    )
    return to_projected, to_shifts, None if targets is None else to_targets


register(
    "synthesis_similarity",
    reference=reference.synthesis,
    reference_backward=reference.synthesis_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
)
