"""Similarities that must fall as an intensity rises: those given, and those to synthesised rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmlfast.benchmarking.workload import Case, Inputs, Step, Workload
from dmlfast.benchmarking.workloads._contestants import clone, compiled, on_reference, training
from dmlfast.functional import ranking_loss, synthetic_ranking_loss

__all__ = ["WORKLOADS"]

# The defaults of the functions above, and the number of intensities.
MARGIN, SCALE = 0.11, 32.0
STEPS = 5


def _kernel(similarities: Tensor, _: Tensor) -> Tensor:
    return ranking_loss(similarities)


def _ranking_written_out(similarities: Tensor, _: Tensor) -> Tensor:
    rise = similarities[:, None, :] - similarities[:, :, None] + MARGIN
    return (1 + (SCALE * rise).exp().triu(1).sum((1, 2))).log().mean() / SCALE


class _Parameters(NamedTuple):
    """A projection that keeps the number of dimensions, and offsets of length 1 to 5."""

    offsets: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, x: Tensor) -> _Parameters:
        """The same on every call, as leaves."""
        dimensions = x.shape[1]
        generator = torch.Generator().manual_seed(1)
        directions = torch.randn(STEPS, dimensions, generator=generator)
        intensities = torch.arange(1, STEPS + 1)[:, None]
        parameters = (
            intensities * torch.nn.functional.normalize(directions),
            torch.randn(dimensions, dimensions, generator=generator) / dimensions**0.5,
            torch.zeros(dimensions),
        )
        return cls(*(p.to(x.device).requires_grad_() for p in parameters))


def _synthesised(inputs: Inputs) -> Sequence[Tensor]:
    """The arguments of a loss of embeddings and parameters."""
    return inputs.leaf(), *_Parameters.of(inputs.x)


def _synthetic_written_out(x: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    made = (x[:, None] + offsets).flatten(0, 1)
    made, own = (
        torch.nn.functional.normalize(torch.nn.functional.linear(rows, weight, bias)).relu()
        for rows in (made, x)
    )
    similarities = (made.view(len(x), len(offsets), -1) * own[:, None]).sum(2)
    return _ranking_written_out(similarities, similarities)


def _products_of_the_projection(inputs: Inputs) -> Step:
    """The yardstick: the three products of a projection of x, forward and backward."""
    x, weight = inputs.x, _Parameters.of(inputs.x).weight.detach()
    warm, to_weight = torch.zeros_like(x), torch.zeros_like(weight)

    def step() -> Tensor:
        torch.mm(x, weight.T, out=warm)
        torch.mm(warm.T, x, out=to_weight)
        return torch.mm(x, weight, out=warm)

    return step


def _operations(case: Case) -> float:
    return 6.0 * case.rows * case.dimensions**2


WORKLOADS = (
    Workload(
        name="ranking",
        family="ranking",
        summary="ranking loss of N rows of d similarities, forward and backward",
        contestants={
            "clone": clone,
            "kernel": training(_kernel),
            "reference": on_reference(training(_kernel)),
            "written out": training(_ranking_written_out),
            "written out, compiled": compiled(_ranking_written_out),
        },
        yardstick="clone",
        cases=(Case(65536, 32),),
        quick=Case(1024, 32),
        operations=None,
    ),
    Workload(
        name="synthetic_ranking",
        family="ranking",
        summary=f"ranking loss over {STEPS} synthesised samples of each, forward and backward",
        contestants={
            "products of the projection": _products_of_the_projection,
            "kernel": training(synthetic_ranking_loss, _synthesised),
            "reference": on_reference(training(synthetic_ranking_loss, _synthesised)),
            "written out": training(_synthetic_written_out, _synthesised),
            "written out, compiled": compiled(_synthetic_written_out, _synthesised),
        },
        yardstick="products of the projection",
        cases=(Case(8192, 512),),
        quick=Case(512, 128),
        operations=_operations,
    ),
)
