"""Losses over classes of several centres each, and their operator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_classes,
    check_count,
    check_embeddings,
    check_finite,
    check_integers,
    check_not_negative,
    check_option,
    check_positive,
    check_range,
    check_references,
    describe,
)
from dmlfast.ops._operators import reference_operators, register
from dmlfast.ops._reduction import REDUCTIONS, reduce_over_rows, softplus
from dmlfast.reference import contrast_classes as reference
from dmlfast.reference.distances import distance_dtype

_SIMILARITIES = ("cosine", "dot")
_TENSORS = 3  # arguments of the operator that are tensors; the first ones


class _Centers(NamedTuple):
    """Checked arguments of a loss over classes.

    Attributes:
        x: (N, d) embeddings.
        labels: (N,) int64 classes.
        centers: (C * per_class, d), class after class.
        per_class: number of centres of every class.
    """

    x: Tensor
    labels: Tensor
    centers: Tensor
    per_class: int


def _check_centers(x: object, labels: object, centers: object, per_class: object) -> _Centers:
    embeddings = check_embeddings("x", x)
    classes = check_integers("labels", labels, embeddings.shape[0], embeddings.device)
    others = check_references("centers", centers, "x", embeddings)
    count = check_count("centers_per_class", per_class)
    if others.shape[0] % count:
        raise ValueError(f"centers: expected a multiple of {count} rows, got {describe(others)}")
    check_classes("labels", classes, others.shape[0] // count)
    return _Centers(embeddings, classes, others, count)


def class_sums(of: _Centers, form: reference.Form) -> reference.Sums:
    """The similarity of each row to its own class, and the sum over the others.

    Args:
        of: checked rows, labels and centres.
        form: what the similarity to a class is; the lowest of equally near centres is the nearest.

    Returns:
        `Sums`, of which similarity and total are differentiable once in the rows and the centres,
        the total as if its peak were a constant. Both NaN for a row that is not finite or whose
        label is no class; NaN for every row where a centre is not finite.

    Memory: O((N + C·K)·d); deterministic. Plain torch on every device.
    """
    return reference.Sums(
        *reference_operators().contrast_classes(of.x, of.labels, of.centers, of.per_class, *form)
    )


def _cross_entropy(sums: reference.Sums, own: Tensor, shift: float = 0.0) -> Tensor:
    """(N,) losses, in the dtype of the logits.

    Args:
        sums: over the other classes.
        own: (N,) logits of the own classes, but for the shift.
        shift: what is taken from them.
    """
    alone = sums.total == 0
    # The greatest logits cancel before anything is added to them.
    exponent = sums.peak.double() - own.double() + shift + torch.where(alone, 1, sums.total).log()
    return softplus(torch.where(alone, -math.inf, exponent)).to(own.dtype)


def soft_triple_loss(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    centers_per_class: int = 10,
    la: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor:
    """SoftTriple loss: the cross-entropy of relaxed similarities to several centres a class.

    The similarity of an embedding to a class is that to its centres, S_k, averaged with the
    weights softmax_k(S_k / gamma); `margin` is taken from that to the own class, and all are
    multiplied by `la`.

    Args:
        x: (N, d) embeddings; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes in [0, C), any integer dtype.
        centers: (C * centers_per_class, d) of the dtype and device of `x`, class after class.
        centers_per_class: K.
        la: factor of the similarities in the cross-entropy, finite; it and la * margin are in the
            range of the result's dtype.
        gamma: temperature of the weights, greater than 0 and finite.
        margin: a similarity, finite.
        metric: "cosine" (default) or "dot".
        reduction: "mean" over all embeddings, "sum", or "none".

    Returns:
        A scalar, or (N,) losses with reduction "none". float64 for float64 inputs, else float32.
        Differentiable once in `x` and `centers`.

    Memory: O((N + C·K)·d), with blocks of some MiB; deterministic. Plain torch on every device.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option, or a label outside [0, C); on CUDA and in a
            compiled call its row has a loss of NaN instead.

    Source: Qian et al., "SoftTriple loss: deep metric learning without triplet sampling", ICCV
    2019, without its regulariser.
    """
    la, gamma = check_finite("la", la), check_positive("gamma", gamma)
    margin = check_finite("margin", margin)
    check_option("metric", metric, _SIMILARITIES)
    check_option("reduction", reduction, REDUCTIONS)
    of = _check_centers(x, labels, centers, centers_per_class)
    dtype = distance_dtype(of.x)
    check_range("la", la, dtype)
    check_range("la * margin", la * margin, dtype)
    # Beyond the range the weights are those at its ends: of the nearest centre, and equal ones.
    gamma = min(max(gamma, torch.finfo(dtype).tiny), torch.finfo(dtype).max)
    sums = class_sums(of, reference.Form("relaxed", gamma, la, metric))
    return reduce_over_rows(_cross_entropy(sums, la * sums.own, la * margin), reduction)


def sub_center_arcface_loss(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    centers_per_class: int = 3,
    margin: float = 28.6,
    scale: float = 64.0,
    reduction: str = "mean",
) -> Tensor:
    """Sub-centre ArcFace loss: the cross-entropy of cosines to the nearest centre of every class.

    The cosine to the own class is that of the angle plus `margin`; where this is beyond 180
    degrees, the cosine itself less margin * sin(margin), in radians, so that it falls on. All are
    multiplied by `scale`.

    Args:
        x: (N, d) embeddings of any length; float16, bfloat16, float32 or float64.
        labels: (N,) classes in [0, C), any integer dtype.
        centers: (C * centers_per_class, d) of the dtype and device of `x`, of any length, class
            after class.
        centers_per_class: K; with 1 it is the ArcFace loss.
        margin: an angle in degrees, from 0 to 180.
        scale: factor of the cosines in the cross-entropy, greater than 0 and in the range of the
            result's dtype.
        reduction: "mean" over all embeddings, "sum", or "none".

    Returns:
        A scalar, or (N,) losses with reduction "none". float64 for float64 inputs, else float32.
        Differentiable once in `x` and `centers`: of the centres of a class the nearest takes its
        gradient, the lowest of equally near ones. At an angle of 0 or 180 degrees, where that of
        the sine is infinite, it is taken to be 0. A zero vector has cosine 0 and gradient 0.

    Memory: O((N + C·K)·d), with blocks of some MiB; deterministic. Plain torch on every device.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option, or a label outside [0, C); on CUDA and in a
            compiled call its row has a loss of NaN instead.

    Source: Deng et al., "Sub-center ArcFace: boosting face recognition by large-scale noisy web
    faces", ECCV 2020; the margin as in Deng et al., "ArcFace", CVPR 2019.
    """
    margin, scale = check_angle("margin", margin), check_positive("scale", scale)
    check_option("reduction", reduction, REDUCTIONS)
    of = _check_centers(x, labels, centers, centers_per_class)
    check_range("scale", scale, distance_dtype(of.x))
    sums = class_sums(of, reference.Form("greatest", 1.0, scale, "cosine"))
    own = _with_margin(sums.own, math.radians(margin))
    return reduce_over_rows(_cross_entropy(sums, scale * own), reduction)


def check_angle(name: str, value: object) -> float:
    """Raises as `check_number`, and ValueError unless 0 <= the number <= 180."""
    angle = check_not_negative(name, value)
    if angle > 180:
        raise ValueError(f"{name}: expected an angle of at most 180 degrees, got {value!r}")
    return angle


def _with_margin(cosine: Tensor, margin: float) -> Tensor:
    """The cosine of the angle plus a margin in radians, going on below where that is beyond pi."""
    square = (1 - cosine) * (1 + cosine)
    has_sine = square > 0
    sine = torch.where(has_sine, torch.where(has_sine, square, 1.0).sqrt(), 0.0)
    added = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine < -math.cos(margin)
    return torch.where(beyond, cosine - margin * math.sin(margin), added)


def _reference(
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    form: str,
    temperature: float,
    scale: float,
    metric: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = reference.Form(form, temperature, scale, metric)
    return reference.sums(x, labels, centers, centers_per_class, options)


def _reference_backward(
    grad_own: Tensor,
    grad_total: Tensor,
    peak: Tensor,
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    centers_per_class: int,
    form: str,
    temperature: float,
    scale: float,
    metric: str,
) -> tuple[Tensor, Tensor]:
    options = reference.Form(form, temperature, scale, metric)
    return reference.sums_backward(
        grad_own, grad_total, peak, x, labels, centers, centers_per_class, options
    )


def _fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    own = x.new_empty((x.shape[0],), dtype=distance_dtype(x))
    return own, torch.empty_like(own, dtype=torch.float64), torch.empty_like(own)


def _fake_backward(
    grad_own: Tensor,
    grad_total: Tensor,
    peak: Tensor,
    x: Tensor,
    labels: Tensor,
    centers: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), centers.new_empty(centers.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(output[2], *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _backward(
    operators: Any, ctx: Any, grad_own: Tensor, grad_total: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    grad_x, grad_centers = operators.contrast_classes_backward(
        grad_own, grad_total, *ctx.saved_tensors, *ctx.options
    )
    return grad_x, None, grad_centers, *(None,) * 5


register(
    "contrast_classes",
    reference=_reference,
    reference_backward=_reference_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
    has_kernel=False,
)
