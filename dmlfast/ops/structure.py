"""Distances by the anchor's own weights of the dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmlfast.ops._arguments import (
    check_embeddings,
    check_flag,
    check_references,
    describe,
)
from dmlfast.ops._operators import operators, reference_operators, register
from dmlfast.reference import structure as reference
from dmlfast.reference.distances import distance_dtype


def adaptive_distance(
    e: Tensor, w: Tensor, references: Tensor | None = None, *, squared: bool = False
) -> Tensor:
    """All distances of the rows of `e` to the references, or to each other, by the rows' weights.

        D_ij = sqrt(sum_k w_ik (e_ik - y_jk)^2)

    Asymmetric: the neighbourhood of an anchor i is the ellipsoid of its own weights, whatever those
    of j are. References need none.

    A distance far below the lengths of its rows, D^2 < 1e-3 sum_k w_ik (e_ik - m_k)^2 where m is
    the mean of some references, is computed from the differences of their values: it is accurate to
    1e-6 of itself, and 0 between equal rows. Deterministic.

    Args:
        e: (N, d) float16, bfloat16, float32 or float64 embeddings, any strides.
        w: (N, d) weights of the dimensions, dtype and device of `e`; at least 0.
        references: (M, d), dtype and device of `e`; the batch itself by default, each row with
            itself included.
        squared: return D^2.

    Returns:
        (N, M) float64 for float64 rows, else float32; differentiable once in `e`, `w` and
        `references`. The gradient of a distance of 0 is 0. A row of embeddings that is not finite
        has distance NaN to all others, and so has an anchor with a weight that is not finite or is
        negative, which is no distance; where the gradient of that NaN is used, the anchor, its
        weights and the reference get gradient NaN.

    Memory: the result, and O((N + M)·d); backward needs no other matrix than the result and its
    gradient. float64 rows are served by plain torch everywhere.

    Raises:
        TypeError: something is not a tensor or has a wrong dtype.
        ValueError: a wrong shape or device.

    Source: the adaptive distance of NASA (Li et al., "Neighborhood-adaptive structure augmented
    metric learning", AAAI 2022). The authors' code takes squared differences below 1e-12 for 1e-12;
    this does not, so that equal rows have distance 0.
    """
    rows, structure = check_structure(e, w)
    others = None if references is None else check_references("references", references, "e", rows)
    check_flag("squared", squared)
    result: Tensor = structure_operators(rows).structure_distance(rows, structure, others, squared)
    return result


def check_structure(
    e: object, w: object, names: tuple[str, str] = ("e", "w")
) -> tuple[Tensor, Tensor]:
    """Embeddings and their weights; raises unless they are of one shape, dtype and device."""
    e_name, w_name = names
    rows, structure = check_embeddings(e_name, e), check_embeddings(w_name, w)
    got = describe(structure)
    if structure.shape != rows.shape:
        raise ValueError(
            f"{w_name}: expected {tuple(rows.shape)}, the shape of {e_name}, got {got}"
        )
    if structure.dtype != rows.dtype:
        raise TypeError(f"{w_name}: expected {rows.dtype} as {e_name}, got {got}")
    if structure.device != rows.device:
        raise ValueError(f"{w_name}: expected the device of {e_name}, {rows.device}, got {got}")
    return rows, structure


def structure_operators(e: Tensor) -> Any:
    """The namespace of the operators of the family: no kernel serves float64."""
    return reference_operators() if e.dtype == torch.float64 else operators("structure", e.device)


def _reference(e: Tensor, w: Tensor, references: Tensor | None, squared: bool) -> Tensor:
    return reference.distance(e, w, references, squared=squared)


def _reference_backward(
    grad: Tensor,
    distance: Tensor,
    e: Tensor,
    w: Tensor,
    references: Tensor | None,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return reference.distance_backward(grad, distance, e, w, references, squared=squared)


def _fake(e: Tensor, w: Tensor, references: Tensor | None, squared: bool) -> Tensor:
    columns = (e if references is None else references).shape[0]
    return e.new_empty((e.shape[0], columns), dtype=distance_dtype(e))


def _fake_backward(
    grad: Tensor,
    distance: Tensor,
    e: Tensor,
    w: Tensor,
    references: Tensor | None,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    others = e.new_empty((0, e.shape[1]) if references is None else references.shape)
    return e.new_empty(e.shape), e.new_empty(w.shape), others


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.squared = inputs
    ctx.save_for_backward(output, *tensors)


def _backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    distance, e, w, references = ctx.saved_tensors
    to_e, to_w, to_references = operators.structure_distance_backward(
        grad, distance, e, w, references, ctx.squared
    )
    return to_e, to_w, None if references is None else to_references, None


register(
    "structure_distance",
    reference=_reference,
    reference_backward=_reference_backward,
    fake=_fake,
    fake_backward=_fake_backward,
    save_for_backward=_save,
    backward=_backward,
)
