"""Contestants that several workloads share, and what makes contestants of losses."""

from __future__ import annotations

from collections.abc import Callable
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

# Of embeddings and labels; a scalar tensor.
Loss = Callable[[Tensor, Tensor], Any]

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


def training_step(loss: Loss, inputs: Inputs) -> Step:
    """The step of a loss of embeddings and labels: forward and backward; returns the loss."""
    leaf = inputs.leaf()

    def step() -> Tensor:
        leaf.grad = None
        value: Tensor = loss(leaf, inputs.labels)
        value.backward()
        return value.detach()

    return step


def training(loss: Loss) -> Contestant:
    """The contestant of a loss that needs no preparation: forward and backward."""
    return partial(training_step, loss)


def compiled(loss: Loss) -> Contestant:
    """The contestant of a loss under torch.compile, for the one shape: forward and backward."""
    return partial(_compiled, loss)


def _compiled(loss: Loss, inputs: Inputs) -> Step:
    # Every size is compiled for itself, more of them than a function may have by default.
    with torch._dynamo.config.patch(recompile_limit=64):
        step = training_step(torch.compile(loss, fullgraph=True, dynamic=False), inputs)
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
