"""Contestants that several workloads share, and what makes contestants of losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import dmlfast
from dmlfast.benchmarking.workload import Contestant, Inputs, Step

__all__ = [
    "clone",
    "compiled",
    "in_threads",
    "on_reference",
    "product",
    "product_in_blocks",
    "training",
    "training_step",
]

# Of the tensors that its arguments make of the inputs; a scalar tensor.
Loss = Callable[..., Any]
Arguments = Callable[[Inputs], Sequence[Tensor]]

# Rows of the result that `product_in_blocks` computes at a time.
_BLOCK = 2048


def clone(inputs: Inputs) -> Step:
    """The yardstick of a task whose least cost is to read the data."""
    return inputs.x.clone


def product(inputs: Inputs) -> Step:
    """The yardstick: the bare product x @ x.T into memory that is already allocated."""
    x = inputs.x
    warm = x.new_zeros(len(x), len(x))
    return lambda: torch.mm(x, x.T, out=warm)


def product_in_blocks(inputs: Inputs) -> Step:
    """The same product where its result does not fit: 2048 rows at a time into the same memory.

    Returns the last of them.
    """
    x = inputs.x
    warm = x.new_zeros(min(_BLOCK, len(x)), len(x))

    def step() -> Tensor:
        for rows in x.split(_BLOCK):
            last = torch.mm(rows, x.T, out=warm[: len(rows)])
        return last

    return step


def embeddings_and_labels(inputs: Inputs) -> Sequence[Tensor]:
    """The arguments of most losses."""
    return inputs.leaf(), inputs.labels


def training_step(loss: Loss, inputs: Inputs, arguments: Arguments = embeddings_and_labels) -> Step:
    """The step of a loss: forward, and backward to its leaves; returns the loss."""
    given = arguments(inputs)
    leaves = [tensor for tensor in given if tensor.requires_grad]

    def step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value: Tensor = loss(*given)
        value.backward()
        return value.detach()

    return step


def training(loss: Loss, arguments: Arguments = embeddings_and_labels) -> Contestant:
    """The contestant of a loss that needs no preparation: forward and backward."""
    return partial(training_step, loss, arguments=arguments)


def compiled(loss: Loss, arguments: Arguments = embeddings_and_labels) -> Contestant:
    """The contestant of a loss under torch.compile, for the one shape: forward and backward."""
    return partial(_compiled, loss, arguments)


def _compiled(loss: Loss, arguments: Arguments, inputs: Inputs) -> Step:
    # Every size is compiled for itself, more of them than a function may have by default.
    with torch._dynamo.config.patch(recompile_limit=64):
        compiled_loss = torch.compile(loss, fullgraph=True, dynamic=False)
        step = training_step(compiled_loss, inputs, arguments)
        step()
    return step


def on_reference(contestant: Contestant) -> Contestant:
    """A contestant with the plain-torch reference instead of the kernels."""
    return partial(_on_reference, contestant)


def _on_reference(contestant: Contestant, inputs: Inputs) -> Step:
    return dmlfast.use_backend("reference")(contestant(inputs))


def in_threads(threads: int, contestant: Contestant) -> Contestant:
    """A contestant with a number of torch threads of its own."""
    return partial(_in_threads, threads, contestant)


def _in_threads(threads: int, contestant: Contestant, inputs: Inputs) -> Step:
    inner = contestant(inputs)

    def step() -> object:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return inner()
        finally:
            torch.set_num_threads(before)

    return step
