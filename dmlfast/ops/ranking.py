"""A loss that demands that the similarity to an anchor falls as an intensity rises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_embeddings,
    check_finite,
    check_option,
    check_positive,
)
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.ops._reduction import REDUCTIONS, reduce_over_rows
from dmlfast.reference import ranking as reference
from dmlfast.reference.distances import distance_dtype

PAIRS = ("all", "adjacent", "band")


def ranking_loss(
    similarities: Tensor,
    *,
    margin: float = 0.11,
    scale: float = 32.0,
    pairs: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """Demands that the similarities of a row fall from each column to the later ones by a margin.

    With the similarities s_1, ..., s_J of a row, the first of the weakest intensity, its loss is

        (1 / scale) log(1 + sum_{j<k} exp(scale (s_k - s_j + margin)))

    over all pairs j < k, or over the adjacent ones, k = j + 1, alone. "band" adds

        (1 / scale) log(1 + sum_{j<k} exp(-scale (s_k - s_j + (k - 1) margin)))

    which holds s_k above s_j by no more than (k - 1) margin below. Both together admit nothing but
    steps of exactly one margin: (J - 1) margin must fit the range of the similarities.

    Args:
        similarities: (B, J) float16, bfloat16, float32 or float64, any strides.
        margin: a finite similarity.
        scale: greater than 0.
        pairs: "all" (default), "adjacent" or "band".
        reduction: "mean" over the B rows (default), "sum" or "none".

    Returns:
        A scalar, or (B,) losses with reduction "none"; float64 for float64 similarities, else
        float32. Differentiable once in `similarities`. A row with one similarity or none has loss
        0, and so has a mean over no row. A row that is not finite, infinities included, has loss
        NaN, and gradient NaN unless its upstream gradient is 0.

    Memory: O(B·J), as is the time: there is no (B, J, J) temporary. Sums are float64 and relative
    to their greatest term: right to the rounding of float32 for all finite similarities and
    scales. Deterministic. float64 similarities are served by plain torch, O(B·J^2), everywhere.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape or option.

    Source: the ranking loss of GAR (intra-variance ranking, EAAI 2024) as the authors' code has
    it, which counts every pair of "all" twice: this is half of it. There "band" has another term,
    unused. "adjacent" is that of Fu et al., "Deep metric learning with self-supervised ranking",
    AAAI 2021 (margin 0.05, scale 12).
    """
    values = check_embeddings("similarities", similarities)
    margin, scale = check_finite("margin", margin), check_positive("scale", scale)
    check_option("pairs", pairs, PAIRS)
    check_option("reduction", reduction, REDUCTIONS)
    loss = ranking_operators(values).ranking_loss(values, margin, scale, pairs)
    return reduce_over_rows(loss, reduction)


def ranking_operators(x: Tensor) -> Any:
    """The namespace of the operators of the family: no kernel serves float64."""
    return reference_operators() if x.dtype == torch.float64 else operators("ranking", x.device)


def _reference(similarities: Tensor, margin: float, scale: float, pairs: str) -> Tensor:
    return reference.loss(similarities, margin=margin, scale=scale, pairs=pairs)


def _reference_backward(
    grad: Tensor, similarities: Tensor, margin: float, scale: float, pairs: str
) -> Tensor:
    return reference.loss_backward(grad, similarities, margin=margin, scale=scale, pairs=pairs)


def _fake(similarities: Tensor, margin: float, scale: float, pairs: str) -> Tensor:
    return similarities.new_empty(similarities.shape[0], dtype=distance_dtype(similarities))


def _fake_backward(
    grad: Tensor, similarities: Tensor, margin: float, scale: float, pairs: str
) -> Tensor:
    return similarities.new_empty(similarities.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    similarities, ctx.margin, ctx.scale, ctx.pairs = inputs
    ctx.save_for_backward(similarities)


def _backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (similarities,) = ctx.saved_tensors
    result: Tensor = operators.ranking_loss_backward(
        grad, similarities, ctx.margin, ctx.scale, ctx.pairs
    )
    return result, None, None, None


register(
    "ranking_loss",
    reference=_reference,
    reference_backward=_reference_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
)
