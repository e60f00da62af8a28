"""What the tests of operators on a GPU share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from dmlfast import _library

needs_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and _library.cuda_status.loaded),
        reason="needs a CUDA device and the CUDA library",
    ),
]

Function = Callable[..., Tensor | Sequence[Tensor]]


def cuda(*tensors: Tensor) -> list[Tensor]:
    return [tensor.cuda() for tensor in tensors]


def several(result: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def results(function: Function, *leaves: Tensor) -> list[Tensor]:
    """What a function returns, and the gradients of its weighted sum, on the CPU."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    found = several(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(part.shape, generator=generator).to(part) for part in found]
    gradients = torch.autograd.grad(found, leaves, weights)
    return [part.detach().cpu() for part in (*found, *gradients)]


def check_capture(function: Function, *tensors: Tensor) -> None:
    """Gradients of the sum, captured as a graph, follow leaves that change.

    Whatever waits for the host cannot be captured.
    """
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]

    def gradients() -> tuple[Tensor, ...]:
        return torch.autograd.grad([part.sum() for part in several(function(*leaves))], leaves)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        gradients()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gradients()
    with torch.no_grad():
        leaves[0].copy_(leaves[0].flip(1) * 0.5)
    graph.replay()
    assert all(map(torch.equal, captured, gradients()))
